#!/bin/bash
# Makes dist/vmcrypt_VERSION_ARCH.deb or .rpm of what packaging/nfpm.yaml describes.
#
#   scripts/package.sh deb|rpm
#
# The same commit gives the same bytes, wherever and whenever it is packaged. In the
# environment: GOARCH; PACKAGE_VERSION in place of that of scripts/version.sh; SOURCE_DATE_EPOCH
# in place of the time of the commit.
set -euo pipefail
cd "$(dirname "$0")/.."
umask 022

format=$1
GOARCH=$(go env GOARCH)
PACKAGE_VERSION=${PACKAGE_VERSION:-$(scripts/version.sh)}
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
export GOARCH PACKAGE_VERSION SOURCE_DATE_EPOCH LC_ALL=C TZ=UTC

stage=dist/package/$GOARCH
root=$stage/root
doc=$root/usr/share/doc/vmcrypt
zsh=/usr/share/zsh/vendor-completions
[ "$format" = deb ] || zsh=/usr/share/zsh/site-functions

# put MODE FILE... DIR: FILEs, in this DIR of the package.
put() {
    local mode=$1 dir=$root${!#}
    mkdir -p "$dir"
    install -m "$mode" "${@:2:$#-2}" "$dir"
}

# put_compressed FILE DIR NAME
put_compressed() {
    mkdir -p "$root$2"
    gzip -9nc "$1" >"$root$2/$3"
}

program() {
    mkdir -p "$root/usr/bin"
    go build -trimpath -buildvcs=false -ldflags "-s -w -X main.version=$PACKAGE_VERSION" \
        -o "$root/usr/bin/vmcrypt" ./cmd/vmcrypt
}

# manual: the pages and completions, which a program for this host's CPU writes.
manual() {
    local page
    GOARCH=$(go env GOHOSTARCH) go run -trimpath -buildvcs=false -ldflags "-X main.version=$PACKAGE_VERSION" \
        ./cmd/vmcrypt manual "$stage/manual"
    for page in "$stage"/manual/man/*; do
        put_compressed "$page" "/usr/share/man/man${page##*.}" "${page##*/}.gz"
    done
    put 644 "$stage/manual/bash/vmcrypt" /usr/share/bash-completion/completions
    put 644 "$stage/manual/zsh/_vmcrypt" "$zsh"
    put 644 "$stage/manual/fish/vmcrypt.fish" /usr/share/fish/vendor_completions.d
}

system() {
    put 644 packaging/systemd/*.service /usr/lib/systemd/system
    put 644 packaging/sysusers/vmcrypt.conf /usr/lib/sysusers.d
    put 644 packaging/sysctl/50-vmcrypt.conf /usr/lib/sysctl.d
    put 755 packaging/proxmox/vmcrypt-hookscript /usr/share/vmcrypt/proxmox
}

# configuration: what administrators may change, and packages then leave alone.
configuration() {
    mkdir -p "$stage/conf"
    install -m 644 packaging/libvirt/hook packaging/apparmor/libvirt-qemu.d "$stage/conf"
}

documents() {
    put 644 README.md CHANGELOG.md packaging/debian/copyright /usr/share/doc/vmcrypt
    put 644 docs/*.md /usr/share/doc/vmcrypt/docs
    put 644 internal/config/template.yaml /usr/share/doc/vmcrypt/examples
    sed -i 's/@ADDRESS@/127.0.0.1:5696/; s|@DATASTORES@|# datastores: [/var/lib/libvirt/images]|' "$doc/examples/template.yaml"
    mv "$doc/examples/template.yaml" "$doc/examples/config.yaml"
    cp -R packaging/examples/. "$doc/examples/"
    put 644 packaging/prometheus/rules.yml packaging/prometheus/dashboard.json /usr/share/doc/vmcrypt/examples/prometheus
    licenses >"$stage/licenses"
    put_compressed "$stage/licenses" /usr/share/doc/vmcrypt third-party-licenses.gz
    changelog >"$stage/changelog"
    put_compressed "$stage/changelog" /usr/share/doc/vmcrypt changelog.gz
    if [ "$format" = deb ]; then
        put 644 packaging/debian/vmcrypt /usr/share/lintian/overrides
    else
        put 644 LICENSE /usr/share/doc/vmcrypt # Debian has this one at hand
    fi
}

# licenses: the notices of the modules that the program has in it, and of packages that
# these took from elsewhere.
licenses() {
    local path dir notice
    module_folders | sort -u |
        while read -r path dir; do
            for notice in "$dir"/LICENSE* "$dir"/NOTICE* "$dir"/COPYING*; do
                [ ! -f "$notice" ] || printf '==== %s: %s\n\n%s\n\n' "$path" "${notice##*/}" "$(cat "$notice")"
            done
        done
    printf '==== Go: LICENSE\n\n%s\n' "$(cat "$(go env GOROOT)/LICENSE")"
}

# module_folders: what the program's packages are called and where they lie, and the
# folders above them up to that of their module.
module_folders() {
    local path dir module
    go list -deps -f '{{if .Module}}{{if not .Module.Main}}{{.ImportPath}} {{.Dir}} {{.Module.Path}}{{end}}{{end}}' ./cmd/vmcrypt |
        while read -r path dir module; do
            while echo "$path $dir" && [ "$path" != "$module" ]; do
                path=${path%/*} dir=${dir%/*}
            done
        done
}

# changelog: what Debian wants of every package, which leads to ours.
changelog() {
    cat <<END
vmcrypt ($PACKAGE_VERSION) unstable; urgency=medium

  * What changed is in CHANGELOG.md beside this file.

 -- The vmcrypt authors <vmcrypt@users.noreply.github.com>  $(date -R -d "@$SOURCE_DATE_EPOCH")
END
}

rm -rf "$stage"
program
manual
system
configuration
documents
chmod -R u=rwX,go=rX "$root" # what was copied whole
find "$root" "$stage/conf" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
bin/nfpm package --config packaging/nfpm.yaml --packager "$format" \
    --target "dist/vmcrypt_${PACKAGE_VERSION}_$GOARCH.$format"
