#!/usr/bin/env bash
# install-deps.sh demo|test|bench: installs what the demo, the tests or the benches need and the machine lacks. Starts no service.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

case ${1:-} in
demo) wanted=(dockerd:docker.io docker:docker-cli docker-registry:docker-registry iptables:iptables curl:curl) ;;
test) wanted=(dockerd:docker.io docker:docker-cli docker-registry:docker-registry iptables:iptables curl:curl
    ip:iproute2 java:default-jre-headless /usr/share/java/zookeeper.jar:zookeeper mariadbd:mariadb-server
    redis-server:redis-server redis-cli:redis-tools haproxy:haproxy pebble:pebble
    tini:tini openssl:openssl perl:perl-base nsenter:util-linux docker-compose:docker-compose valgrind:valgrind) ;;
bench) wanted=(haproxy:haproxy nginx:nginx wrk:wrk h2load:nghttp2-client taskset:util-linux setpriv:util-linux) ;;
*) die "usage: scripts/install-deps.sh demo|test|bench" ;;
esac

have cargo || die "Rust is missing: install it from https://rustup.rs (curl https://sh.rustup.rs -sSf | sh), then try again."
have cc || wanted+=(cc:gcc libc-dev:libc6-dev)

lacking() {
    for pair in "${wanted[@]}"; do
        program=${pair%%:*}
        [[ $program = /* && -e $program ]] || have "$program" || echo "$pair"
    done
}

missing=$(lacking)
[ -n "$missing" ] || exit 0

have apt-get || die "These programs are missing and this is no Debian or Ubuntu: $(sed 's/:.*//' <<<"$missing" | xargs). Install them with your system's package manager, then try again."
packages=$(sed 's/.*://' <<<"$missing" | sort -u | xargs)
# Debian 12's docker.io brings the client along; later releases have it as a package of its own.
if ! apt-cache show docker-cli >/dev/null 2>&1; then
    packages=$(sed 's/\bdocker-cli\b/docker.io/' <<<"$packages" | tr ' ' '\n' | sort -u | xargs)
fi
echo "installing: $packages"
# Daemons must not start by themselves: the demo and the tests start their own, on private folders and ports.
guard=/usr/sbin/policy-rc.d
if [ ! -e $guard ]; then
    printf '#!/bin/sh\nexit 101\n' | as_root tee $guard >/dev/null
    as_root chmod +x $guard
    trap 'as_root rm -f $guard' EXIT
fi
export DEBIAN_FRONTEND=noninteractive
as_root apt-get -q update >/dev/null || die "apt-get update failed: the package lists can't be fetched; check the network and try again."
# shellcheck disable=SC2086
as_root env DEBIAN_FRONTEND=noninteractive apt-get -q install -y --no-install-recommends $packages >/dev/null ||
    die "apt could not install $packages; install them by hand, then try again."
still=$(lacking | sed 's/:.*//' | xargs)
[ -z "$still" ] || die "These are still missing after the installation: $still."
