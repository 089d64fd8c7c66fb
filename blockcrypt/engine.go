package blockcrypt

import (
	"bytes"
	"crypto/fips140"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/klauspost/cpuid/v2"
)

// Engine is an implementation of AES-256-XTS. All give the same ciphertext. The
// zero Engine is crypto-aes, on Go's crypto/aes alone, which runs everywhere and
// is the only one in Go's FIPS 140 mode.
type Engine struct{ *implementation }

// Engines gives all for this architecture, the fastest first.
func Engines() []Engine {
	engines := make([]Engine, len(implementations))
	for i := range implementations {
		engines[i] = Engine{&implementations[i]}
	}
	return engines
}

// Fastest gives the fastest Engine that this CPU can run and that passes a
// self-test, which takes microseconds. The error is a warning: it names those
// that failed it, and the Engine is good all the same.
func Fastest() (Engine, error) {
	var failed []error
	for _, e := range Engines() {
		if e.Missing() != "" {
			continue
		}
		err := e.selfTest()
		if err == nil {
			return e, errors.Join(failed...)
		}
		failed = append(failed, fmt.Errorf("AES-XTS engine %s: %w", e.Name(), err))
	}
	return Engine{}, errors.Join(failed...)
}

// Name is crypto-aes, or that of the CPU's instructions.
func (e Engine) Name() string { return e.get().name }

// Missing says why the Engine can't be used here; nothing if it can.
func (e Engine) Missing() string {
	features := e.get().features
	if len(features) > 0 && fips140.Enabled() {
		return "not in Go's FIPS 140 mode"
	}
	for _, f := range features {
		if !cpuid.CPU.Supports(f) {
			return fmt.Sprintf("the CPU has no %s", f)
		}
	}
	return ""
}

// get gives the implementation, of which the zero Engine has none.
func (e Engine) get() *implementation {
	if e.implementation == nil {
		return &implementations[len(implementations)-1]
	}
	return e.implementation
}

// implementation is a way to make a keyedXTS.
type implementation struct {
	name string
	// features are what the CPU must have.
	features []cpuid.FeatureID
	// new takes KeySize bytes, which it does not keep, and a sector size that
	// is any multiple of 16: the test vectors have odd ones.
	new func(key []byte, sectorSize int) (keyedXTS, error)
}

// implementations are in order of preference. All pass the same tests.
var implementations = append(inAssembly, implementation{name: "crypto-aes", new: newStandard})

// keyedXTS is one implementation with one key and sector size. Its methods but wipe
// are safe for concurrent use and allocate nothing.
type keyedXTS interface {
	// encrypt and decrypt work on a run of whole sectors. dst and src have the
	// same length and are the same memory or do not overlap. tweak belongs to
	// the first sector; it grows by sectorSize/512 with each.
	encrypt(dst, src []byte, tweak uint64)
	decrypt(dst, src []byte, tweak uint64)
	// wipe overwrites the key schedule; the keyedXTS is of no use after it.
	wipe()
}

// knownAnswer is the SHA-256 of what selfTest encrypts, from golang.org/x/crypto/xts.
const knownAnswer = "df19cdb1da9b16d011e38fcc0268c61f0c4eadb25e98ffadff114cacda44a040"

// selfTest encrypts some sectors, which a kernel takes in several steps, compares
// them with what is known, and decrypts them.
func (e Engine) selfTest() error {
	const sectorSize, sectors = 1024, 3
	key, plain := make([]byte, KeySize), make([]byte, sectors*sectorSize)
	for i := range key {
		key[i] = byte(i)
	}
	x, err := e.get().new(key, sectorSize)
	if err != nil {
		return err
	}
	defer x.wipe()
	got := bytes.Clone(plain)
	x.encrypt(got, got, 1<<32-2)
	if sum := sha256.Sum256(got); hex.EncodeToString(sum[:]) != knownAnswer {
		return errors.New("the self-test encrypted to something else")
	}
	x.decrypt(got, got, 1<<32-2)
	if !bytes.Equal(got, plain) {
		return errors.New("the self-test decrypted to something else")
	}
	return nil
}
