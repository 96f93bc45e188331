# One image each: `docker build --target graphinator .`, likewise tableinator and extractor (needs BuildKit).

FROM rust:1-slim-trixie AS build
WORKDIR /src
COPY . .
# What `--version` shows; there is no git here.
ARG COMMIT=""
# The caches keep the registry and all compiled dependencies between builds; the binaries are copied out of them.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target,sharing=locked \
    BUILD_COMMIT="$COMMIT" cargo build --release --locked --package extractor --package graphinator --package tableinator \
    && install -D -t /out target/release/extractor target/release/graphinator target/release/tableinator \
    && mkdir /out/dumps /out/state

FROM debian:trixie-slim AS base
# The system's CAs, for connections with TLS.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
USER 1000:1000

FROM base AS graphinator
COPY --from=build /out/graphinator /usr/local/bin/graphinator
EXPOSE 8001
# The binary asks itself: it needs neither a shell nor curl. (Compose and Kubernetes have checks of their own.)
HEALTHCHECK --interval=15s --timeout=5s --retries=4 --start-period=30s CMD ["/usr/local/bin/graphinator", "healthcheck"]
ENTRYPOINT ["/usr/local/bin/graphinator"]

FROM base AS tableinator
COPY --from=build /out/tableinator /usr/local/bin/tableinator
EXPOSE 8002
HEALTHCHECK --interval=15s --timeout=5s --retries=4 --start-period=30s CMD ["/usr/local/bin/tableinator", "healthcheck"]
ENTRYPOINT ["/usr/local/bin/tableinator"]

FROM base AS extractor
COPY --from=build /out/extractor /usr/local/bin/extractor
COPY extractor/data-quality-rules.json /etc/data-quality-rules.json
# Volumes here take over the owner.
COPY --from=build --chown=1000:1000 /out/dumps /dumps
COPY --from=build --chown=1000:1000 /out/state /state
EXPOSE 8000
ENTRYPOINT ["/usr/local/bin/extractor"]
