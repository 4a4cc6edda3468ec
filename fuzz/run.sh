#!/usr/bin/env bash
# Builds the fuzz targets and runs each for so many seconds, one after the other, on one core:
#   fuzz/run.sh [SECONDS] [TARGET...]
# Seeds are in fuzz/seeds/TARGET; what is found on the way goes to fuzz/corpus (not kept). Exits 1 when one finds something:
# the input is then in fuzz/artifacts.
set -euo pipefail
cd "$(dirname "$0")"

seconds=${1:-600}
shift || true
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-../target}/fuzz
# Coverage counters as libFuzzer wants them. Stable Rust can do this; the sanitizers it cannot.
export RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
  -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
  -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1"
# With a target named, the flags are not for build scripts and macros.
triple=$(rustc -vV | sed -n 's/^host: //p')
cargo build --release --target "$triple" --bins
[ $# -gt 0 ] || set -- $(sed -n 's/^name = "\(.*\)"$/\1/p' Cargo.toml | tail -n +2)

status=0
for target in "$@"; do
  mkdir -p "corpus/$target" "artifacts/$target" "seeds/$target"
  echo "fuzz: $target, $seconds s"
  nice "$CARGO_TARGET_DIR/$triple/release/$target" "corpus/$target" "seeds/$target" -max_total_time="$seconds" \
    -max_len=4096 -rss_limit_mb=2048 -timeout=20 -print_final_stats=1 -artifact_prefix="artifacts/$target/" \
    2>"artifacts/$target/log" || { status=1; echo "fuzz: $target found something"; }
  tail -n 12 "artifacts/$target/log"
done
exit "$status"
