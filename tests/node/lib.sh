# shellcheck shell=bash
# What every part of the node's scripts uses: places, messages, bounded waits.

# shellcheck disable=SC2034  # used by the files that source this one
{
  KUBERNETES=v1.34.4
  HELM=v3.20.2
  COREDNS=v1.15.0
  ZLINT=v3.7.3
  PKILINT=0.13.3
  # go-spiffe's version, and a number that counts changes of tests/node/spiffe.
  SPIFFE=v2.9.0-1
  BETTERTLS=v0.0.0-20250909192348-e1e99e353074
  CACHE="${ENTENTE_CACHE:-$HOME/.cache/entente}"
  # One machine can hold several nodes: each has a number, and of that number there is one.
  NUMBER="${ENTENTE_NODE:-0}"
  SUFFIX="-$NUMBER"
  [ "$NUMBER" != 0 ] || SUFFIX=
  NODE="$ROOT/.node$SUFFIX"
  LOG="$NODE/log"
  # Sockets live on a short path (a Unix socket's path has at most 107 bytes).
  RUN="/run/entente-node$SUFFIX"
  NETNS="entente-node$SUFFIX"
  HOST_LINK="entente-host$NUMBER"
  CONTAINERD_SOCKET="$RUN/containerd.sock"
  # 198.18.0.0/15 is the range reserved for tests of network devices (RFC 2544); fd00::/8 is for private use (RFC 4193).
  HOST_IP="198.18.255.$((NUMBER * 4 + 1))"
  NODE_IP="198.18.255.$((NUMBER * 4 + 2))"
  POD_CIDR=198.18.0.0/20
  POD_CIDR6=fd00:198:18::/64
  SERVICE_CIDR=198.19.0.0/16
  SERVICE_CIDR6=fd00:198:19::/112
  DNS_IP=198.19.0.10
}
# Under sudo the usual places of Rust, Go and the system's own tools are often missing.
PATH="$PATH:/usr/local/go/bin:$HOME/.cargo/bin:/usr/sbin:/sbin"
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
      fail "$what did not happen within $limit s" "${log:+see $log; }'./up explain' shows more, './up down' and './up' start afresh"
    fi
    sleep 0.2
  done
}

# patiently WHAT LOGFILE COMMAND...: runs a command that may take minutes, and says now and then that it goes on.
patiently() {
  local what=$1 log=$2 began=$SECONDS next=$((SECONDS + 30)) pid
  shift 2
  "$@" >>"$log" 2>&1 &
  pid=$!
  while kill -0 "$pid" 2>/dev/null; do
    if [ "$SECONDS" -ge "$next" ]; then
      say "… still $what ($((SECONDS - began)) s; log: $log)"
      next=$((SECONDS + 30))
    fi
    sleep 0.2
  done
  wait "$pid" || { tail -n 30 "$log" >&2; fail "$what failed" "the whole log is $log"; }
}

# One ./up at a time in a checkout; the lock goes with the process.
lock() {
  exec 9<"$ROOT/tests/node"
  flock -n 9 || { say "waiting for another ./up to end"; flock 9; }
}

kubectl() { "$NODE/bin/kubectl" --kubeconfig "$NODE/kubeconfig" --cache-dir "$NODE/cache" "$@"; }
helm() { HELM_CACHE_HOME="$NODE/helm" HELM_CONFIG_HOME="$NODE/helm" HELM_DATA_HOME="$NODE/helm" \
  "$NODE/bin/helm" --kubeconfig "$NODE/kubeconfig" "$@"; }
