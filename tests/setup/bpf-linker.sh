#!/usr/bin/env bash
# The linker for the kernel programs. Debian has no package of it; it is built once into target/tools.
. "$(dirname "$0")/common.sh"

if PATH="$target/tools/bin:$PATH" command -v bpf-linker >/dev/null; then
  exit 0
fi
if [ ! -d /usr/lib/llvm-22 ]; then
  say "LLVM 22 is not in /usr/lib/llvm-22; install bpf-linker 0.13.0 yourself"
  exit 0
fi
say "building bpf-linker (about a minute)"
# Its own target directory: the project's would be locked for the time, and filled with what nobody needs again.
LLVM_PREFIX=/usr/lib/llvm-22 CARGO_TARGET_DIR="$target/tools/build" quietly \
  cargo install bpf-linker --version 0.13.0 --locked --no-default-features --features llvm-22 --root "$target/tools"
rm -rf "$target/tools/build"
