package kms

import (
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"fmt"

	"github.com/google/uuid"
	"github.com/tink-crypto/tink-go/v2/aead/subtle"

	"github.com/vmcrypt/vmcrypt/internal/secret"
)

// schemaVersion is the version of the store's format, described at the package.
const schemaVersion = 1

// sealer holds what is derived from a root key for one store.
type sealer struct {
	store   uuid.UUID
	objects *subtle.AESGCM
	names   *secret.Buffer
	check   []byte // tells whether the root key is the store's
}

func newSealer(root *secret.Buffer, store uuid.UUID) (*sealer, error) {
	objects, err := derive(root, store, "vmcrypt kms 1 objects")
	if err != nil {
		return nil, err
	}
	defer secret.Wipe(objects)
	aead, err := subtle.NewAESGCM(objects)
	if err != nil {
		return nil, err
	}
	check, err := derive(root, store, "vmcrypt kms 1 check")
	if err != nil {
		return nil, err
	}
	names, err := derive(root, store, "vmcrypt kms 1 names")
	if err != nil {
		return nil, err
	}
	s := &sealer{store: store, objects: aead, check: check}
	s.names, err = secret.Take(names)
	return s, err
}

// derive is HKDF-SHA256 (RFC 5869) with the store's UUID as salt.
func derive(root *secret.Buffer, store uuid.UUID, info string) ([]byte, error) {
	var key []byte
	var err error
	secret.Do(func() { key, err = hkdf.Key(sha256.New, root.Bytes(), store[:], info, 32) })
	return key, err
}

func (s *sealer) destroy() { s.names.Destroy() }

// seal encrypts the record of an object, bound to its ID and to this store.
func (s *sealer) seal(id uuid.UUID, record []byte) ([]byte, error) {
	return s.objects.Encrypt(record, s.associatedData(id))
}

// open decrypts what seal made. The result holds a key and must be wiped.
func (s *sealer) open(id uuid.UUID, sealed []byte) ([]byte, error) {
	record, err := s.objects.Decrypt(sealed, s.associatedData(id))
	if err != nil {
		return nil, fmt.Errorf("object %s: %w: its record does not open under the root key", id, ErrDamaged)
	}
	return record, nil
}

// associatedData is of fixed length, so that no two triples share one.
func (s *sealer) associatedData(id uuid.UUID) []byte {
	ad := []byte("vmcrypt kms object")
	ad = binary.BigEndian.AppendUint32(ad, schemaVersion)
	ad = append(ad, s.store[:]...)
	return append(ad, id[:]...)
}

// nameKey is the key of a name in the index, which does not show the name.
func (s *sealer) nameKey(n name) []byte {
	mac := hmac.New(sha256.New, s.names.Bytes())
	mac.Write(binary.BigEndian.AppendUint32(nil, n.Type))
	mac.Write([]byte(n.Value))
	return mac.Sum(nil)
}
