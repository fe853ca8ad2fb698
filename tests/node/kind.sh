# shellcheck shell=bash
# The same cluster with kind, for machines that have it. Written from kind's documentation; our tests do not run it.

KIND_NAME=entente

# The container engine that kind may use here, if one answers.
engine() {
  local name
  for name in docker podman; do
    if command -v "$name" >/dev/null && timeout 10 "$name" info >/dev/null 2>&1; then
      echo "$name"
      return
    fi
  done
  return 1
}

use_kind() { command -v kind >/dev/null && engine >/dev/null; }

# Whether this checkout's cluster is the one of kind.
on_kind() { [ -f "$NODE/kind" ]; }

kind_do() { KIND_EXPERIMENTAL_PROVIDER=$(cat "$NODE/kind") kind "$@"; }

kind_up() {
  local engine name
  command -v kind >/dev/null || fail "kind is missing" "install it from https://kind.sigs.k8s.io, or run ./up as root on Debian"
  engine=$(engine) || fail "kind needs Docker or Podman, and neither answers" "start one, or run ./up as root on Debian"
  mkdir -p "$NODE/bin" "$LOG"
  for name in kubectl helm; do
    command -v "$name" >/dev/null || fail "$name is missing" "install $name; with kind we use the one of your machine"
    ln -sfn "$(command -v "$name")" "$NODE/bin/$name"
  done
  echo "$engine" >"$NODE/kind"
  if kind_do get clusters 2>/dev/null | grep -qx "$KIND_NAME"; then
    say "the kind cluster '$KIND_NAME' is there"
  else
    say "creating the kind cluster '$KIND_NAME' with $engine"
    patiently "creating the kind cluster" "$LOG/kind.log" kind_do create cluster --name "$KIND_NAME" --wait 120s
  fi
  (umask 077 && kind_do get kubeconfig --name "$KIND_NAME" >"$NODE/kubeconfig")
  kind_images
}

# Builds both images with the container engine and puts them onto the node.
kind_images() {
  local engine
  engine=$(cat "$NODE/kind")
  say "building the images with $engine (minutes the first time)"
  patiently "building registry.local/entente:dev" "$LOG/kind.log" "$engine" build -t registry.local/entente:dev "$ROOT"
  patiently "building registry.local/tools:dev" "$LOG/kind.log" \
    "$engine" build -t registry.local/tools:dev -f "$ROOT/tests/node/tools.Dockerfile" "$ROOT/tests/node"
  kind_load entente
  kind_load tools
}

# What examples/federation runs.
kind_sip() {
  local engine
  engine=$(cat "$NODE/kind")
  patiently "building registry.local/sip:dev" "$LOG/kind.log" \
    "$engine" build -t registry.local/sip:dev -f "$ROOT/tests/node/sip.Dockerfile" "$ROOT/tests/node"
  kind_load sip
}

# kind_load NAME: by an archive, which works with either engine.
kind_load() {
  local archive="$NODE/$1.tar"
  rm -f "$archive"
  "$(cat "$NODE/kind")" save -o "$archive" "registry.local/$1:dev"
  patiently "loading registry.local/$1:dev into kind" "$LOG/kind.log" kind_do load image-archive "$archive" --name "$KIND_NAME"
  rm -f "$archive"
  mkdir -p "$NODE/loaded"
  "$(cat "$NODE/kind")" image inspect --format '{{.Id}}' "registry.local/$1:dev" >"$NODE/loaded/$1"
}

kind_down() {
  on_kind || return 0
  say "deleting the kind cluster '$KIND_NAME'"
  kind_do delete cluster --name "$KIND_NAME"
}
