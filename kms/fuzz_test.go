package kms

import (
	"archive/tar"
	"bytes"
	"testing"

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
