# make demo    a real container, a real exec, the session that seclog makes of it
# make test    everything: unit tests, recordings, real containers, real kernels (fewer with SECLOG_KERNELS=6.1)
# make bench   what is measured
# make lint    formatting and clippy
# The first run installs what is missing (Debian 12, as root).

SHELL := /bin/bash
export CARGO_TARGET_DIR ?= $(CURDIR)/target
export PATH := $(CARGO_TARGET_DIR)/tools/bin:$(PATH)
export SECLOG_KERNELS ?= 5.10 6.1 6.12 sid

.PHONY: demo test bench lint setup build clean

demo: build
	$(CARGO_TARGET_DIR)/debug/seclog-demo

test: build
	tests/setup/kernels.sh
	tests/setup/test.sh

bench: setup
	tests/setup/bench.sh
	cargo build --release -p seclog-agent -p seclog-tests --bin seclog-agent --bin seclog-bench
	tests/setup/bench-run.sh
	cargo bench -p seclog-correlator

lint: setup
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings

setup:
	tests/setup/packages.sh
	tests/setup/bpf-linker.sh

build: setup
	cargo build --workspace --bins

clean:
	cargo clean
	rm -rf ebpf/target
