#!/usr/bin/env bash
# make demo-down: takes away everything that make demo started or made.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
. "$root/scripts/lib.sh"
work=${CAAS_DEMO_DIR:-$root/.work/demo}
run=/run/caas-demo
if [ ! -d "$work" ]; then
    echo "no demo is here"
    exit 0
fi

stop_recorded "$work/caas.pid" 40

# Containers of this installation only, by its label; then its images and the network of a Docker of our own.
socket=$(cat "$work/socket" 2>/dev/null || echo none)
if [ -S "$socket" ]; then
    docker() { command docker --host "unix://$socket" "$@"; }
    platform=$(cat "$work/platform" 2>/dev/null || true)
    if [ -n "$platform" ]; then
        docker ps -aq --filter "label=caas.platform=$platform" | xargs -r docker --host "unix://$socket" rm -f >/dev/null
    fi
    registry=127.0.0.1:$(cat "$work/registry.port" 2>/dev/null || echo 5000)
    # By name, not by id: a stranger's image may be the same under another name.
    docker images --digests --filter "reference=$registry/hello" \
        --format '{{.Repository}}:{{.Tag}} {{.Repository}}@{{.Digest}}' | tr ' ' '\n' | { grep -v '<none>' || true; } |
        while read -r image; do docker rmi "$image" >/dev/null 2>&1 || true; done
fi
stop_recorded "$work/registry.pid"

if [ -e "$work/dockerd.pid" ]; then
    stop_recorded "$work/dockerd.pid" 20
fi
if [ -d $run ]; then
    # A killed engine leaves what it had mounted; the deepest goes first.
    awk -v run="$run/" -v work="$work/" 'index($2, run) == 1 || index($2, work) == 1 {print $2}' /proc/mounts | sort -r |
        while read -r mount; do as_root umount -l "$mount" || true; done
    as_root rm -rf $run
fi
before() { grep -qx "$1" "$work/before" 2>/dev/null; }
if before chains; then
    for command in iptables ip6tables; do
        for table in filter nat raw; do
            rules=$(as_root "$command-save" -t $table 2>/dev/null) || continue
            sed -nE '/^-A .*(DOCKER|docker0)/s/^-A/-D/p' <<<"$rules" |
                while read -r -a rule; do as_root $command -t $table "${rule[@]}" 2>/dev/null || true; done
            sed -n 's/^:\(DOCKER[^ ]*\) .*/\1/p' <<<"$rules" |
                while read -r chain; do as_root $command -t $table -F "$chain"; done
            sed -n 's/^:\(DOCKER[^ ]*\) .*/\1/p' <<<"$rules" |
                while read -r chain; do as_root $command -t $table -X "$chain"; done
        done
    done
fi
if before forward; then as_root iptables -P FORWARD ACCEPT; fi
if before docker0 && [ -e /sys/class/net/docker0 ]; then as_root ip link del docker0; fi
if before ip_forward; then echo 0 | as_root tee /proc/sys/net/ipv4/ip_forward >/dev/null; fi
if before cgroups; then
    as_root find /sys/fs/cgroup -maxdepth 3 -depth -type d -path '*/docker*' -exec rmdir {} \; 2>/dev/null || true
fi

# The command line's memory of this API.
context=${XDG_CONFIG_HOME:-$HOME/.config}/caas/context.toml
if grep -qsF "$work/" "$context"; then
    rm -f "$context"
    rmdir --ignore-fail-on-non-empty "$(dirname "$context")"
fi
as_root rm -rf "$work"
[ ! -d "$root/.work" ] || rmdir --ignore-fail-on-non-empty "$root/.work"
echo "the demo is gone"
