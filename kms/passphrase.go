package kms

import (
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/crypto/argon2"

	"github.com/vmcrypt/vmcrypt/internal/secret"
)

const (
	saltSize = 32
	kdfSize  = 12 + saltSize + 32 // bytes of a kdf on disk
)

// kdfCost is what deriving the key from the passphrase costs (argon2id, RFC
// 9106).
type kdfCost struct {
	Passes, Memory, Lanes uint32 // Memory in KiB
}

// defaultCost is the second recommendation of RFC 9106, section 4: 64 MiB.
var defaultCost = kdfCost{Passes: 3, Memory: 64 << 10, Lanes: 4}

// check bounds what a forged header can make us spend: about 1 GiB and some
// ten seconds.
func (c kdfCost) check() error {
	if c.Passes < 1 || c.Passes > 16 || c.Lanes < 1 || c.Lanes > 16 || c.Memory < 8*c.Lanes || c.Memory > 1<<20 {
		return fmt.Errorf("%w: argon2id with %d passes, %d KiB, %d lanes is beyond bounds", ErrDamaged, c.Passes, c.Memory, c.Lanes)
	}
	return nil
}

// kdf is how a key comes from a passphrase. It stands in the plaintext at the
// start of what is encrypted.
type kdf struct {
	Cost  kdfCost
	Salt  [saltSize]byte
	Check [32]byte // tells a wrong passphrase from damage
}

// append appends the kdf as it is written.
func (k *kdf) append(b []byte) []byte {
	for _, n := range []uint32{k.Cost.Passes, k.Cost.Memory, k.Cost.Lanes} {
		b = binary.BigEndian.AppendUint32(b, n)
	}
	b = append(b, k.Salt[:]...)
	return append(b, k.Check[:]...)
}

// parseKDF reads kdfSize bytes, of which everything is a kdf. Its cost must be
// checked before it is used.
func parseKDF(b []byte) (k kdf) {
	k.Cost = kdfCost{
		Passes: binary.BigEndian.Uint32(b),
		Memory: binary.BigEndian.Uint32(b[4:]),
		Lanes:  binary.BigEndian.Uint32(b[8:]),
	}
	copy(k.Salt[:], b[12:])
	copy(k.Check[:], b[12+saltSize:])
	return k
}

// use says what a key that comes from a passphrase is for: HKDF's info of the
// check value and of the key itself.
type use struct{ check, key string }

// newKDF chooses a salt and gives the key. It does the expensive work.
func newKDF(cost kdfCost, passphrase *secret.Buffer, u use) (k kdf, key []byte, err error) {
	if passphrase.Len() == 0 {
		return k, nil, errors.New("the passphrase is empty")
	}
	k.Cost = cost
	if _, err := rand.Read(k.Salt[:]); err != nil {
		return k, nil, err
	}
	check, key, err := k.derive(passphrase, u)
	copy(k.Check[:], check)
	return k, key, err
}

// open gives the key, which must be wiped, or ErrPassphrase.
func (k *kdf) open(passphrase *secret.Buffer, u use) ([]byte, error) {
	if passphrase.Len() == 0 {
		return nil, ErrPassphrase
	}
	check, key, err := k.derive(passphrase, u)
	if err == nil && !hmac.Equal(check, k.Check[:]) {
		err = ErrPassphrase
	}
	if err != nil {
		secret.Wipe(key)
		return nil, err
	}
	return key, nil
}

func (k *kdf) derive(passphrase *secret.Buffer, u use) (check, key []byte, err error) {
	c := k.Cost
	master := argon2.IDKey(passphrase.Bytes(), k.Salt[:], c.Passes, c.Memory, uint8(c.Lanes), 32)
	defer secret.Wipe(master)
	secret.Do(func() {
		if check, err = hkdf.Expand(sha256.New, master, u.check, 32); err == nil {
			key, err = hkdf.Expand(sha256.New, master, u.key, 32)
		}
	})
	return check, key, err
}
