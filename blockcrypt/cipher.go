package blockcrypt

import (
	"crypto/subtle"
	"errors"
	"fmt"
	"unsafe"
)

// Cipher encrypts and decrypts runs of sectors. It is safe for concurrent use,
// except that Wipe comes after everything else.
type Cipher struct {
	keyed      keyedXTS // nil once wiped
	sectorSize int
}

// NewCipher makes a Cipher from a key of KeySize bytes, of which it keeps no
// copy but its key schedule, for sectors of 512 or 4096 bytes. The halves of the
// key must differ (NIST SP 800-38E, FIPS 140-3 IG C.I).
func (e Engine) NewCipher(key []byte, sectorSize int) (*Cipher, error) {
	if len(key) != KeySize {
		return nil, fmt.Errorf("disk key has %d bytes, want %d", len(key), KeySize)
	}
	if subtle.ConstantTimeCompare(key[:KeySize/2], key[KeySize/2:]) == 1 {
		return nil, errors.New("the two halves of the disk key are equal, which XTS forbids")
	}
	if sectorSize != 512 && sectorSize != 4096 {
		return nil, fmt.Errorf("sector size %d: want 512 or 4096", sectorSize)
	}
	x, err := e.get().new(key, sectorSize)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", e.Name(), err)
	}
	return &Cipher{x, sectorSize}, nil
}

// SectorSize is the size of a sector in bytes, 512 or 4096.
func (c *Cipher) SectorSize() int { return c.sectorSize }

// Encrypt encrypts the sectors in src, which begin at byte offset of the disk,
// to dst. Both have the same length, a multiple of the sector size, and are the
// same memory or do not overlap. Nothing is written if it fails.
func (c *Cipher) Encrypt(dst, src []byte, offset int64) error {
	if !c.fit(dst, src, offset) {
		return fmt.Errorf("encrypt: %w", c.fault(dst, src, offset))
	}
	c.keyed.encrypt(dst, src, uint64(offset)/tweakUnit)
	return nil
}

// Decrypt is the inverse of Encrypt.
func (c *Cipher) Decrypt(dst, src []byte, offset int64) error {
	if !c.fit(dst, src, offset) {
		return fmt.Errorf("decrypt: %w", c.fault(dst, src, offset))
	}
	c.keyed.decrypt(dst, src, uint64(offset)/tweakUnit)
	return nil
}

// fit reports whether nothing is wrong with a call. It is quick, and inlined, as
// that counts where calls are for single sectors.
func (c *Cipher) fit(dst, src []byte, offset int64) bool {
	n, from := uint64(len(src)), uint64(offset)
	return c.keyed != nil && len(dst) == len(src) && (n|from)&uint64(c.sectorSize-1) == 0 &&
		from <= MaxDiskSize-n && !overlap(dst, src)
}

// fault says what is wrong with a call.
func (c *Cipher) fault(dst, src []byte, offset int64) error {
	switch size := int64(c.sectorSize); {
	case c.keyed == nil:
		return errors.New("the key is wiped")
	case len(dst) != len(src):
		return fmt.Errorf("%d bytes do not fit %d", len(src), len(dst))
	case int64(len(src))%size != 0 || offset%size != 0:
		return fmt.Errorf("%d bytes at %d are not whole sectors of %d bytes", len(src), offset, size)
	case overlap(dst, src):
		return errors.New("source and destination overlap")
	}
	return fmt.Errorf("%d bytes at %d lie outside of 256 TiB", len(src), offset)
}

// overlap reports whether a and b, of equal length, share memory without being
// the same.
func overlap(a, b []byte) bool {
	apart := uintptr(unsafe.Pointer(unsafe.SliceData(a))) - uintptr(unsafe.Pointer(unsafe.SliceData(b)))
	return apart != 0 && (apart < uintptr(len(a)) || -apart < uintptr(len(a)))
}

// Wipe overwrites the key schedule. Encrypt and Decrypt fail from then on.
func (c *Cipher) Wipe() {
	if c.keyed == nil {
		return
	}
	c.keyed.wipe()
	c.keyed = nil
}
