#!/usr/bin/env bash
# Three emulated machines on a network of their own are a ring over RDMA. One is switched off while
# two services on it commit, and what they were told is safe is had on another:
#
#   soft-roce/machines.sh [RINGKEEP]      the program, built with RDMA (target/release/ringkeep)
#
# The machines a, b and c have one Soft-RoCE device each (soft-roce/vm.sh); a and b have a cable to
# c, and there is nothing else on their network. Exit status 0 only if every promise was kept.
# KEEP=1 keeps the directory with the logs.
set -euo pipefail
export LC_ALL=C
cd "$(dirname "${BASH_SOURCE[0]}")/.."

program=${1:-target/release/ringkeep}
if [ $# -gt 1 ] || [ ! -x "$program" ]; then
    echo "usage: soft-roce/machines.sh [RINGKEEP]" >&2
    exit 2
fi

limit=900 # seconds, for a machine's life
# Commits to be acknowledged before the machine is switched off.
jobs_least=12 state_least=8
jobs_bytes=4096 state_bytes=1300003
# A packet of RoCE has at most this much on a network card with an MTU of 1500.
packet_bytes=1024

dir=$(mktemp -d "${TMPDIR:-/tmp}/ringkeep-machines.XXXXXX")
declare -A machine=() # its vm.sh
passed=no

now() { echo $((${EPOCHREALTIME/./} / 1000)); }
begun=$(now)
# since START END: seconds
since() { awk "BEGIN { printf \"%.1f s\", ($2 - $1) / 1000 }"; }
say() { printf '%7s  %s\n' "$(since "$begun" "$(now)")" "$*"; }

cleanup() {
    local name file
    trap '' INT TERM
    if [ $passed = no ]; then
        for name in a b c; do
            for file in log late vm jobs.commits state.commits; do
                [ -s "$dir/$name/$file" ] || continue
                printf '\n== the end of %s of %s\n' "$file" "$name"
                tail -n 25 "$dir/$name/$file"
            done
        done >&2
    fi
    for name in "${!machine[@]}"; do
        # vm.sh ends its machine; if it could not, the machine's process is in the file.
        kill "${machine[$name]}" 2>/dev/null || true
    done
    for name in "${!machine[@]}"; do
        wait "${machine[$name]}" 2>/dev/null || true
        [ ! -s "$dir/$name.pid" ] || kill -9 "$(cat "$dir/$name.pid")" 2>/dev/null || true
    done
    if [ "${KEEP:-}" = 1 ]; then echo "kept: $dir"; else rm -rf "$dir"; fi
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
set -E
trap 'echo "soft-roce/machines.sh: line $LINENO failed: $BASH_COMMAND" >&2' ERR
stop() {
    trap - ERR
    printf '\nsoft-roce/machines.sh: %s\n' "$*" >&2
    exit 1
}

# --- Machines ------------------------------------------------------------------------------------

alive() { kill -0 "${machine[$1]}" 2>/dev/null; }

# start NAME NUMBER VM-OPTIONS… -- [JOIN]
start() {
    local name=$1 address=10.9.0.$2 options=()
    shift 2
    while [ "$1" != -- ]; do options+=("$1"); shift; done
    shift
    mkdir "$dir/$name"
    soft-roce/vm.sh --machine "$name" --address "$address/24" --cpus 1 --memory 1G --hugepages 64 \
        --pidfile "$dir/$name.pid" --rw "$dir" --timeout $limit "${options[@]}" \
        bash "$dir/machine-node.sh" "$dir" "$address:7000" "$@" </dev/null >"$dir/$name/vm" 2>&1 &
    machine[$name]=$!
    echo 0 >"$dir/$name/orders"
}

# wait_for FILE MACHINE WHAT [SECONDS]
wait_for() {
    local end=$((SECONDS + ${4:-$limit}))
    while [ ! -e "$1" ]; do
        alive "$2" || stop "machine $2 ended while waiting for $3"
        [ $SECONDS -lt $end ] || stop "no $3 in time on machine $2"
        sleep 0.1
    done
}

# on MACHINE COMMAND…: runs it there.
on() {
    local name=$1 here=$dir/$1 number status
    shift
    number=$(($(cat "$here/orders") + 1))
    echo $number >"$here/orders"
    { printf '%q ' "$@"; echo; } >"$here/$number.part"
    mv "$here/$number.part" "$here/$number.order"
    wait_for "$here/$number.done" "$name" "answer to: $*" 120
    status=$(cat "$here/$number.done")
    [ "$status" -eq 0 ] || sed "s/^/$name: /" "$here/$number.err" >&2
    cat "$here/$number.out"
    return "$status"
}

# must MACHINE COMMAND…: the same, and failing is the end.
must() { on "$@" || stop "failed on machine $1: ${*:2}"; }

# is MACHINE PYTHON: whether this holds for the status s of its server; view is the ring, own and
# held are its checkpoints and mirrors by name.
is() {
    on "$1" ringkeep status --json >"$dir/$1/status" 2>/dev/null || return 1
    python3 - "$dir/$1/status" "$2" <<'PYTHON'
import json, sys
s = json.load(open(sys.argv[1]))
view = (s["view"] or {"members": []})["members"]
own = {c["name"]: c for c in s["checkpoints"]}
held = {m["name"]: m for m in s["mirrors"]}
sys.exit(not eval(sys.argv[2]))
PYTHON
}

# until_is SECONDS WHAT MACHINE PYTHON
until_is() {
    local end=$((SECONDS + $1))
    until is "$3" "$4"; do
        [ $SECONDS -lt $end ] || stop "not within $1 s: $2 on machine $3; last: $(cat "$dir/$3/status")"
        sleep 0.2
    done
}

field() { python3 -c 'import json, sys; print(eval(sys.argv[2], {"s": json.load(open(sys.argv[1]))}))' "$dir/$1/status" "$2"; }

# commits NAME acked|begun: the last one.
commits() {
    local file=$dir/a/$1.commits
    [ -e "$file" ] || { echo 0; return; }
    awk -v what="$2" '$1 == what { last = $2 } END { print last + 0 }' "$file"
}

# count NAME WORD: how often a service said so.
count() { awk -v what="$2" '$1 == what { n++ } END { print n + 0 }' "$dir/a/$1.commits"; }

# commit_took NAME: seconds from the start of the last acknowledged command to its end.
commit_took() {
    awk '$1 == "begun" { begun = $3 } $1 == "acked" { took = $3 - begun } END { printf "%.2f", took }' "$dir/a/$1.commits"
}

no_failed_commit() {
    ! grep -h '^failed' "$dir"/a/*.commits >&2 || stop "a commit failed before any machine was lost"
}

# packets MACHINE sent|received
packets() {
    local both
    both=$(must "$1" packets)
    case $2 in sent) echo "${both% *}" ;; received) echo "${both#* }" ;; esac
}

# moved LEAST BEFORE AFTER WHAT
moved() {
    [ $(($3 - $2)) -ge "$1" ] ||
        stop "RDMA was not really used: $4 $(($3 - $2)) packets; the payloads need at least $1"
    say "$4 $(($3 - $2)) packets over RDMA; the payloads need at least $1"
}

# --- A ring of three machines --------------------------------------------------------------------

cp "$program" "$dir/ringkeep"
cp soft-roce/machine-node.sh "$dir"
"$dir/ringkeep" keygen -o "$dir/key"
soft-roce/vm.sh --prepare 2>"$dir/prepared" || stop "$(cat "$dir/prepared")"

say "three machines are started"
# a has nothing to join, so it founds the ring; three that all had somebody to join would all wait.
ring=10.9.0.1:7000,10.9.0.2:7000,10.9.0.3:7000
start c 3 --link "listen:$dir/a.cable" --link "listen:$dir/b.cable" -- "$ring"
start a 1 --link "connect:$dir/a.cable" --
start b 2 --link "connect:$dir/b.cable" -- "$ring"
for name in a b c; do
    wait_for "$dir/$name/up" "$name" "start"
done
say "their servers are started"
for name in a b c; do
    until_is 60 "a ring of three over RDMA" "$name" \
        'sorted(view) == ["a", "b", "c"] and not s["suspects"] and s["transport"] == "rdma"'
done
say "every node sees a ring of three: $(field c '" → ".join(s["view"]["members"])'), view $(field c 's["view"]["number"]')"

# --- Commits on a --------------------------------------------------------------------------------

sent=$(packets a sent)
received=$(($(packets b received) + $(packets c received)))
must a begin jobs $jobs_bytes
must a begin state $state_bytes
until_is 60 "two mirrors over RDMA" a \
    'all(n in own and own[n]["mirror"] and own[n]["mirror"]["transport"] == "rdma" for n in ["jobs", "state"])'
end=$((SECONDS + 240))
until [ "$(commits jobs acked)" -ge $jobs_least ] && [ "$(commits state acked)" -ge $state_least ]; do
    no_failed_commit
    [ $SECONDS -lt $end ] || stop "too few commits in time"
    sleep 0.2
done
# What is acknowledged by now was sent before the counters are read.
least=$((($(commits jobs acked) * jobs_bytes + $(commits state acked) * state_bytes) / packet_bytes))
moved $least "$sent" "$(packets a sent)" "a sent"
moved $least "$received" $(($(packets b received) + $(packets c received))) "b and c received"
[ "$(must a huge_pages)" -gt 0 ] || stop "no huge pages are in use on machine a"

# --- One machine is switched off -----------------------------------------------------------------

until_is 60 "a ring of three with mirrors over RDMA" a \
    'len(view) == 3 and all(own[n]["mirror"]["transport"] == "rdma" and own[n]["mirror"]["state"] == "in-sync" for n in ["jobs", "state"])'
# The mirrors are at its predecessor; the other machine has nothing of it.
holder=$(field a 's["predecessor"]')
case $holder in b) other=c ;; c) other=b ;; *) stop "the predecessor of a is $holder" ;; esac
view_before=$(field a 's["view"]["number"]')
no_failed_commit
# Anywhere in the time that a commit takes from its command's start to its end.
took=$(commit_took state)
end=$((SECONDS + 60))
until [[ $(tail -n 1 "$dir/a/state.commits") = begun\ * ]]; do
    [ $SECONDS -lt $end ] || stop "no commit began any more"
    sleep 0.01
done
sleep "$(awk "BEGIN { print $took * $RANDOM / 32768 }")"
kill -9 "$(cat "$dir/a.pid")"
killed=$(now)
status=0
wait "${machine[a]}" || status=$?
[ $status -eq 137 ] || stop "machine a was not killed, but ended with $status"
unset 'machine[a]'
no_failed_commit
declare -A acked begun_version recovered=()
for name in jobs state; do
    acked[$name]=$(commits $name acked)
    begun_version[$name]=$(commits $name begun)
done
say "machine a is switched off (view $view_before, mirrors on $holder)"
for name in jobs state; do
    say "  $name: version ${acked[$name]} acknowledged, ${begun_version[$name]} begun; a commit's command took $(commit_took $name) s"
    [ "$(count $name refused) $(count $name fenced)" = "0 0" ] ||
        say "  $name: before that: $(count $name refused) refused, $(count $name fenced) fenced since a live machine was removed, $(count $name reopened) times reopened"
done

# --- Recovery on the machine that has no copy ----------------------------------------------------

declare -A bytes=([jobs]=$jobs_bytes [state]=$state_bytes)
received=$(packets "$other" received)
for name in jobs state; do
    answer=$(must "$other" recover $name "${bytes[$name]}")
    version=${answer%%[!0-9]*}
    say "$name is had on $other, every byte of version $version ($(since "$killed" "$(now)") after the loss)${answer#"$version"}"
    [ "$version" -ge "${acked[$name]}" ] ||
        stop "version ${acked[$name]} of $name was acknowledged and is lost; found $version"
    [ "$version" -le "${begun_version[$name]}" ] || stop "nobody wrote version $version of $name"
    recovered[$name]=$version
done
moved $((state_bytes / packet_bytes)) "$received" "$(packets "$other" received)" "$other received"

for name in "$other" "$holder"; do
    until_is 60 "a ring of two that is protected" "$name" \
        'len(view) == 2 and "a" not in view and s["state"] == "protected" and not s["suspects"]'
done
until_is 60 "both checkpoints with mirrors over RDMA" "$holder" \
    "all(n in own and own[n]['mirror']['node'] == '$other' and own[n]['mirror']['state'] == 'in-sync' and own[n]['mirror']['transport'] == 'rdma' for n in ['jobs', 'state'])"
say "everything has two copies again, mirrored over RDMA ($(since "$killed" "$(now)") after the loss)"

# --- The services go on --------------------------------------------------------------------------

sent=$(packets "$other" sent)
for name in jobs state; do
    next=$((recovered[$name] + 1))
    version=$(must "$other" put $name $next "${bytes[$name]}")
    [ "$version" = $next ] || stop "the version after ${recovered[$name]} of $name is called $version"
done
moved $(((jobs_bytes + state_bytes) / packet_bytes)) "$sent" "$(packets "$other" sent)" "$other sent"
until_is 60 "protection of what $other owns now" "$other" \
    "s['state'] == 'protected' and all(own[n]['role'] == 'owner' and own[n]['mirror']['node'] == '$holder' and own[n]['mirror']['state'] == 'in-sync' and own[n]['mirror']['transport'] == 'rdma' for n in ['jobs', 'state'])"
for name in jobs state; do
    for node in b c; do
        answer=$(must $node recover $name "${bytes[$name]}")
        [ "${answer%%[!0-9]*}" = $((recovered[$name] + 1)) ] || stop "$name on $node: $answer"
    done
done
must "$other" ringkeep verify >/dev/null
must "$holder" ringkeep verify >/dev/null
say "the services went on at $other ($(since "$killed" "$(now)") after the loss); b and c agree on every byte"
for name in a b c; do
    [ ! -s "$dir/$name/late" ] || say "machine $name: $(tail -n 1 "$dir/$name/late")"
done
passed=yes
say "passed"
