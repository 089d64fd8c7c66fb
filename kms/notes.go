package kms

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
)

var (
	clientsBucket = []byte("clients")
	auditBucket   = []byte("audit")
)

// noteBuckets hold what the store knows beside objects: notes, which have names.
// A note is sealed, bound to its bucket, its name and the store; its key does
// not show its name.
var noteBuckets = [][]byte{clientsBucket, auditBucket}

// note is the plaintext of a note, as JSON.
type note struct {
	Name  string          `json:"name"`
	Value json.RawMessage `json:"value"`
}

// getNote reads the value of a note into v, which stays as it is if there is no
// note of that name.
func (t *tx) getNote(bucket []byte, name string, v any) error {
	b := t.bolt.Bucket(bucket)
	if b == nil {
		return nil
	}
	key := t.sealer.noteKey(bucket, name)
	sealed := b.Get(key)
	if sealed == nil {
		return nil
	}
	n, err := t.openNote(bucket, key, sealed)
	if err != nil {
		return err
	}
	return json.Unmarshal(n.Value, v)
}

// putNote writes a note.
func (t *tx) putNote(bucket []byte, name string, v any) error {
	if _, err := t.bolt.CreateBucketIfNotExists(bucket); err != nil {
		return err
	}
	value, err := json.Marshal(v)
	if err != nil {
		return err
	}
	text, err := json.Marshal(note{name, value})
	if err != nil {
		return err
	}
	key := t.sealer.noteKey(bucket, name)
	sealed, err := t.sealer.objects.Encrypt(text, t.sealer.noteData(bucket, key))
	if err != nil {
		return err
	}
	return t.set(bucket, key, sealed)
}

// notes reads all notes of a bucket.
func (t *tx) notes(bucket []byte) ([]note, error) {
	b := t.bolt.Bucket(bucket)
	if b == nil {
		return nil, nil
	}
	var all []note
	err := b.ForEach(func(key, sealed []byte) error {
		n, err := t.openNote(bucket, key, sealed)
		all = append(all, n)
		return err
	})
	return all, err
}

func (t *tx) openNote(bucket, key, sealed []byte) (note, error) {
	var n note
	text, err := t.sealer.objects.Decrypt(sealed, t.sealer.noteData(bucket, key))
	if err == nil {
		err = json.Unmarshal(text, &n)
	}
	if err != nil {
		return n, fmt.Errorf("a record of %s: %w: it does not open under the root key", bucket, ErrDamaged)
	}
	return n, nil
}

// resealNotes seals all notes anew, which were sealed under former.
func (t *tx) resealNotes(former *sealer) error {
	for _, bucket := range noteBuckets {
		all, err := (&tx{bolt: t.bolt, sealer: former}).notes(bucket)
		if err != nil {
			return err
		}
		if len(all) == 0 {
			continue
		}
		if err := t.bolt.DeleteBucket(bucket); err != nil {
			return err
		}
		for _, n := range all {
			if err := t.putNote(bucket, n.Name, n.Value); err != nil {
				return err
			}
		}
	}
	return nil
}

// noteKey is the key of a note. It is another than any object's name can have.
func (s *sealer) noteKey(bucket []byte, name string) []byte {
	mac := hmac.New(sha256.New, s.names.Bytes())
	mac.Write([]byte("vmcrypt kms note"))
	mac.Write(binary.BigEndian.AppendUint32(nil, uint32(len(bucket))))
	mac.Write(bucket)
	mac.Write([]byte(name))
	return mac.Sum(nil)
}

// noteData is the associated data of a note; it differs from that of any
// object.
func (s *sealer) noteData(bucket, key []byte) []byte {
	ad := []byte("vmcrypt kms note")
	ad = append(ad, s.store[:]...)
	ad = append(ad, key...)
	return append(ad, bucket...)
}
