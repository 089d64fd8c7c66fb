#!/bin/bash
# Prints the version of a package made of the commit that is checked out, in the spelling
# of Debian, which rpm takes, too. It grows with every commit:
#
#   0.2.0                            the commit has the tag v0.2.0
#   0.2.0~rc.1                       the commit has the tag v0.2.0-rc.1
#   0.2.0+git20261122.104505.abc1234 it comes after it
#   0.1.0~git20261122.104505.abc1234 there is no tag yet
#
# The time is that of the commit, in UTC.
set -euo pipefail
cd "$(dirname "$0")/.."

first=0.1.0 # the version that comes before all tags
tag=$(git describe --tags --abbrev=0 --match 'v[0-9]*' 2>/dev/null || true)
dirty=
[ -z "$(git status --porcelain --untracked-files=no)" ] || dirty=.dirty

release=${tag#v}
release=${release//-/\~}

if [ "$tag" ] && [ -z "$dirty" ] && [ "$(git rev-parse "$tag^{commit}")" = "$(git rev-parse HEAD)" ]; then
    echo "$release"
    exit
fi
at=$(TZ=UTC git log -1 --format=%cd --date=format-local:%Y%m%d.%H%M%S)
prefix="$first~"
[ -z "$tag" ] || prefix="$release+"
echo "${prefix}git$at.$(git rev-parse --short=7 HEAD)$dirty"
