package nbd

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/vmcrypt/vmcrypt/blockcrypt"
	"github.com/vmcrypt/vmcrypt/image"
	"github.com/vmcrypt/vmcrypt/internal/testtool"
)

// The tests here let independent clients judge: libnbd's programs and its Python
// binding, QEMU's, and fio.

// uri is where a server is, for all of them.
func uri(socket string) string {
	return (&url.URL{Scheme: "nbd+unix", Path: "/", RawQuery: url.Values{"socket": {socket}}.Encode()}).String()
}

// run runs a peer, which must succeed, and gives what it printed.
func run(t *testing.T, program string, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), program, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", program, args, err, out)
	}
	return string(out)
}

// sparse gives the bytes of a disk that is random here, zero there, and a file
// with them.
func sparse(t *testing.T, size int) (path string, data []byte) {
	t.Helper()
	data = make([]byte, size)
	for at := 0; at < size; at += 3 << 20 {
		_, _ = rand.Read(data[at:min(size, at+1<<20+at/7)]) // never fails
	}
	path = t.TempDir() + "/source"
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path, data
}

const peerSize = 24<<20 + 512

// disks gives new disks of each kind that is served.
func disks(t *testing.T) map[string]image.Disk {
	return map[string]image.Disk{
		"file":      fileDisk(t, peerSize),
		"encrypted": encrypted(t, fileDisk(t, peerSize), blockcrypt.Preserve),
		"cold":      encrypted(t, coldFile{fileDisk(t, peerSize)}, blockcrypt.Preserve),
	}
}

func wantContent(t *testing.T, disk image.Disk, want []byte) {
	t.Helper()
	got := make([]byte, disk.Size())
	if _, err := disk.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the disk has other bytes than it should: %v", err)
	}
}

func TestNbdinfo(t *testing.T) {
	nbdinfo := testtool.Need(t, "nbdinfo")
	_, socket, _ := start(t, Export{Name: "scsi0:0", Description: "a disk", Disk: fileDisk(t, 1<<20)},
		Export{Name: "scsi0:1", Disk: newMemDisk(4096), ReadOnly: true})
	var list struct{ Exports []map[string]any }
	if err := json.Unmarshal([]byte(run(t, nbdinfo, "--list", "--json", uri(socket))), &list); err != nil {
		t.Fatal(err)
	}
	if len(list.Exports) != 2 {
		t.Fatalf("%d exports", len(list.Exports))
	}
	for key, want := range map[string][2]any{
		"export-name": {"scsi0:0", "scsi0:1"}, "description": {"a disk", nil}, "export-size": {1048576.0, 4096.0},
		"is_read_only": {false, true}, "can_trim": {true, false}, "can_zero": {true, false}, "can_fast_zero": {true, false},
		"can_cache": {true, true}, "can_df": {true, true}, "can_flush": {true, true}, "can_fua": {true, true},
		"can_multi_conn": {true, true}, "block_size_minimum": {1.0, 1.0}, "block_size_preferred": {4096.0, 4096.0},
		"block_size_maximum": {33554432.0, 33554432.0},
	} {
		for i, e := range list.Exports {
			if e[key] != want[i] {
				t.Errorf("export %d: %s is %v, want %v", i, key, e[key], want[i])
			}
		}
	}
}

// TestNbdcopy copies to and from disks over several connections.
func TestNbdcopy(t *testing.T) {
	nbdcopy := testtool.Need(t, "nbdcopy")
	source, data := sparse(t, peerSize)
	for name, disk := range disks(t) {
		t.Run(name, func(t *testing.T) {
			_, socket, _ := start(t, Export{Disk: disk})
			run(t, nbdcopy, "--connections=4", "--flush", source, uri(socket))
			wantContent(t, disk, data)
			back := t.TempDir() + "/back"
			run(t, nbdcopy, "--connections=4", "--request-size=33554432", uri(socket), back)
			if got, err := os.ReadFile(back); err != nil || !bytes.Equal(got, data) {
				t.Errorf("copied back wrongly: %v", err)
			}
		})
	}
}

// TestQEMU lets qemu-img and qemu-io work on disks.
func TestQEMU(t *testing.T) {
	img, io := testtool.Need(t, "qemu-img"), testtool.Need(t, "qemu-io")
	source, data := sparse(t, peerSize)
	for name, disk := range disks(t) {
		t.Run(name, func(t *testing.T) {
			_, socket, _ := start(t, Export{Disk: disk})
			u := "nbd+unix:///?socket=" + socket
			run(t, img, "convert", "-n", "--target-is-zero", "-f", "raw", "-O", "raw", source, u)
			run(t, img, "convert", "-n", "-f", "raw", "-O", "raw", "-m", "16", "-W", source, u)
			run(t, img, "compare", "-f", "raw", "-F", "raw", source, u)
			wantContent(t, disk, data)
			if got, want := extentsOf(t, run(t, img, "map", "--output=json", "-f", "raw", u)), holesOf(t, disk); got != want {
				t.Errorf("qemu-img map: %d bytes of holes, the disk has %d", got, want)
			}
			run(t, io, "-f", "raw", "-c", "write -P 7 1000 70000", "-c", "write -z -u 512k 2M", "-c", "write -z 3M 64k",
				"-c", "discard 4M 1M", "-c", "write -f -P 9 5000001 1", "-c", "flush", "-c", "read -P 7 1000 70000",
				"-c", "read -P 0 512k 2M", "-c", "read -P 0 3M 64k", "-c", "read -P 0 4M 805697", "-c", "read -P 9 5000001 1",
				"-c", "aio_write -P 1 6M 1M", "-c", "aio_write -P 2 7M 1M", "-c", "aio_flush",
				"-c", "read -P 1 6M 1M", "-c", "read -P 2 7M 1M", u)
			copy(data[1000:], bytes.Repeat([]byte{7}, 70000))
			clear(data[512<<10:][:2<<20])
			clear(data[3<<20:][:64<<10])
			clear(data[4<<20:][:1<<20])
			data[5000001] = 9
			copy(data[6<<20:], bytes.Repeat([]byte{1}, 1<<20))
			copy(data[7<<20:], bytes.Repeat([]byte{2}, 1<<20))
			wantContent(t, disk, data)
		})
		data, _ = os.ReadFile(source)
	}
}

// extentsOf sums up the holes of a map by qemu-img.
func extentsOf(t *testing.T, text string) (holes int64) {
	t.Helper()
	var extents []struct {
		Length  int64
		Present bool
		Zero    bool
		Data    bool
	}
	if err := json.Unmarshal([]byte(text), &extents); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	for _, e := range extents {
		if e.Zero && !e.Data {
			holes += e.Length
		}
	}
	return holes
}

// holesOf sums up the holes of a disk.
func holesOf(t *testing.T, disk image.Disk) (holes int64) {
	t.Helper()
	extents, err := disk.Extents(0, disk.Size())
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range extents {
		if e.Hole {
			holes += e.Length
		}
	}
	return holes
}

// libnbd is what Python does by libnbd: what the other programs never do.
const libnbd = `
import errno, nbd, sys
h = nbd.NBD()
h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
h.set_strict_mode(0)
h.connect_uri(sys.argv[1])

def fails(code, f, *args, **kw):
    try:
        f(*args, **kw)
    except nbd.Error as e:
        assert e.errnum == code, (e, code)
    else:
        raise AssertionError("no error")

size = h.get_size()
h.pwrite(b"abc", 1)
assert h.pread(5, 0) == b"\0abc\0"
h.pwrite(b"x" * 513, size - 513, nbd.CMD_FLAG_FUA)
assert h.pread(514, size - 514, nbd.CMD_FLAG_DF) == b"\0" + b"x" * 513
fails(errno.EINVAL, h.pread, 2, size - 1)
fails(errno.ENOSPC, h.pwrite, b"12", size - 1)
fails(errno.ENOSPC, h.zero, 2, size - 1)
fails(errno.EINVAL, h.trim, 2, size - 1)
fails(errno.EOVERFLOW, h.pread, 1 << 20, 0, nbd.CMD_FLAG_DF)
fails(errno.EINVAL, h.pread, 512, 0, 1 << 9)
fails(errno.ENOTSUP, h.zero, 512, 0, nbd.CMD_FLAG_FAST_ZERO)
h.zero(1 << 20, 8 << 20, nbd.CMD_FLAG_FAST_ZERO)
h.zero(2, 1)
assert h.pread(4, 0) == b"\0\0\0c"
h.zero(1, 3, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA)
assert h.pread(4, 0) == b"\0\0\0\0"
h.trim(512, size - 512, nbd.CMD_FLAG_FUA)
assert h.pread(513, size - 513) == b"x" + b"\0" * 512
h.cache(1 << 20, 0)
h.flush()
pieces = []
h.pread_structured(1 << 20, 100, lambda data, offset, status, error: pieces.append((offset, len(data))))
assert sum(n for _, n in pieces) == 1 << 20, pieces
total = []
h.block_status(size, 0, lambda c, offset, entries, error: total.append(entries), 0)
assert sum(total[0][::2]) == size, total
one = []
h.block_status(size, 0, lambda c, offset, entries, error: one.append(entries), nbd.CMD_FLAG_REQ_ONE)
assert len(one[0]) == 2, one
buffers = [nbd.Buffer.from_bytearray(bytearray([n]) * 4096) for n in range(200)]
cookies = [h.aio_pwrite(b, 4096 * n) for n, b in enumerate(buffers)]
for c in cookies:
    while not h.aio_command_completed(c):
        h.poll(-1)
assert h.pread(200 * 4096, 0) == b"".join(bytes([n]) * 4096 for n in range(200))
h.shutdown()
print("good")
`

func TestLibnbd(t *testing.T) {
	testtool.NeedFile(t, "/usr/lib/python3/dist-packages/nbd.py", "python3-libnbd")
	for name, disk := range disks(t) {
		t.Run(name, func(t *testing.T) {
			_, socket, _ := start(t, Export{Disk: disk})
			// Not the first python3 in PATH: Debian's packages are for this one.
			if out := run(t, "/usr/bin/python3", "-c", libnbd, uri(socket)); out != "good\n" {
				t.Error(out)
			}
		})
	}
}

// TestFio has fio write blocks of all sizes anywhere, and verify each.
func TestFio(t *testing.T) {
	fio := testtool.Need(t, "fio")
	engines := run(t, fio, "--enghelp")
	if !strings.Contains(engines, "nbd") {
		t.Skip("this fio has no nbd engine")
	}
	for name, disk := range disks(t) {
		t.Run(name, func(t *testing.T) {
			_, socket, _ := start(t, Export{Disk: disk})
			for _, args := range [][]string{
				{"--bsrange=1-64k", "--bs_unaligned", "--size=4m", "--rw=randwrite", "--verify=pattern", "--verify_pattern=%o"},
				{"--bsrange=100-64k", "--bs_unaligned", "--size=4m", "--rw=randwrite", "--iodepth=8", "--serialize_overlap=1", "--verify=crc32c"},
				{"--bs=4k", "--size=16m", "--rw=randwrite", "--iodepth=32", "--fsync=100", "--verify=sha256"},
				{"--bs=1m", "--size=24m", "--rw=write", "--iodepth=8", "--verify=crc32c"},
			} {
				run(t, fio, append([]string{"--name=verify", "--ioengine=nbd", "--uri=" + uri(socket), "--verify_fatal=1",
					"--verify_state_save=0", "--randseed=1", "--minimal"}, args...)...)
			}
		})
	}
}
