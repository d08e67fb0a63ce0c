# nws in an image with nothing else in it: no shell, no package manager, no root.
#
#   docker build -t nws .
#   docker run --rm nws demo --once
#   docker run -v nws:/state -e NWS_EXIT__RELAYS='["wss://relay.example.com"]' nws exit --service 80=web:3000
#   docker run -p 127.0.0.1:8882:8882 nws proxy --listen 0.0.0.0:8882

FROM rust:1-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo build --release --locked && mkdir /state

FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /src/target/release/nws /usr/bin/nws
# The key of an exit lasts where this is a volume; the image's user owns it.
COPY --from=build --chown=nonroot:nonroot /state /state
ENV STATE_DIRECTORY=/state
VOLUME /state
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/bin/nws"]
CMD ["--help"]
