# nws in an image with nothing else in it: a static binary and an empty directory for its state. No shell, no package
# manager, no library, no root. Certificate authorities are inside the binary; those of a mounted /etc/ssl/certs go before.
#
#   docker build -t nws .
#   docker run --rm nws demo --once
#   docker run -v nws:/state -e NWS_EXIT__RELAYS='["wss://relay.example.com"]' nws exit --service 80=web:3000
#   docker run -p 127.0.0.1:8882:8882 nws proxy --listen 0.0.0.0:8882
#   docker run -v ./nws.toml:/etc/nws/nws.toml:ro …

FROM docker.io/library/rust:1-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends musl-tools \
    && rustup target add "$(uname -m)-unknown-linux-musl"
WORKDIR /src
COPY . .
# C code in the dependencies goes by the same library as the rest.
ENV TARGET_CC=musl-gcc
RUN cargo build --release --locked --target "$(uname -m)-unknown-linux-musl" --bin nws \
    && install -D -s "target/$(uname -m)-unknown-linux-musl/release/nws" /out/nws \
    && mkdir /out/state

# Tried in every run of CI (.ci/image) with a binary that is built already: --build-context build=DIRECTORY.
FROM scratch
COPY --from=build /out/nws /usr/bin/nws
# The key of an exit lasts where this is a volume. It is the user's, who has no name, and the number of distroless's nonroot.
COPY --from=build --chown=65532:65532 /out/state /state
ENV STATE_DIRECTORY=/state
VOLUME /state
USER 65532:65532
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/bin/nws"]
CMD ["--help"]
