package blockcrypt

import (
	"bytes"
	"crypto/pbkdf2"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/vmcrypt/vmcrypt/internal/testtool"
)

// The LUKS1 On-Disk Format Specification, version 1.2.3: names and numbers are
// those of its figures 1 and 2. Offsets count sectors of 512 bytes.
const (
	luksStripes     = 4000
	luksSlots       = 8
	luksFirstSlot   = 8                             // where key material begins
	luksSlotSectors = KeySize * luksStripes / 512   // 500
	luksSlotStride  = (luksSlotSectors + 7) / 8 * 8 // aligned to 4096 bytes
	luksPayload     = luksFirstSlot + luksSlots*luksSlotStride
	luksActive      = 0x00ac71f3
	luksInactive    = 0x0000dead
	luksIterations  = 1000
)

// luksHeader is the partition header; integers are big-endian.
type luksHeader struct {
	Magic              [6]byte
	Version            uint16
	CipherName         [32]byte
	CipherMode         [32]byte
	HashSpec           [32]byte
	PayloadOffset      uint32
	KeyBytes           uint32
	MKDigest           [20]byte
	MKDigestSalt       [32]byte
	MKDigestIterations uint32
	UUID               [40]byte
	Slots              [luksSlots]luksSlot
}

type luksSlot struct {
	Active            uint32
	Iterations        uint32
	Salt              [32]byte
	KeyMaterialOffset uint32
	Stripes           uint32
}

// luks1 gives what goes in front of ciphertext to make it a LUKS1 volume whose
// key is key and whose first key slot opens with passphrase.
func luks1(t *testing.T, key []byte, passphrase string) []byte {
	t.Helper()
	h := luksHeader{
		Magic: [6]byte{'L', 'U', 'K', 'S', 0xba, 0xbe}, Version: 1,
		PayloadOffset: luksPayload, KeyBytes: KeySize, MKDigestIterations: luksIterations,
		MKDigestSalt: [32]byte(random(11, 32)),
	}
	copy(h.CipherName[:], "aes")
	copy(h.CipherMode[:], "xts-plain64")
	copy(h.HashSpec[:], "sha256")
	copy(h.UUID[:], "4c1d9a2e-0b7f-4c55-9d6a-3f0e8b1c2d4f")
	copy(h.MKDigest[:], luksHash(t, string(key), h.MKDigestSalt[:], len(h.MKDigest)))
	for i := range h.Slots {
		h.Slots[i] = luksSlot{
			Active: luksInactive, Stripes: luksStripes,
			KeyMaterialOffset: uint32(luksFirstSlot + i*luksSlotStride),
		}
	}
	slot := &h.Slots[0]
	slot.Active, slot.Iterations, slot.Salt = luksActive, luksIterations, [32]byte(random(12, 32))
	slotKey := luksHash(t, passphrase, slot.Salt[:], KeySize)

	out := make([]byte, luksPayload*512)
	if _, err := binary.Encode(out, binary.BigEndian, h); err != nil {
		t.Fatal(err)
	}
	copy(out[luksFirstSlot*512:], reference(t, slotKey, antiForensicSplit(key), 512, 0))
	return out
}

func luksHash(t *testing.T, secret string, salt []byte, n int) []byte {
	t.Helper()
	derived, err := pbkdf2.Key(sha256.New, secret, salt, luksIterations, n)
	if err != nil {
		t.Fatal(err)
	}
	return derived
}

// antiForensicSplit inflates key to stripes that are all needed to get it back:
// section 2.4 of the specification.
func antiForensicSplit(key []byte) []byte {
	out := random(13, len(key)*luksStripes)
	mixed := make([]byte, len(key))
	last := len(out) - len(key)
	for at := 0; at < last; at += len(key) {
		subtle.XORBytes(mixed, mixed, out[at:at+len(key)])
		mixed = diffuse(mixed)
	}
	subtle.XORBytes(out[last:], mixed, key)
	return out
}

// diffuse hashes each 32 bytes of p after their number.
func diffuse(p []byte) []byte {
	var out []byte
	for i := 0; i*sha256.Size < len(p); i++ {
		block := binary.BigEndian.AppendUint32(nil, uint32(i))
		sum := sha256.Sum256(append(block, p[i*sha256.Size:(i+1)*sha256.Size]...))
		out = append(out, sum[:]...)
	}
	return out
}

// TestQEMUReadsOurDisks puts a LUKS1 header in front of an encrypted disk and has
// qemu-img decrypt it.
func TestQEMUReadsOurDisks(t *testing.T) {
	qemuImg := testtool.Need(t, "qemu-img")
	const passphrase = "correct horse"
	plain := random(14, 5<<20+512)
	clear(plain[1<<20 : 2<<20]) // and some zeros, which are encrypted
	storage := newMemory(int64(len(plain)))
	mustWrite(t, kind{512, Fill}.over(t, storage), plain, 0)

	folder := t.TempDir()
	volume, decrypted := filepath.Join(folder, "volume.luks"), filepath.Join(folder, "decrypted.raw")
	if err := os.WriteFile(volume, append(luks1(t, testKey(), passphrase), storage.bytes()...), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(qemuImg, "convert", "-O", "raw", "--object", "secret,id=sec0,data="+passphrase,
		"--image-opts", "driver=luks,key-secret=sec0,file.driver=file,file.filename="+volume, decrypted).CombinedOutput()
	if err != nil {
		t.Fatalf("qemu-img: %v\n%s", err, out)
	}
	got, err := os.ReadFile(decrypted)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, plain) {
		t.Errorf("qemu-img decrypted %d bytes, which differ from the %d that were encrypted", len(got), len(plain))
	}
}
