#!/bin/sh
# This user tells its organisation's server where it is.
set -eu
cd "$(dirname "$0")"
# shellcheck source=send.sh source-path=SCRIPTDIR
. ./send.sh
echo "$SIP_USER@$SIP_HOME is at $POD_IP"
send register.sip "!user!$SIP_USER!home!$SIP_HOME!"
