# shellcheck shell=bash
# What the machine must have; Debian packages are installed when we are root.

# What must be there, and the Debian package that brings it. Commands rather than packages, so that a machine whose
# containerd or runc came from elsewhere keeps it.
NEEDED='containerd containerd
ctr containerd
runc runc
etcd etcd-server
/usr/lib/cni/ptp containernetworking-plugins
conntrack conntrack
nft nftables
ip iproute2
nsenter util-linux
debootstrap debootstrap
openssl openssl
gnutls-cli gnutls-bin
curl curl
jq jq
sysctl procps
tcpdump tcpdump
redis-cli redis-tools
socat socat
dig bind9-dnsutils
cc gcc
/usr/include/stdlib.h libc6-dev
cmake cmake
make make
shellcheck shellcheck'
# A library has Debian's folder of the architecture.
NEEDED+=$'\n'"/usr/lib/$(uname -m)-linux-gnu/faketime/libfaketimeMT.so.1 libfaketime"

# What the linters of ./test conformance need beside that.
LINTERS_NEEDED='python3 python3
python3:ensurepip python3-venv'

# at_least WANTED FOUND: compares version numbers.
at_least() { [ "$(printf '%s\n' "$1" "$2" | sort -V | head -n 1)" = "$1" ]; }

there() {
  case $1 in
    /*) [ -e "$1" ] ;;
    python3:*) python3 -c "import ${1#*:}" 2>/dev/null ;;
    *) command -v "$1" >/dev/null ;;
  esac
}

missing_packages() {
  local thing package
  while read -r thing package; do there "$thing" || echo "$package"; done <<<"$NEEDED" | sort -u
}

install_packages() {
  local -a missing
  mapfile -t missing < <(missing_packages)
  [ ${#missing[@]} -gt 0 ] || return 0
  [ "$(id -u)" = 0 ] || fail "missing Debian packages: ${missing[*]}" "apt-get install ${missing[*]}"
  command -v apt-get >/dev/null || fail "missing: ${missing[*]}" "install them (Debian's names), or use ./up --kind"
  say "installing Debian packages: ${missing[*]}"
  mkdir -p "$LOG"
  patiently "installing Debian packages" "$LOG/apt.log" apt_install "${missing[@]}"
  mapfile -t missing < <(missing_packages)
  [ ${#missing[@]} = 0 ] || fail "still missing after apt-get: ${missing[*]}" "see $LOG/apt.log"
}

# Never at the price of a package that is there (Docker's own containerd, for one).
apt_install() {
  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends --no-remove "$@"
}

rust() {
  command -v cargo >/dev/null || fail "Rust is missing" "install it from https://rustup.rs (1.89 or newer)"
  local found
  found=$(rustc --version | cut -d' ' -f2)
  at_least 1.89 "$found" || fail "Rust $found is too old" "rustup update (1.89 or newer)"
}

golang() {
  command -v go >/dev/null ||
    fail "Go is missing" "install Go 1.24 or newer (https://go.dev/dl): the Kubernetes programs are built from their module"
  local found
  found=$(go env GOVERSION)
  at_least go1.24 "$found" || fail "$found is too old" "install Go 1.24 or newer (https://go.dev/dl)"
}

linters_prerequisites() {
  NEEDED+=$'\n'$LINTERS_NEEDED
  rust && golang && install_packages && linters
}

prerequisites() {
  [ "$(id -u)" = 0 ] || fail "the one-node cluster needs root (namespaces, containerd)" "run it as root, or use ./up --kind"
  [[ $ROOT =~ ^[A-Za-z0-9._/+-]{1,64}$ ]] ||
    fail "the path $ROOT does not fit" "a checkout for the one-node cluster needs a path of at most 64 plain characters"
  rust
  golang
  install_packages
}
