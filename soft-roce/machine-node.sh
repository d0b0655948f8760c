#!/usr/bin/env bash
# What runs in each machine of soft-roce/machines.sh: a ringkeep server, and one order of the host
# after the other.
#
#   machine-node.sh DIRECTORY ADDRESS [JOIN]
#
# DIRECTORY is the host's. It has the program, the cluster key, and below this machine's name what
# both write: the server's log, and orders as numbered files, each a command that runs here. With
# nothing to join, the server founds the ring.
set -euo pipefail
dir=$1 listen=$2 join=${3:-}
here=$dir/$(hostname)

# The host's settings are not this machine's; what is logged may be asked for.
for name in $(compgen -e RINGKEEP_); do
    [ "$name" = RINGKEEP_LOG ] || unset "$name"
done
# Copied: the host may be slow, and on the host somebody else may own the key.
mkdir /run/node
install -m 755 "$dir/ringkeep" /run/node/
install -m 600 "$dir/key" /run/node/
export PATH=/run/node:$PATH

# --- What the host orders ------------------------------------------------------------------------

# payload NAME VERSION BYTES: every line tells the version and its own place.
payload() {
    { echo "$1 version $2"; seq "$2"0000000 "$2"9999999; } | head -c "$3"
}

# begin NAME BYTES: a service that commits one version after the other until the machine ends. What
# it says is written through to the host's file: that a version is about to be committed, and after
# its acknowledgement that it was.
begin() { commit_on "$@" >"$here/$1.commits" </dev/null 2>&1 & }
commit_on() {
    local name=$1 bytes=$2 version=1 acked=0 printed status
    while :; do
        payload "$name" $version "$bytes" >"/run/node/$name.next"
        echo "begun $version $EPOCHREALTIME"
        status=0
        printed=$(ringkeep put --durability mirrored --timeout 30s "$name" "/run/node/$name.next") || status=$?
        case $status in
            0) ;;
            # Refused before anything was committed: a node is away, or was. As a service would, again.
            1) echo "refused $version"; sleep 0.2; continue ;;
            # The ring removed this machine although it was alive. As a service would, on from the
            # newest version: also then nothing that was acknowledged may be missing.
            4)
                echo "fenced $version"
                [ $acked -gt 0 ] || { echo "failed $version: fenced before there was any"; return; }
                printed=$(recover "$name" "$bytes") || { echo "failed $version: not recovered"; return; }
                printed=${printed%%;*}
                if [ "$printed" -lt $acked ] || [ "$printed" -gt $version ]; then
                    echo "failed $version: $acked was acknowledged, $printed is there"
                    return
                fi
                echo "reopened $printed"
                version=$((printed + 1))
                sleep 0.2
                continue ;;
            *) echo "failed $version: status $status"; return ;;
        esac
        [ "$printed" = $version ] || { echo "failed $version: it was called $printed"; return; }
        echo "acked $version $EPOCHREALTIME"
        acked=$version version=$((version + 1))
    done
}

# put NAME VERSION BYTES: one version, mirrored; says which.
put() {
    payload "$@" >"/run/node/$1.next"
    ringkeep put --durability mirrored --timeout 30s "$1" "/run/node/$1.next"
}

# recover NAME BYTES: gets it as soon as it can be had, looks at every byte, says which version it
# is and whether it could be had at first.
recover() {
    local name=$1 bytes=$2 got=/run/node/$1.got version refused='' error
    until error=$(ringkeep get "$name" -o "$got" 2>&1); do
        refused=$error
        sleep 0.1
    done
    version=$(head -n 1 "$got" | sed -n "s/^$name version \([0-9]\+\)\$/\1/p")
    [ -n "$version" ] || { echo "$name has no version in it: $(head -c 60 "$got")" >&2; return 1; }
    payload "$name" "$version" "$bytes" | cmp - "$got" >&2 ||
        { echo "$name is not exactly its version $version" >&2; return 1; }
    echo "$version${refused:+; at first: $refused}"
}

# Packets that the RDMA device sent and received so far.
packets() {
    local counters=/sys/class/infiniband/rxa/ports/1/hw_counters
    echo "$(cat $counters/sent_pkts) $(cat $counters/rcvd_pkts)"
}

# Huge pages that are in use.
huge_pages() { awk '/^HugePages_/ { n[$1] = $2 } END { print n["HugePages_Total:"] - n["HugePages_Free:"] }' /proc/meminfo; }

# -------------------------------------------------------------------------------------------------

ringkeep serve --listen "$listen" ${join:+--join "$join"} --transport rdma \
    --detection patient --cluster-key /run/node/key >>"$here/log" 2>&1 </dev/null &
server=$!
touch "$here/up"

# Waits without a process: the machine is slow. How much longer that took than asked for tells how
# long a program that had something to do was not let to.
mkfifo /run/node/never
exec 9<>/run/node/never
pause() {
    local began=$EPOCHREALTIME late
    read -rt 0.1 -u 9 _ || true
    late=$(((${EPOCHREALTIME/./} - ${began/./}) / 1000 - 100))
    [ $late -lt 400 ] || echo "$(date -u +%T.%3N): this machine's programs stood still for $late ms" >>"$here/late"
}

number=1
while kill -0 $server 2>/dev/null; do
    if [ ! -e "$here/$number.order" ]; then
        pause
        continue
    fi
    status=0
    # shellcheck source=/dev/null
    (set +eo pipefail; . "$here/$number.order") >"$here/$number.out" 2>"$here/$number.err" </dev/null || status=$?
    echo $status >"$here/$number.part"
    mv "$here/$number.part" "$here/$number.done"
    number=$((number + 1))
done
wait $server || { echo "the server ended with status $?" >>"$here/log"; exit 1; }
