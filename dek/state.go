package dek

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/uuid"

	"github.com/vmcrypt/vmcrypt/internal/secret"
)

// State is what a descriptor says of a disk that changes without a new wrap.
type State struct {
	DiskUUID uuid.UUID
	State    string // "encrypted", or that of a conversion: "rekeying"
	Size     uint64 // of the disk in bytes

	Conversion uuid.UUID // nil unless a conversion in place is unfinished
	Phase      string    // of that conversion: "converting"
}

// MAC gives 32 bytes that authenticate s to those who have the keys: the disk's
// DEK or, while the disk is rekeyed, the DEK that was and then the DEK that is to
// be. With two keys, neither alone is of use, nor are both in the other order.
func MAC(s State, keys ...*secret.Buffer) (mac []byte, err error) {
	secret.Do(func() { mac, err = makeMAC(s, keys) })
	return mac, err
}

func makeMAC(s State, keys []*secret.Buffer) ([]byte, error) {
	info := infoStateMAC
	switch {
	case s.Conversion != uuid.Nil:
		info = infoConversionMAC
	case len(keys) > 1 || s.Phase != "":
		return nil, errors.New("authenticate disk state: several data keys or a phase, and no conversion")
	}
	derived, err := deriveFromAll(keys, info)
	if err != nil {
		return nil, err
	}
	defer secret.Wipe(derived)
	mac := hmac.New(sha256.New, derived)
	mac.Write(s.encode())
	return mac.Sum(nil), nil
}

// VerifyMAC checks a MAC against s and the keys that MAC takes; where they do not
// fit the error is ErrTampered.
func VerifyMAC(mac []byte, s State, keys ...*secret.Buffer) error {
	want, err := MAC(s, keys...)
	if err != nil {
		return err
	}
	if !hmac.Equal(want, mac) {
		return fmt.Errorf("%w: state, size or conversion of the disk is not what was recorded", ErrTampered)
	}
	return nil
}

// JournalKey gives the 32 bytes that authenticate the journal of a conversion,
// from the keys that MAC takes. The caller destroys it.
func JournalKey(conversion uuid.UUID, keys ...*secret.Buffer) (key *secret.Buffer, err error) {
	secret.Do(func() { key, err = journalKey(conversion, keys) })
	return key, err
}

func journalKey(conversion uuid.UUID, keys []*secret.Buffer) (*secret.Buffer, error) {
	if conversion == uuid.Nil {
		return nil, errors.New("derive journal key: the conversion has no UUID")
	}
	derived, err := deriveFromAll(keys, infoJournal+string(conversion[:]))
	if err != nil {
		return nil, err
	}
	return secret.Take(derived)
}

// deriveFromAll is derive from one DEK, or from two in their order. A key made
// from none would be known to everybody.
func deriveFromAll(keys []*secret.Buffer, info string) ([]byte, error) {
	if len(keys) != 1 && len(keys) != 2 {
		return nil, fmt.Errorf("derive %q: %d data keys, want 1 or 2", info, len(keys))
	}
	all, err := secret.New(len(keys) * Size)
	if err != nil {
		return nil, err
	}
	defer all.Destroy()
	for i, key := range keys {
		if key.Len() != Size {
			return nil, fmt.Errorf("derive %q: data key has %d bytes, want %d", info, key.Len(), Size)
		}
		copy(all.Bytes()[i*Size:], key.Bytes())
	}
	return derive(all, info)
}

// encode gives what the MAC is made over.
func (s State) encode() []byte {
	fields := [][]byte{
		{version},
		s.DiskUUID[:],
		[]byte(s.State),
		binary.BigEndian.AppendUint64(nil, s.Size),
	}
	if s.Conversion != uuid.Nil {
		fields = append(fields, s.Conversion[:], []byte(s.Phase))
	}
	return encode(fields...)
}
