#!/usr/bin/env bash
# A root and an issuing certificate, made by OpenSSL, as the Secret that TrustDomain.spec.authority.secretRef names.
# The root's key stays in the folder: nothing in the cluster needs it.
#
#   ./make-ca.sh ca1 | kubectl apply -f -        # first time, with folder ca1 made new
#   ./make-ca.sh ca1 | kubectl apply -f -        # again: the next issuing certificate under the same root
#   ./make-ca.sh ca2 | kubectl apply -f -        # another root: both are trusted until nothing of the old one is in use
set -euo pipefail
FOLDER=${1:?usage: $0 FOLDER}
NAME=${NAME:-contoso-ca}            # the Secret
NAMESPACE=${NAMESPACE:-entente-system}
ORGANISATION=${ORGANISATION:-Contoso}
SUFFIX=${SUFFIX:-contoso.example}   # dnsSuffixes and spiffeTrustDomain of the TrustDomain
mkdir -p "$FOLDER"
cd "$FOLDER"

if [ ! -f root.key ]; then
  openssl ecparam -name prime256v1 -genkey -noout -out root.key
  openssl req -x509 -new -key root.key -days 3650 -sha256 -subj "/O=$ORGANISATION/CN=$ORGANISATION root $(openssl rand -hex 4)" \
    -addext 'basicConstraints=critical,CA:TRUE,pathlen:1' -addext 'keyUsage=critical,keyCertSign,cRLSign' -out root.crt
fi

# Names of the domain and of the cluster; leave nameConstraints out, or let them permit all of these.
cat >issuer.cnf <<CONF
basicConstraints=critical,CA:TRUE,pathlen:0
keyUsage=critical,keyCertSign,cRLSign
subjectKeyIdentifier=hash
authorityKeyIdentifier=keyid
nameConstraints=critical,permitted;DNS:$SUFFIX,permitted;DNS:cluster.local,permitted;DNS:svc
CONF
openssl ecparam -name prime256v1 -genkey -noout -out issuer.key
openssl req -new -key issuer.key -subj "/O=$ORGANISATION/CN=$ORGANISATION issuer $(openssl rand -hex 4)" -out issuer.csr
openssl x509 -req -in issuer.csr -CA root.crt -CAkey root.key -set_serial "0x4$(openssl rand -hex 15)" -days 90 -sha256 \
  -extfile issuer.cnf -out issuer.crt 2>/dev/null

# The root's CRL, optional: with it crl.pem is complete, and `openssl verify -crl_check_all` works.
cat >ca.cnf <<'CONF'
[ca]
default_ca=root
[root]
database=index.txt
crlnumber=crlnumber
default_md=sha256
default_crl_days=365
crl_extensions=crl
[crl]
authorityKeyIdentifier=keyid
CONF
touch index.txt
[ -f crlnumber ] || echo 01 >crlnumber
openssl ca -config ca.cnf -gencrl -cert root.crt -keyfile root.key -out root.crl 2>/dev/null

indent() { sed 's/^/    /' "$1"; }
cat <<YAML
apiVersion: v1
kind: Secret
type: kubernetes.io/tls
metadata: {name: $NAME, namespace: $NAMESPACE}
stringData:
  tls.crt: |
$(indent issuer.crt)
  tls.key: |
$(indent issuer.key)
  ca.crt: |
$(indent root.crt)
  ca.crl: |
$(indent root.crl)
YAML
