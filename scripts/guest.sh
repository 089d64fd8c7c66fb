#!/bin/bash
# Fetches what the tests boot as a guest: a Debian cloud kernel, busybox, and the
# kernel's modules for a virtio disk with ext4. Prints the folder that holds them:
#
#   vmlinuz, busybox
#   modules/NN-NAME.ko   in the order in which insmod takes them
#
# They are unpacked, not installed: a kernel would become this machine's own, and
# busybox-static replace its busybox. What is there is not fetched again.
set -euo pipefail

modules='virtio_pci|virtio_blk|ext4|crc32c_generic' # but for those in the kernel itself

cache=${XDG_CACHE_HOME:-$HOME/.cache}/vmcrypt
guest=$cache/guest
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

die() {
    echo "guest: $*" >&2
    exit 1
}

# download: the packages.
download() {
    local kernel
    kernel=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/^ *Depends: \(linux-image-[0-9]\)/\1/p')
    [ -n "$kernel" ] && (cd "$tmp" && apt-get -q download "$kernel" busybox-static)
}

update() {
    if [ "$(id -u)" = 0 ]; then
        apt-get -q update
    else
        sudo apt-get -q update
    fi
}

# unpack: the package lists may be too old to find the packages.
unpack() {
    local package
    download >"$tmp/apt.log" 2>&1 || { update && download; } >>"$tmp/apt.log" 2>&1 || {
        cat "$tmp/apt.log" >&2
        die "apt-get could not download a kernel and busybox-static"
    }
    for package in "$tmp"/*.deb; do
        dpkg-deb -x "$package" "$tmp/unpacked"
    done
}

# in_order FOLDER: the modules in this one's modules.dep and what they need, which
# stands behind them there, the last of it first.
in_order() {
    grep -E "/($modules)\.ko[^:]*:" "$1/modules.dep" |
        awk '{ sub(":", "", $1); for (i = NF; i > 0; i--) if (!seen[$i]++) print $i }'
}

# copy_modules FROM TO: decompressed.
copy_modules() {
    local name n=0 to
    while read -r name; do
        n=$((n + 1))
        to=$2/$(printf %02d "$n")-$(basename "${name%.ko*}").ko
        case $name in
            *.ko) cp "$1/$name" "$to" ;;
            *.xz) xz -dc "$1/$name" >"$to" ;;
            *) die "$name is compressed in a way that is not known here" ;;
        esac
    done < <(in_order "$1")
    [ "$n" -gt 0 ] || die "the kernel's package has none of the modules"
}

fetch() {
    local new version
    unpack
    version=$(cd "$tmp/unpacked/lib/modules" && echo *)
    "$tmp/unpacked/bin/busybox" depmod -b "$tmp/unpacked" "$version"
    mkdir -p "$cache"
    new=$(mktemp -d "$cache/guest.XXXXXX")
    mkdir "$new/modules"
    cp "$tmp"/unpacked/boot/vmlinuz-* "$new/vmlinuz"
    cp "$tmp/unpacked/bin/busybox" "$new/busybox"
    copy_modules "$tmp/unpacked/lib/modules/$version" "$new/modules"
    rm -rf "$guest"
    mv -T "$new" "$guest"
}

[ -e "$guest" ] || fetch
echo "$guest"
