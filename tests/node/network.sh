# shellcheck shell=bash
# The node's own network: a namespace, one pair of links to reach the API server from outside, addresses for pods and
# Services. Nothing of the machine's own addresses or firewall is touched, and nothing leads further out.

in_node() { nsenter --net="/run/netns/$NETNS" "$@"; }

network_there() { in_node true 2>/dev/null; }

network() {
  ip netns add "$NETNS"
  ip link add "$HOST_LINK" type veth peer name entente-node netns "$NETNS"
  ip addr add "$HOST_IP/30" dev "$HOST_LINK"
  ip link set "$HOST_LINK" up
  ip -n "$NETNS" link set lo up
  ip -n "$NETNS" addr add "$NODE_IP/30" dev entente-node
  ip -n "$NETNS" link set entente-node up
  in_node sysctl -q -w net.ipv4.ip_forward=1
  # Local callers of a Service (the API server, of a webhook) need a route before kube-proxy rewrites the address.
  ip -n "$NETNS" route add "$SERVICE_CIDR" dev entente-node
  [ "$(in_node sysctl -n net.ipv6.conf.all.disable_ipv6 2>/dev/null)" = 0 ] || return 0
  in_node sysctl -q -w net.ipv6.conf.all.forwarding=1
  ip -n "$NETNS" -6 route add "$SERVICE_CIDR6" dev entente-node
  touch "$RUN/ipv6"
}

# ranges IPV4 IPV6: both families where the kernel has both.
ranges() {
  if [ -f "$RUN/ipv6" ]; then echo "$1,$2"; else echo "$1"; fi
}

# Pods share a bridge where br_netfilter lets a Service's answer meet its translation on it. Elsewhere each pod has a
# link of its own to the node, which costs two seconds more for each pod (duplicate address detection).
cni_config() {
  local kind=ptp
  [ ! -d /proc/sys/net/bridge ] || kind=bridge
  mkdir -p "$NODE/cni"
  jq -n --arg name "$NETNS" --arg kind "$kind" --arg dir "$NODE/ipam" --arg subnets "$(ranges "$POD_CIDR" "$POD_CIDR6")" '
    ($subnets | split(",")) as $subnets |
    {cniVersion: "0.4.0", $name, plugins: [
      {type: $kind, ipMasq: false, ipam: {type: "host-local", dataDir: $dir, ranges: [$subnets[] | [{subnet: .}]],
        routes: [$subnets[] | {dst: (if contains(":") then "::/0" else "0.0.0.0/0" end)}]}}
      + if $kind == "bridge" then {bridge: "cni0", isGateway: true, hairpinMode: true} else {} end]}' >"$NODE/cni/10-node.conflist"
}

network_down() {
  ip netns del "$NETNS" 2>/dev/null || true
  ip link del "$HOST_LINK" 2>/dev/null || true
}
