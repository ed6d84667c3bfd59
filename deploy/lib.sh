# Sourced by quickstart and check: steps with a progress line, packages, the guests' kernel and the static guest-agent.
# shellcheck shell=bash

# Where the output of steps goes; callers may set it before.
: "${WARREN_LOG_DIR:=$(mktemp -d -t warren-log-XXXXXX)}"
mkdir -p "$WARREN_LOG_DIR"

# step TITLE COMMAND…: runs a command with its output in a log, prints one line with the seconds it took, and shows
# the log's end when it fails. Never call it before `||` or `&&`, or in an `if`: errexit would be off within the command.
step() {
  local title=$1 log began code=0
  shift
  log="$WARREN_LOG_DIR/$(tr -c 'a-z0-9\n' - <<<"${title,,}").log"
  began=$SECONDS
  if [ -t 1 ]; then printf '  … %s' "$title"; fi
  set +e
  (
    set -e
    "$@"
  ) >"$log" 2>&1
  code=$?
  set -e
  if [ -t 1 ]; then printf '\r\033[K'; fi
  if [ "$code" -eq 0 ]; then
    printf '  ok %s (%d s)\n' "$title" "$((SECONDS - began))"
    return 0
  fi
  printf 'FAILED %s (%d s, exit code %d); the end of %s:\n' "$title" "$((SECONDS - began))" "$code" "$log"
  tail -n 60 "$log"
  return "$code"
}

# need_packages PACKAGE…: installs what is missing, without starting any of it.
need_packages() {
  local missing=() package
  for package in "$@"; do
    if ! dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed'; then
      missing+=("$package")
    fi
  done
  [ "${#missing[@]}" -eq 0 ] && return 0
  # The lab runs engines of its own; the distribution's must neither be made nor started.
  if [ ! -e /etc/postgresql-common/createcluster.conf ]; then
    mkdir -p /etc/postgresql-common
    echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.conf
  fi
  local policy=/usr/sbin/policy-rc.d made=false code=0
  if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
    made=true
  fi
  { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends -o Dpkg::Options::=--force-confold "${missing[@]}"; } || code=$?
  if "$made"; then rm -f "$policy"; fi
  return "$code"
}

# The oldest Rust that builds this workspace (rust-version in Cargo.toml).
rust_wanted=1.95

rust_is_new_enough() {
  local found
  found=$(cargo --version 2>/dev/null | awk '{print $2}')
  [ -n "$found" ] && [ "$(printf '%s\n%s\n' "$rust_wanted" "$found" | sort -V | head -n 1)" = "$rust_wanted" ]
}

# find_rust: puts a toolchain that sudo hid on the PATH: root's own, or that of who called sudo.
find_rust() {
  local home
  for home in "$HOME" "$(getent passwd "${SUDO_USER:-root}" | cut -d: -f6)"; do
    rust_is_new_enough && return 0
    if [ -x "$home/.cargo/bin/cargo" ]; then
      export PATH="$home/.cargo/bin:$PATH"
      if [ -d "$home/.rustup" ]; then export RUSTUP_HOME="$home/.rustup"; fi
    fi
  done
  rust_is_new_enough
}

# need_rust: a toolchain from rustup where there is none: the distribution's where it has one (Debian 13), else the
# Rust project's installer.
need_rust() {
  rust_is_new_enough && return 0
  unset RUSTUP_HOME
  if apt-cache show rustup >/dev/null 2>&1; then
    need_packages rustup && rustup default stable
  else
    need_packages curl ca-certificates &&
      curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal -c clippy -c rustfmt
  fi || { echo "Rust $rust_wanted or newer cannot be installed; install it and run this again" && return 1; }
}

# prepare_kernel DIR: the distribution's cloud kernel, unpacked and not installed on this machine.
prepare_kernel() {
  local dir=$1 package
  if ! compgen -G "$dir/boot/vmlinuz-*" >/dev/null; then
    package=$(apt-cache depends linux-image-cloud-amd64 | awk '/Depends: linux-image/ {print $2; exit}')
    if [ -z "$package" ]; then
      apt-get update
      package=$(apt-cache depends linux-image-cloud-amd64 | awk '/Depends: linux-image/ {print $2; exit}')
    fi
    mkdir -p "$dir"
    (cd "$dir" && apt-get download -o APT::Sandbox::User=root "$package" && dpkg-deb -x "$package"_*.deb . && rm -f "$package"_*.deb)
  fi
}

# use_kernel DIR: names a kernel prepared there.
use_kernel() {
  WARREN_KERNEL=$(compgen -G "$1/boot/vmlinuz-*" | sort -V | tail -n 1)
  WARREN_KERNEL_MODULES=$(compgen -G "$1/lib/modules/*" | sort -V | tail -n 1)
  export WARREN_KERNEL WARREN_KERNEL_MODULES
}

# The static guest-agent has a target directory of its own, as its flags differ from everybody else's.
guest_target() { echo "${CARGO_TARGET_DIR:-$PWD/target}/guest"; }

# build_guest_agent: the static binary that is every guest's init.
build_guest_agent() {
  RUSTFLAGS='-C target-feature=+crt-static' CARGO_TARGET_DIR=$(guest_target) \
    cargo build --locked --profile guest --target x86_64-unknown-linux-gnu -p guest-agent
}

# guest_agent: where it was built.
guest_agent() { echo "$(guest_target)/x86_64-unknown-linux-gnu/guest/guest-agent"; }

# apt_mirror: the first mirror this machine's apt uses for bookworm.
apt_mirror() {
  local found
  found=$(awk '/^URIs:/ {print $2; exit}' /etc/apt/sources.list.d/debian.sources 2>/dev/null || true)
  if [ -z "$found" ]; then
    found=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list 2>/dev/null |
      awk '$1 == "deb" {for (i = 2; i < NF; i++) if ($i ~ /^https?:/ && $(i + 1) == "bookworm") {print $i; exit}}')
  fi
  [ -n "$found" ] && echo "$found"
}
