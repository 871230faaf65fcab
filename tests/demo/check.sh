#!/usr/bin/env bash
# check.sh DIR demo|compose. CAAS_BIN: the program. The caller gives it network, mount and process namespaces of its own, so
# that whatever it does stays in there (`tests/tests/demo.rs`).
# demo: `make demo` as the README tells it, again and again, then `make demo-down`, after which everything must be as before;
# first with a Docker engine of its own, then beside one that runs already.
# compose: docker-compose.yml with images made of this machine's programs (`tests/compose/try.sh`), up to the answers of an app.
set -euo pipefail
dir=${1:?usage: check.sh DIR demo|compose}
root=$(cd "$(dirname "$0")/../.." && pwd)
cd "$root"
. scripts/lib.sh
export CARGO_HOME=${CARGO_HOME:-$HOME/.cargo} RUSTUP_HOME=${RUSTUP_HOME:-$HOME/.rustup}
export HOME=$dir/home CAAS_DEMO_DIR=$dir/demo
unset CAAS_ADDR CAAS_TOKEN CAAS_TEST_REQUIRE_ALL DOCKER_HOST XDG_CONFIG_HOME
mkdir -p "$HOME/.config" "$dir/cgroup"

# The machine as a user would find it: no Docker, no network but loopback.
mount --rbind /sys/fs/cgroup "$dir/cgroup"
mount -t sysfs sysfs /sys
mount --rbind "$dir/cgroup" /sys/fs/cgroup
mount -t tmpfs tmpfs /run
ip link set lo up

# What must be the same afterwards: processes, interfaces, packet rules, mounts, files.
state() {
    local pid
    for pid in /proc/[0-9]*; do
        [ "${pid#/proc/}" = $$ ] || tr '\0' ' ' <"$pid/cmdline" 2>/dev/null | grep -vE '^(bash|tr|grep|sort) ' || true
    done | sort
    ip -o link | awk '{print "link", $2}'
    for command in iptables ip6tables; do
        $command-save 2>/dev/null | sed -nE "s/^(-A .*|:[^ ]+ (DROP|-)).*/$command \1/p"
    done
    echo "ip_forward $(cat /proc/sys/net/ipv4/ip_forward)"
    awk '{print "mount", $2}' /proc/mounts | sort
    find "$dir" -xdev -maxdepth 2 -not -name '*.log' -not -name 'state.*' -not -path "$dir/engine*" | sort
}

same() {
    state >"$dir/state.after"
    diff -u "$dir/state.before" "$dir/state.after" >"$dir/state.diff" || die "$1 leaves something behind: $(cat "$dir/state.diff")"
}

# says WORDS COMMAND...: its output holds them.
says() {
    local words=$1 out
    shift
    out=$("$@" 2>&1) || die "$* failed: $out"
    grep -qF -- "$words" <<<"$out" || die "$* does not say \"$words\": $out"
}

called() { curl -fsS --max-time 5 --resolve "hello.localhost:${url//[^0-9]/}:127.0.0.1" "$url"; }
running() { [ "$("$CAAS_BIN" ps hello | grep -c running)" = "$1" ]; }

demo() {
    scripts/demo.sh >"$dir/demo.log" 2>&1 || die "make demo failed: $(tail -30 "$dir/demo.log")"
    url=$(sed -n 's/^The app: *\(http[^ ]*\) .*/\1/p' "$dir/demo.log")
    for words in 'http://hello.localhost:' '/api/v1 ' '/openapi.json' 'admin.token' 'scale hello 4' 'deploy hello:2' 'logs hello -f'; do
        grep -qF -- "$words" "$dir/demo.log" || die "make demo does not tell $words: $(cat "$dir/demo.log")"
    done
    running 2 || die "not 2 instances: $("$CAAS_BIN" ps)"
    [ "$(for _ in 1 2 3 4; do called; done | sort -u | wc -l)" = 2 ] || die "not both instances answer"
    sed -n 's/^Took/demo: took/p' "$dir/demo.log"
}

down() {
    scripts/demo-down.sh >"$dir/down.log" 2>&1 || die "make demo-down failed: $(cat "$dir/down.log")"
    same "make demo-down"
}

# A Docker that runs already.
engine() {
    mkdir -p "$dir/engine" /run/engine
    setsid dockerd --data-root "$dir/engine/data" --exec-root /run/engine/exec --pidfile /run/engine/docker.pid \
        --host unix:///var/run/docker.sock >"$dir/engine.log" 2>&1 </dev/null &
    wait_for 30 docker version || die "the engine did not start: $(tail -5 "$dir/engine.log")"
}

alone() {
    state >"$dir/state.before"
    demo
    # The README's next steps.
    says 'done' sh -c "'$CAAS_BIN' scale hello 4 && echo done"
    running 4 || die "not 4 instances: $("$CAAS_BIN" ps)"
    timeout 3 "$CAAS_BIN" logs hello -f >"$dir/logs.log" 2>&1 || [ $? = 124 ] || die "logs -f: $(cat "$dir/logs.log")"
    says 'listening on port' cat "$dir/logs.log"
    says 'done' sh -c "'$CAAS_BIN' deploy hello:2 && echo done"
    says 'version 2' called
    says 'done' sh -c "'$CAAS_BIN' rollback hello && echo done"
    says 'version 1' called
    "$CAAS_BIN" rm hello >/dev/null
    [ "$(curl -s -o /dev/null -w '%{http_code}' -H 'Host: hello.localhost' "http://127.0.0.1:${url//[^0-9]/}/")" = 404 ] ||
        die "a removed app still answers"
    # Again, as often as one likes; and gone with what still runs.
    demo
    demo
    down
    scripts/demo-down.sh | grep -q 'no demo' || die "make demo-down can't be run twice"
}

# With a stranger's container on it.
beside() {
    scripts/build-hello.sh "$dir/engine/hello"
    docker build -q -t stranger "$dir/engine/hello" >/dev/null 2>&1
    docker run -d --name stranger -p 127.0.0.1:18080:8080 stranger >/dev/null
    images() { docker images -aq --no-trunc | sort; }
    whole() { docker inspect -f '{{.Id}} {{.State.Status}} {{.State.StartedAt}} {{.RestartCount}}' stranger; }
    before="$(whole) $(docker ps -aq | wc -l) $(images)"
    state >"$dir/state.before"
    demo
    [ ! -d /run/caas-demo ] || die "make demo started an engine beside the one that runs"
    down
    after="$(whole) $(docker ps -aq | wc -l) $(images)"
    [ "$before" = "$after" ] || die "a Docker that ran already is not as it was: $before; $after"
    says 'instance' curl -fsS --max-time 5 http://127.0.0.1:18080/
}

case ${2:-} in
demo)
    alone
    engine
    beside
    ;;
compose)
    engine
    things() { docker ps -aq; docker volume ls -q; docker network ls -q; }
    before=$(things)
    for step in up check down; do
        timeout 120 tests/compose/try.sh $step >"$dir/$step.log" 2>&1 || die "try.sh $step failed: $(tail -30 "$dir/$step.log")"
    done
    grep -c 'version 2, instance' "$dir/check.log" | grep -qx 2 || die "no answers of version 2: $(cat "$dir/check.log")"
    [ "$before" = "$(things)" ] || die "docker-compose down leaves something behind: $(docker ps -a; docker volume ls)"
    ;;
*) die "usage: check.sh DIR demo|compose" ;;
esac
echo "$2: all is well"
