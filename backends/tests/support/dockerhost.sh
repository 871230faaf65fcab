#!/bin/bash
# A Docker host in namespaces of its own: dockerhost.sh DIR NAME ROOT_ADDRESS HOST_ADDRESS
# It lives until its standard input ends, so also when the test process is killed; then everything of it goes:
# processes with the pid namespace, mounts with the mount namespace, network with the net namespace, then cgroups, files.
set -u
D=$1 NAME=$2 ROOT_ADDRESS=$3 HOST_ADDRESS=$4
mkdir -p "$D/data" "$D/exec" "$D/etc-docker"
echo '{}' > "$D/etc-docker/daemon.json"
unshare --net --mount --pid --uts --ipc --fork --kill-child --propagation private bash -c '
    set -e
    hostname "$2"
    mount -t proc proc /proc
    mkdir -p /etc/docker /run/docker /run/containerd
    mount --bind "$1/etc-docker" /etc/docker
    mount -t tmpfs tmpfs /run/docker
    mount -t tmpfs tmpfs /run/containerd
    mount -t tmpfs tmpfs "$1/exec"
    ip link set lo up
    touch "$1/booted"
    exec tini -- cat' host "$D" "$NAME" <&0 >/dev/null &
outer=$!
for _ in $(seq 500); do [ -e "$D/booted" ] && break; sleep 0.01; done
init=$(cat "/proc/$outer/task/$outer/children")
init=${init%% *}
ip link add "$NAME" type veth peer name eth0 netns "$init" &&
    ip addr add "$ROOT_ADDRESS/30" dev "$NAME" && ip link set "$NAME" up &&
    nsenter -t "$init" -n sh -c "ip addr add $HOST_ADDRESS/30 dev eth0; ip link set eth0 up; ip route add default via $ROOT_ADDRESS" &&
    echo "$init" > "$D/init.tmp" && mv "$D/init.tmp" "$D/init.pid"
exec 0</dev/null
wait "$outer"
for _ in $(seq 200); do
    find /sys/fs/cgroup -depth -type d -path "*/$NAME*" -exec rmdir {} + 2>/dev/null
    [ -z "$(find /sys/fs/cgroup -maxdepth 2 -name "$NAME" 2>/dev/null)" ] && break
    sleep 0.02
done
rm -rf "$D"
