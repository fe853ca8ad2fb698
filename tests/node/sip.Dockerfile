# registry.local/sip:dev for kind: what examples/federation runs. The one-node cluster builds the same from debootstrap
# (images.sh); keep both lists equal. netbase: without it Kamailio cannot turn off the delay of small packets.
FROM debian:bookworm-slim
RUN apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
    kamailio kamailio-tls-modules sip-tester sipsak openssl tcpdump procps iproute2 netbase && rm -rf /var/lib/apt/lists/*
CMD ["/bin/sh"]
