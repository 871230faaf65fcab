#!/usr/bin/env bash
# try.sh up|check|down: runs docker-compose.yml for real on the Docker at DOCKER_SOCKET (default /var/run/docker.sock), with
# images made from this machine's own programs (local-images.yml). CAAS_BIN: the program, default target/release/caas.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
. "$root/scripts/lib.sh"
export DOCKER_SOCKET=${DOCKER_SOCKET:-/var/run/docker.sock}
export DOCKER_HOST=unix://$DOCKER_SOCKET
caas=$(realpath "${CAAS_BIN:-$root/target/release/caas}")
CAAS_BIN_DIR=$(dirname "$caas")
export CAAS_BIN_DIR
JAVA_CONF=$(ls -d /etc/java-*-openjdk 2>/dev/null | head -1)
export JAVA_CONF
if docker compose version >/dev/null 2>&1; then compose=(docker compose); else compose=(docker-compose); fi
compose+=(-p caas-try -f "$root/docker-compose.yml" -f "$root/tests/compose/local-images.yml")

image() {
    local dir
    dir=$(mktemp -d)
    mkdir -p "$dir"/{etc/local,usr,opt,tmp,run,data,var/lib/mysql,var/lib/registry,var/lib/caas,var/run,proc,sys,dev}
    for link in bin sbin lib lib64; do [ -L /$link ] && ln -s "usr/$link" "$dir/$link"; done
    cp /etc/passwd /etc/group /etc/ld.so.cache /etc/nsswitch.conf "$dir/etc/"
    printf 'dataDir=/data\nclientPort=2181\nadmin.enableServer=false\n4lw.commands.whitelist=srvr\n' >"$dir/etc/local/zoo.cfg"
    printf 'version: 0.1\nstorage: {filesystem: {rootdirectory: /var/lib/registry}}\nhttp: {addr: 0.0.0.0:5000}\n' \
        >"$dir/etc/local/registry.yml"
    cat >"$dir/etc/local/mariadb.sh" <<'EOF'
#!/bin/bash
# $1: password of user caas
data=/var/lib/mysql/data
mkdir -p /run/mysqld
if [ ! -d $data ]; then
    mariadb-install-db --no-defaults --user=root --datadir=$data --auth-root-authentication-method=normal >/dev/null
fi
# One statement per line.
cat >/tmp/init.sql <<SQL
create database if not exists caas;
create user if not exists 'caas'@'%' identified by '$1';
grant all on caas.* to 'caas'@'%';
SQL
exec mariadbd --no-defaults --user=root --datadir=$data --bind-address=0.0.0.0 --skip-name-resolve --init-file=/tmp/init.sql
EOF
    chmod +x "$dir/etc/local/mariadb.sh"
    chmod 1777 "$dir/tmp"
    tar -C "$dir" -c . | docker import -c 'ENV PATH=/opt:/usr/bin:/usr/sbin:/bin' - caas-local:latest >/dev/null
    rm -rf "$dir"
}

case ${1:-} in
up)
    image
    "${compose[@]}" up -d --no-build
    ;;
check)
    # A tenant pushes, an admin deploys, a user calls.
    token() { "${compose[@]}" exec -T scheduler cat /var/lib/caas/admin.token; }
    wait_for 60 token || die "no admin token; see: ${compose[*]} logs"
    CAAS_TOKEN=$(token)
    export CAAS_TOKEN CAAS_ADDR=http://127.0.0.1:8090
    dir=$(mktemp -d)
    "$root/scripts/build-hello.sh" "$dir"
    for version in 1 2; do
        docker build -q --build-arg "VERSION=$version" -t "127.0.0.1:5000/hello:$version" "$dir" >/dev/null 2>&1
        docker push "127.0.0.1:5000/hello:$version" >/dev/null
    done
    rm -rf "$dir"
    wait_for 60 "$caas" host ls
    "$caas" host ls
    "$caas" deploy hello:1 --instances 2
    "$caas" deploy hello:2
    answer() { curl -fsS --max-time 5 -H 'Host: hello.localhost' http://127.0.0.1:8080/; }
    wait_for 20 answer || die "no answer through the gateway"
    answer
    answer
    "$caas" rm hello
    "${compose[@]}" ps
    ;;
down)
    "${compose[@]}" down -v --remove-orphans
    docker rmi -f caas-local:latest >/dev/null 2>&1 || true
    ;;
*) die "usage: tests/compose/try.sh up|check|down" ;;
esac
