# shellcheck shell=bash
# One real Kubernetes node inside its own network namespace: etcd, the control plane, containerd, kubelet, kube-proxy,
# CoreDNS. Every process is recorded by its id; nothing of the machine's own addresses or firewall is touched.

PKI="$NODE/pki"

# certificate NAME SUBJECT [SAN]: a certificate of the node's own CA, made once.
certificate() {
  local name=$1 subject=$2 san=${3:-DNS:$1}
  [ -f "$PKI/$name.crt" ] && return
  openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout "$PKI/$name.key" -subj "$subject" 2>/dev/null |
    openssl x509 -req -CA "$PKI/ca.crt" -CAkey "$PKI/ca.key" -CAcreateserial -days 3650 -out "$PKI/$name.crt" \
      -extfile <(printf 'subjectAltName=%s\nextendedKeyUsage=serverAuth,clientAuth\n' "$san") 2>/dev/null
}

# kubeconfig NAME SERVER: an access file for the certificate of that name.
kubeconfig() {
  local name=$1 server=$2 file=$NODE/$1.kubeconfig
  cat >"$file" <<YAML
apiVersion: v1
kind: Config
clusters: [{name: node, cluster: {server: "$server", certificate-authority-data: $(base64 -w0 "$PKI/ca.crt")}}]
users: [{name: $name, user: {client-certificate-data: $(base64 -w0 "$PKI/$name.crt"), client-key-data: $(base64 -w0 "$PKI/$name.key")}}]
contexts: [{name: node, context: {cluster: node, user: $name}}]
current-context: node
YAML
}

certificates() {
  mkdir -p "$PKI"
  [ -f "$PKI/ca.crt" ] || openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 -subj /CN=node-ca \
    -keyout "$PKI/ca.key" -out "$PKI/ca.crt" 2>/dev/null
  [ -f "$PKI/sa.key" ] || openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out "$PKI/sa.key" 2>/dev/null
  certificate apiserver /CN=kube-apiserver \
    "DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:localhost,IP:127.0.0.1,IP:$NODE_IP,IP:198.19.0.1"
  certificate admin /O=system:masters/CN=admin
  certificate kubelet /O=system:nodes/CN=system:node:node "DNS:node,IP:$NODE_IP"
  certificate kubelet-client /O=system:masters/CN=kube-apiserver-kubelet-client
  certificate controller-manager /CN=system:kube-controller-manager
  certificate scheduler /CN=system:kube-scheduler
  certificate proxy /CN=system:kube-proxy
  certificate coredns /O=system:masters/CN=coredns
  local name
  for name in admin kubelet controller-manager scheduler proxy coredns; do kubeconfig "$name" "https://$NODE_IP:6443"; done
  install -m 0600 "$NODE/admin.kubeconfig" "$NODE/kubeconfig"
}

network() {
  ip netns add "$NETNS"
  ip link add entente-host type veth peer name entente-node netns "$NETNS"
  ip addr add "$HOST_IP/30" dev entente-host
  ip link set entente-host up
  ip -n "$NETNS" link set lo up
  ip -n "$NETNS" addr add "$NODE_IP/30" dev entente-node
  ip -n "$NETNS" link set entente-node up
  # Local callers of a Service need a route before kube-proxy rewrites the address; there is no way out beyond this.
  ip -n "$NETNS" route add "$SERVICE_CIDR" dev entente-node
  in_node sysctl -q -w net.ipv4.ip_forward=1
  mkdir -p "$NODE/cni"
  cat >"$NODE/cni/10-bridge.conflist" <<JSON
{"cniVersion": "0.4.0", "name": "node", "plugins": [
  {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
   "ipam": {"type": "host-local", "dataDir": "$NODE/ipam", "ranges": [[{"subnet": "$POD_CIDR"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
JSON
}

control_plane() {
  start etcd etcd --data-dir "$NODE/etcd" --unsafe-no-fsync --listen-client-urls http://127.0.0.1:2379 \
    --advertise-client-urls http://127.0.0.1:2379 --listen-peer-urls http://127.0.0.1:2380 --log-level warn
  start kube-apiserver "$NODE/bin/kube-apiserver" --etcd-servers=http://127.0.0.1:2379 --advertise-address="$NODE_IP" \
    --secure-port=6443 --service-cluster-ip-range="$SERVICE_CIDR" --authorization-mode=Node,RBAC --allow-privileged \
    --enable-admission-plugins=NodeRestriction --client-ca-file="$PKI/ca.crt" --tls-cert-file="$PKI/apiserver.crt" \
    --tls-private-key-file="$PKI/apiserver.key" --service-account-key-file="$PKI/sa.key" \
    --service-account-signing-key-file="$PKI/sa.key" --service-account-issuer=https://kubernetes.default.svc \
    --kubelet-client-certificate="$PKI/kubelet-client.crt" --kubelet-client-key="$PKI/kubelet-client.key" \
    --kubelet-preferred-address-types=InternalIP --event-ttl=2h
  wait_for 60 "the API server's readiness" "$LOG/kube-apiserver.log" kubectl get --raw /readyz
  start kube-controller-manager "$NODE/bin/kube-controller-manager" --kubeconfig="$NODE/controller-manager.kubeconfig" \
    --service-account-private-key-file="$PKI/sa.key" --root-ca-file="$PKI/ca.crt" --use-service-account-credentials \
    --leader-elect=false --bind-address=127.0.0.1 --concurrent-service-endpoint-syncs=5
  start kube-scheduler "$NODE/bin/kube-scheduler" --kubeconfig="$NODE/scheduler.kubeconfig" --leader-elect=false \
    --bind-address=127.0.0.1
}

containerd_config() {
  cat >"$NODE/containerd.toml" <<TOML
version = 2
root = "$NODE/containerd"
state = "$RUN/containerd"
[grpc]
  address = "$CONTAINERD_SOCKET"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "registry.local/pause:dev"
  # Without CAP_SYS_RESOURCE a process may not lower its own OOM score.
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "$NODE/cni"
TOML
}

kubelet_config() {
  cat >"$NODE/kubelet.yaml" <<YAML
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: $NODE_IP
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $PKI/ca.crt}}
authorization: {mode: Webhook}
cgroupDriver: cgroupfs
cgroupRoot: /entente-node
clusterDNS: [$DNS_IP]
clusterDomain: cluster.local
containerRuntimeEndpoint: unix://$CONTAINERD_SOCKET
enforceNodeAllocatable: []
evictionHard: {memory.available: 50Mi, nodefs.available: 100Mi, imagefs.available: 100Mi}
failSwapOn: false
imageGCHighThresholdPercent: 100
maxPods: 250
podLogsDir: $NODE/podlogs
readOnlyPort: 0
registerNode: true
resolvConf: /dev/null
serializeImagePulls: false
staticPodPath: ""
tlsCertFile: $PKI/kubelet.crt
tlsPrivateKeyFile: $PKI/kubelet.key
kubeAPIQPS: 100
kubeAPIBurst: 200
YAML
}

# Pods live below a cgroup of our own, so that what is left of them can be told from another kubelet's.
cgroups() {
  local hierarchy
  for hierarchy in /sys/fs/cgroup/*/; do
    mkdir -p "$hierarchy/entente-node"
    [ ! -f "$hierarchy/cpuset.cpus" ] || for knob in cpuset.cpus cpuset.mems; do
      cat "$hierarchy/$knob" >"$hierarchy/entente-node/$knob"
    done
  done
}

worker() {
  cgroups
  containerd_config
  kubelet_config
  start containerd containerd --config "$NODE/containerd.toml"
  wait_for 30 "containerd's socket" "$LOG/containerd.log" ctr_node version
  load_tools
  start kubelet "$NODE/bin/kubelet" --config="$NODE/kubelet.yaml" --kubeconfig="$NODE/kubelet.kubeconfig" \
    --root-dir="$NODE/kubelet" --node-ip="$NODE_IP" --hostname-override=node
  start kube-proxy "$NODE/bin/kube-proxy" --kubeconfig="$NODE/proxy.kubeconfig" --proxy-mode=nftables --conntrack-max-per-core=0 \
    --cluster-cidr="$POD_CIDR" --hostname-override=node --bind-address=127.0.0.1
}

# CoreDNS runs beside the other programs; a Service with an EndpointSlice of ours leads to it.
dns() {
  cat >"$NODE/Corefile" <<COREFILE
.:53 {
  bind $NODE_IP
  kubernetes cluster.local in-addr.arpa { kubeconfig $NODE/coredns.kubeconfig
    ttl 1 }
  errors
}
COREFILE
  start coredns "$NODE/bin/coredns" -conf "$NODE/Corefile"
  kubectl apply --server-side -f - >/dev/null <<YAML
apiVersion: v1
kind: Service
metadata: {name: kube-dns, namespace: kube-system}
spec: {clusterIP: $DNS_IP, ports: [{name: dns, port: 53, protocol: UDP}, {name: dns-tcp, port: 53, protocol: TCP}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: kube-dns, namespace: kube-system, labels: {kubernetes.io/service-name: kube-dns}}
addressType: IPv4
ports: [{name: dns, port: 53, protocol: UDP}, {name: dns-tcp, port: 53, protocol: TCP}]
endpoints: [{addresses: [$NODE_IP]}]
YAML
}

alive() {
  local pid name
  [ "$(cat "$RUN/owner" 2>/dev/null)" = "$NODE" ] || return 1
  for name in etcd kube-apiserver kube-controller-manager kube-scheduler containerd kubelet kube-proxy coredns; do
    pid=$(cat "$RUN/pid/$name" 2>/dev/null) && [ -d "/proc/$pid" ] || return 1
  done
}

node_up() {
  if alive; then
    say "the node is running"
    return
  fi
  # A node of another checkout, or what is left of a killed one, gives way: there is one per machine.
  node_down
  say "starting a one-node Kubernetes $KUBERNETES in its own network namespace"
  mkdir -p "$RUN/pid" "$LOG"
  echo "$NODE" >"$RUN/owner"
  certificates
  network
  control_plane
  worker
  dns
  wait_for 90 "the node's readiness" "$LOG/kubelet.log" kubectl wait --for=condition=Ready node/node --timeout=1s
  wait_for 30 "the default service account" "$LOG/kube-controller-manager.log" kubectl get serviceaccount default
  say "the node is Ready"
}

# end_process PID: the process that we started, politely, then at once.
end_process() {
  local pid=$1 deadline=$((SECONDS + 5))
  kill "$pid" 2>/dev/null || return 0
  while [ -d "/proc/$pid" ] && [ "$SECONDS" -lt "$deadline" ]; do sleep 0.1; done
  kill -9 "$pid" 2>/dev/null || true
}

# Ends every process of the node, then its containers, mounts, network and state.
node_down() {
  local name pid owner mountpoint
  [ -d "$RUN" ] || [ -e "/run/netns/$NETNS" ] || return 0
  owner=$(cat "$RUN/owner" 2>/dev/null || echo "$NODE")
  say "stopping the node of ${owner%/.node}"
  for name in kubelet coredns kube-proxy kube-scheduler kube-controller-manager kube-apiserver etcd containerd; do
    pid=$(cat "$RUN/pid/$name" 2>/dev/null) || continue
    [ ! -d "/proc/$pid" ] || end_process "$pid"
  done
  # Containers outlive containerd by their shims, which carry our socket in their arguments.
  pkill -9 -f "containerd-shim.*-address $CONTAINERD_SOCKET" 2>/dev/null || true
  leftover_containers
  while read -r mountpoint; do umount -l "$mountpoint" 2>/dev/null || true; done \
    < <(awk -v a="$owner/" -v b="$RUN/" 'index($2, a) == 1 || index($2, b) == 1 {print $2}' /proc/mounts | sort -r)
  ip netns del "$NETNS" 2>/dev/null || true
  ip link del entente-host 2>/dev/null || true
  rm -rf "$RUN" "$owner"/{etcd,containerd,kubelet,ipam,loaded,podlogs}
}

# Processes of pods, found by the cgroup of this node alone.
leftover_containers() {
  local pid
  find /sys/fs/cgroup/pids/entente-node -name cgroup.procs -exec cat {} + 2>/dev/null | while read -r pid; do
    kill -9 "$pid" 2>/dev/null || true
  done
}
