#!/bin/bash
# Installs the Debian packages that the tests and the demo need.
#
#   scripts/setup.sh                  every package of internal/testtool/packages.txt
#   scripts/setup.sh PACKAGE...       these of them only
#   scripts/setup.sh --list ARCH      print the packages for a Go architecture
#
# Only packages some of whose programs or files are missing are installed, so a
# second run needs neither root nor a network.
set -euo pipefail

table=$(dirname "$0")/../internal/testtool/packages.txt

# packages ARCH: "package program-or-file..." for each line that counts there.
packages() {
    local package brings
    while read -r package brings; do
        case $package in
            '' | '#'*) continue ;;
            "[$1]") read -r package brings <<<"$brings" ;;
            '['*) continue ;;
        esac
        echo "$package $brings"
    done <"$table"
}

go_arch() {
    case $(uname -m) in
        x86_64) echo amd64 ;;
        aarch64) echo arm64 ;;
        *) uname -m ;;
    esac
}

# present NAME: is this program, or this file if NAME is a path, there?
present() {
    case $1 in
        /*) [ -e "$1" ] ;;
        *) PATH=$PATH:/usr/sbin:/sbin type -P "$1" >/dev/null ;;
    esac
}

# missing [PACKAGE...]: which of these packages (all, if none is named) lack
# something.
missing() {
    local package brings thing
    while read -r package brings; do
        [[ $# = 0 || " $* " = *" $package "* ]] || continue
        for thing in $brings; do
            present "$thing" || { echo "$package"; break; }
        done
    done < <(packages "$(go_arch)")
}

# as_root COMMAND...: with sudo if need be.
as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    else
        sudo "$@"
    fi
}

# install PACKAGE...: apt's own words are shown only if it fails.
install() {
    local apt=(env DEBIAN_FRONTEND=noninteractive apt-get -q -y) log
    log=$(mktemp)
    if ! { as_root "${apt[@]}" update &&
        as_root "${apt[@]}" install --no-install-recommends "$@"; } >"$log" 2>&1 </dev/null; then
        cat "$log" >&2
        rm -f "$log"
        die "apt-get could not install $*"
    fi
    rm -f "$log"
}

die() {
    echo "setup: $*" >&2
    exit 1
}

if [ "${1-}" = --list ]; then
    packages "$2" | cut -d' ' -f1
    exit
fi

mapfile -t wanted < <(missing "$@")
[ ${#wanted[@]} -gt 0 ] || exit 0

type -P apt-get >/dev/null ||
    die "this is no Debian: install what these Debian packages bring, then run it again: ${wanted[*]}"
[ "$(id -u)" = 0 ] || type -P sudo >/dev/null ||
    die "run as root: apt-get install --no-install-recommends ${wanted[*]}"

echo "setup: installing ${wanted[*]}"
install "${wanted[@]}"
mapfile -t wanted < <(missing "$@")
[ ${#wanted[@]} = 0 ] || die "still incomplete after installation: ${wanted[*]}"
