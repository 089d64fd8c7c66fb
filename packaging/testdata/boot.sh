#!/bin/bash
# Boots the Debian in a folder, with systemd, and returns when it has powered off. It is
# for scripts/isolate.sh: it mounts what systemd-nspawn needs.
#
#   boot.sh FOLDER [OPTION OF systemd-nspawn...]
set -euo pipefail

mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/lock
mountpoint -q /sys || mount -t sysfs sysfs /sys
mountpoint -q /sys/fs/cgroup || mount -t cgroup2 none /sys/fs/cgroup
exec systemd-nspawn --quiet --boot --register=no --keep-unit --link-journal=no \
    --system-call-filter=@memlock --machine=vmcrypt-test --directory="$@"
