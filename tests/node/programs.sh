# shellcheck shell=bash
# Kubernetes, Helm and CoreDNS from their Go modules: built once, kept in the cache by version.

# cached NAME FUNCTION: fills $CACHE/NAME once; an interrupted build is never mistaken for a finished one.
cached() {
  local name=$1 build=$2
  [ -d "$CACHE/$name" ] && return
  say "building $name (once; log: $LOG/build.log)"
  mkdir -p "$CACHE" "$LOG"
  rm -rf "$CACHE/$name.part"
  mkdir "$CACHE/$name.part"
  "$build" "$CACHE/$name.part" >>"$LOG/build.log" 2>&1 || { tail -n 15 "$LOG/build.log" >&2; fail "could not build $name"; }
  mv "$CACHE/$name.part" "$CACHE/$name"
}

build_kubernetes() {
  local version=k8s.io/component-base/version
  (cd "$ROOT/tests/node/tools" && CGO_ENABLED=0 go build -trimpath \
    -ldflags "-s -w -X $version.gitVersion=$KUBERNETES -X $version.gitMajor=1 -X $version.gitMinor=34" -o "$1/" tool)
}

build_helm() { GOBIN=$1 CGO_ENABLED=0 go install -trimpath -ldflags '-s -w' "helm.sh/helm/v3/cmd/helm@$HELM"; }
build_coredns() { GOBIN=$1 CGO_ENABLED=0 go install -trimpath -ldflags '-s -w' "github.com/coredns/coredns@$COREDNS"; }

programs() {
  cached "kubernetes-$KUBERNETES" build_kubernetes
  cached "helm-$HELM" build_helm
  cached "coredns-$COREDNS" build_coredns
  mkdir -p "$NODE/bin"
  ln -sf "$CACHE/kubernetes-$KUBERNETES"/* "$CACHE/helm-$HELM/helm" "$CACHE/coredns-$COREDNS/coredns" "$NODE/bin/"
}
