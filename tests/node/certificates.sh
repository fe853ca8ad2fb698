# shellcheck shell=bash
# The node's own certificate authority and access files, made once for each node.

PKI="$NODE/pki"

# certificate NAME SUBJECT [SAN]: a certificate of the node's own CA, made once.
certificate() {
  local name=$1 subject=$2 san=${3:-DNS:$1}
  [ ! -f "$PKI/$name.crt" ] || return 0
  openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout "$PKI/$name.key" -subj "$subject" 2>/dev/null |
    openssl x509 -req -CA "$PKI/ca.crt" -CAkey "$PKI/ca.key" -CAcreateserial -days 3650 -out "$PKI/$name.crt" \
      -extfile <(printf 'subjectAltName=%s\nextendedKeyUsage=serverAuth,clientAuth\n' "$san") 2>/dev/null
}

# access NAME FILE: a kubeconfig for the certificate of that name.
access() {
  local name=$1 file=$2
  (umask 077 && cat >"$file") <<YAML
apiVersion: v1
kind: Config
clusters: [{name: node, cluster: {server: "https://$NODE_IP:6443", certificate-authority-data: $(base64 -w0 "$PKI/ca.crt")}}]
users: [{name: $name, user: {client-certificate-data: $(base64 -w0 "$PKI/$name.crt"), client-key-data: $(base64 -w0 "$PKI/$name.key")}}]
contexts: [{name: node, context: {cluster: node, user: $name}}]
current-context: node
YAML
}

certificates() {
  local name
  mkdir -p "$PKI"
  chmod 700 "$PKI"
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
  for name in kubelet controller-manager scheduler proxy coredns; do access "$name" "$PKI/$name.kubeconfig"; done
  access admin "$NODE/kubeconfig"
}
