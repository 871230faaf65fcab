# The whole product is one program. Build: docker build -t caas .
FROM rust:1.95-slim-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev make && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN cargo build --release --locked -p caas

FROM debian:bookworm-slim
# For https:// addresses of the API.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /src/target/release/caas /usr/local/bin/caas
# Volumes that are mounted here begin as the user's own.
RUN install -d -o 65534 -g 65534 /var/lib/caas
# A scheduler that uses the host's Docker socket needs to run as root, or in the socket's group.
USER 65534:65534
EXPOSE 8080 8090 9090 9091
ENTRYPOINT ["/usr/local/bin/caas"]
