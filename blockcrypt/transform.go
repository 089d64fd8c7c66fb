package blockcrypt

import (
	"bytes"
	"encoding/binary"

	"github.com/vmcrypt/vmcrypt/image"
)

// Encryption is how image.Copy makes ciphertext of a disk. Its size has to have
// passed CheckSize.
func Encryption(c *Cipher, holes HolePolicy) image.Transform { return Change(nil, c, holes) }

// Decryption is how image.Copy makes plaintext of the ciphertext of a disk.
func Decryption(c *Cipher, holes HolePolicy) image.Transform { return Change(c, nil, holes) }

// Change turns the ciphertext of one key into that of another with the same size
// of sectors; nil stands for plaintext.
func Change(from, to *Cipher, holes HolePolicy) image.Transform {
	data := func(p []byte, off int64) error {
		if from != nil {
			if err := from.Decrypt(p, p, off); err != nil {
				return err
			}
		}
		if to != nil {
			return to.Encrypt(p, p, off)
		}
		return nil
	}
	if from == nil || holes == Fill {
		return image.Transform{Data: data, Holes: holes == Fill}
	}
	return image.Transform{Data: func(p []byte, off int64) error {
		return exceptHoles(p, from.sectorSize, off, data)
	}}
}

// exceptHoles applies change to all sectors but those that are holes.
func exceptHoles(p []byte, sectorSize int, off int64, change func(p []byte, off int64) error) error {
	for len(p) > 0 {
		n, hole := leading(p, sectorSize)
		if !hole {
			if err := change(p[:n], off); err != nil {
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
