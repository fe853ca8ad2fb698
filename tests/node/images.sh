# shellcheck shell=bash
# Container images without a registry: a debootstrap base, a layer of ours on top, imported into containerd.

BASE_PACKAGES=nftables
TOOLS_PACKAGES=nftables,nginx-light,redis-server,redis-tools,curl,ca-certificates,openssl,socat,netcat-openbsd,iperf3,python3-minimal,tcpdump,procps,iproute2,util-linux

# The Debian mirror that this machine itself uses, from either form of apt's sources.
mirror() {
  local found
  found=$(cat /etc/apt/sources.list.d/*.sources 2>/dev/null | awk '$1 == "URIs:" {print $2; exit}')
  [ -n "$found" ] || found=$(awk '$1 == "deb" {for (i = 2; i <= NF; i++) if ($i ~ /^http/) {print $i; exit}}' \
    /etc/apt/sources.list 2>/dev/null)
  [ -n "$found" ] || fail "no Debian mirror found in /etc/apt/sources.list(.d)"
  echo "$found"
}

# rootfs DIR PACKAGES: a trimmed Debian 12 as DIR/layer.tar.
rootfs() {
  local dir=$1 packages=$2
  debootstrap --variant=minbase --include="$packages" bookworm "$dir/root" "$(mirror)"
  rm -rf "$dir"/root/var/cache/apt "$dir"/root/var/lib/apt/lists "$dir"/root/usr/share/{doc,man,locale,info} \
    "$dir"/root/var/log/* "$dir"/root/dev/*
  tar -C "$dir/root" --numeric-owner -cf "$dir/layer.tar" .
  rm -rf "$dir/root"
}

build_base() { rootfs "$1" "$BASE_PACKAGES"; }
build_tools() { rootfs "$1" "$TOOLS_PACKAGES"; }

# Holds a pod's namespaces: does nothing until it is told to end, and reaps what is left to it.
build_pause() {
  cat >"$1/pause.c" <<'C'
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>
static void end(int s) { (void)s; _exit(0); }
static void reap(int s) { (void)s; while (waitpid(-1, 0, WNOHANG) > 0) {} }
int main(void) {
  signal(SIGINT, end); signal(SIGTERM, end); signal(SIGCHLD, reap);
  for (;;) pause();
}
C
  cc -O2 -static -o "$1/pause" "$1/pause.c"
  tar -C "$1" --numeric-owner --owner=0 --group=0 -cf "$1/layer.tar" pause
}

# image NAME ENTRYPOINT-JSON LAYER...: writes an image archive (docker's format) to standard output.
image() {
  local name=$1 entrypoint=$2 work diffs=() files=() layer i=0
  shift 2
  work=$(mktemp -d "$NODE/image.XXXXXX")
  for layer in "$@"; do
    ln -s "$(realpath "$layer")" "$work/layer$i.tar"
    diffs+=("\"sha256:$(digest "$layer")\"")
    files+=("\"layer$i.tar\"")
    i=$((i + 1))
  done
  local joined_diffs joined_files
  joined_diffs=$(IFS=,; echo "${diffs[*]}")
  joined_files=$(IFS=,; echo "${files[*]}")
  printf '{"architecture":"amd64","os":"linux","config":{"Entrypoint":%s,"Env":["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]},"rootfs":{"type":"layers","diff_ids":[%s]}}' \
    "$entrypoint" "$joined_diffs" >"$work/config.json"
  printf '[{"Config":"config.json","RepoTags":["%s"],"Layers":[%s]}]' "$name" "$joined_files" >"$work/manifest.json"
  tar -C "$work" -chf - .
  rm -rf "$work"
}

# The base layers never change once built, so their digests are kept beside them.
digest() {
  case $1 in
    "$CACHE"/*)
      [ -f "$1.sha256" ] || sha256sum "$1" | cut -d' ' -f1 >"$1.sha256"
      cat "$1.sha256" ;;
    *) sha256sum "$1" | cut -d' ' -f1 ;;
  esac
}

ctr_node() { ctr -a "$CONTAINERD_SOCKET" -n k8s.io "$@"; }

# load NAME KEY ENTRYPOINT LAYER...: imports an image unless this node already has the one with this KEY.
load() {
  local name=$1 key=$2 stamp
  shift 2
  stamp="$NODE/loaded/$(basename "${name%:*}")"
  [ "$(cat "$stamp" 2>/dev/null)" = "$key" ] && return
  say "importing $name"
  image "$name" "$@" | ctr_node images import - >>"$LOG/images.log" 2>&1 || fail "could not import $name" "see $LOG/images.log"
  mkdir -p "$NODE/loaded"
  echo "$key" >"$stamp"
}

layers() {
  cached "pause-1" build_pause
  cached "base-1" build_base
  cached "tools-1" build_tools
}

# The images that need only Debian.
load_tools() {
  load registry.local/pause:dev 1 '["/pause"]' "$CACHE/pause-1/layer.tar"
  load registry.local/tools:dev 1 '[]' "$CACHE/tools-1/layer.tar"
}

# Ours: the base and one layer with the binary.
load_entente() {
  say "building the program (cargo; log: $LOG/cargo.log)"
  (cd "$ROOT" && cargo build --locked --profile quick) >"$LOG/cargo.log" 2>&1 ||
    { tail -n 30 "$LOG/cargo.log" >&2; fail "cargo build failed" "see $LOG/cargo.log"; }
  local binary="${CARGO_TARGET_DIR:-$ROOT/target}/quick/entente" layer="$NODE/entente-layer"
  rm -rf "$layer" && mkdir -p "$layer/usr/local/bin"
  install -m 0755 "$binary" "$layer/usr/local/bin/entente"
  tar -C "$layer" --sort=name --mtime=@0 --numeric-owner --owner=0 --group=0 -cf "$layer.tar" usr
  load registry.local/entente:dev "$(digest "$layer.tar")" '["/usr/local/bin/entente"]' "$CACHE/base-1/layer.tar" "$layer.tar"
}
