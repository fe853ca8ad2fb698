# The image of the operator and of the sidecar, for users with a container engine:
#   docker build -t registry.example.com/entente:0.1.0 .
# Our own tests build theirs without an engine (tests/node/images.sh).
FROM rust:1-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends cmake && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY Cargo.toml Cargo.lock ./
COPY src src
# A member of the workspace; Cargo reads its manifest whatever it builds.
COPY benches benches
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/target \
    cargo build --locked --release --bins && install -D -t /out target/release/entente target/release/entente-proxy

FROM debian:bookworm-slim
# nft loads the interception rules in the init container.
RUN apt-get update && apt-get install -y --no-install-recommends nftables && rm -rf /var/lib/apt/lists/*
# `entente proxy` goes on as entente-proxy, which is the sidecar alone and takes half the memory.
COPY --from=build /out/ /usr/local/bin/
USER 65532
ENTRYPOINT ["/usr/local/bin/entente"]
