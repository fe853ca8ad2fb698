# shellcheck shell=bash
# Kubernetes, Helm and CoreDNS from their Go modules, the linters from theirs and from PyPI: built once, kept in the
# cache by version.

# cached NAME WHAT FUNCTION: fills $CACHE/NAME once; an interrupted build is never mistaken for a finished one.
cached() {
  local name=$1 what=$2 build=$3
  [ ! -d "$CACHE/$name" ] || return 0
  mkdir -p "$CACHE" "$LOG"
  (
    flock 8
    [ ! -d "$CACHE/$name" ] || exit 0
    say "building $name: $what"
    rm -rf "$CACHE/$name.part"
    mkdir "$CACHE/$name.part"
    patiently "building $name" "$LOG/build-$name.log" "$build" "$CACHE/$name.part"
    mv "$CACHE/$name.part" "$CACHE/$name"
  ) 8>"$CACHE/$name.lock"
}

build_kubernetes() {
  local version=k8s.io/component-base/version
  (cd "$ROOT/tests/node/tools" && CGO_ENABLED=0 go build -trimpath \
    -ldflags "-s -w -X $version.gitVersion=$KUBERNETES -X $version.gitMajor=1 -X $version.gitMinor=34" -o "$1/" tool)
}

build_helm() { GOBIN=$1 CGO_ENABLED=0 go install -trimpath -ldflags '-s -w' "helm.sh/helm/v3/cmd/helm@$HELM"; }
build_coredns() { GOBIN=$1 CGO_ENABLED=0 go install -trimpath -ldflags '-s -w' "github.com/coredns/coredns@$COREDNS"; }
build_zlint() { GOBIN=$1 CGO_ENABLED=0 go install -trimpath -ldflags '-s -w' "github.com/zmap/zlint/v3/cmd/zlint@$ZLINT"; }
build_bettertls() {
  GOBIN=$1 CGO_ENABLED=0 go install -trimpath -ldflags '-s -w' "github.com/Netflix/bettertls/test-suites/cmd/bettertls@$BETTERTLS"
}
build_spiffe() { (cd "$ROOT/tests/node/spiffe" && CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o "$1/" .); }
# The folder is moved when it is complete, so its programs are run as 'bin/python -m', never by their own first lines.
build_pkilint() { python3 -m venv "$1" && "$1/bin/python" -m pip install --quiet "pkilint==$PKILINT"; }

linters() {
  # Chained: where a status is asked for, a function runs on after a failure.
  cached "zlint-$ZLINT" "from its Go module, less than a minute, once" build_zlint &&
    cached "bettertls-$BETTERTLS" "from its Go module, about a minute, once" build_bettertls &&
    cached "spiffe-$SPIFFE" "a peer of go-spiffe, less than a minute, once" build_spiffe &&
    cached "pkilint-$PKILINT" "from PyPI, less than a minute, once" build_pkilint
}

programs() {
  cached "kubernetes-$KUBERNETES" "from its Go module, about 6 minutes on 2 cores, once" build_kubernetes
  cached "helm-$HELM" "from its Go module, about 2 minutes, once" build_helm
  cached "coredns-$COREDNS" "from its Go module, about 2 minutes, once" build_coredns
  mkdir -p "$NODE/bin"
  ln -sfn "$CACHE/kubernetes-$KUBERNETES"/* "$CACHE/helm-$HELM/helm" "$CACHE/coredns-$COREDNS/coredns" "$NODE/bin/"
}
