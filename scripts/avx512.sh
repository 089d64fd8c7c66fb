#!/bin/bash
# Tests the AES-XTS kernel for AVX-512, which few machines' CPUs have, in one
# that Bochs emulates (QEMU emulates no AVX-512). On a CPU that has what the
# kernel needs there is nothing to do: "go test" runs it.
#
# The guest is a Debian kernel and the test binary, on a boot CD.
set -euo pipefail
cd "$(dirname "$0")/.."

tests=(
    TestEverySectorSize/vaes-avx512
    TestEqualsXCrypto/vaes-avx512/512
    TestManySectors/vaes-avx512
    TestKernelsClearTheRegisters/vaes-avx512
    TestWycheproof/vaes-avx512
)
limit=600 # seconds; it takes about 60 of one core

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

die() {
    echo "avx512: $*" >&2
    exit 1
}

# covered: does this machine's CPU run the kernel?
covered() {
    local feature
    for feature in avx512f avx512bw vaes vpclmulqdq; do
        grep -qw "$feature" /proc/cpuinfo || return
    done
}

# pattern: what -test.run takes for the tests.
pattern() {
    local all
    all=$(printf '|^%s$' "${tests[@]//\//\$/^}")
    echo "${all:1}"
}

# filesystem: the guest's. Its second serial port takes what the tests print.
filesystem() {
    mkdir -p "$tmp/root/dev" "$tmp/cd"
    cp "$guest/busybox" "$tmp/root/"
    cp "$tmp/blockcrypt.test" "$tmp/root/"
    # The guest's clock is not real time, so its own limit would mean little.
    cat >"$tmp/root/init" <<END
#!/busybox sh
/busybox mount -t devtmpfs dev /dev
/blockcrypt.test -test.short -test.v -test.timeout=0 -test.run '$(pattern)' >/dev/ttyS1 2>&1
echo "status \$?" >/dev/ttyS1
/busybox poweroff -f
END
    chmod 755 "$tmp/root/init"
    (cd "$tmp/root" && find . | cpio -o -H newc --quiet) >"$tmp/cd/initrd"
}

# boot_cd: "clearcpuid" hides from the kernel where Bochs 2.7's Ice Lake and
# Linux 6.1 disagree: PKU and compacted XSAVE, whose sizes in CPUID's leaf 13 are
# wrong, so that Linux would turn all of AVX off, and FSRM without ERMS, with
# which its memmove runs wild. The others save time, most of all in calibrating
# clocks and in set-up that has no use here.
boot_cd() {
    local options=(
        console='ttyS0,115200' panic=-1 nokaslr mitigations=off
        clearcpuid='pku,xsaves,xsavec,fsrm' nopku
        tsc_early_khz=15000 tsc=reliable random.trust_cpu=on rcupdate.rcu_expedited=1
        cryptomgr.notests lsm=capability audit=0
        initcall_blacklist='load_system_certificate_list,trace_eval_init,init_kprobe_trace,cubictcp_register,slab_sysfs_init'
    )
    cp "$guest/vmlinuz" /usr/lib/ISOLINUX/isolinux.bin /usr/lib/syslinux/modules/bios/ldlinux.c32 "$tmp/cd/"
    cat >"$tmp/cd/isolinux.cfg" <<END
DEFAULT tests
LABEL tests
 LINUX vmlinuz
 INITRD initrd
 APPEND quiet ${options[*]}
END
    xorriso -as mkisofs -quiet -o "$tmp/boot.iso" -b isolinux.bin -c boot.cat \
        -no-emul-boot -boot-load-size 4 -boot-info-table "$tmp/cd" >"$tmp/xorriso.log" 2>&1 || {
        cat "$tmp/xorriso.log" >&2
        die "xorriso could not write the boot CD"
    }
}

# emulate: Debian's Bochs has its debugger, which waits for a "c" (continue). Its
# ips (instructions per second) go with tsc_early_khz.
emulate() {
    cat >"$tmp/bochsrc" <<END
config_interface: textconfig
display_library: term
romimage: file=/usr/share/bochs/BIOS-bochs-latest, options=fastboot
vgaromimage: file=/usr/share/vgabios/vgabios.bin
memory: guest=1024, host=1024
cpu: model=corei7_icelake_u, count=1, ips=15000000, reset_on_triple_fault=0, ignore_bad_msrs=1
clock: sync=none, time0=local
ata0-master: type=cdrom, path=boot.iso, status=inserted
boot: cdrom
log: bochs.log
panic: action=fatal
error: action=ignore
info: action=ignore
debug: action=ignore
com1: enabled=1, mode=file, dev=console
com2: enabled=1, mode=file, dev=output
speaker: enabled=0
END
    echo c >"$tmp/debugger"
    # Now and then it crashes after the guest's end: no need for the shell to say so.
    {
        (cd "$tmp" && TERM=vt100 timeout --foreground -s KILL "$limit" bochs-bin -q -f bochsrc -rc debugger) </dev/null >"$tmp/screen" 2>&1
    } 2>/dev/null
}

# judge STATUS: did every test run and pass? Bochs's own status says little.
judge() {
    local name
    touch "$tmp/console" "$tmp/output"
    tr -d '\r' <"$tmp/output" >"$tmp/lines"
    grep -- '^ *--- .*/vaes-avx512' "$tmp/lines" || true
    if ! grep -qx 'status 0' "$tmp/lines"; then
        cat "$tmp/lines" >&2
        tail -n 20 "$tmp/console" "$tmp/bochs.log" >&2
        [ "$1" != 137 ] || die "the emulator was killed after $limit seconds"
        die "the tests failed in the emulator"
    fi
    for name in "${tests[@]}"; do
        grep -q -- "^ *--- PASS: $name " "$tmp/lines" || die "$name did not run and pass"
    done
}

if covered; then
    echo "avx512: this CPU has AVX-512: the ordinary tests covered it"
    exit
fi
scripts/setup.sh bochs bochs-term bochsbios vgabios cpio isolinux syslinux-common xorriso
guest=$(scripts/guest.sh) # the folder of vmlinuz and busybox
# The garbage collector that uses AVX-512 itself trips over a fault of Bochs 2.7.
CGO_ENABLED=0 GOEXPERIMENT=nogreenteagc go test -c -o "$tmp/blockcrypt.test" ./blockcrypt
filesystem
boot_cd
echo "avx512: testing in an emulated CPU"
status=0
emulate || status=$?
judge "$status"
echo "avx512: passed in $SECONDS seconds"
