#!/bin/sh
# message.sh TO [FROM]: sends a short message, as the user of this pod or as whom it claims to be; shows the answer.
set -eu
cd "$(dirname "$0")"
to=$1 from=${2:-$SIP_USER@$SIP_HOME}
id=$(od -An -N8 -tx8 /dev/urandom | tr -d ' ')
exec sipsak -v -E tcp -f message.sip -g "!from!$from!to!$to!address!$POD_IP!id!$id!" -s "sip:$SIP_PROXY"
