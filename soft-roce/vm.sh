#!/usr/bin/env bash
# Runs a command in an emulated machine whose kernel has Soft-RoCE (rdma_rxe), for hosts whose own
# kernel has none:
#
#   soft-roce/vm.sh [OPTIONS] COMMAND [ARGS…]
#
# The machine sees the host's files. COMMAND runs there as root, in the current directory, without
# input; its output comes through as it is written, and its exit status is this script's. Before
# COMMAND starts there is an active RDMA device `rxa` at 10.9.0.1 with a RoCE v2 address, and
# 2 MiB huge pages at /dev/hugepages. Needs no KVM.
#
# Exit status: COMMAND's; 124 if --timeout ended it; 125 if the machine did not start, or died;
# 137 if somebody killed the machine.
set -euo pipefail

usage() {
    cat <<'END'
usage: soft-roce/vm.sh [OPTIONS] COMMAND [ARGS…]
  --memory SIZE      of the machine (2G)
  --cpus N           of the machine (2)
  --hugepages N      2 MiB pages to reserve (256)
  --timeout SECONDS  for COMMAND; the machine is then killed (no limit)
  --boot SECONDS     for the machine to start (300)
  --rw DIR           the machine may write this directory of the host; can be repeated
  --kvm              use KVM instead of emulation
  --prepare          fetch what is needed, run nothing
Several machines on one network:
  --machine NAME     the host name (soft-roce)
  --address A/BITS   of the RDMA device (10.9.0.1/24); must differ between the machines
  --link port:N      all machines of this host with the same UDP port N share a network; it stays
                     up whichever of them is killed or started again
  --link listen:PATH | --link connect:PATH
                     or a cable to one other machine: a Unix socket that one end listens at. With
                     several the machine joins its cables. When an end dies the cable is gone
  --pidfile PATH     gets the process id that kills this machine
END
}

stop() { printf 'soft-roce/vm.sh: %s\n' "$*" >&2; exit 125; }
say() { printf 'soft-roce/vm.sh: %s\n' "$*" >&2; }
# 1 would look like COMMAND's own status.
set -E
trap 'stop "line $LINENO failed: $BASH_COMMAND"' ERR

memory=2G cpus=2 hugepages=256 timeout=0 boot_timeout=300 kvm=no prepare=no
machine=soft-roce address=10.9.0.1/24 pidfile=
rw=() links=()
while [ $# -gt 0 ]; do
    case "$1" in
        --kvm) kvm=yes; shift; continue ;;
        --prepare) prepare=yes; shift; continue ;;
        --help) usage; exit ;;
        --) shift; break ;;
        -*) [ $# -ge 2 ] || { usage >&2; exit 125; } ;;
        *) break ;;
    esac
    case "$1" in
        --memory) memory=$2 ;;
        --cpus) cpus=$2 ;;
        --hugepages) hugepages=$2 ;;
        --timeout) timeout=$2 ;;
        --boot) boot_timeout=$2 ;;
        --rw) rw+=("$(realpath -e "$2")") ;;
        --machine) machine=$2 ;;
        --address) address=$2 ;;
        --link) links+=("$2") ;;
        --pidfile) pidfile=$2 ;;
        *) usage >&2; exit 125 ;;
    esac
    shift 2
done
[ $# -gt 0 ] || [ $prepare = yes ] || { usage >&2; exit 125; }
[[ $address =~ ^[0-9]+\.[0-9]+\.[0-9]+\.([0-9]+)/[0-9]+$ ]] || stop "no address with prefix length: $address"
mac=$(printf '52:54:00:09:00:%02x' "${BASH_REMATCH[1]}")

[ "$(uname -m)" = x86_64 ] || stop "only for x86_64 hosts"
# shellcheck source=/dev/null
. /etc/os-release
virtme_version=1.42
cache=${XDG_CACHE_HOME:-$HOME/.cache}/ringkeep/soft-roce
virtme_ng=$cache/virtme-ng-$virtme_version
kernel=$cache/kernel-$ID-${VERSION_ID:-rolling}

run=$(mktemp -d "${TMPDIR:-/tmp}/soft-roce.XXXXXX")
part='' qemu_pid=''
# shellcheck disable=SC2317 # called by the trap
cleanup() {
    [ -z "$qemu_pid" ] || kill -9 "$qemu_pid" 2>/dev/null || true
    [ -z "$pidfile" ] || rm -f "$pidfile"
    rm -rf "$run" ${part:+"$part"}
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# --- What the host must have ---------------------------------------------------------------------

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif sudo -n true 2>/dev/null; then
        sudo -n "$@"
    else
        stop "run this first: sudo $*"
    fi
}

# need COMMAND PACKAGE
missing=()
need() { command -v "$1" >/dev/null || [ -x "/usr/sbin/$1" ] || missing+=("$2"); }

host_tools() {
    need qemu-system-x86_64 qemu-system-x86
    need busybox busybox-static
    need depmod kmod
    need file file
    need zstd zstd
    need rdma iproute2
    need ibv_devinfo ibverbs-utils
    need udevadm udev
    # Without the provider for rxe, programs in the machine see no device.
    [ -e /etc/libibverbs.d/rxe.driver ] || missing+=(ibverbs-providers)
    # The command `python3 -m venv` exists without this package, and then fails.
    python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
    [ ${#missing[@]} -eq 0 ] && return
    command -v apt-get >/dev/null || stop "install these first: ${missing[*]}"
    say "installing: ${missing[*]}"
    as_root apt-get update -q >&2
    as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -q --no-install-recommends "${missing[@]}" >&2
}

# What is fetched appears under its final name only when it is whole.
part() {
    mkdir -p "$cache"
    part=$(mktemp -d "$cache/part.XXXXXX")
    chmod 755 "$part"
}
whole() {
    # Another vm.sh may have been faster: then its copy stays.
    mv -T "$part" "$1" 2>/dev/null || rm -rf "$part"
    [ -d "$1" ] || stop "could not write $1"
}

fetch_virtme() {
    say "fetching virtme-ng $virtme_version"
    part
    # A virtual environment cannot be moved, but packages in a plain directory can.
    python3 -m venv "$part/venv"
    "$part/venv/bin/pip" install -q --target "$part/lib" "virtme-ng==$virtme_version" >&2
    rm -r "${part:?}/venv"
    whole "$virtme_ng"
}

# real_package META: the package with a version in its name that the meta package stands for.
real_package() {
    apt-cache depends "$1" 2>/dev/null | awk '/Depends: linux-image-[0-9]/ { print $2; exit }'
}

fetch_kernel() {
    local image meta packages version modules
    case " $ID ${ID_LIKE:-} " in
        *" ubuntu "*) meta=linux-image-generic ;;
        *" debian "*) meta=linux-image-amd64 ;;
        *) stop "can fetch kernels of Debian and Ubuntu, not of $ID" ;;
    esac
    image=$(real_package "$meta")
    if [ -z "$image" ]; then
        as_root apt-get update -q >&2
        image=$(real_package "$meta")
    fi
    [ -n "$image" ] || stop "apt-get knows no $meta"
    packages=("$image")
    # Ubuntu splits a kernel; rdma_rxe is in modules-extra.
    for modules in modules modules-extra; do
        modules=${image/image/$modules}
        [ "$meta" = linux-image-amd64 ] || ! apt-cache show "$modules" >/dev/null 2>&1 ||
            packages+=("$modules")
    done
    say "fetching ${packages[*]}"
    part
    mkdir "$part/packages"
    (cd "$part/packages" && apt-get -q -o APT::Sandbox::User="$(id -un)" download "${packages[@]}" >&2)
    for package in "$part"/packages/*.deb; do
        dpkg-deb -x "$package" "$part"
    done
    # Newer packages put the modules under /usr only.
    [ -d "$part/lib/modules" ] || ln -s usr/lib "$part/lib"
    version=$(cd "$part/lib/modules" && echo *)
    [ -n "$(find "$part/lib/modules/$version" -name 'rdma_rxe.ko*')" ] ||
        stop "no rdma_rxe in ${packages[*]}"
    rm -rf "${part:?}"/{packages,usr/share} "$part"/boot/System.map* \
        "$part/lib/modules/$version/kernel/"{sound,drivers/{gpu,media}}
    PATH=$PATH:/usr/sbin depmod -b "$part" "$version"
    whole "$kernel"
}

host_tools
[ -d "$virtme_ng" ] || fetch_virtme
[ -d "$kernel" ] || fetch_kernel
version=$(cd "$kernel/lib/modules" && echo *)
if [ $prepare = yes ]; then
    say "ready, in $cache: Linux $version, virtme-ng $virtme_version"
    exit
fi

# --- The machine ---------------------------------------------------------------------------------

mkdir "$run/shared"

# COMMAND with its directory and its part of the environment. A file, since the machine's own
# command line is short.
{
    while read -r name; do
        printf 'export %s=%q\n' "$name" "${!name}"
    done < <(compgen -e | grep -E '^(RINGKEEP_|RUST|CARGO_|HOME$|PATH$)')
    printf 'cd %q || exit 125\n' "$PWD"
    printf 'exec'
    printf ' %q' "$@"
    printf '\n'
} >"$run/shared/command"

# What the machine does first. Its files under /tmp are its own, except the directories named here.
{
    printf 'visible=('; printf ' %q' "$PWD" "$cache" "${rw[@]}"; printf ' )\n'
    printf 'address=%q hugepages=%q mac=%q links=%q\n' "$address" "$hugepages" "$mac" "${#links[@]}"
    cat <<'END'
set -euo pipefail
shared=/run/soft-roce.shared
fail() { echo "soft-roce/vm.sh: in the machine: $*" >&2; exit 125; }
trap '[ -e $shared/status ] || echo 125 >$shared/status' EXIT
trap 'fail "line $LINENO failed: $BASH_COMMAND"' ERR
mkdir -p /run/soft-roce.tmp
mount --rbind /tmp /run/soft-roce.tmp
mount -t tmpfs -o mode=1777 tmpfs /tmp
for dir in "${visible[@]}"; do
    case $dir in /tmp/*) mkdir -p "$dir"; mount --rbind "/run/soft-roce.tmp${dir#/tmp}" "$dir" ;; esac
done

modprobe rdma_rxe
modprobe rdma_ucm
ulimit -l unlimited
echo "$hugepages" >/proc/sys/vm/nr_hugepages
reserved=$(cat /proc/sys/vm/nr_hugepages)
if [ "$reserved" -lt "$hugepages" ]; then
    echo 0 >/proc/sys/vm/nr_hugepages
    fail "no memory for $hugepages huge pages, only for $reserved: give more --memory"
fi
mkdir -p /dev/hugepages
mount -t hugetlbfs -o pagesize=2M hugetlbfs /dev/hugepages

if [ "$links" -eq 0 ]; then
    interface=va
    ip link add va type veth peer name vb
    ip link set vb up
else
    modprobe virtio_net
    interface=
    for file in /sys/class/net/*/address; do
        [ "$(cat "$file")" != "$mac" ] || interface=$(basename "$(dirname "$file")")
    done
    [ -n "$interface" ] || fail "no network card $mac"
fi
ip link set lo up
ip address add "$address" dev "$interface"
ip link set "$interface" up
rdma link add rxa type rxe netdev "$interface"
# The state and the address table follow the interface after a moment.
mapped=$(printf '0000:0000:0000:0000:0000:ffff:%02x%02x:%02x%02x' $(echo "${address%/*}" | tr . ' '))
port=/sys/class/infiniband/rxa/ports/1
for ((i = 0; i < 600; i++)); do
    if grep -q ACTIVE $port/state && grep -qx "$mapped" $port/gids/* 2>/dev/null; then
        ready=yes
        break
    fi
    sleep 0.1
done
[ "${ready:-}" = yes ] || fail "the RDMA device is not active"
trap - ERR
touch $shared/ready
set +e
bash $shared/command </dev/null
echo $? >$shared/status
END
} >"$run/shared/guest"

network=()
if [ ${#links[@]} -gt 0 ]; then
    # Every cable ends in a hub inside QEMU, and so does the one network card.
    network=(-netdev "hubport,id=card,hubid=0" -device "virtio-net-pci,netdev=card,mac=$mac")
fi
for i in "${!links[@]}"; do
    to=${links[i]#*:}
    cable=stream,addr.type=unix,addr.path=$to,server=
    case ${links[i]} in
        listen:*) cable+=on; rm -f "$to" ;;
        connect:*)
            cable+=off
            for ((waited = 0; waited < boot_timeout * 10; waited++)); do
                [ -S "$to" ] && break
                sleep 0.1
            done
            [ -S "$to" ] || stop "no machine listens at $to" ;;
        # Bound to the loopback address, so that nothing leaves this host.
        port:*) cable=socket,mcast=239.9.0.1:$to,localaddr=127.0.0.1 ;;
        *) stop "not port:N, listen:PATH or connect:PATH: ${links[i]}" ;;
    esac
    network+=(-netdev "$cable,id=cable$i" -netdev "hubport,id=port$i,hubid=0,netdev=cable$i")
done

# virtme-ng makes the boot archive and says how to start QEMU. QEMU is then started from here, so
# that it is this script's child and dies with it. The machine gets the host's root directory read
# only (over 9p) and writes into memory where programs expect to write.
virtme=(python3 -c 'import sys; from virtme.commands.run import main; sys.exit(main())')
[ $kvm = yes ] || virtme+=(--disable-kvm)
# A busy host gives the machine too little time between two ticks for the kernel's own check of its
# timer, which then panics: no_timer_check.
virtme+=(--kimg "$kernel/boot/vmlinuz-$version" --mods auto --kopt no_timer_check --name "$machine" --memory "$memory"
    --cpus "$cpus" --force-9p --script-sh 'bash /run/soft-roce.shared/guest'
    --rwdir "/run/soft-roce.shared=$run/shared" --save-initramfs "$run/initramfs"
    --show-boot-console --dry-run --show-command)
for dir in /etc /usr /var /home /root; do
    virtme+=(--overlay-rwdir "$dir")
done
for dir in "${rw[@]}"; do
    virtme+=(--rwdir "$dir")
done
# It looks whether it could open its outputs by name, which fails when another user owns them.
command=$(PATH=$PATH:/usr/sbin PYTHONPATH=$virtme_ng/lib TMPDIR=$run "${virtme[@]}" \
    </dev/null 2>"$run/virtme") || stop "virtme-ng failed: $(cat "$run/virtme") ${command:-}"
eval "qemu=($command)"
# The kernel's messages go to a file that is shown if the machine dies.
qemu=("${qemu[@]/#file,id=console,path=*/file,id=console,path=$run/console}")

# QEMU opens its outputs anew by name: with pipes, nothing is truncated or overwritten.
mkfifo "$run/out" "$run/err"
cat <"$run/out" & outputs=($!)
cat <"$run/err" >&2 & outputs+=($!)
setpriv --pdeathsig KILL "${qemu[@]}" "${network[@]}" </dev/null >"$run/out" 2>"$run/err" &
qemu_pid=$!
[ -z "$pidfile" ] || echo $qemu_pid >"$pidfile"

# The limits, in a process of its own so that this one can wait for QEMU.
(
    trap - EXIT
    limit() { # SECONDS FILE-THAT-ENDS-IT NAME
        local end=$((SECONDS + $1))
        while kill -0 $qemu_pid && [ ! -e "$2" ]; do
            if [ "$1" -gt 0 ] && [ $SECONDS -ge $end ]; then
                touch "$run/$3"
                kill -9 $qemu_pid
            fi
            sleep 0.2
        done
    }
    limit "$boot_timeout" "$run/shared/ready" no-boot
    limit "$timeout" "$run/shared/status" timeout
    limit 60 "$run/never" no-end
) >/dev/null 2>&1 &
watch=$!

died=0
wait $qemu_pid 2>/dev/null || died=$?
qemu_pid=
wait "${outputs[@]}" $watch
show_console() { tail -n 40 "$run/console" >&2 2>/dev/null || true; }
if [ -s "$run/shared/status" ]; then
    exit "$(cat "$run/shared/status")"
elif [ -e "$run/timeout" ]; then
    say "ended after $timeout s: $*"
    exit 124
elif [ -e "$run/no-boot" ]; then
    show_console
    stop "the machine did not start within $boot_timeout s"
elif [ $died -gt 128 ]; then
    say "the machine was killed (signal $((died - 128)))"
    exit $died
fi
show_console
stop "the machine died, its console is above"
