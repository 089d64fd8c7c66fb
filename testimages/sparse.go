package testimages

import (
	"os"
)

// piece is a range of a disk that holds data.
type piece struct{ offset, length int64 }

const (
	thinSize = 32 * mib
	oddSize  = 3*mib + 7*sector
)

// thinPieces start and end beside the borders of sectors and blocks, at both
// ends of the disk too.
var thinPieces = []piece{
	{0, 1000},
	{5000, 300},
	{1*mib - 1, 2},
	{3*mib + 4095, 4098},
	{9*mib + 512, 512},
	{20 * mib, 3 * mib},
	{thinSize - 777, 777},
}

// thinZeros is a range that is no hole and yet all zero.
var thinZeros = piece{25 * mib, 64 << 10}

// Thin makes a disk of 32 MiB, most of it holes, at odd places.
func Thin(path string, seed int64) error {
	return create(path, thinSize, func(f *os.File) error {
		data := content(seed, "thin", thinSize)
		for _, p := range thinPieces {
			if _, err := f.WriteAt(data[p.offset:p.offset+p.length], p.offset); err != nil {
				return err
			}
		}
		_, err := f.WriteAt(make([]byte, thinZeros.length), thinZeros.offset)
		return err
	})
}

// Odd makes a disk of a size that is a multiple of 512 but not of 4096 bytes,
// full of data to its last sector.
func Odd(path string, seed int64) error {
	return create(path, oddSize, func(f *os.File) error {
		_, err := f.WriteAt(content(seed, "odd", oddSize), 0)
		return err
	})
}
