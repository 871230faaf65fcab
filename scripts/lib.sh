# Shared by the other scripts; to be sourced.

die() {
    echo "$*" >&2
    exit 1
}

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        die "this needs root and there is no sudo: run it as root"
    fi
}

have() {
    PATH=$PATH:/usr/sbin:/sbin command -v "$1" >/dev/null 2>&1
}

# When process $1 started, in ticks since boot; fails when there is none.
started_at() {
    local stat
    stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
    stat=${stat##*) }
    # shellcheck disable=SC2086
    set -- $stat
    [ "$1" != Z ] && echo "${20}"
}

# remember FILE PID: notes a process so that its pid, used anew by another one, is never taken for it.
remember() {
    echo "$2 $(started_at "$2")" >"$1"
}

# The pid in FILE if that very process still runs.
recorded_pid() {
    local pid start
    read -r pid start 2>/dev/null <"$1" || return 1
    [ "$(started_at "$pid")" = "$start" ] && echo "$pid"
}

# stop_recorded FILE [SECONDS]: SIGTERM, then SIGKILL.
stop_recorded() {
    local pid n=0
    if pid=$(recorded_pid "$1"); then
        as_root kill -TERM "$pid" 2>/dev/null || true
        while recorded_pid "$1" >/dev/null && [ $n -lt $((${2:-15} * 20)) ]; do
            sleep 0.05
            n=$((n + 1))
        done
        recorded_pid "$1" >/dev/null && as_root kill -KILL "$pid" 2>/dev/null
    fi
    rm -f "$1"
}

# wait_for SECONDS COMMAND...: until it succeeds.
wait_for() {
    local n=0 most=$(($1 * 20))
    shift
    until "$@" >/dev/null 2>&1; do
        n=$((n + 1))
        [ $n -lt $most ] || return 1
        sleep 0.05
    done
}

port_taken() {
    (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null
}

# The first free port of loopback from $1 on.
free_port() {
    local port=$1
    while port_taken "$port"; do port=$((port + 1)); done
    echo "$port"
}
