#!/bin/bash
# Shows vmcrypt at work, with proof: encrypts a real disk image, a partitioned
# disk and a virtual machine under keys that a KMIP server made, looks inside
# them while they are encrypted, and gets them back. "make demo" runs it.
#
# Everything happens in a temporary folder that is removed at the end. Exits
# with 0 only if every check held.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
grub=/usr/lib/grub-rescue/grub-rescue-cdrom.iso # from Debian's grub-rescue-pc
export PATH=$root/bin:$PATH:/usr/sbin:/sbin

work=$(mktemp -d)
export VMCRYPT_HOME=$work/home
server=
failed=0

cleanup() {
    local status=$?
    [ -z "$server" ] || stop_serving
    rm -rf "$work"
    [ "$status" = 0 ] || echo "demo: ended early or failed; what went wrong is said above" >&2
}
trap cleanup EXIT

chapter() { printf '\n== %s\n' "$*"; }

# run COMMAND...: show a command, then run it.
run() {
    printf '\n$ %s\n' "$*"
    "$@"
}

# check WHAT COMMAND...: does what is claimed hold?
check() {
    local what=$1
    shift
    if "$@" >/dev/null 2>&1; then
        echo "  proved: $what"
    else
        echo "  NOT SO: $what"
        failed=$((failed + 1))
    fi
}

not() { ! "$@"; }

# sum <FILE
sum() { sha256sum | cut -d' ' -f1; }

# proof ORIGINAL ENCRYPTED DECRYPTED: three files, by their checksums.
proof() {
    local file
    printf '\n  SHA-256 of %s\n' "${1##*/}"
    printf '    original   %s\n    encrypted  %s\n    decrypted  %s\n' "$(sum <"$1")" "$(sum <"$2")" "$(sum <"$3")"
    check "the decrypted ${1##*/} is the original, bit for bit" cmp "$1" "$3"
    check "the encrypted one differs" not cmp "$1" "$2"
}

# times TEXT FILE: how often a text stands in a file.
times() { grep -a -o -F -e "$1" "$2" | wc -l; }

# absent TEXT ORIGINAL ENCRYPTED: a text that the ciphertext must not show.
absent() {
    check "\"$1\": $(times "$1" "$2") times in $2, $(times "$1" "$3") times in $3" \
        test "$(times "$1" "$2")" -gt 0 -a "$(times "$1" "$3")" -eq 0
}

free_port() {
    local port
    while port=$((20000 + RANDOM % 10000)); (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do :; done
    echo "$port"
}

# serve: start the key manager and wait until it listens.
serve() {
    printf '\n$ vmcrypt kms serve &\n'
    vmcrypt kms serve >"$work/serve.log" 2>&1 &
    server=$!
    for _ in {1..100}; do
        if grep -q listening "$work/serve.log"; then
            cat "$work/serve.log"
            return
        fi
        sleep 0.1
    done
    cat "$work/serve.log" >&2
    echo "demo: the key manager did not start" >&2
    exit 1
}

stop_serving() {
    kill "$server" 2>/dev/null || true
    wait "$server" || true
    server=
}

make_disks() {
    chapter "Disks to encrypt"
    (cd "$root" && go run ./testimages/generate --out "$work/samples" --seed 1)
    mv samples/gpt.img samples/vm .
    if [ -e "$grub" ]; then
        cp "$grub" grub.iso
    else
        cp samples/cd.iso grub.iso
    fi
    ls -sh1 grub.iso gpt.img vm/*
}

make_key_manager() {
    chapter "A key manager"
    run vmcrypt init --address "127.0.0.1:$(free_port)"
    serve
    run vmcrypt kms status
}

real_image() {
    chapter "A real disk image: GRUB's rescue CD"
    run vmcrypt encrypt grub.iso --output grub.enc.iso
    run vmcrypt status grub.enc.iso
    absent CD001 grub.iso grub.enc.iso
    absent LICENSE=GPLv3+ grub.iso grub.enc.iso
    check "qemu-img sees two different disks" not qemu-img compare -f raw -F raw grub.iso grub.enc.iso
    run vmcrypt ls grub.enc.iso /boot/grub
    run vmcrypt cat grub.enc.iso /boot/grub/grub.cfg | head -n 16
    run vmcrypt decrypt grub.enc.iso --output grub.dec.iso
    proof grub.iso grub.enc.iso grub.dec.iso
    check "qemu-img finds the decrypted disk identical" qemu-img compare -f raw -F raw grub.iso grub.dec.iso
}

# second_partition DISK: where it starts, in bytes, by the GUID partition table.
second_partition() {
    echo $((512 * $(od -An -t u8 -j $((2 * 512 + 128 + 32)) -N 8 "$1")))
}

partitioned_disk() {
    local file=/sizes/65537 ext4
    chapter "Inside a partitioned disk, while it is encrypted"
    run vmcrypt encrypt gpt.img --output gpt.enc.img
    absent "EFI PART" gpt.img gpt.enc.img
    run vmcrypt ls gpt.enc.img
    run vmcrypt ls gpt.enc.img 2:/
    ext4="gpt.img?offset=$(second_partition gpt.img)"
    printf '\n$ vmcrypt cat gpt.enc.img %s\n' "2:$file"
    vmcrypt cat gpt.enc.img "2:$file" >by-vmcrypt
    debugfs -R "cat $file" "$ext4" >by-e2fsprogs 2>/dev/null
    printf '  SHA-256 of this file\n'
    printf '    by vmcrypt, from the encrypted disk   %s\n' "$(sum <by-vmcrypt)"
    printf '    by e2fsprogs, from the original disk  %s\n' "$(sum <by-e2fsprogs)"
    check "both read the same ${file##*/} bytes" test "$(stat -c %s by-e2fsprogs)$(sum <by-e2fsprogs)" = "${file##*/}$(sum <by-vmcrypt)"
    run vmcrypt decrypt gpt.enc.img --output gpt.dec.img
    proof gpt.img gpt.enc.img gpt.dec.img
}

virtual_machine() {
    local file
    chapter "A virtual machine with three disks"
    run vmcrypt encrypt vm/web01.vmx --output vm.enc
    run vmcrypt status vm.enc/web01.vmx
    run vmcrypt decrypt vm.enc/web01.vmx --output vm.dec
    for file in vm/*.img vm/*.raw vm/*-flat.vmdk; do
        [ ! -e "$file" ] || proof "$file" "vm.enc/${file##*/}" "vm.dec/${file##*/}"
    done
    check "every file of the VM is back, bit for bit, and nothing else" diff -r vm vm.dec
}

# flip_bit DESCRIPTOR COPY: flips one bit of the wrapped key.
flip_bit() {
    local alphabet=ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/
    local line key at=80 before
    line=$(grep '\.vmcrypt\.recipient0\.key = ' "$1")
    key=${line##* = \"}
    before=${alphabet%%"${key:at:1}"*}
    key=${line%"$key"}${key:0:at}${alphabet:${#before} ^ 1:1}${key:at + 1}
    sed "s|^${line%% = *} = .*|$key|" "$1" >"$2"
}

tampering() {
    local status=0
    chapter "One flipped bit in the wrapped key"
    mkdir tampered
    cp grub.enc.iso tampered/
    flip_bit grub.enc.iso.vmx tampered/grub.enc.iso.vmx
    run diff grub.enc.iso.vmx tampered/grub.enc.iso.vmx || true
    run vmcrypt decrypt tampered/grub.enc.iso --output tampered/out.iso || status=$?
    echo "  exit code $status"
    check "refused as tampered with: exit code 5" test "$status" = 5
    check "and nothing was written" test ! -e tampered/out.iso
}

backup() {
    local status=0
    chapter "The key manager lost, and brought back from its backup"
    head -c 24 /dev/urandom | base64 >passphrase
    run vmcrypt kms backup keys.backup --passphrase-file passphrase
    run vmcrypt kms status
    stop_serving
    run rm -rf "$VMCRYPT_HOME"
    run vmcrypt decrypt gpt.enc.img --output lost.img || status=$?
    check "without its key manager nothing opens the disk" test "$status" != 0 -a ! -e lost.img
    run vmcrypt kms restore keys.backup --passphrase-file passphrase
    run vmcrypt decrypt gpt.enc.img --output gpt.restored.img
    proof gpt.img gpt.enc.img gpt.restored.img
}

cd "$work"
run vmcrypt --version
make_disks
make_key_manager
real_image
partitioned_disk
virtual_machine
tampering
backup

chapter "Verdict"
if [ "$failed" -gt 0 ]; then
    echo "FAILED: $failed claims above do not hold (\"NOT SO\")."
    exit 1
fi
echo "All disks were encrypted, read while encrypted, and came back bit for bit; every claim above is proved."
