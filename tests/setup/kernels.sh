#!/usr/bin/env bash
# Kernels for the tests in QEMU: kernels.sh [NAME...], with NAME one of 5.10 6.1 6.12 sid (default: $SECLOG_KERNELS,
# else all). Each is Debian's cloud kernel, the newest there is, unpacked (not installed) once to
# target/kernels/NAME/vmlinuz. One that cannot be had leaves the reason in target/kernels/NAME/unavailable, which its
# test reports; that is no failure of this script.
. "$(dirname "$0")/common.sh"

# name -> suite, and patterns of the package that holds vmlinuz, the best first
suite_of() {
  case $1 in
    5.10) echo bullseye '^linux-image-5\.10\.0-[0-9]+-cloud-amd64$' ;;
    6.1) echo bookworm '^linux-image-6\.1\.0-[0-9]+-cloud-amd64$' ;;
    6.12) echo trixie '^linux-image-6\.12\.[0-9]+\+deb13-cloud-amd64$' ;;
    # Since 7.x the image package only depends on the one with the file.
    sid) echo sid '^linux-binary-[0-9.]+(\+deb[0-9]+)?-cloud-amd64$' '^linux-image-[0-9.]+(\+deb[0-9]+)?-cloud-amd64$' ;;
    *) return 1 ;;
  esac
}

# The mirror that the system itself uses, taken from its own apt configuration; with -security that of the updates.
mirror() {
  local codename
  codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
  apt-get indextargets --format '$(CREATED_BY) $(RELEASE) $(COMPONENT) $(REPO_URI)' |
    awk -v codename="$codename${1:-}" '$1 == "Packages" && $2 == codename && $3 == "main" { print $4; exit }'
}

# apt with lists, cache and sources of its own: the system's stay as they are.
private_apt() {
  local command=$1
  shift
  "$command" -o "Dir::Etc::SourceList=$apt/sources.list" -o Dir::Etc::SourceParts=/dev/null \
    -o "Dir::State::Lists=$apt/lists" -o "Dir::Cache=$apt/cache" -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= \
    -o APT::Sandbox::User=root -o Acquire::Languages=none -o Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled=false \
    -o Debug::NoLocking=true -o APT::Get::List-Cleanup=false "$@"
}

first_complaint() { grep -m1 '^[EW]:' "$apt/log" || tail -n1 "$apt/log"; }

# The newest package whose name matches one of the patterns, the first pattern that matches any winning.
newest() {
  local pattern names
  names=$(private_apt apt-cache pkgnames linux-)
  for pattern in "$@"; do
    grep -E "$pattern" <<<"$names" | sort -V | tail -n1 | grep . && return
  done
  true
}

fetch() {
  local name=$1 suite patterns uri security signed= package
  read -r suite patterns < <(suite_of "$name") || { echo "no such kernel; known: 5.10 6.1 6.12 sid"; return 1; }
  command -v apt-get >/dev/null || { echo "not a Debian system: its kernels come from Debian's mirrors"; return 1; }
  [ "$(dpkg --print-architecture)" = amd64 ] || { echo "only amd64 kernels are used"; return 1; }
  uri=$(mirror)
  [ -n "$uri" ] || { echo "apt's configuration names no mirror (apt-get indextargets is empty; run apt-get update)"; return 1; }
  [ ! -e /usr/share/keyrings/debian-archive-keyring.gpg ] || signed='[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]'

  apt=$kernels/$name/apt
  mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial"
  echo "deb $signed $uri $suite main" >"$apt/sources.list"
  private_apt apt-get update >"$apt/log" 2>&1 </dev/null ||
    { echo "no package list of $suite: $(first_complaint)"; return 1; }
  # Newer kernels come as security updates; where there are none (sid), or the mirror has them no more, do without.
  security=$(mirror -security)
  if [ -n "$security" ] && [ "$suite" != sid ]; then
    cp "$apt/sources.list" "$apt/sources.list.main"
    echo "deb $signed $security $suite-security main" >>"$apt/sources.list"
    private_apt apt-get update >"$apt/log" 2>&1 </dev/null || mv "$apt/sources.list.main" "$apt/sources.list"
  fi
  # shellcheck disable=SC2086 # one word a pattern
  package=$(newest $patterns)
  [ -n "$package" ] || { echo "$suite has no package $patterns"; return 1; }
  say "fetching $package ($suite)"
  (cd "$apt" && private_apt apt-get download "$package") >"$apt/log" 2>&1 </dev/null ||
    { echo "cannot download $package: $(first_complaint)"; return 1; }
  dpkg -x "$apt/$package"_*.deb "$apt/unpacked" || { echo "cannot unpack $package"; return 1; }
  local image
  image=$(find "$apt/unpacked" -name 'vmlinuz*' -type f | head -n1)
  [ -n "$image" ] || { echo "$package holds no vmlinuz"; return 1; }
  echo "$package" >"$kernels/$name/package"
  mv "$image" "$kernels/$name/vmlinuz"
}

kernels=$target/kernels
# shellcheck disable=SC2086 # a list of names
[ $# -gt 0 ] || set -- ${SECLOG_KERNELS:-5.10 6.1 6.12 sid}
for name in "$@"; do
  [ ! -s "$kernels/$name/vmlinuz" ] || continue
  mkdir -p "$kernels/$name"
  if reason=$(fetch "$name"); then
    rm -f "$kernels/$name/unavailable"
  else
    echo "$reason" >"$kernels/$name/unavailable"
    say "kernel $name skipped: $reason"
  fi
  rm -rf "$kernels/$name/apt"
done
