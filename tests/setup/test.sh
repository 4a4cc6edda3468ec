#!/usr/bin/env bash
# Runs all tests and ends with their sum. Exits as cargo test does.
. "$(dirname "$0")/common.sh"

mkdir -p "$target"
output=$(mktemp "$target/test-output.XXXXXX")
skipped=$(mktemp "$target/test-skipped.XXXXXX")
trap 'rm -f "$output" "$skipped"' EXIT

status=0
SECLOG_SKIPPED=$skipped cargo test --workspace --no-fail-fast "$@" 2>&1 | tee "$output" || status=$?
awk -f "$root/tests/setup/summary.awk" "$output" "$skipped"
exit "$status"
