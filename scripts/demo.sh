#!/usr/bin/env bash
# make demo: the whole platform on this machine, with a sample app on it. May be run again at any time.
# CAAS_DEMO_DIR: the folder of everything it makes, default .work/demo. CAAS_BIN: a caas that is built already.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
. "$root/scripts/lib.sh"
cd "$root"
work=${CAAS_DEMO_DIR:-$root/.work/demo}
run=/run/caas-demo
mkdir -p "$work"
began=$(date +%s)

scripts/install-deps.sh demo

# --- Docker: the one that runs, else one of our own ---
unset DOCKER_HOST DOCKER_CONTEXT
pid=$(recorded_pid "$work/dockerd.pid") || true
if [ -n "$pid" ]; then
    socket=$run/docker.sock
elif curl -fs --max-time 2 --unix-socket /var/run/docker.sock http://docker/_ping >/dev/null 2>&1; then
    socket=/var/run/docker.sock
elif [ -S /var/run/docker.sock ] && [ ! -w /var/run/docker.sock ]; then
    die "Docker runs, but user $(id -un) may not use it: run 'sudo usermod -aG docker $(id -un)' and log in again."
else
    socket=$run/docker.sock
    echo "starting a Docker engine of our own (none is running)"
    as_root mkdir -p $run
    as_root chown "$(id -u):$(id -g)" $run
    # What the machine's network looked like before, so that demo-down can bring it back.
    if [ ! -e "$work/before" ]; then
        {
            [ -e /sys/class/net/docker0 ] || echo docker0
            as_root iptables-save 2>/dev/null | grep -q '^:DOCKER' || echo chains
            as_root iptables -S FORWARD 2>/dev/null | grep -q '^-P FORWARD ACCEPT' && echo forward
            grep -q 0 /proc/sys/net/ipv4/ip_forward && echo ip_forward
            ls -d /sys/fs/cgroup/docker /sys/fs/cgroup/*/docker 2>/dev/null | grep -q . || echo cgroups
        } >"$work/before" || true
    fi
    as_root setsid dockerd --data-root "$work/docker" --exec-root $run/exec --pidfile $run/docker.pid \
        --host "unix://$socket" --group "$(id -g)" --containerd-namespace caas-demo \
        --containerd-plugins-namespace caas-demo-plugins >"$work/dockerd.log" 2>&1 </dev/null &
    wait_for 30 curl -fs --max-time 2 --unix-socket $socket http://docker/_ping ||
        die "The Docker engine did not start; its log is $work/dockerd.log. Start Docker yourself, then try again."
    remember "$work/dockerd.pid" "$(as_root cat $run/docker.pid)"
fi
echo "$socket" >"$work/socket"
docker() { command docker --host "unix://$socket" "$@"; }

# --- the private image registry, on loopback only ---
if ! recorded_pid "$work/registry.pid" >/dev/null; then
    port=$(free_port "$(cat "$work/registry.port" 2>/dev/null || echo 5000)")
    mkdir -p "$work/registry"
    cat >"$work/registry.yml" <<EOF
version: 0.1
log: {level: warn, accesslog: {disabled: true}}
storage: {filesystem: {rootdirectory: $work/registry}, delete: {enabled: true}}
http: {addr: 127.0.0.1:$port, secret: demo}
EOF
    setsid docker-registry serve "$work/registry.yml" >"$work/registry.log" 2>&1 </dev/null &
    remember "$work/registry.pid" $!
    echo "$port" >"$work/registry.port"
    wait_for 10 curl -fs "http://127.0.0.1:$port/v2/" || die "The image registry did not start; its log is $work/registry.log."
fi
registry=127.0.0.1:$(cat "$work/registry.port")

# --- the platform ---
if [ -z "${CAAS_BIN:-}" ]; then
    [ -e target/release/caas ] || echo "building caas (the first time, on two cores, about a quarter of an hour)"
    cargo build --quiet --release --locked -p caas
fi
caas=${CAAS_BIN:-$root/target/release/caas}
binary=$(stat -Lc '%i %Y' "$caas")
if recorded_pid "$work/caas.pid" >/dev/null && [ "$binary" != "$(cat "$work/caas.binary" 2>/dev/null)" ]; then
    echo "restarting caas: its program is newer"
    stop_recorded "$work/caas.pid"
fi
if ! recorded_pid "$work/caas.pid" >/dev/null; then
    gateway=$(free_port "$(cat "$work/gateway.port" 2>/dev/null || echo 8080)")
    api=$(free_port "$(cat "$work/api.port" 2>/dev/null || echo 8090)")
    gateway_admin=$(free_port 9090)
    setsid "$caas" up --data "$work/data" --listen "127.0.0.1:$gateway" --api-listen "127.0.0.1:$api" \
        --gateway-admin "127.0.0.1:$gateway_admin" --registry-sync-admin "127.0.0.1:$(free_port $((gateway_admin + 1)))" \
        --engine "unix://$socket" --default-registry "$registry" >>"$work/caas.log" 2>&1 </dev/null &
    remember "$work/caas.pid" $!
    echo "$gateway" >"$work/gateway.port"
    echo "$api" >"$work/api.port"
    echo "$binary" >"$work/caas.binary"
    ready() { curl -fs -H "Authorization: Bearer $(cat "$work/data/admin.token")" "http://127.0.0.1:$api/api/v1/apps"; }
    wait_for 20 ready || die "caas did not start; its log is $work/caas.log."
    # Which containers are ours: demo-down removes those, whatever becomes of the rest of this script.
    wait_for 10 grep -q 'convergence begins platform=' "$work/caas.log" || true
    sed -n 's/.*convergence begins platform=\([a-z0-9-]*\).*/\1/p' "$work/caas.log" | tail -1 >"$work/platform"
    [ -s "$work/platform" ] || die "caas did not say which installation it is; its log is $work/caas.log."
fi
gateway=$(cat "$work/gateway.port")
export CAAS_ADDR=http://127.0.0.1:$(cat "$work/api.port")
CAAS_TOKEN=$(cat "$work/data/admin.token")
export CAAS_TOKEN

# --- a tenant pushes two versions of an app ---
scripts/build-hello.sh "$work/hello"
for version in 1 2; do
    image=$registry/hello:$version
    docker build -q --build-arg "VERSION=$version" -t "$image" "$work/hello" >"$work/build.log" 2>&1 ||
        die "The sample app's image could not be built: $(tail -1 "$work/build.log")"
    docker push -q "$image" >/dev/null || docker push "$image" >/dev/null
done

# --- deploys one of them, and calls it ---
host_up() { "$caas" host ls | grep -qw up; }
wait_for 20 host_up || die "caas does not reach Docker at $socket: $("$caas" host ls 2>&1)"
"$caas" deploy hello:1 --instances 2
url=http://hello.localhost:$gateway/
call() { curl -fsS --max-time 5 --resolve "hello.localhost:$gateway:127.0.0.1" "$@" "$url"; }
both() {
    seen=$(for _ in 1 2 3 4; do call -o /dev/null -w '%header{x-instance}\n' 2>/dev/null || call -D - -o /dev/null | grep -i '^x-instance'; done)
    [ "$(sort -u <<<"$seen" | wc -l)" -ge 2 ]
}
wait_for 10 both || die "Not both instances answer at $url; see '$caas ps' and $work/caas.log."
call
call
cat <<EOF

The app:          $url   (both instances answer in turn)
The API:          $CAAS_ADDR/api/v1   (described at $CAAS_ADDR/openapi.json)
The admin token:  $work/data/admin.token
Took $(($(date +%s) - began)) s. 'make demo-down' takes everything away again. Next, try:

  ${caas#"$root"/} scale hello 4
  ${caas#"$root"/} deploy hello:2
  ${caas#"$root"/} logs hello -f
EOF
