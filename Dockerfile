# The bridge as a static binary in an image without a shell. Both builders of Docker take this file. The
# compiler runs on the builder's own platform and compiles for the wanted one, so that images for several
# (docker buildx build --platform linux/amd64,linux/arm64) need no emulation. The classic builder knows
# neither and makes one for amd64.

FROM --platform=${BUILDPLATFORM:-linux/amd64} golang:1.26 AS build
WORKDIR /src

# Modules change less often than code: their layer is used again.
COPY go.mod go.sum ./
RUN go mod download

COPY . .
ARG TARGETOS
ARG TARGETARCH
ARG VERSION=dev
ARG COMMIT=unknown
# No paths, no build id, no stamp of the checkout: the same source makes the same binary.
RUN CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH go build -trimpath -buildvcs=false \
    -ldflags="-s -w -buildid= -X main.version=$VERSION -X main.commit=$COMMIT" \
    -o /bridge ./cmd/bridge

FROM gcr.io/distroless/static-debian12:nonroot
ARG VERSION=dev
ARG COMMIT=unknown
LABEL org.opencontainers.image.title="bridge" \
      org.opencontainers.image.description="Writes MQTT messages to PostgreSQL and acknowledges them after the commit" \
      org.opencontainers.image.source="https://github.com/mqttpg/bridge" \
      org.opencontainers.image.documentation="https://github.com/mqttpg/bridge/blob/main/README.md" \
      org.opencontainers.image.base.name="gcr.io/distroless/static-debian12:nonroot" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$COMMIT"
COPY --from=build /bridge /bridge
# By number, because Kubernetes cannot tell from a name that it is not root.
USER 65532:65532
EXPOSE 8080
# It writes nothing: a read-only root file system is fine.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 CMD ["/bridge", "probe"]
ENTRYPOINT ["/bridge"]
