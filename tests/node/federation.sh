# shellcheck shell=bash
# What examples/federation shows: SIP servers of two organisations register, call and write to each other through the
# edge; who speaks for a domain that is not its own is refused; on the wire between them is TLS alone.

FEDERATION="$ROOT/examples/federation"

federation() {
  [ -f "$NODE/kubeconfig" ] || fail "there is no cluster yet" "./up node, then ./up chart"
  sip
  federation_apply
  federation_names
  federation_roots
  federation_ready
  federation_show
}

federation_apply() {
  say "applying examples/federation"
  wait_for 60 "the first TrustDomain" "" kubectl get trustdomain contoso
  # The first words to a webhook that has just started may be lost, so they are said again.
  wait_for 30 "that examples/federation is accepted" "$LOG/federation.log" federation_accepted
}

federation_accepted() { kubectl apply -k "$FEDERATION" >"$LOG/federation.log" 2>&1; }

service_address() { kubectl get service "$2" -n "$1" -o 'jsonpath={.spec.clusterIP}'; }

# The two public names. Elsewhere they are in the public DNS; the example's README says what to do on a cluster of one's own.
federation_names() {
  if on_kind; then
    federation_names_on_kind
    return
  fi
  local names
  names=$(grep -vE ' sip\.(contoso|fabrikam)\.example$' "$NODE/hosts" || true)
  printf '%s\n%s sip.contoso.example\n%s sip.fabrikam.example\n' "$names" \
    "$(service_address contoso-edge edge)" "$(service_address fabrikam sip)" >"$NODE/hosts"
}

federation_names_on_kind() {
  local file
  file=$(kubectl get configmap coredns -n kube-system -o 'jsonpath={.data.Corefile}')
  if grep -q sip.fabrikam.example <<<"$file"; then return; fi
  awk '{ print } /^\.:53/ { while ((getline line < names) > 0) print line }' names="$FEDERATION/names.corefile" <<<"$file" |
    jq -Rs '{data: {Corefile: .}}' | kubectl patch configmap coredns -n kube-system --type merge --patch-file /dev/stdin
  kubectl rollout restart deployment/coredns -n kube-system
  kubectl rollout status deployment/coredns -n kube-system --timeout=60s
}

federation_roots() {
  say "each organisation gets the other's root"
  wait_for 60 "Contoso's trust bundle" "" kubectl get configmap entente-trust-bundle -n contoso-edge
  wait_for 60 "the exchange of roots" "$LOG/federation.log" exchange_roots
}

exchange_roots() {
  KUBECONFIG="$NODE/kubeconfig" PATH="$NODE/bin:$PATH" "$FEDERATION/exchange-roots.sh" "$NODE/fabrikam-ca" >"$LOG/federation.log" 2>&1
}

federation_ready() {
  say "waiting until its servers are Ready"
  if ! federation_waits >"$LOG/federation.log" 2>&1; then
    cat "$LOG/federation.log" >&2
    explain contoso-sip contoso-edge fabrikam
    fail "examples/federation is not Ready" "'kubectl describe trustedserver,federationpartner -n contoso-edge' names what is missing"
  fi
  wait_for 30 "an answer of both servers to their users" "" servers_answer
}

# kube-proxy learns of a Ready pod a moment later than we do.
servers_answer() {
  kubectl exec -n contoso-sip deploy/users -c users -- sh /users/register.sh &&
    kubectl exec -n fabrikam deploy/users -c users -- sh /users/register.sh
}

federation_waits() {
  local namespace
  kubectl wait --for=condition=Ready trustedserver --all -n contoso-sip --timeout=120s &&
    kubectl wait --for=condition=Ready trustedserver --all -n contoso-edge --timeout=60s &&
    kubectl wait --for=condition=Distributed federationpartner/fabrikam -n contoso-edge --timeout=60s || return 1
  for namespace in contoso-sip contoso-edge fabrikam; do
    kubectl rollout status deployment -n "$namespace" --timeout=120s || return 1
  done
}

contoso() { step kubectl exec -n contoso-sip deploy/users -c users -- sh "$@"; }
fabrikam() { step kubectl exec -n fabrikam deploy/users -c users -- sh "$@"; }
wire() { step kubectl exec -n fabrikam deploy/sip -c wire -- sh /wire/wire.sh "$1"; }

step() {
  run "$@" || {
    explain contoso-sip contoso-edge fabrikam
    fail "that did not succeed" "kubectl logs -n contoso-edge deploy/edge --all-containers says what the edge and its sidecar saw"
  }
}

federation_show() {
  heading "Two users register, each at the server of its own organisation."
  contoso /users/register.sh
  fabrikam /users/register.sh
  heading "From here on Fabrikam records its own wire."
  wire start
  heading "A message each way, through Contoso's edge."
  contoso /users/message.sh helpdesk@fabrikam.example
  fabrikam /users/message.sh reception@contoso.example
  heading "Calls each way."
  contoso /users/call.sh helpdesk fabrikam.example 20
  fabrikam /users/call.sh reception contoso.example 20
  heading "Fabrikam's certificate is good, but it speaks for Fabrikam only: its user who claims to be one of Contoso's is refused."
  if run kubectl exec -n fabrikam deploy/users -c users -- sh /users/message.sh reception@contoso.example somebody@contoso.example; then
    fail "the message was accepted" "that must not be: kubectl logs -n contoso-edge deploy/edge -c kamailio"
  fi
  heading "What was on the wire. Among Fabrikam's own: readable. Between the organisations: TLS."
  wire stop
  heading "What is declared"
  run kubectl get trustedserver,federationpartner -A
  run kubectl get federationpartner fabrikam -n contoso-edge \
    -o 'jsonpath={range .status.conditions[*]}{.type}={.status} {.reason}{"\n"}{end}'
}
