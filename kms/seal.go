package kms

import (
	"bytes"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"fmt"

	"github.com/google/uuid"
	"github.com/tink-crypto/tink-go/v2/aead/subtle"

	"github.com/vmcrypt/vmcrypt/internal/secret"
)

// schemaVersion is the version of the store's format, described in docs/format.md.
const schemaVersion = 2

// sealer holds what is derived from a root key for one store.
type sealer struct {
	schema  uint32
	store   uuid.UUID
	root    *secret.Buffer
	objects *subtle.AESGCM
	names   *secret.Buffer
	check   []byte // tells whether the root key is the store's
}

// newSealer derives the keys of a store that is of some schema. It keeps a copy
// of the root key.
func newSealer(root *secret.Buffer, store uuid.UUID, schema uint32) (_ *sealer, err error) {
	s := &sealer{schema: schema, store: store}
	defer func() {
		if err != nil {
			s.destroy()
		}
	}()
	if s.root, err = secret.Take(bytes.Clone(root.Bytes())); err != nil {
		return nil, err
	}
	objects, err := s.derive("objects")
	if err != nil {
		return nil, err
	}
	defer secret.Wipe(objects)
	if s.objects, err = subtle.NewAESGCM(objects); err != nil {
		return nil, err
	}
	if s.check, err = s.derive("check"); err != nil {
		return nil, err
	}
	names, err := s.derive("names")
	if err != nil {
		return nil, err
	}
	s.names, err = secret.Take(names)
	return s, err
}

// derive is HKDF-SHA256 (RFC 5869) with the store's UUID as salt.
func (s *sealer) derive(purpose string) (key []byte, err error) {
	info := fmt.Sprintf("vmcrypt kms %d %s", s.schema, purpose)
	secret.Do(func() { key, err = hkdf.Key(sha256.New, s.root.Bytes(), s.store[:], info, 32) })
	return key, err
}

func (s *sealer) destroy() {
	s.root.Destroy()
	s.names.Destroy()
}

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
	ad = binary.BigEndian.AppendUint32(ad, s.schema)
	ad = append(ad, s.store[:]...)
	return append(ad, id[:]...)
}

// nameKey is the key in the index of what an owner calls an object. It does not
// show the name, and its input is of one reading: the length of the owner, the
// owner, the type, the name.
func (s *sealer) nameKey(owner string, n name) []byte {
	mac := hmac.New(sha256.New, s.names.Bytes())
	mac.Write(binary.BigEndian.AppendUint32(nil, uint32(len(owner))))
	mac.Write([]byte(owner))
	mac.Write(binary.BigEndian.AppendUint32(nil, n.Type))
	mac.Write([]byte(n.Value))
	return mac.Sum(nil)
}
