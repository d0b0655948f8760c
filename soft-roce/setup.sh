#!/usr/bin/env bash
# Gives this machine a Soft-RoCE device (rdma_rxe) on a network interface:
#
#   soft-roce/setup.sh [INTERFACE]      default: the interface of the default route
#
# For kernels that have rdma_rxe: Debian, Ubuntu, RHEL and its relatives. Can be run again, also for
# a second interface. soft-roce/teardown.sh undoes what this did.
set -euo pipefail

stop() { printf 'soft-roce/setup.sh: %s\n' "$*" >&2; exit 1; }

# One line for each change, oldest first, for teardown.sh: "module NAME" or "device NAME". In /run,
# since the changes last until the machine restarts, too.
state=/run/ringkeep-soft-roce
here=$(dirname "${BASH_SOURCE[0]}")

[ $# -le 1 ] || stop "usage: soft-roce/setup.sh [INTERFACE]"
interface=${1:-$(ip -o route show default | sed -n 's/.* dev \([^ ]*\).*/\1/p' | head -n 1)}
[ -n "$interface" ] || stop "no default route: name the interface, one of: $(cd /sys/class/net && echo *)"
[ -e "/sys/class/net/$interface" ] ||
    stop "no interface $interface, only: $(cd /sys/class/net && echo *)"
[ "$(id -u)" -eq 0 ] || stop "run this as root: sudo $0 $interface"

has_module() { modinfo "$1" >/dev/null 2>&1 || [ -d "/sys/module/$1" ]; }

install() {
    echo "installing: $*"
    if command -v apt-get >/dev/null; then
        apt-get update -q
        DEBIAN_FRONTEND=noninteractive apt-get install -y -q "$@"
    elif command -v dnf >/dev/null; then
        dnf install -y -q "$@"
    else
        stop "install these first: $*"
    fi
}

command -v rdma >/dev/null || install "$(command -v dnf >/dev/null && echo iproute || echo iproute2)"
# It brings the user's half of the driver on RHEL; on Debian and Ubuntu that is a package.
if ! command -v ibv_devices >/dev/null || [ ! -e /etc/libibverbs.d/rxe.driver ]; then
    if command -v apt-get >/dev/null; then
        install rdma-core ibverbs-providers ibverbs-utils
    else
        install rdma-core libibverbs libibverbs-utils
    fi
fi
if ! has_module rdma_rxe && command -v apt-cache >/dev/null &&
    apt-cache show "linux-modules-extra-$(uname -r)" >/dev/null 2>&1; then
    install "linux-modules-extra-$(uname -r)"
fi
has_module rdma_rxe || stop "Linux $(uname -r) has no rdma_rxe: $here/vm.sh runs a command in an emulated machine that has it"

# rdma_ucm is what librdmacm speaks to. Modules that these need count too: they come in the order
# in which they were loaded.
modules() { tac /proc/modules | cut -d ' ' -f 1; }
for module in rdma_rxe rdma_ucm; do
    before=$(modules)
    modprobe "$module"
    loaded=$(comm -13 <(sort <<<"$before") <(modules | sort))
    for name in $(modules | grep -Fx "${loaded:-/}" || true); do
        echo "module $name" >>"$state"
        echo "loaded $name"
    done
done

device_on() {
    rdma link show | awk -v interface="$1" '
        { for (i = 3; i < NF; i++) if ($i == "netdev" && $(i + 1) == interface) { sub("/.*", "", $2); print $2; exit } }'
}
device=$(device_on "$interface")
if [ -n "$device" ]; then
    echo "$interface already has the RDMA device $device"
else
    device=rxe_$interface
    rdma link add "$device" type rxe netdev "$interface" ||
        stop "could not make a device on $interface: Soft-RoCE works in the first network namespace only, not in containers"
    echo "device $device" >>"$state"
    echo "made $device on $interface"
fi

[ -n "$(ip -4 -o address show dev "$interface")" ] ||
    echo "$interface has no IPv4 address: give it one before ringkeep listens there"
for ((i = 0; i < 50; i++)); do
    grep -q ACTIVE "/sys/class/infiniband/$device/ports/1/state" && break
    sleep 0.1
done
grep -q ACTIVE "/sys/class/infiniband/$device/ports/1/state" || echo "$device is not active: is $interface up?"
rdma link show "$device/1"
echo "try: ringkeep doctor --transport rdma"
