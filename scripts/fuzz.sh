#!/usr/bin/env bash
# make fuzz: feeds one fuzz target (or each in turn) for so many seconds. Needs a nightly toolchain, for coverage only; `cargo +nightly fuzz run
# TARGET` does the same where cargo-fuzz is installed. What a target finds lies in fuzz/artifacts, and is tried again with
# `make fuzz TARGET=… INPUT=fuzz/artifacts/…`.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
. "$root/scripts/lib.sh"
cd "$root/fuzz"
rustup run nightly rustc --version >/dev/null 2>&1 || die "fuzzing needs a nightly toolchain: rustup toolchain install nightly"
triple=$(rustup run nightly rustc -vV | sed -n 's/^host: //p')
export RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
-Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares"
# With a target named, build scripts and macros are built without coverage.
rustup run nightly cargo build --release --target "$triple" --target-dir target
bins=target/$triple/release
targets=${TARGET:-$(basename -s .rs fuzz_targets/*.rs)}
for target in $targets; do
    [ -x "$bins/$target" ] || die "there is no fuzz target $target: see fuzz/fuzz_targets"
    if [ -n "${INPUT:-}" ]; then
        exec "$bins/$target" "$root/$INPUT"
    fi
    mkdir -p "corpus/$target" "artifacts/$target"
    echo "== $target"
    nice -n 19 "$bins/$target" -max_total_time="${FUZZ_SECONDS:-180}" -max_len="${MAX_LEN:-2048}" -timeout=10 -print_final_stats=1 \
        -artifact_prefix="artifacts/$target/" "corpus/$target" "seeds/$target"
done
