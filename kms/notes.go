package kms

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
)

var (
	clientsBucket = []byte("clients")
	auditBucket   = []byte("audit")
)

// noteBuckets hold what the store knows beside objects: notes, small records
// that are JSON, sealed, and bound to their name, their bucket and the store.
var noteBuckets = [][]byte{clientsBucket, auditBucket}

// hasNotes tells whether there is any note in a bucket.
func (t *tx) hasNotes(bucket []byte) bool {
	b := t.bolt.Bucket(bucket)
	if b == nil {
		return false
	}
	first, _ := b.Cursor().First()
	return first != nil
}

// getNote reads a note into v, and tells whether it is there.
func (t *tx) getNote(bucket []byte, name string, v any) (bool, error) {
	b := t.bolt.Bucket(bucket)
	if b == nil {
		return false, nil
	}
	sealed := b.Get([]byte(name))
	if sealed == nil {
		return false, nil
	}
	return true, t.openNote(bucket, name, sealed, v)
}

// putNote writes a note.
func (t *tx) putNote(bucket []byte, name string, v any) error {
	if _, err := t.bolt.CreateBucketIfNotExists(bucket); err != nil {
		return err
	}
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	sealed, err := t.sealer.objects.Encrypt(text, t.sealer.noteData(bucket, name))
	if err != nil {
		return err
	}
	return t.set(bucket, []byte(name), sealed)
}

// eachNote calls fn with the name of every note in a bucket, in their order,
// and a function that reads it.
func (t *tx) eachNote(bucket []byte, fn func(name string, read func(v any) error) error) error {
	b := t.bolt.Bucket(bucket)
	if b == nil {
		return nil
	}
	return b.ForEach(func(k, sealed []byte) error {
		name := string(k)
		return fn(name, func(v any) error { return t.openNote(bucket, name, sealed, v) })
	})
}

func (t *tx) openNote(bucket []byte, name string, sealed []byte, v any) error {
	text, err := t.sealer.objects.Decrypt(sealed, t.sealer.noteData(bucket, name))
	if err == nil {
		err = json.Unmarshal(text, v)
	}
	if err != nil {
		return fmt.Errorf("%s %q: %w: its record does not open under the root key", bucket, name, ErrDamaged)
	}
	return nil
}

// resealNotes seals all notes anew, which were sealed under former.
func (t *tx) resealNotes(former *sealer) error {
	old := &tx{bolt: t.bolt, sealer: former}
	for _, bucket := range noteBuckets {
		notes := map[string]json.RawMessage{}
		err := old.eachNote(bucket, func(name string, read func(any) error) error {
			var text json.RawMessage
			err := read(&text)
			notes[name] = text
			return err
		})
		if err != nil {
			return err
		}
		for name, text := range notes {
			if err := t.putNote(bucket, name, text); err != nil {
				return err
			}
		}
	}
	return nil
}

// noteData is the associated data of a note; it differs from that of any
// object.
func (s *sealer) noteData(bucket []byte, name string) []byte {
	ad := []byte("vmcrypt kms notes ")
	ad = append(ad, s.store[:]...)
	ad = binary.BigEndian.AppendUint32(ad, uint32(len(bucket)))
	ad = append(ad, bucket...)
	return append(ad, name...)
}
