// Package blockcrypt encrypts disks. A Cipher turns runs of sectors into
// ciphertext and back; a Disk is an encrypted disk as random-access storage of
// plaintext over any other storage.
//
//	engine, warning := blockcrypt.Fastest()
//	c, err := engine.NewCipher(key.Bytes(), 512)
//	disk, err := blockcrypt.NewDisk(storage, c, blockcrypt.Preserve)
//	defer disk.Close()
//	n, err := disk.ReadAt(p, 12345)
//
// The ciphertext is AES-256-XTS (IEEE Std 1619, NIST SP 800-38E) with no header,
// as long as the plaintext. A sector has 512 or 4096 bytes; its tweak is its
// byte offset on the disk divided by 512 as a little-endian number, for both
// sizes. That is "aes-xts-plain64" of dm-crypt, LUKS and QEMU, which can read
// every sector with data once they have the key.
//
// XTS hides what a sector holds. It does not show that a sector was changed, nor
// hide that it was written again with the same content.
package blockcrypt

// KeySize is the length in bytes of an AES-256-XTS key: the half that encrypts
// data, then the half that encrypts tweaks.
const KeySize = 64

// MaxDiskSize is the largest disk in bytes, 256 TiB.
const MaxDiskSize = 256 << 40

// The unit in which tweaks count, whatever the sector size.
const tweakUnit = 512

// HolePolicy says what becomes of the parts of a disk that hold no data.
type HolePolicy string

const (
	// Preserve keeps holes and discarded ranges as holes: a sector whose
	// ciphertext is all zeros reads as zeros. Written zeros are encrypted like
	// all data. It shows which areas are in use, and lets whoever can write
	// the storage make a sector read as zeros.
	Preserve HolePolicy = "preserve"
	// Fill has ciphertext everywhere; what is discarded becomes encrypted
	// zeros.
	Fill HolePolicy = "fill"
)
