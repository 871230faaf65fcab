#!/usr/bin/env bash
# build-hello.sh DIR: builds examples/hello as a static binary and lays it with its Dockerfile into DIR.
set -euo pipefail
dir=${1:?usage: scripts/build-hello.sh DIR}
root=$(cd "$(dirname "$0")/.." && pwd)
target=$(uname -m)-unknown-linux-gnu
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
# The target is named although it is the machine's own: only so do the flags spare build scripts.
cd "$root/examples/hello"
RUSTFLAGS='-C target-feature=+crt-static' cargo build --quiet --locked --release --target "$target" \
    --target-dir "$root/target/hello"
cmp -s "$root/target/hello/$target/release/hello" "$dir/hello" || cp "$root/target/hello/$target/release/hello" "$dir/hello"
cmp -s Dockerfile "$dir/Dockerfile" || cp Dockerfile "$dir/Dockerfile"
