// Package dek makes data keys (DEKs), wraps them under key-encryption keys
// (KEKs), unwraps them, and authenticates what a descriptor says about a disk.
//
//	key, err := dek.New()
//	wrapped, err := dek.Wrap(key, kek, binding) // for the descriptor
//	...
//	key, err := dek.Unwrap(wrapped, kek, binding)
//	err = dek.VerifyMAC(mac, state, key)
//
// A wrapped key opens only with the KEK and the exact Binding it was wrapped
// with, so it cannot be moved to another disk's record and no parameter beside
// it can be changed. A State may change without a new wrap; its MAC is made with
// a key that only those who can unwrap the DEK have. While a disk is converted in
// place, the MAC also covers the conversion, and takes both DEKs of a disk that
// goes from one to the other; a key made from the same DEKs authenticates the
// conversion's journal.
//
// # Wrapped key, version 1
//
// 125 bytes:
//
//	offset  bytes  content
//	     0      1  version, 1
//	     1     32  key commitment
//	    33     12  initialization vector, random
//	    45     64  DEK, encrypted with AES-256-GCM
//	   109     16  tag
//
// The AES-256-GCM key and the commitment are each 32 bytes of HKDF-SHA256 (RFC
// 5869) with the 32 bytes of the KEK as input keying material, no salt, and
// these ASCII strings as info, without a terminator:
//
//	"vmcrypt v1 dek wrap key"
//	"vmcrypt v1 dek wrap commitment"
//
// The commitment tells a wrong KEK from damage: AES-GCM alone does not bind its
// key. The associated data of AES-256-GCM (NIST SP 800-38D) is the encoding
// (below) of
//
//	version      1 byte, 1
//	disk UUID    16 bytes, in the order of RFC 9562
//	cipher       ASCII, such as "aes-256-xts-plain64"
//	sector size  4 bytes, big-endian, in bytes
//	hole policy  ASCII, "preserve" or "fill"
//	KEK ID       UTF-8, the key manager's Unique Identifier
//
// # State MAC, version 1
//
// 32 bytes of HMAC-SHA256 (RFC 2104) under 32 bytes of HKDF-SHA256 with the 64
// bytes of the DEK as input keying material, no salt, and as info
//
//	"vmcrypt v1 disk state mac"
//
// over the encoding of
//
//	version    1 byte, 1
//	disk UUID  16 bytes
//	state      ASCII, such as "encrypted"
//	size       8 bytes, big-endian, of the disk in bytes
//
// While a conversion in place is unfinished, the input keying material is the DEK
// or, of a disk that is rekeyed, the 128 bytes of the DEK that was and the DEK
// that is to be; the info is
//
//	"vmcrypt v1 conversion state mac"
//
// and the encoding goes on with
//
//	conversion UUID  16 bytes
//	phase            ASCII, such as "converting"
//
// # Journal key, version 1
//
// 32 bytes of HKDF-SHA256 with the same input keying material, no salt, and as
// info the 45 bytes of
//
//	"vmcrypt v1 conversion journal" and the 16 bytes of the conversion UUID
//
// # Encoding
//
// The fields one after the other, each preceded by its length in bytes as a
// 4-byte big-endian number. No two lists of fields have the same encoding.
package dek

import (
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/uuid"
	aead "github.com/tink-crypto/tink-go/v2/aead/subtle"

	"github.com/vmcrypt/vmcrypt/internal/secret"
)

// Sizes in bytes.
const (
	// Size is the length of a DEK: the two halves of an AES-256-XTS key.
	Size = 64
	// WrappedSize is the length of a wrapped DEK.
	WrappedSize = 1 + commitmentSize + aead.AESGCMIVSize + Size + aead.AESGCMTagSize

	kekSize        = 32
	derivedSize    = 32
	commitmentSize = derivedSize
)

// version is the only format of wrapped keys and MACs so far.
const version = 1

// The info strings of HKDF, one for each key that is derived.
const (
	infoWrapKey    = "vmcrypt v1 dek wrap key"
	infoCommitment = "vmcrypt v1 dek wrap commitment"
	infoStateMAC   = "vmcrypt v1 disk state mac"

	infoConversionMAC = "vmcrypt v1 conversion state mac"
	infoJournal       = "vmcrypt v1 conversion journal" // and the conversion's UUID
)

// Unwrap and VerifyMAC wrap one of these.
var (
	// ErrWrongKEK is for a wrapped key that was made under another KEK.
	ErrWrongKEK = errors.New("wrong key-encryption key")
	// ErrTampered is for a wrapped key, MAC, or a field they cover, that is not
	// as it was written.
	ErrTampered = errors.New("descriptor damaged or tampered with")
	// ErrVersion is for a wrapped key in a format this release does not know.
	ErrVersion = errors.New("unknown version of wrapped key")
)

// Binding is what a wrapped key belongs to. It is authenticated, not stored.
type Binding struct {
	DiskUUID   uuid.UUID
	Cipher     string // "aes-256-xts-plain64"
	SectorSize uint32 // in bytes
	Holes      string // hole policy: "preserve" or "fill"
	KEKID      string // the key manager's Unique Identifier of the KEK
}

// New makes a random DEK. The caller destroys it.
func New() (*secret.Buffer, error) { return secret.Random(Size) }

// Wrap encrypts the 64-byte key under the 32-byte kek, bound to b. The result
// has WrappedSize bytes and differs each time.
func Wrap(key, kek *secret.Buffer, b Binding) (wrapped []byte, err error) {
	secret.Do(func() { wrapped, err = wrap(key, kek, b) })
	return wrapped, err
}

func wrap(key, kek *secret.Buffer, b Binding) ([]byte, error) {
	if key.Len() != Size {
		return nil, fmt.Errorf("wrap data key: it has %d bytes, want %d", key.Len(), Size)
	}
	if kek.Len() != kekSize {
		return nil, fmt.Errorf("wrap data key: key-encryption key has %d bytes, want %d", kek.Len(), kekSize)
	}
	commitment, err := derive(kek, infoCommitment)
	if err != nil {
		return nil, err
	}
	sealed, err := seal(key, kek, b)
	if err != nil {
		return nil, err
	}
	wrapped := append([]byte{version}, commitment...)
	return append(wrapped, sealed...), nil
}

// seal gives IV, ciphertext and tag.
func seal(key, kek *secret.Buffer, b Binding) ([]byte, error) {
	gcm, err := newGCM(kek)
	if err != nil {
		return nil, err
	}
	sealed, err := gcm.Encrypt(key.Bytes(), b.encode())
	if err != nil {
		return nil, fmt.Errorf("wrap data key: %w", err)
	}
	return sealed, nil
}

// Unwrap gives the DEK in wrapped. The caller destroys it. Errors are
// ErrVersion, ErrWrongKEK, or ErrTampered: any change to wrapped or b under the
// right kek is ErrTampered, except to the version.
func Unwrap(wrapped []byte, kek *secret.Buffer, b Binding) (key *secret.Buffer, err error) {
	secret.Do(func() { key, err = unwrap(wrapped, kek, b) })
	return key, err
}

func unwrap(wrapped []byte, kek *secret.Buffer, b Binding) (*secret.Buffer, error) {
	if err := checkShape(wrapped); err != nil {
		return nil, err
	}
	if kek.Len() != kekSize {
		return nil, fmt.Errorf("%w: it has %d bytes, want %d", ErrWrongKEK, kek.Len(), kekSize)
	}
	commitment, err := derive(kek, infoCommitment)
	if err != nil {
		return nil, err
	}
	gcm, err := newGCM(kek)
	if err != nil {
		return nil, err
	}
	committed := subtle.ConstantTimeCompare(commitment, wrapped[1:1+commitmentSize]) == 1
	key, err := gcm.Decrypt(wrapped[1+commitmentSize:], b.encode())
	opened := err == nil
	if committed && opened {
		return secret.Take(key)
	}
	secret.Wipe(key)
	if committed || opened {
		return nil, fmt.Errorf("%w: the wrapped key does not open for this disk and its parameters", ErrTampered)
	}
	return nil, fmt.Errorf("%w: the data key was wrapped under another one", ErrWrongKEK)
}

// checkShape looks at what can be judged without a key. The version comes first:
// other versions may have other lengths.
func checkShape(wrapped []byte) error {
	if len(wrapped) > 0 && wrapped[0] != version {
		return fmt.Errorf("%w: %d; this release knows version %d", ErrVersion, wrapped[0], version)
	}
	if len(wrapped) != WrappedSize {
		return fmt.Errorf("%w: the wrapped key has %d bytes, want %d", ErrTampered, len(wrapped), WrappedSize)
	}
	return nil
}

// newGCM gives the AEAD that wraps keys under kek.
func newGCM(kek *secret.Buffer) (*aead.AESGCM, error) {
	key, err := derive(kek, infoWrapKey)
	if err != nil {
		return nil, err
	}
	defer secret.Wipe(key)
	gcm, err := aead.NewAESGCM(key)
	if err != nil {
		return nil, fmt.Errorf("wrap data key: %w", err)
	}
	return gcm, nil
}

// derive gives 32 bytes for one use. The caller wipes them if they are a key.
func derive(key *secret.Buffer, info string) ([]byte, error) {
	derived, err := hkdf.Key(sha256.New, key.Bytes(), nil, info, derivedSize)
	if err != nil {
		return nil, fmt.Errorf("derive %q: %w", info, err)
	}
	return derived, nil
}

// encode gives the associated data of a wrapped key.
func (b Binding) encode() []byte {
	return encode(
		[]byte{version},
		b.DiskUUID[:],
		[]byte(b.Cipher),
		binary.BigEndian.AppendUint32(nil, b.SectorSize),
		[]byte(b.Holes),
		[]byte(b.KEKID),
	)
}

// encode joins fields, each after its length.
func encode(fields ...[]byte) []byte {
	var out []byte
	for _, field := range fields {
		out = binary.BigEndian.AppendUint32(out, uint32(len(field)))
		out = append(out, field...)
	}
	return out
}
