#!/bin/sh
# call.sh USER DOMAIN [CALLS [CALLS-A-SECOND]]: calls a user; says how many calls failed and how long they took to set up.
set -eu
scenario=$(cd "$(dirname "$0")" && pwd)/call.xml
callee=$1 domain=$2 calls=${3:-1} rate=${4:-20}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
sipp -sf "$scenario" -t t1 -i "$POD_IP" -p 5080 -nostdin -m "$calls" -r "$rate" -recv_timeout 20000 \
  -key caller "$SIP_USER" -key home "$SIP_HOME" -key away "$domain" -s "$callee" \
  -trace_stat -stf stat.csv -trace_err -error_file errors.log -trace_shortmsg -shortmessage_file messages.log \
  "$SIP_PROXY" >screen.log 2>&1 || head -n 20 errors.log screen.log >&2

# The totals are in the last line, in the columns that the first one names.
awk -F ';' 'NR == 1 { for (i = 1; i <= NF; i++) column[$i] = i }
  END { printf "%d calls, %d failed\n", $column["SuccessfulCall(C)"], $column["FailedCall(C)"] }' stat.csv

# From the first request of each call to its 200, in milliseconds; sipp's own clock has steps of four.
awk -F '\t' '$4 == "S" && $6 == "CSeq:1 INVITE" { began[$5] = $3 }
  $4 == "R" && $6 == "CSeq:1 INVITE" && $7 ~ /^SIP.2.0 200/ && began[$5] { printf "%.2f\n", 1000 * ($3 - began[$5]); delete began[$5] }' \
  messages.log | sort -n | awk '{ took[NR] = $1 }
  function at(share) { return took[int(share * (NR - 1)) + 1] }
  END { if (NR) printf "set up within %s ms (half of them), %s ms (99 of 100), %s ms (all)\n", at(0.5), at(0.99), took[NR] }'
