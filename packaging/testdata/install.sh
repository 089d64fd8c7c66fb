#!/bin/bash
# What an administrator does with the package, on a bare Debian that systemd has just
# booted: install, set up, unlock, upgrade while a guest is at work, remove, install
# again. The two packages are /old.deb and /new.deb, a block device may be /dev/vmcrypt.
set -euo pipefail
export DEBIAN_FRONTEND=noninteractive

step() { echo "== $(date +%T) $*"; }

failed() {
    echo "FAILED at line $1"
    tail -n 20 /tmp/fio.* 2>/dev/null
    journalctl --no-pager -b -u 'vmcrypt*' | tail -n 60
}
trap 'failed $LINENO' ERR

install() { apt-get install -q -y "$1"; }

pid() { systemctl show -P MainPID "$1"; }

# field NAME: the values of a field, in JSON.
field() { grep -o "\"$1\":[^,}]*" | sed 's/^[^:]*://; s/^"//; s/"$//'; }

uris() { vmcrypt list --json | field uri; }

disk_server() { vmcrypt list --json | field pid; }

# in_scope PID: it lives in a unit of its own.
in_scope() { grep -q "/vmcrypt-disk-[^/]*\.scope$" "/proc/$1/cgroup"; }

# fails COMMAND...: "! COMMAND" alone would end nothing (errexit).
fails() {
    ! "$@" || { echo "should have failed: $*"; return 1; }
}

# eventually COMMAND...
eventually() {
    local i
    for ((i = 0; i < 300; i++)); do
        "$@" >/dev/null 2>&1 && return
        sleep 0.1
    done
    echo "never: $*"
    return 1
}

serves() { [ "$(disk_server)" = "$1" ]; }

# is_other OLD COMMAND...: the command says something, and not that any more.
is_other() { [ "$("${@:2}")" != "$1" ] && [ "$("${@:2}")" != 0 ] && [ "$("${@:2}")" != null ]; }

# guest URI NUMBER: writes a disk and checks what is on it, again and again until it is
# enough. All must be well.
guest() {
    until [ -e /tmp/enough ]; do
        fio --name=guest --ioengine=nbd --uri="$1" --rw=randrw --bsrange=512-64k --blockalign=512 --iodepth=8 \
            --size=8m --verify=crc32c --verify_fatal=1 --aux-path=/tmp --output="/tmp/fio.$2" || return
        if grep -q 'verify:' "/tmp/fio.$2"; then return 1; fi
    done
}

step install
install /old.deb
getent group vmcrypt-view vmcrypt-operate vmcrypt-admin
getent passwd vmcrypt-kms
vmcrypt --version
zcat /usr/share/doc/vmcrypt/third-party-licenses.gz >/tmp/licenses
grep -q '^==== github.com/prometheus/client_golang: NOTICE$' /tmp/licenses
grep -q '^==== github.com/prometheus/client_golang/internal/.*: LICENSE$' /tmp/licenses # of what it took from others
man vmcrypt-encrypt | grep -q '^SYNOPSIS'
man 5 vmcrypt-config | grep -q datastores

if ! unshare --user true; then
    step "in a chroot there are no user namespaces: without PrivateUsers"
    mkdir -p /run/systemd/system/vmcrypt-kms.service.d
    printf '[Service]\nPrivateUsers=no\n' >/run/systemd/system/vmcrypt-kms.service.d/users.conf
    systemctl daemon-reload
fi

step "a configuration without datastores"
vmcrypt init | tee /tmp/init
grep -q 'systemctl enable --now vmcrypt-kms.service vmcrypt-agent.service' /tmp/init
fails systemctl start vmcrypt-agent
sleep 3
[ "$(systemctl show -P ActiveState vmcrypt-agent)" = failed ]
[ "$(systemctl show -P ExecMainStatus vmcrypt-agent)" = 78 ]
[ "$(systemctl show -P NRestarts vmcrypt-agent)" = 0 ]
systemctl reset-failed vmcrypt-agent
rm -r /etc/vmcrypt /var/lib/vmcrypt # "vmcrypt init" makes them anew

step "set up"
mkdir -p /vms/web01
vmcrypt init --datastore /vms
systemctl enable --now vmcrypt-kms vmcrypt-agent
systemctl is-active vmcrypt-kms vmcrypt-agent
grep -q "^Uid:[[:space:]]$(id -u vmcrypt-kms)[[:space:]]" "/proc/$(pid vmcrypt-kms)/status"
vmcrypt kms status

step encrypt
truncate -s 32M /vms/web01/disk0.img
echo 'displayName = "web01"' >/vms/web01/web01.vmx
echo 'scsi0:0.fileName = "disk0.img"' >>/vms/web01/web01.vmx
truncate -s 32M /vms/web01/disk1.img
echo 'scsi0:1.fileName = "disk1.img"' >>/vms/web01/web01.vmx
vmcrypt encrypt /vms/web01/web01.vmx
if [ -b /dev/vmcrypt ]; then
    step "the second disk is a block device"
    dd if=/vms/web01/disk1.img of=/dev/vmcrypt bs=1M conv=fsync
    rm /vms/web01/disk1.img
    mknod /vms/web01/disk1.img b $((0x$(stat -c %t /dev/vmcrypt))) $((0x$(stat -c %T /dev/vmcrypt)))
fi
vmcrypt unlock web01
first=$(disk_server)
in_scope "$first"

step "upgrade while the guest is at work"
agent=$(pid vmcrypt-agent) kms=$(pid vmcrypt-kms)
guests=()
number=0
for uri in $(uris); do
    guest "$uri" $((number++)) &
    guests+=($!)
done
[ ${#guests[@]} -gt 0 ]
sleep 1
install /new.deb
vmcrypt --version
systemctl is-active vmcrypt-kms vmcrypt-agent
is_other "$agent" pid vmcrypt-agent
is_other "$kms" pid vmcrypt-kms
[ "$(disk_server)" = "$first" ]
in_scope "$first"
agent=$(pid vmcrypt-agent)
systemctl restart vmcrypt-agent
is_other "$agent" pid vmcrypt-agent
[ "$(disk_server)" = "$first" ]
touch /tmp/enough
for process in "${guests[@]}"; do
    wait "$process"
done

step "a disk server dies, then the agent does, then the agent hangs"
kill -KILL "$first"
eventually is_other "$first" disk_server
second=$(disk_server)
eventually in_scope "$second"
agent=$(pid vmcrypt-agent)
kill -KILL "$agent"
eventually is_other "$agent" pid vmcrypt-agent
eventually systemctl is-active vmcrypt-agent
mkdir -p /run/systemd/system/vmcrypt-agent.service.d /run/systemd/system/vmcrypt-kms.service.d
for unit in agent kms; do
    printf '[Service]\nWatchdogSec=2\n' >/run/systemd/system/vmcrypt-$unit.service.d/watchdog.conf
done
systemctl daemon-reload
systemctl restart vmcrypt-kms vmcrypt-agent
sleep 3 # they live on, since they say that they do
agent=$(pid vmcrypt-agent) kms=$(pid vmcrypt-kms)
[ "$(systemctl show -P NRestarts vmcrypt-agent)" = 0 ]
kill -STOP "$agent" "$kms"
eventually is_other "$agent" pid vmcrypt-agent
eventually is_other "$kms" pid vmcrypt-kms
eventually serves "$second"

step "lock, without a control socket"
rm /run/vmcrypt/vms/*/control.sock
fails vmcrypt lock web01
fails vmcrypt lock --force web01 # it can't tell whether the disks were flushed
eventually test ! -e "/proc/$second"
vmcrypt unlock web01
vmcrypt lock web01
vmcrypt audit verify
vmcrypt kms audit verify

step "administer the key manager, while it runs and not"
echo 'correct horse battery staple' >/tmp/passphrase
vmcrypt kms backup --passphrase-file /tmp/passphrase /root/kms.backup
systemctl stop vmcrypt-kms
vmcrypt kms client add host2 --out /root
vmcrypt kms rotate-root
vmcrypt unlock web01
vmcrypt lock web01
[ -z "$(find /var/lib/vmcrypt/kms ! -user vmcrypt-kms)" ]
systemctl start vmcrypt-kms
vmcrypt kms audit verify

step "systemd seals the root key"
mkdir -p -m 700 /etc/credstore.encrypted
sealed=/etc/credstore.encrypted/vmcrypt-kms
head -c 32 /dev/urandom | base64 | systemd-creds encrypt --name=vmcrypt-kms - $sealed
systemd-creds decrypt --name=vmcrypt-kms $sealed - |
    vmcrypt kms rotate-root --root-key systemd --new-root-passphrase-file -
mkdir -p /etc/systemd/system/vmcrypt-kms.service.d
printf '[Service]\nLoadCredentialEncrypted=vmcrypt-kms:%s\n' $sealed >/etc/systemd/system/vmcrypt-kms.service.d/root-key.conf
systemctl daemon-reload
systemctl restart vmcrypt-kms
vmcrypt unlock web01
vmcrypt lock web01

step completion
COMP_WORDS=(vmcrypt kms cl) COMP_CWORD=2
# shellcheck source=/dev/null
. /usr/share/bash-completion/completions/vmcrypt
_vmcrypt
[ "${COMPREPLY[*]}" = client ]

step "remove, with a VM that runs"
vmcrypt unlock web01
third=$(disk_server)
keys=$(sha256sum /var/lib/vmcrypt/kms/root.key /etc/vmcrypt/*)
apt-get remove -q -y vmcrypt | tee /tmp/remove
grep -q 'disks of 1 VMs stay unlocked' /tmp/remove
[ ! -e /usr/bin/vmcrypt ]
fails systemctl is-active vmcrypt-agent vmcrypt-kms
kill -0 "$third"
# The hook stays, as a file that may have been changed, and does nothing any more.
echo "<domain><metadata xmlns:v='urn:vmcrypt:libvirt:1'/></domain>" | /etc/libvirt/hooks/qemu.d/vmcrypt web01 prepare begin -
systemctl stop 'vmcrypt-disk-*.scope'

step purge
apt-get purge -q -y vmcrypt | tee /tmp/purge
grep -q '/var/lib/vmcrypt stays' /tmp/purge
[ ! -e /etc/libvirt/hooks/qemu.d/vmcrypt ]
[ ! -L /etc/systemd/system/multi-user.target.wants/vmcrypt-agent.service ]
[ "$(sha256sum /var/lib/vmcrypt/kms/root.key /etc/vmcrypt/*)" = "$keys" ]

step "install again"
install /new.deb
systemctl enable --now vmcrypt-kms vmcrypt-agent
eventually vmcrypt unlock web01
vmcrypt lock web01

step done
