package kms

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"testing"

	"github.com/gemalto/kmip-go/kmip14"
	"github.com/google/uuid"
	"go.etcd.io/bbolt"

	"github.com/vmcrypt/vmcrypt/internal/audit"
	"github.com/vmcrypt/vmcrypt/internal/kmipwire"
)

// FuzzRequest sends messages to the engine: every one is answered with a
// message, what was done can be logged, and the store stays consistent.
func FuzzRequest(f *testing.F) {
	h := homeIn(f.TempDir())
	if err := h.Init(nil); err != nil {
		f.Fatal(err)
	}
	s, err := h.open(forWriting, storeWait)
	if err != nil {
		f.Fatal(err)
	}
	s.db.NoSync = true
	f.Cleanup(func() {
		if _, err := s.count(); err != nil {
			f.Error(err)
		}
		s.close()
	})
	for _, msg := range requestSeeds(f) {
		f.Add(msg)
	}
	e := newEngine(s)
	var logged []auditEntry
	e.audit = func(entries []auditEntry) error { logged = entries; return nil }
	f.Fuzz(func(t *testing.T, msg []byte) {
		forget(t, s)
		logged = nil
		response, _ := e.answer(bytes.Clone(msg), "fuzz")
		var out kmipwire.ResponseMessage
		if err := kmipwire.Unmarshal(response, &out); err != nil || len(out.BatchItem) == 0 {
			t.Fatalf("answer: %v", err)
		}
		for _, item := range out.BatchItem {
			if item.ResultReason == kmip14.ResultReasonGeneralFailure {
				t.Fatalf("general failure: %s", item.ResultMessage)
			}
		}
		for _, entry := range logged {
			if line, err := json.Marshal(entry.line()); err != nil || len(line) > audit.MaxEntry {
				t.Fatalf("%+v: %d bytes, %v", entry, len(line), err)
			}
		}
	})
}

// fuzzID is the Unique Identifier of an object that is always there.
var fuzzID = uuid.MustParse("11111111-2222-4333-8444-555555555555")

// requestSeeds are requests of ours and, one of each shape, those of OASIS.
func requestSeeds(f *testing.F) [][]byte {
	f.Helper()
	c := &client{version: newest}
	id := fuzzID.String()
	var seeds [][]byte
	for _, in := range []*kmipwire.RequestMessage{
		c.message(items(kmip14.OperationCreate, createRequest(nameAttribute("n")), kmip14.OperationGet, &kmipwire.GetRequest{})...),
		c.message(items(kmip14.OperationLocate, &kmipwire.LocateRequest{Attribute: []kmipwire.Attribute{nameAttribute("n")}}, kmip14.OperationActivate, &kmipwire.ActivateRequest{})...),
		c.message(items(kmip14.OperationRevoke, revokeRequest(id, 1), kmip14.OperationDestroy, &kmipwire.DestroyRequest{UniqueIdentifier: id})...),
		c.message(items(kmip14.OperationDiscoverVersions, &kmipwire.DiscoverVersionsRequest{}, kmip14.OperationQuery, &kmipwire.QueryRequest{QueryFunction: []kmip14.QueryFunction{1, 2, 3}})...),
		c.message(items(kmip14.OperationRegister, registerKey(keyBlock(kmip14.KeyFormatTypeTransparentSymmetricKey)),
			kmip14.OperationAddAttribute, &kmipwire.AddAttributeRequest{Attribute: attribute1("x-a", "1")},
			kmip14.OperationModifyAttribute, &kmipwire.ModifyAttributeRequest{Attribute: attribute1("x-a", true)},
			kmip14.OperationDeleteAttribute, &kmipwire.DeleteAttributeRequest{AttributeName: "x-a"},
			kmip14.OperationGetAttributes, &kmipwire.GetAttributesRequest{},
			kmip14.OperationGetAttributeList, &kmipwire.GetAttributeListRequest{})...),
		c.message(items(kmip14.OperationCreate, createRequest(),
			kmip14.OperationReKey, &kmipwire.ReKeyRequest{}, kmip14.OperationCheck, &kmipwire.CheckRequest{CryptographicUsageMask: 1},
			kmip14.OperationObtainLease, &kmipwire.ObtainLeaseRequest{},
			kmip14.OperationArchive, &kmipwire.ArchiveRequest{}, kmip14.OperationRecover, &kmipwire.RecoverRequest{})...),
		c.message(items(kmip14.OperationRegister, &kmipwire.RegisterRequest{ObjectType: kmip14.ObjectTypeTemplate,
			Template: &kmipwire.Template{Attribute: []kmipwire.Attribute{nameAttribute("t"), attribute1(kmipwire.AttrContactInformation, "Joe")}}})...),
	} {
		msg, err := kmipwire.Marshal(in)
		if err != nil {
			f.Fatal(err)
		}
		seeds = append(seeds, msg)
	}
	shapes := map[[32]byte]bool{}
	for _, msg := range oasisMessages(f) {
		if shape := shapeOf(msg); isRequest(msg) && len(msg) < 2<<10 && !shapes[shape] {
			shapes[shape] = true
			seeds = append(seeds, msg)
		}
	}
	return seeds
}

// shapeOf is the same for messages with the same items, whatever their values.
func shapeOf(msg []byte) [sha256.Size]byte {
	shape := sha256.New()
	for i := 0; i+8 <= len(msg); i += 8 {
		if msg[i] == 0x42 && msg[i+1] == 0 {
			shape.Write(msg[i : i+4])
		}
	}
	return [sha256.Size]byte(shape.Sum(nil))
}

// forget empties a store of more than a few objects: Locate looks at them all.
// The object that is always there is put back.
func forget(t *testing.T, s *store) {
	t.Helper()
	err := s.db.Update(func(tx *bbolt.Tx) error {
		if tx.Bucket(objectsBucket).Sequence() < 200 {
			return errUnchanged
		}
		for _, name := range [][]byte{objectsBucket, namesBucket} {
			if err := errors.Join(tx.DeleteBucket(name), create(tx, name)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil && !errors.Is(err, errUnchanged) {
		t.Fatal(err)
	}
	o := newObject("fuzz", "always")
	o.id = fuzzID
	err = s.update(func(x *tx) error {
		if x.bolt.Bucket(objectsBucket).Get(fuzzID[:]) != nil {
			return nil
		}
		return x.add(o)
	})
	if err != nil {
		t.Fatal(err)
	}
}

func create(tx *bbolt.Tx, bucket []byte) error {
	_, err := tx.CreateBucket(bucket)
	return err
}
