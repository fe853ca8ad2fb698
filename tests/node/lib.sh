# shellcheck shell=bash
# What every part of the node's scripts uses: places, messages, bounded waits, processes.

# shellcheck disable=SC2034  # used by the files that source this one
{
  KUBERNETES=v1.34.4
  HELM=v3.20.2
  COREDNS=v1.15.0
  CACHE="${ENTENTE_CACHE:-$HOME/.cache/entente}"
  NODE="$ROOT/.node"
  LOG="$NODE/log"
  # Sockets live on a short path (a Unix socket's path has at most 108 bytes); one node at a time per machine.
  RUN=/run/entente-node
  NETNS=entente-node
  # 198.18.0.0/15 is the range reserved for tests of network devices (RFC 2544).
  HOST_IP=198.18.255.1
  NODE_IP=198.18.255.2
  POD_CIDR=198.18.0.0/20
  SERVICE_CIDR=198.19.0.0/16
  DNS_IP=198.19.0.10
  CONTAINERD_SOCKET="$RUN/containerd.sock"
}
STARTED=$SECONDS

say() { printf '[%4ds] %s\n' "$((SECONDS - STARTED))" "$*" >&2; }

# fail MESSAGE [WHAT TO DO]
fail() {
  printf 'error: %s\n' "$1" >&2
  [ $# -lt 2 ] || printf '       %s\n' "$2" >&2
  exit 1
}

# wait_for SECONDS WHAT LOGFILE COMMAND...: polls until the command succeeds, or fails with the end of the log.
wait_for() {
  local limit=$1 what=$2 log=$3 deadline=$((SECONDS + $1))
  shift 3
  until "$@" >/dev/null 2>&1; do
    if [ "$SECONDS" -ge "$deadline" ]; then
      [ ! -f "$log" ] || tail -n 15 "$log" >&2
      fail "$what did not happen within $limit s" "see $log; './up down' and './up' start afresh"
    fi
    sleep 0.2
  done
}

in_node() { nsenter --net="/run/netns/$NETNS" "$@"; }

# start NAME COMMAND...: a process of the node, inside its network, recorded by its id.
start() {
  local name=$1
  shift
  in_node setsid "$@" >>"$LOG/$name.log" 2>&1 </dev/null &
  echo $! >"$RUN/pid/$name"
}

kubectl() { "$NODE/bin/kubectl" --kubeconfig "$NODE/kubeconfig" "$@"; }
helm() { "$NODE/bin/helm" --kubeconfig "$NODE/kubeconfig" "$@"; }
