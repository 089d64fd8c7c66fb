#!/bin/bash
# Boots the Debian in a folder, with systemd, and returns when it has powered off.
#
#   boot.sh FOLDER [OPTION OF systemd-nspawn...]
#
# It may itself run in a chroot that has nothing but /proc and /dev. There systemd-nspawn
# refuses to work, as the root folder is no mount; so this makes it one. It lies on /proc,
# which is surely a mount and is made private first: what is mounted here is seen nowhere
# else. In such a chroot there are no user namespaces, though: the kernel refuses them.
set -euo pipefail

case ${1-} in
    mounts)
        shift
        if mount --make-rprivate / 2>/dev/null; then
            exec unshare --mount --pid --fork --kill-child --mount-proc bash "$0" boot "$@"
        fi
        mount --make-private /proc
        mount -t tmpfs tmpfs /proc/fs
        mkdir /proc/fs/root
        mount --rbind / /proc/fs/root
        mount --make-rprivate /proc/fs/root
        exec chroot /proc/fs/root unshare --mount --pid --fork --kill-child --mount-proc bash "$0" boot "$@"
        ;;
    boot)
        shift
        mount -t tmpfs -o mode=755 tmpfs /run
        mkdir -p /run/lock
        mountpoint -q /sys || mount -t sysfs sysfs /sys
        mountpoint -q /sys/fs/cgroup || mount -t cgroup2 none /sys/fs/cgroup
        exec systemd-nspawn --quiet --boot --register=no --keep-unit --link-journal=no \
            --system-call-filter=@memlock --machine=vmcrypt-test --directory="$@"
        ;;
    *)
        exec unshare --mount --propagation unchanged --fork --kill-child bash "$(realpath "$0")" mounts "$@"
        ;;
esac
