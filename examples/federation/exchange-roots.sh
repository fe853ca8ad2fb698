#!/usr/bin/env bash
# What two organisations do once, by hand and with care: each gives the other its root. Fabrikam's authority and the
# certificate of its server are made here by OpenSSL, in a folder; Contoso's root is what Entente publishes.
#
#   ./exchange-roots.sh FOLDER        # again with the same folder: the same root, the next certificate
set -euo pipefail
FOLDER=${1:?usage: $0 FOLDER}
US=${US:-contoso}
THEM=${THEM:-fabrikam}
mkdir -p "$FOLDER"
cd "$FOLDER"

if [ ! -f root.key ]; then
  (umask 077 && openssl ecparam -name prime256v1 -genkey -noout -out root.key)
  openssl req -x509 -new -key root.key -days 3650 -sha256 -subj "/O=$THEM/CN=$THEM root $(openssl rand -hex 4)" \
    -addext 'basicConstraints=critical,CA:TRUE' -addext 'keyUsage=critical,keyCertSign,cRLSign' -out root.crt
fi

# One certificate for both roles: a SIP server calls and is called. The name is what Contoso's edge dials.
cat >leaf.cnf <<CONF
subjectAltName=DNS:sip.$THEM.example
extendedKeyUsage=clientAuth,serverAuth
keyUsage=critical,digitalSignature
basicConstraints=critical,CA:FALSE
subjectKeyIdentifier=hash
authorityKeyIdentifier=keyid
CONF
(umask 077 && openssl ecparam -name prime256v1 -genkey -noout -out leaf.key)
openssl req -new -key leaf.key -subj "/O=$THEM" -out leaf.csr
openssl x509 -req -in leaf.csr -CA root.crt -CAkey root.key -set_serial "0x4$(openssl rand -hex 15)" -days 90 -sha256 \
  -extfile leaf.cnf -out leaf.crt 2>/dev/null

# Fabrikam gets its certificate, and Contoso's root.
kubectl get configmap entente-trust-bundle -n "$US-edge" -o 'jsonpath={.data.ca\.crt}' >theirs.crt
grep -q BEGIN theirs.crt || { echo "there is no ca.crt in ConfigMap entente-trust-bundle of $US-edge yet" >&2; exit 1; }
kubectl create secret tls own -n "$THEM" --cert leaf.crt --key leaf.key --dry-run=client -o yaml | kubectl apply -f -
kubectl create configmap theirs -n "$THEM" --from-file=ca.crt=theirs.crt --dry-run=client -o yaml | kubectl apply -f -
kubectl rollout restart deployment/sip -n "$THEM"

# Contoso gets Fabrikam's root.
kubectl patch federationpartner "$THEM" -n "$US-edge" --type merge --patch-file /dev/stdin <<YAML
spec:
  trust:
    caBundle: |
$(sed 's/^/      /' root.crt)
YAML
