#!/usr/bin/env bash
# make bench: the benches of the parts, the gateway beside its peers, then the times of the whole platform on three Docker
# hosts (needs root). BENCH=parts|gateway|platform runs one of them.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
. "$root/scripts/lib.sh"
cd "$root"
which=${BENCH:-all}
wanted() { [ "$which" = all ] || [ "$which" = "$1" ]; }
scripts/install-deps.sh test
scripts/install-deps.sh bench
cargo build --release --locked -p caas
if wanted parts; then
    cargo bench --locked --workspace --exclude e2e --bench "*"
fi
if wanted gateway; then
    cargo run --release --locked -q -p side-by-side
    cargo build --release --locked -p caas-gateway --example bench_gateway
    cargo run --release --locked -q -p side-by-side -- --cases rate --peers still,changing --rounds 8
    # The second time that those with slow heads are thrown out and come again is part of it.
    cargo run --release --locked -q -p side-by-side -- --cases rate --peers attacked --rounds 5 --seconds 15
fi
if wanted platform; then
    cargo build --release --locked -p e2e --bin measure
    as_root env "PATH=$PATH" "HOME=$HOME" CAAS_E2E_BIN=target/release/caas target/release/measure --check
fi
