package kms

import (
	"archive/tar"
	"bytes"
	"errors"
	"testing"

	"github.com/gemalto/kmip-go/kmip14"
	"github.com/google/uuid"
	"go.etcd.io/bbolt"

	"github.com/vmcrypt/vmcrypt/internal/kmipwire"
	"github.com/vmcrypt/vmcrypt/internal/secret"
)

// FuzzBackupHeader: a header that is accepted is what bytes would give, with a
// cost within bounds.
func FuzzBackupHeader(f *testing.F) {
	f.Add((&backupHeader{kdf{Cost: defaultCost}}).bytes())
	f.Add((&backupHeader{kdf{Cost: kdfCost{1 << 30, 1 << 30, 1 << 30}}}).bytes())
	f.Add([]byte(backupMagic))
	f.Fuzz(func(t *testing.T, data []byte) {
		h, err := parseBackupHeader(data)
		if err != nil {
			return
		}
		if !bytes.Equal(h.bytes(), data[:headerSize]) || h.Cost.Memory > 1<<20 || h.Cost.Passes > 16 {
			t.Errorf("accepted %+v", h)
		}
	})
}

// FuzzBackupArchive reads what somebody with the passphrase may have put into
// a backup.
func FuzzBackupArchive(f *testing.F) {
	a := &archive{files: contents{}}
	for _, name := range homeFiles {
		a.files[name] = []byte(name)
	}
	var err error
	if a.store, err = newMemfile(); err != nil {
		f.Fatal(err)
	}
	defer a.close()
	var good bytes.Buffer
	if err := a.writeTar(&good); err != nil {
		f.Fatal(err)
	}
	f.Add(good.Bytes())
	f.Add(good.Bytes()[:good.Len()/2])
	var other bytes.Buffer
	tw := tar.NewWriter(&other)
	if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: manifestEntry, Linkname: "/etc/passwd"}); err != nil {
		f.Fatal(err)
	}
	f.Add(other.Bytes())
	f.Fuzz(func(t *testing.T, data []byte) {
		a, err := readTar(bytes.NewReader(data))
		if err != nil {
			return
		}
		defer a.close()
		if len(a.files) != len(homeFiles) {
			t.Errorf("%d files", len(a.files))
		}
		if _, err := a.open(); err == nil {
			t.Error("a store opens that nobody made")
		}
	})
}

// FuzzRootKey: what is accepted is written the same way again.
func FuzzRootKey(f *testing.F) {
	root, err := secret.Random(rootKeySize)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(formatRootKey(root))
	f.Add([]byte(rootKeyMagic))
	f.Fuzz(func(t *testing.T, data []byte) {
		root, err := parseRootKey(bytes.Clone(data))
		if err != nil {
			return
		}
		defer root.Destroy()
		if !bytes.Equal(formatRootKey(root), data) {
			t.Errorf("accepted %d bytes", len(data))
		}
	})
}

// FuzzAnswer sends messages to the engine: every one is answered with a
// message, and none changes the store's consistency.
func FuzzAnswer(f *testing.F) {
	dir := f.TempDir()
	h := homeIn(dir)
	if err := h.Init(nil); err != nil {
		f.Fatal(err)
	}
	s, err := h.open(forWriting, storeWait)
	if err != nil {
		f.Fatal(err)
	}
	defer s.close()
	s.db.NoSync = true
	c := &client{version: newest}
	id := uuid.NewString()
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
		f.Add(msg)
	}
	e := newEngine(s)
	f.Fuzz(func(t *testing.T, msg []byte) {
		forget(t, s)
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
	})
}

// forget empties a store of more than a few objects: Locate looks at them all.
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
}

func create(tx *bbolt.Tx, bucket []byte) error {
	_, err := tx.CreateBucket(bucket)
	return err
}

// FuzzSealedRootKey reads what somebody who can write the folder may put there.
func FuzzSealedRootKey(f *testing.F) {
	words := passphrases{RootKeyPassphrase: {words: passphrase(f, "words")}}
	k, err := newKeeper(RootKeyPassphrase, words[RootKeyPassphrase].words, cheap)
	if err != nil {
		f.Fatal(err)
	}
	good, err := k.format(passphrase(f, "0123456789abcdef0123456789abcdef"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:sealedHeader])
	f.Fuzz(func(t *testing.T, data []byte) {
		k, err := parseSealed(data)
		if err != nil {
			return
		}
		if !bytes.Equal(k.header(), data[:sealedHeader]) || k.kdf.Cost.check() != nil {
			t.Errorf("accepted %+v", k.kdf)
		}
	})
}
