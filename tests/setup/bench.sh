#!/usr/bin/env bash
# What `make bench` compares with: auditd and rsyslog (Debian's), and laurel, built once into target/tools. None is started here.
# Where something cannot be had, the benchmarks say which figures they left out for it; that is no failure of this script.
. "$(dirname "$0")/common.sh"

laurel_version=0.8.2

missing=
# libacl1-dev: laurel links with it.
for package in auditd rsyslog libacl1-dev; do
  [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=" $package"
done
if [ -n "$missing" ]; then
  if ! command -v apt-get >/dev/null || [ "$(id -u)" -ne 0 ]; then
    say "without$missing there is nothing to compare with; run: apt-get install$missing"
    exit 0
  fi
  say "installing$missing"
  # Their services would take the place of this machine's own for good: installed, but not started.
  policy=/usr/sbin/policy-rc.d
  if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
    trap 'rm -f "$policy"' EXIT
  fi
  # shellcheck disable=SC2086 # one word a package
  { quietly apt-get update && quietly apt-get install -y --no-install-recommends $missing; } ||
    { say "nothing to compare with"; exit 0; }
fi

if ! "$target/tools/bin/laurel" --version 2>/dev/null | grep -qF "$laurel_version"; then
  say "building laurel $laurel_version (minutes)"
  CARGO_TARGET_DIR="$target/tools/laurel-build" quietly \
    cargo install laurel --version "$laurel_version" --locked --root "$target/tools" ||
    say "laurel cannot be built; nothing to compare with"
  rm -rf "$target/tools/laurel-build"
fi
