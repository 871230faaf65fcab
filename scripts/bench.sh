#!/usr/bin/env bash
# make bench: the benches of the parts, then the times of the whole platform on three Docker hosts (needs root).
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
. "$root/scripts/lib.sh"
cd "$root"
scripts/install-deps.sh test
cargo build --release --locked -p caas
cargo bench --locked --workspace --exclude e2e --bench "*"
cargo build --release --locked -p e2e --bin measure
as_root env "PATH=$PATH" "HOME=$HOME" CAAS_E2E_BIN=target/release/caas target/release/measure
