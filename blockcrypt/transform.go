package blockcrypt

import (
	"bytes"
	"encoding/binary"

	"github.com/vmcrypt/vmcrypt/image"
)

// Encryption is how image.Copy makes ciphertext of a disk. Its size has to have
// passed CheckSize.
func Encryption(c *Cipher, holes HolePolicy) image.Transform {
	return image.Transform{
		Data:  func(p []byte, off int64) error { return c.Encrypt(p, p, off) },
		Holes: holes == Fill,
	}
}

// Decryption is how image.Copy makes plaintext of the ciphertext of a disk.
func Decryption(c *Cipher, holes HolePolicy) image.Transform {
	return image.Transform{
		Data:  func(p []byte, off int64) error { return decryptSectors(c, holes, p, off) },
		Holes: holes == Fill,
	}
}

// decryptSectors decrypts whole sectors in place, all but those that are holes.
func decryptSectors(c *Cipher, holes HolePolicy, p []byte, off int64) error {
	if holes == Fill {
		return c.Decrypt(p, p, off)
	}
	for len(p) > 0 {
		n, hole := leading(p, c.sectorSize)
		if !hole {
			if err := c.Decrypt(p[:n], p[:n], off); err != nil {
				return err
			}
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// maxRun bounds how far leading looks ahead, so that what it looked at is still
// in the processor's cache when it is decrypted.
const maxRun = 32 << 10

// leading gives the length of the run of sectors at the start of p that are all
// holes or all data.
func leading(p []byte, sectorSize int) (n int, hole bool) {
	hole = isZero(p[:sectorSize])
	n = sectorSize
	for n < min(len(p), maxRun) && isZero(p[n:n+sectorSize]) == hole {
		n += sectorSize
	}
	return n, hole
}

// isZero reports whether a sector is all zeros. Most tell by their first bytes.
func isZero(sector []byte) bool {
	return binary.NativeEndian.Uint64(sector) == 0 && bytes.Equal(sector, zeros[:len(sector)])
}
