#!/bin/sh
# This user tells its organisation's server where it is.
set -eu
cd "$(dirname "$0")"
id=$(od -An -N8 -tx8 /dev/urandom | tr -d ' ')
exec sipsak -v -E tcp -f register.sip -g "!user!$SIP_USER!home!$SIP_HOME!address!$POD_IP!id!$id!" -s "sip:$SIP_PROXY"
