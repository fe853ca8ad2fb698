# shellcheck shell=bash
# What the machine must have; Debian packages are installed when we are root.

PACKAGES=(containerd runc etcd-server containernetworking-plugins conntrack nftables iproute2 debootstrap busybox-static
  openssl curl jq procps tcpdump redis-tools)

prerequisites() {
  [ "$(id -u)" = 0 ] || fail "the one-node cluster needs root (namespaces, containerd)" "run it as root, or use --kind"
  command -v cargo >/dev/null || fail "Rust is missing" "install it from https://rustup.rs (1.89 or newer)"
  command -v go >/dev/null || fail "Go is missing" "install Go 1.24 or newer: the Kubernetes programs are built from their module"
  command -v cc >/dev/null || fail "a C compiler is missing" "apt-get install build-essential cmake"
  local missing=() package
  for package in "${PACKAGES[@]}"; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
  done
  [ ${#missing[@]} = 0 ] && return
  say "installing Debian packages: ${missing[*]}"
  mkdir -p "$LOG"
  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"; } \
    >"$LOG/apt.log" 2>&1 || { tail -n 15 "$LOG/apt.log" >&2; fail "apt-get could not install ${missing[*]}"; }
}
