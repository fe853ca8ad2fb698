# shellcheck shell=bash
# Installs the chart with the image that was built here, and the example of the README.

RELEASE_NAMESPACE=entente-system

# The image's digest is an annotation of the pods, so a new build under the same tag replaces them.
chart() {
  [ -f "$NODE/kubeconfig" ] || fail "there is no cluster yet" "./up node"
  say "installing the chart with helm"
  helm upgrade --install entente "$ROOT/charts/entente" --namespace "$RELEASE_NAMESPACE" --create-namespace \
    --set image.registry=registry.local --set image.repository=entente --set-string image.tag=dev --set image.pullPolicy=IfNotPresent \
    --set serverSecrets.enabled=true --set partnerConfigMaps.enabled=true --set bundleEndpoint.enabled=true \
    --set trustDomain.create=true --set trustDomain.name=contoso --set trustDomain.spiffeTrustDomain=contoso.example \
    --set-string "podAnnotations.entente\.dev/image=$(cut -c 1-71 "$NODE/loaded/entente" 2>/dev/null)" \
    --wait --timeout 180s >"$LOG/helm.log" 2>&1 || {
    cat "$LOG/helm.log" >&2
    explain "$RELEASE_NAMESPACE"
    fail "the chart did not install" "read the logs above; './up images' builds the program again, './up chart' installs again"
  }
  say "the controller is Ready"
}

restart_controller() {
  if helm status entente --namespace "$RELEASE_NAMESPACE" >/dev/null 2>&1; then chart; fi
}

quickstart() {
  say "applying examples/quickstart"
  kubectl wait --for=condition=Established crd/trustdomains.entente.dev crd/trustedservers.entente.dev crd/federationpartners.entente.dev --timeout=30s >/dev/null
  wait_for 60 "the first TrustDomain" "" kubectl get trustdomain contoso
  # The first words to a webhook that has just started may be lost, so they are said again.
  local deadline=$((SECONDS + 30))
  until kubectl apply -f "$ROOT/examples/quickstart" >"$LOG/quickstart.log" 2>&1; do
    if [ "$SECONDS" -ge "$deadline" ]; then
      cat "$LOG/quickstart.log" >&2
      explain "$RELEASE_NAMESPACE"
      fail "examples/quickstart was not accepted" "the API server's message above says why"
    fi
    sleep 1
  done
  say "waiting until its servers are Ready"
  if ! servers_ready >"$LOG/quickstart.log" 2>&1; then
    cat "$LOG/quickstart.log" >&2
    explain shop outside "$RELEASE_NAMESPACE"
    fail "the servers of examples/quickstart are not Ready" "'kubectl describe trustedserver -n shop' names the condition that is missing"
  fi
}

servers_ready() {
  kubectl wait --for=condition=Ready trustedserver --all -n shop --timeout=120s &&
    kubectl wait --for=condition=Available deployment --all -n shop --timeout=60s &&
    kubectl wait --for=condition=Ready pod --all -n outside --timeout=60s
}

# explain NAMESPACE...: what helps to see why something there is not ready.
explain() {
  local namespace pod
  for namespace in "$@"; do
    printf '\n--- namespace %s\n' "$namespace"
    kubectl get pods -n "$namespace" -o wide
    conditions "$namespace"
    kubectl get events -n "$namespace" --field-selector type!=Normal --sort-by=.lastTimestamp 2>&1 | tail -n 15
    for pod in $(talkative "$namespace"); do
      printf -- '--- logs of %s/%s\n' "$namespace" "$pod"
      kubectl logs -n "$namespace" "$pod" --all-containers --prefix --tail=15 2>&1
    done
  done >&2 || true
}

# What the servers there are waiting for.
conditions() {
  kubectl get trustedservers -n "$1" -o json 2>/dev/null | jq -r '.items[] | .metadata.name as $name | .status.conditions[]? |
    select(.status != "True") | "server \($name): \(.type) is \(.status), \(.reason): \(.message)"'
}

# The pods whose logs help: those that are not Ready, and the controller's own.
talkative() {
  kubectl get pods -n "$1" -o json 2>/dev/null | jq -r --arg own "$RELEASE_NAMESPACE" '.items[] | select(.metadata.namespace == $own or
    (any(.status.conditions[]?; .type == "Ready" and .status == "True") | not)) | .metadata.name'
}

explain_all() {
  [ -f "$NODE/kubeconfig" ] || fail "there is no cluster" "./up node"
  local -a namespaces
  kubectl get trust -A >&2 || true
  mapfile -t namespaces < <(kubectl get namespaces -o name | cut -d/ -f2 | grep -v ^kube-)
  explain "${namespaces[@]}"
}
