# shellcheck shell=bash
# What the quickstart shows: a declared call succeeds, an undeclared one is refused, and the reason can be read.

URL=http://orders.shop.svc.cluster.local:8080/

heading() {
  if [ -t 1 ]; then printf '\n\033[1m%s\033[0m\n' "$*"; else printf '\n%s\n' "$*"; fi
}

# run COMMAND...: shows the command as a newcomer would type it, then its output.
run() {
  printf '$ %s\n' "$*"
  "$@" 2>&1 | sed 's/^/  /'
}

show() {
  declared_call
  undeclared_call
  heading "What is declared"
  run kubectl get trust -A
  next_steps
}

call_orders() { kubectl exec -n shop deploy/web -c web -- curl -sS --max-time 10 "$URL"; }

declared_call() {
  # kube-proxy learns of a Ready pod a moment later than we do.
  local deadline=$((SECONDS + 10))
  until call_orders >/dev/null 2>&1 || [ "$SECONDS" -ge "$deadline" ]; do sleep 0.5; done
  heading "A declared call: web may call orders. Plain HTTP in the application, mutual TLS on the wire."
  run kubectl exec -n shop deploy/web -c web -- curl -sS --max-time 10 "$URL" || {
    explain shop "$RELEASE_NAMESPACE"
    fail "the declared call did not succeed" "kubectl logs -n shop deploy/web -c entente-proxy says what the sidecar saw"
  }
}

undeclared_call() {
  heading "An undeclared call: nobody declared intruder, so it is refused."
  if run kubectl exec -n outside intruder -- curl -sS --max-time 10 "$URL"; then
    fail "the undeclared call was answered" "that must not be: is the pod of orders injected? kubectl get pods -n shop"
  fi
  heading "Why: the Event on the server that refused it"
  wait_for 15 "an Event with the reason" "" refusal_known
  run kubectl get events -n shop --field-selector reason=ConnectionRefused
}

refusal_known() { kubectl get events -n shop --field-selector reason=ConnectionRefused -o name | grep -q .; }

next_steps() {
  heading "What to try next"
  cat <<TEXT
  export KUBECONFIG=$NODE/kubeconfig PATH=$NODE/bin:\$PATH
  kubectl describe trustedserver orders -n shop                  # who it is, its certificates, its conditions
  kubectl edit trustedserver orders -n shop                      # take web out of allowFrom: its next call is refused
  kubectl logs -n shop deploy/orders -c entente-proxy            # one line for each connection
  ./up down                                                      # removes every trace
TEXT
}
