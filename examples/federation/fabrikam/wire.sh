#!/bin/sh
# What is on Fabrikam's wire. wire.sh start: begins to record. wire.sh stop: ends, and says what was there.
set -eu
record() {
  tcpdump -i any -Z root -U -w /tmp/wire.pcap 'tcp port 5060 or tcp port 5061' >/tmp/tcpdump.log 2>&1 &
  echo $! >/tmp/tcpdump.pid
  for _ in 1 2 3 4 5 6 7 8 9 10; do
    ! grep -q '^.*listening on' /tmp/tcpdump.log || return 0
    sleep 0.2
  done
  cat /tmp/tcpdump.log >&2
  exit 1
}

# Packets that carry something: the header's length is in the upper half of byte 12.
packets() { tcpdump -r /tmp/wire.pcap "$1 and tcp[tcpflags] & tcp-push != 0" 2>/dev/null | wc -l; }
readable() { tcpdump -A -r /tmp/wire.pcap "$1" 2>/dev/null | grep -c 'SIP/2\.0' || true; }

report() {
  kill "$(cat /tmp/tcpdump.pid)"
  sleep 0.5
  echo "own users, port 5060:  $(packets 'tcp port 5060') packets, $(readable 'tcp port 5060') readable lines with SIP/2.0"
  echo "Contoso,   port 5061:  $(packets 'tcp port 5061') packets, $(readable 'tcp port 5061') readable lines with SIP/2.0"
}

case $1 in
  start) record ;;
  stop) report ;;
esac
