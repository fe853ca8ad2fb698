# registry.local/tools:dev for kind: the programs that tests and examples run. The one-node cluster builds the same
# from debootstrap (images.sh); keep both lists equal.
FROM debian:bookworm-slim
RUN apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
    nftables nginx-light redis-server redis-tools curl ca-certificates openssl socat netcat-openbsd iperf3 python3 \
    tcpdump procps iproute2 util-linux && rm -rf /var/lib/apt/lists/*
CMD ["/bin/sh"]
