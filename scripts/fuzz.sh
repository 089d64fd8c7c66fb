#!/bin/bash
# Runs every fuzz target of some packages, one after the other.
#
#   scripts/fuzz.sh TIME PACKAGE...     for example: scripts/fuzz.sh 2m ./...
set -euo pipefail

[ $# -ge 2 ] || { echo "usage: $0 TIME PACKAGE..." >&2; exit 2; }
time=$1
shift

targets=0
failed=()
for package in $(go list "$@"); do
    for target in $(go test -list '^Fuzz' "$package" | grep '^Fuzz' || true); do
        echo "fuzz: $package $target for $time"
        go test -run '^$' -fuzz "^$target\$" -fuzztime "$time" "$package" || failed+=("$package.$target")
        targets=$((targets + 1))
    done
done
[ "$targets" -gt 0 ] || { echo "fuzz: no fuzz target in $*" >&2; exit 1; }
[ ${#failed[@]} = 0 ] || { echo "fuzz: failed: ${failed[*]}" >&2; exit 1; }
echo "fuzz: $targets targets survived $time each"
