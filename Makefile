.PHONY: help demo demo-down test check bench fuzz clean

help:
	@echo 'make demo       the platform on this machine with a sample app; make demo-down takes it away again'
	@echo 'make test       all tests (installs what they need)'
	@echo 'make check      formatting, lints, unit tests: the quick part of make test'
	@echo 'make bench      measures what SPECIFICATION.md promises'
	@echo 'make fuzz       feeds the fuzz targets, TARGET=host SECONDS=180 each (needs a nightly toolchain)'
	@echo 'make clean      removes what was built'

demo:
	@scripts/demo.sh

demo-down:
	@scripts/demo-down.sh

test:
	@scripts/test.sh

check:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	cargo test --workspace --exclude e2e --locked --quiet

bench:
	@scripts/bench.sh

fuzz:
	@TARGET='$(TARGET)' FUZZ_SECONDS='$(SECONDS)' INPUT='$(INPUT)' scripts/fuzz.sh

clean:
	cargo clean
