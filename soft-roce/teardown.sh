#!/usr/bin/env bash
# Undoes what soft-roce/setup.sh did since the machine started: removes the devices it made and the
# modules it loaded, newest first. Installed packages stay, and so does what was there before.
set -euo pipefail

stop() { printf 'soft-roce/teardown.sh: %s\n' "$*" >&2; exit 1; }

state=/run/ringkeep-soft-roce
if [ ! -s "$state" ]; then
    echo "nothing to undo: no $state"
    exit
fi
[ "$(id -u)" -eq 0 ] || stop "run this as root: sudo $0"


used_by() { # what keeps the module NAME
    local parent
    # rdma_rxe may be unloaded under its devices. Only Soft-RoCE's name their interface so.
    if [ "$1" = rdma_rxe ]; then
        for parent in /sys/class/infiniband/*/parent; do
            [ ! -e "$parent" ] || basename "$(dirname "$parent")"
        done
    fi
    awk -v name="$1" '$1 == name && $3 > 0 { print $4 == "-" ? "a program" : $4 }' /proc/modules
}

mapfile -t changes < <(tac "$state")
left=()
for change in "${changes[@]}"; do
    read -r kind name <<<"$change"
    case $kind in
        device)
            if [ ! -e "/sys/class/infiniband/$name" ]; then
                echo "$name is gone already"
            elif rdma link delete "$name"; then
                echo "removed $name"
            else
                left=("$change" "${left[@]}")
            fi ;;
        module)
            users=$(used_by "$name" | paste -sd ' ')
            if [ ! -d "/sys/module/$name" ]; then
                echo "$name is gone already"
            elif [ -z "$users" ] && rmmod "$name"; then
                echo "unloaded $name"
            else
                echo "$name stays, used by ${users:-something}"
                left=("$change" "${left[@]}")
            fi ;;
        *) stop "cannot read $state: $change" ;;
    esac
done
rm "$state"
# What is in use now can be undone later.
[ ${#left[@]} -eq 0 ] || printf '%s\n' "${left[@]}" >"$state"
