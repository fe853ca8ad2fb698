#!/bin/sh
# send FILE VALUES: sends a request to the user's server and shows what became of it.
send() {
  file=$1 values=$2
  id=$(od -An -N8 -tx8 /dev/urandom | tr -d ' ')
  status=0
  answer=$(sipsak -v -E tcp -f "$file" -g "!id!$id!address!$POD_IP$values" -s "sip:$SIP_PROXY" 2>&1) || status=$?
  echo "$answer" | grep '^SIP/2.0 ' || echo "$answer" >&2
  exit "$status"
}
