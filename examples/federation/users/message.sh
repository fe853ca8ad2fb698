#!/bin/sh
# message.sh TO [FROM]: sends a short message, as the user of this pod or as whom it claims to be.
set -eu
cd "$(dirname "$0")"
# shellcheck source=send.sh source-path=SCRIPTDIR
. ./send.sh
from=${2:-$SIP_USER@$SIP_HOME}
echo "from $from to $1"
send message.sip "!from!$from!to!$1!"
