# shellcheck shell=bash
# Container images without a registry: a debootstrap base, a layer of ours on top, imported into containerd.

BASE_PACKAGES=nftables
TOOLS_PACKAGES=nftables,nginx-light,redis-server,redis-tools,curl,ca-certificates,openssl,socat,netcat-openbsd,iperf3,python3,tcpdump,procps,iproute2,util-linux
SIP_PACKAGES=kamailio,kamailio-tls-modules,sip-tester,sipsak,openssl,tcpdump,procps,iproute2,netbase

# The Debian mirror that this machine itself uses: where its base system comes from.
mirror() {
  local found
  found=$(apt-cache policy base-files | awk '$2 ~ /^http/ && $3 ~ /\/main$/ {print $2; exit}')
  [ -n "$found" ] || { apt-get update -qq && found=$(apt-cache policy base-files | awk '$2 ~ /^http/ {print $2; exit}'); }
  echo "${found:-http://deb.debian.org/debian}"
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
build_sip() { rootfs "$1" "$SIP_PACKAGES"; }

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

layers() {
  cached pause-1 "holds a pod's namespaces" build_pause
  cached base-1 "Debian 12 with nftables, about half a minute, once" build_base
  cached tools-2 "Debian 12 with what tests and examples run, about a minute, once" build_tools
}

# image NAME CONFIG-JSON LAYER...: writes an image archive (docker's format) to standard output.
image() {
  local name=$1 config=$2 work diffs=() files=() layer i=0
  shift 2
  work=$(mktemp -d "$NODE/image.XXXXXX")
  for layer in "$@"; do
    ln -s "$(realpath "$layer")" "$work/layer$i.tar"
    diffs+=("sha256:$(digest "$layer")")
    files+=("layer$i.tar")
    i=$((i + 1))
  done
  jq -n --arg architecture "$(dpkg --print-architecture)" --argjson config "$config" \
    '{$architecture, os: "linux", config: ({Env: ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]} + $config),
      rootfs: {type: "layers", diff_ids: $ARGS.positional}}' --args "${diffs[@]}" >"$work/config.json"
  jq -n --arg name "$name" '[{Config: "config.json", RepoTags: [$name], Layers: $ARGS.positional}]' --args "${files[@]}" \
    >"$work/manifest.json"
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

# load NAME KEY CONFIG-JSON LAYER...: imports an image unless this node already has the one with this KEY.
load() {
  local name=$1 key=$2 stamp
  shift 2
  stamp="$NODE/loaded/$(basename "${name%:*}")"
  [ "$(cat "$stamp" 2>/dev/null)" != "$key" ] || return 0
  say "importing $name"
  image "$name" "$@" | ctr_node images import - >>"$LOG/images.log" 2>&1 || fail "could not import $name" "see $LOG/images.log"
  mkdir -p "$NODE/loaded"
  echo "$key" >"$stamp"
}

# The images that need only Debian.
load_tools() {
  load registry.local/pause:dev pause-1 '{"Entrypoint": ["/pause"]}' "$CACHE/pause-1/layer.tar"
  load registry.local/tools:dev tools-2 '{"Cmd": ["/bin/sh"]}' "$CACHE/tools-2/layer.tar"
}

# What examples/federation runs; only who asks for it waits for it.
load_sip() {
  cached sip-1 "Debian 12 with Kamailio, sipp and sipsak, about a minute, once" build_sip
  load registry.local/sip:dev sip-1 '{"Cmd": ["/bin/sh"]}' "$CACHE/sip-1/layer.tar"
}

build_entente() { (cd "$ROOT" && cargo build --locked --profile quick); }

# Ours: the base and one layer with both programs. Pods that start from now on get it; the ones that run keep theirs.
load_entente() {
  say "building the program (minutes the first time)"
  : >"$LOG/cargo.log"
  patiently "building the program" "$LOG/cargo.log" build_entente
  local programs="${CARGO_TARGET_DIR:-$ROOT/target}/quick" layer="$NODE/entente-layer"
  rm -rf "$layer"
  install -D -m 0755 -t "$layer/usr/local/bin" "$programs/entente" "$programs/entente-proxy"
  tar -C "$layer" --sort=name --mtime=@0 --numeric-owner --owner=0 --group=0 -cf "$layer.tar" usr
  load registry.local/entente:dev "$(digest "$layer.tar")" '{"Entrypoint": ["/usr/local/bin/entente"], "User": "65532"}' \
    "$CACHE/base-1/layer.tar" "$layer.tar"
}
