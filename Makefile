# make demo    a real container, a real exec, the session that seclog makes of it
# make test    everything: unit tests, recordings, real containers, real kernels (fewer with SECLOG_KERNELS=6.1)
# make bench   what is measured
# make soak    delivery through faults, a fork bomb, a thousand short-lived containers: the long forms
# make fuzz    each fuzz target for ten minutes
# make lint    formatting and clippy
# The first run installs what is missing (Debian 12, as root).

SHELL := /bin/bash
export CARGO_TARGET_DIR ?= $(CURDIR)/target
export PATH := $(CARGO_TARGET_DIR)/tools/bin:$(PATH)
export SECLOG_KERNELS ?= 5.10 6.1 6.12 sid

.PHONY: demo test bench soak fuzz lint setup build clean

demo: build
	$(CARGO_TARGET_DIR)/debug/seclog-demo

test: build
	tests/setup/kernels.sh
	tests/setup/test.sh

bench: setup
	tests/setup/bench.sh
	tests/setup/kernels.sh 6.1
	cargo build --release -p seclog-agent -p seclog-tests --bin seclog-agent --bin seclog-bench --bin seclog-vm-init
	tests/setup/bench-run.sh
	cargo bench -p seclog-correlator
	cargo bench -p seclog-tests --bench delivery

soak: build
	SECLOG_SOAK=1 cargo test --workspace --test delivery --test kills_in_mid_session --test fork_bomb --test node_entries --test privileged_entries --test memory -- --test-threads=1

fuzz:
	fuzz/run.sh 600

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
