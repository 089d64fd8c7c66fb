#!/bin/bash
# Runs every fuzz target of some packages, one after the other.
#
#   scripts/fuzz.sh TIME PACKAGE...     for example: scripts/fuzz.sh 2m ./...
set -euo pipefail

[ $# -ge 2 ] || { echo "usage: $0 TIME PACKAGE..." >&2; exit 2; }
time=$1
shift

log=$(mktemp)
trap 'rm -f "$log"' EXIT

# fuzz PACKAGE TARGET. Up to Go 1.26 a run that found nothing can fail because
# its time is over (https://go.dev/issue/75804): that is no failure.
fuzz() {
    go test -run '^$' -fuzz "^$2\$" -fuzztime "$time" -fuzzminimizetime 10x -timeout 0 "$1" 2>&1 | tee "$log" && return
    grep -q '^ *context deadline exceeded$' "$log" && ! grep -q 'Failing input' "$log"
}

targets=0
failed=()
packages=$(go list "$@")
for package in $packages; do
    names=$(go test -list '^Fuzz' "$package")
    for target in $(grep '^Fuzz' <<<"$names"); do
        echo "fuzz: $package $target for $time"
        fuzz "$package" "$target" || failed+=("$package.$target")
        targets=$((targets + 1))
    done
done
[ "$targets" -gt 0 ] || { echo "fuzz: no fuzz target in $*" >&2; exit 1; }
[ ${#failed[@]} = 0 ] || { echo "fuzz: failed: ${failed[*]}" >&2; exit 1; }
echo "fuzz: $targets targets survived $time each"
