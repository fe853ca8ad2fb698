# shellcheck shell=bash
# One real Kubernetes node inside its own network namespace: etcd, the control plane, containerd, kubelet, kube-proxy,
# CoreDNS. Each step does only what is not done yet, so a part that was killed comes back and the rest goes on.

PARTS='etcd kube-apiserver kube-controller-manager kube-scheduler containerd kubelet kube-proxy coredns'

control_plane() {
  start etcd etcd --data-dir "$NODE/etcd" --unsafe-no-fsync --listen-client-urls http://127.0.0.1:2379 \
    --advertise-client-urls http://127.0.0.1:2379 --listen-peer-urls http://127.0.0.1:2380 --log-level warn
  # etcd 3.4 cannot report its progress on request, and the estimate of list costs waits for that in vain.
  start kube-apiserver "$NODE/bin/kube-apiserver" --feature-gates=SizeBasedListCostEstimate=false --etcd-servers=http://127.0.0.1:2379 --advertise-address="$NODE_IP" \
    --secure-port=6443 --service-cluster-ip-range="$(ranges "$SERVICE_CIDR" "$SERVICE_CIDR6")" \
    --authorization-mode=Node,RBAC --allow-privileged \
    --enable-admission-plugins=NodeRestriction --client-ca-file="$PKI/ca.crt" --tls-cert-file="$PKI/apiserver.crt" \
    --tls-private-key-file="$PKI/apiserver.key" --service-account-key-file="$PKI/sa.key" \
    --service-account-signing-key-file="$PKI/sa.key" --service-account-issuer=https://kubernetes.default.svc \
    --kubelet-client-certificate="$PKI/kubelet-client.crt" --kubelet-client-key="$PKI/kubelet-client.key" \
    --kubelet-certificate-authority="$PKI/ca.crt" --kubelet-preferred-address-types=InternalIP --event-ttl=2h
  wait_for 60 "the API server's readiness" "$LOG/kube-apiserver.log" kubectl get --raw /readyz
  start kube-controller-manager "$NODE/bin/kube-controller-manager" --kubeconfig="$PKI/controller-manager.kubeconfig" \
    --service-account-private-key-file="$PKI/sa.key" --root-ca-file="$PKI/ca.crt" --use-service-account-credentials \
    --leader-elect=false --bind-address=127.0.0.1
  start kube-scheduler "$NODE/bin/kube-scheduler" --kubeconfig="$PKI/scheduler.kubeconfig" --leader-elect=false \
    --bind-address=127.0.0.1
}

containerd_config() {
  cat >"$NODE/containerd.toml" <<TOML
version = 2
root = "$NODE/containerd"
state = "$RUN/containerd"
[grpc]
  address = "$CONTAINERD_SOCKET"
[plugins."io.containerd.internal.v1.opt"]
  path = "$NODE/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "registry.local/pause:dev"
  # A profile would be loaded into the machine's kernel.
  disable_apparmor = true
  # Without CAP_SYS_RESOURCE a process may not lower its own OOM score.
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "$NODE/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      Root = "$RUN/runc"
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
cgroupRoot: /$NETNS
clusterDNS: [$DNS_IP]
clusterDomain: cluster.local
containerRuntimeEndpoint: unix://$CONTAINERD_SOCKET
enforceNodeAllocatable: []
evictionHard: {memory.available: 50Mi, nodefs.available: 100Mi, imagefs.available: 100Mi}
failSwapOn: false
imageGCHighThresholdPercent: 100
maxPods: 250
oomScoreAdj: 0
podLogsDir: $NODE/podlogs
readOnlyPort: 0
resolvConf: /dev/null
serializeImagePulls: false
tlsCertFile: $PKI/kubelet.crt
tlsPrivateKeyFile: $PKI/kubelet.key
kubeAPIQPS: 100
kubeAPIBurst: 200
YAML
}

worker() {
  containerd_config
  kubelet_config
  cni_config
  start containerd containerd --config "$NODE/containerd.toml"
  wait_for 30 "containerd's socket" "$LOG/containerd.log" ctr_node version
  load_tools
  start kubelet "$NODE/bin/kubelet" --config="$NODE/kubelet.yaml" --kubeconfig="$PKI/kubelet.kubeconfig" \
    --root-dir="$NODE/kubelet" --node-ip="$NODE_IP" --hostname-override=node
  start kube-proxy "$NODE/bin/kube-proxy" --kubeconfig="$PKI/proxy.kubeconfig" --proxy-mode=nftables --conntrack-max-per-core=0 \
    --cluster-cidr="$(ranges "$POD_CIDR" "$POD_CIDR6")" --hostname-override=node --bind-address=127.0.0.1 --oom-score-adj=0
}

# CoreDNS runs beside the other programs; a Service with an EndpointSlice of ours leads to it. There is no way out of
# the node, so a name that is not the cluster's does not exist, but for what $NODE/hosts says: the names of partners,
# and lies about names of ours, each within a second.
dns() {
  touch "$NODE/hosts"
  cat >"$NODE/Corefile" <<COREFILE
cluster.local:53 in-addr.arpa:53 ip6.arpa:53 {
  bind $NODE_IP
  hosts $NODE/hosts {
    ttl 1
    reload 300ms
    fallthrough
  }
  kubernetes cluster.local in-addr.arpa ip6.arpa {
    kubeconfig $PKI/coredns.kubeconfig
    ttl 1
  }
  ready 127.0.0.1:8181
  errors
}
.:53 {
  bind $NODE_IP
  hosts $NODE/hosts {
    ttl 1
    reload 300ms
    fallthrough
  }
  forward . 127.0.0.1:5300
  errors
}
# A template in the zone above would answer before the file is asked.
.:5300 {
  bind 127.0.0.1
  template ANY ANY {
    rcode NXDOMAIN
  }
  errors
}
COREFILE
  start coredns "$NODE/bin/coredns" -conf "$NODE/Corefile"
  kubectl apply --server-side -f - >/dev/null <<YAML
apiVersion: v1
kind: Service
metadata: {name: kube-dns, namespace: kube-system, labels: {k8s-app: kube-dns}}
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

ours() { [ "$(cat "$RUN/owner" 2>/dev/null)" = "$NODE" ] && [ -f "$NODE/kubeconfig" ] && network_there; }

alive() {
  local name
  ours || return 1
  for name in $PARTS; do running "$name" || return 1; done
}

node_up() {
  if alive; then
    say "the node is running"
    return
  fi
  # A node of another checkout, or what an interrupted start has left, gives way.
  if ! ours; then
    node_down
    say "starting a one-node Kubernetes $KUBERNETES in its own network namespace"
    mkdir -p "$RUN/pid" "$LOG"
    remember_tunables
    echo "$NODE" >"$RUN/owner"
    network
  fi
  certificates
  cgroups
  control_plane
  worker
  dns
  wait_for 90 "the node's readiness" "$LOG/kubelet.log" kubectl wait --for=condition=Ready node/node --timeout=1s
  wait_for 30 "kubelet's view of its pods" "$LOG/kubelet.log" kubelet_knows_pods
  wait_for 30 "the default service account" "$LOG/kube-controller-manager.log" kubectl get serviceaccount default
  wait_for 30 "CoreDNS' readiness" "$LOG/coredns.log" in_node curl -fsS --max-time 1 http://127.0.0.1:8181/ready
  say "the node is Ready"
}

# A kubelet that has just come back knows no pods for a moment, and refuses exec and logs.
kubelet_knows_pods() {
  local known
  known=$(kubectl get --raw /api/v1/nodes/node/proxy/pods | jq '.items | length')
  [ "$known" -ge "$(kubectl get pods -A --field-selector spec.nodeName=node -o name | wc -l)" ]
}

# Ends every process of the node, its containers, mounts, network and state; the logs stay in .node/log. Nothing is
# asked politely: what they would save is removed.
node_down() {
  local owner
  [ -d "$RUN" ] || [ -e "/run/netns/$NETNS" ] || [ -d "$(main_tree)" ] || return 0
  owner=$(cat "$RUN/owner" 2>/dev/null || echo "$NODE")
  say "stopping the node of ${owner%/.node*}"
  end_all
  unmount_below "$owner" "$RUN"
  network_down
  remove_cgroups
  fixed_places "$owner"
  rm -rf --one-file-system "$RUN" "$owner"/{etcd,containerd,kubelet,ipam,loaded,podlogs,opt,pki,kubeconfig}
  restore_tunables
}

# Traces outside the node's own folders, where containerd, kubelet and the plugins insist on theirs.
fixed_places() {
  local owner=$1 address link
  for address in "$RUN"/containerd/io.containerd.runtime.v2.task/*/*/address; do
    [ -f "$address" ] || continue
    rm -f "$(sed 's#^unix://##' "$address")"
  done
  for link in /var/log/containers/*; do
    [[ $(readlink "$link") != "$owner"/* ]] || rm -f "$link"
  done
  rm -f /var/lib/kubelet/device-plugins/kubelet.sock
  { grep -lsF "$RUN/" /var/lib/cni/results/* || true; } | xargs -r rm -f
  rmdir -p /run/containerd/s /var/log/containers /var/lib/kubelet/device-plugins /var/lib/cni/results 2>/dev/null || true
}
