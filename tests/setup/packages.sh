#!/usr/bin/env bash
# Debian packages that the build and the tests need, or with `build` only those of the build. Installs what is missing.
. "$(dirname "$0")/common.sh"

# Without these nothing builds: Debian's own Rust brings a `core` for BPF (rustup has none without nightly), LLVM is
# what bpf-linker is linked with, the C compiler builds TLS and links.
build_packages=(
  rustc-web cargo-web libstd-rust-web-dev-bpf
  llvm-22-dev libpolly-22-dev libzstd-dev zlib1g-dev
  gcc g++ libc6-dev make pkg-config ca-certificates
)
# Without these, tests with real containers and real kernels are skipped.
lab_packages=(
  containerd runc crun umoci busybox-static tar
  qemu-system-x86
  # Packed into one of the machines: daemons that are asked by systemd-run.
  systemd
  # Networks that are cut, clocks that step: tests of delivery.
  iproute2 libfaketime
)

missing() {
  local package
  for package in "$@"; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || printf '%s ' "$package"
  done
}

if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
  say "this is not a Debian system; nothing was installed. The build needs a Rust toolchain with the target"
  say "bpfel-unknown-none (or nightly with rust-src), bpf-linker and a C compiler; the tests also need containerd,"
  say "runc, umoci, a static busybox, qemu-system-x86_64, iproute2 and libfaketime, and are skipped without them."
  exit 0
fi

build_missing=$(missing "${build_packages[@]}")
lab_missing=
[ "${1:-}" = build ] || lab_missing=$(missing "${lab_packages[@]}")
[ -n "$build_missing$lab_missing" ] || exit 0

if [ "$(id -u)" -ne 0 ]; then
  say "missing packages, and no root to install them. Run: apt-get install $build_missing$lab_missing"
  # The lab's tools are missed by tests only, which say so themselves.
  [ -z "$build_missing" ] || exit 1
  exit 0
fi

say "installing $build_missing$lab_missing"
quietly apt-get update
# shellcheck disable=SC2086 # one word a package
quietly apt-get install -y --no-install-recommends $build_missing $lab_missing
