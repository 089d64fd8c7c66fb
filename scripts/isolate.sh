#!/bin/bash
# Runs a command, as root, with mounts and processes of its own: what it mounts is seen
# nowhere else, and what it starts ends with it.
#
#   isolate.sh COMMAND [ARGUMENT...]
#
# It may itself run in a chroot that has nothing but /proc and /dev. The root folder of
# that is no mount, and so can't be made private; this makes it one. It lies on /proc,
# which is surely a mount and is made private first. In such a chroot there are no user
# namespaces, though: the kernel refuses them.
set -euo pipefail

if [ "${1-}" != --inside ]; then
    exec unshare --mount --propagation unchanged --fork --kill-child bash "$(realpath "$0")" --inside "$@"
fi
shift

# The shell waits for orphans, as the first process has to.
# shellcheck disable=SC2016
own=(unshare --mount --pid --fork --kill-child --mount-proc bash -c 'cd "$0" && { "$@"; exit $?; }' "$PWD" "$@")
if mount --make-rprivate / 2>/dev/null; then
    exec "${own[@]}"
fi
mount --make-private /proc
mount -t tmpfs tmpfs /proc/fs
mkdir /proc/fs/root
mount --rbind / /proc/fs/root
mount --make-rprivate /proc/fs/root
exec chroot /proc/fs/root "${own[@]}"
