//go:build !purego

package blockcrypt

import (
	"crypto/aes"
	"unsafe"

	"github.com/klauspost/cpuid/v2"

	"github.com/vmcrypt/vmcrypt/internal/secret"
)

//go:generate go -C generate run . -out ../kernels_amd64.s -stubs ../assembly_amd64.go -pkg blockcrypt

// inAssembly are the implementations for this architecture, the fastest first.
var inAssembly = []implementation{
	{
		name:     "vaes-avx512",
		features: []cpuid.FeatureID{cpuid.AVX512F, cpuid.AVX512BW, cpuid.VAES, cpuid.VPCLMULQDQ, cpuid.AESNI},
		new:      func(key []byte, sectorSize int) (keyedXTS, error) { return newKernel(avx512, key, sectorSize) },
	},
	{
		name:     "vaes-avx2",
		features: []cpuid.FeatureID{cpuid.AVX2, cpuid.VAES, cpuid.VPCLMULQDQ, cpuid.AESNI},
		new:      func(key []byte, sectorSize int) (keyedXTS, error) { return newKernel(avx2, key, sectorSize) },
	},
	{
		name:     "aes-ni",
		features: []cpuid.FeatureID{cpuid.AESNI},
		new:      func(key []byte, sectorSize int) (keyedXTS, error) { return newKernel(aesni, key, sectorSize) },
	},
}

// kernel is an XTS in assembly.
type kernel struct {
	width
	sectorSize int
	batch      int // bytes that the assembly takes at a time
	schedule   *schedule
	memory     *secret.Buffer // of the schedule
}

// width is the kind of vector registers.
type width int

const (
	avx512 width = iota
	avx2
	aesni
)

// schedule is the round keys of AES-256 (FIPS 197, section 5.2) that encrypt
// data, that decrypt it (section 5.3.5), and that encrypt tweaks.
type schedule = [3 * keysSize]byte

// keysSize is the size of the 15 round keys of one of the three.
const keysSize = 15 * aes.BlockSize

func newKernel(w width, key []byte, sectorSize int) (*kernel, error) {
	memory, err := secret.New(len(schedule{}))
	if err != nil {
		return nil, err
	}
	s := (*schedule)(memory.Bytes())
	encrypt, decrypt, tweak := (*[keysSize]byte)(s[:]), (*[keysSize]byte)(s[keysSize:]), (*[keysSize]byte)(s[2*keysSize:])
	expandKey((*[KeySize / 2]byte)(key), encrypt)
	invertKey(encrypt, decrypt)
	expandKey((*[KeySize / 2]byte)(key[KeySize/2:]), tweak)
	return &kernel{w, sectorSize, maxSectors * sectorSize, s, memory}, nil
}

// maxSectors is how many sectors the assembly takes at a time: their encrypted
// tweaks lie on its stack, and no goroutine can be stopped while it runs.
const maxSectors = 64

// encrypt calls the assembly by name and with nothing left to do after it: a call
// through a function value, from within a loop, would make single sectors of 512
// bytes take 8 % longer.
func (k *kernel) encrypt(dst, src []byte, tweak uint64) {
	for ; len(src) > k.batch; dst, src = dst[k.batch:], src[k.batch:] {
		k.encrypt(dst[:k.batch], src[:k.batch], tweak)
		tweak += maxSectors * uint64(k.sectorSize/tweakUnit)
	}
	if len(src) == 0 {
		return
	}
	to, from := unsafe.SliceData(dst), unsafe.SliceData(src)
	switch k.width {
	case avx512:
		encryptAVX512(k.schedule, to, from, len(src), k.sectorSize, tweak)
	case avx2:
		encryptAVX2(k.schedule, to, from, len(src), k.sectorSize, tweak)
	case aesni:
		encryptAESNI(k.schedule, to, from, len(src), k.sectorSize, tweak)
	}
}

// decrypt is likewise.
func (k *kernel) decrypt(dst, src []byte, tweak uint64) {
	for ; len(src) > k.batch; dst, src = dst[k.batch:], src[k.batch:] {
		k.decrypt(dst[:k.batch], src[:k.batch], tweak)
		tweak += maxSectors * uint64(k.sectorSize/tweakUnit)
	}
	if len(src) == 0 {
		return
	}
	to, from := unsafe.SliceData(dst), unsafe.SliceData(src)
	switch k.width {
	case avx512:
		decryptAVX512(k.schedule, to, from, len(src), k.sectorSize, tweak)
	case avx2:
		decryptAVX2(k.schedule, to, from, len(src), k.sectorSize, tweak)
	case aesni:
		decryptAESNI(k.schedule, to, from, len(src), k.sectorSize, tweak)
	}
}

func (k *kernel) wipe() { k.memory.Destroy() }
