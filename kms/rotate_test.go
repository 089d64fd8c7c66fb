package kms

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/vmcrypt/vmcrypt/internal/secret"
)

// sealedBy has the home's root key sealed under some words from now on.
func sealedBy(h Home, form RootKey, words string) Home {
	h.RootKey = form
	return asking(h, words)
}

// asking gives a home whose passphrase is known.
func asking(h Home, words string) Home {
	h.Passphrase = func(RootKey, bool) (*secret.Buffer, error) { return secret.Take([]byte(words)) }
	return h
}

func rotateRoot(t *testing.T, h Home) {
	t.Helper()
	before := readBytes(t, h.path(rootKeyFile))
	if err := h.RotateRoot(t.Context()); err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(before, readBytes(t, h.path(rootKeyFile))) {
		t.Error("the root key is the old one")
	}
	wantNoNext(t, h)
}

func wantNoNext(t *testing.T, h Home) {
	t.Helper()
	if _, err := os.Lstat(h.path(nextRootKeyFile)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s is there: %v", nextRootKeyFile, err)
	}
}

func TestRotateRoot(t *testing.T) {
	t.Parallel()
	h, keys := filledHome(t)
	old := readBytes(t, h.path(storeFile))
	oldKey := readBytes(t, h.path(rootKeyFile))
	rotateRoot(t, h)
	wantKeys(t, h, keys)
	if c := dial(t, h); len(c.locate(nameAttribute("two"))) != 1 {
		t.Error("a name leads nowhere")
	} else {
		c.conn.Close()
	}
	// The new store does not open under the old root key, nor the old one under
	// the new.
	now := readBytes(t, h.path(storeFile))
	for _, mixed := range [][2][]byte{{now, oldKey}, {old, readBytes(t, h.path(rootKeyFile))}} {
		other := emptyHome(t)
		if err := errors.Join(os.MkdirAll(other.Dir, 0o700), os.WriteFile(other.path(storeFile), mixed[0], 0o600),
			os.WriteFile(other.path(rootKeyFile), mixed[1], 0o600)); err != nil {
			t.Fatal(err)
		}
		refusedStore(t, other, ErrRootKey)
	}
}

// TestRotateWhileServing: clients go on, and a backup that is made meanwhile is
// whole.
func TestRotateWhileServing(t *testing.T) {
	t.Parallel()
	h, keys := filledHome(t)
	serve(t, h)
	stop := make(chan struct{})
	var busy sync.WaitGroup
	for range 3 {
		busy.Go(func() {
			c := dial(t, h)
			for {
				select {
				case <-stop:
					return
				default:
				}
				id := c.create(rand16())
				c.activate(id)
				c.get(id)
				c.locate(nameAttribute("one"))
			}
		})
	}
	for i := range 10 {
		rotateRoot(t, h)
		if i%4 == 0 {
			backup(t, h)
		}
	}
	close(stop)
	busy.Wait()
	for id, key := range keys {
		if dial(t, h).get(id) != key {
			t.Errorf("key %s changed", id)
		}
	}
}

func rand16() string {
	b, err := secret.Random(8)
	if err != nil {
		panic(err)
	}
	defer b.Destroy()
	return strings.ToUpper(string(bytes.Map(func(r rune) rune { return 'a' + r%26 }, b.Bytes())))
}

// TestInterruptedRotation: what a crash may leave at each of the steps.
func TestInterruptedRotation(t *testing.T) {
	for what, c := range map[string]struct{ was, will string }{
		"bare":              {"", ""},
		"one passphrase":    {"one", "one"},
		"another":           {"one", "two"},
		"sealed from now":   {"", "two"},
		"bare from now":     {"one", ""},
		"before the commit": {"", "before"},
	} {
		t.Run(what, func(t *testing.T) {
			h, keys := rotationHome(t, c.was)
			old := readBytes(t, h.path(rootKeyFile))
			next := h
			if c.will != c.was {
				next.RootKey = RootKeyFile
			}
			if c.will != "" {
				next = sealedBy(h, RootKeyPassphrase, c.will)
			}
			before := readBytes(t, h.path(storeFile))
			next2 := next
			if c.was != "" {
				next2.Passphrase = twoWords(c.was, c.will)
			}
			rotateRoot(t, next2)
			renewed := readBytes(t, h.path(rootKeyFile))
			put(t, h.path(nextRootKeyFile), renewed)
			put(t, h.path(rootKeyFile), old)
			want := renewed
			if what == "before the commit" {
				put(t, h.path(storeFile), before)
				want, next = old, h
			}
			for _, mode := range []openMode{forReading, forWriting} {
				s, err := next.open(mode, storeWait)
				if err != nil {
					t.Fatal(err)
				}
				s.close()
			}
			wantNoNext(t, h)
			if !bytes.Equal(readBytes(t, h.path(rootKeyFile)), want) {
				t.Error("the wrong root key was kept")
			}
			wantKeys(t, next, keys)
		})
	}
}

// rotationHome is a home whose root key is sealed under words, if any.
func rotationHome(t *testing.T, words string) (Home, map[string]string) {
	t.Helper()
	h := emptyHome(t)
	if words != "" {
		h = sealedBy(h, RootKeyPassphrase, words)
	}
	if err := h.Init(nil); err != nil {
		t.Fatal(err)
	}
	h.RootKey = ""
	return h, fill(t, h, "one", "two")
}

// twoWords answers with one passphrase for the old root key and another for the
// new.
func twoWords(was, will string) func(RootKey, bool) (*secret.Buffer, error) {
	return func(_ RootKey, fresh bool) (*secret.Buffer, error) {
		if fresh {
			return secret.Take([]byte(will))
		}
		return secret.Take([]byte(was))
	}
}

func put(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestBrokenNextRootKey: as long as root.key opens the store, the other does not
// matter.
func TestBrokenNextRootKey(t *testing.T) {
	t.Parallel()
	h, keys := filledHome(t)
	put(t, h.path(nextRootKeyFile), []byte("torn"))
	wantKeys(t, h, keys)
	wantNoNext(t, h)
}

// TestRootKeyThatCannotBeRenamed: the one that is in effect is never replaced
// before it is safe in its place.
func TestRootKeyThatCannotBeRenamed(t *testing.T) {
	t.Parallel()
	h, keys := filledHome(t)
	s, err := h.open(forWriting, storeWait)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Remove(h.path(rootKeyFile)), os.Mkdir(h.path(rootKeyFile), 0o700)); err != nil {
		t.Fatal(err)
	}
	if err := h.rotate(s, nil); err == nil || !strings.Contains(err.Error(), nextRootKeyFile) {
		t.Errorf("error is %v", err)
	}
	next := readBytes(t, h.path(nextRootKeyFile))
	if err := h.rotate(s, nil); err == nil || !bytes.Equal(next, readBytes(t, h.path(nextRootKeyFile))) {
		t.Errorf("another rotation: %v", err)
	}
	s.close()
	if s, err = h.open(forReading, storeWait); err != nil {
		t.Fatal(err)
	}
	s.close()
	if err := os.Remove(h.path(rootKeyFile)); err != nil {
		t.Fatal(err)
	}
	wantKeys(t, h, keys)
	wantNoNext(t, h)
	rotateRoot(t, h)
	wantKeys(t, h, keys)
}

func TestFailedRotationChangesNothing(t *testing.T) {
	h := brokenHome(t)
	key := readBytes(t, h.path(rootKeyFile))
	s, err := h.open(forWriting, storeWait)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	if err := s.update(func(t *tx) error {
		k, _ := t.bolt.Bucket(objectsBucket).Cursor().Last()
		return t.set(objectsBucket, k, []byte("damaged"))
	}); err != nil {
		t.Fatal(err)
	}
	before := lastTx(t, s)
	if err := h.rotate(s, nil); !errors.Is(err, ErrDamaged) {
		t.Errorf("error is %v", err)
	}
	if lastTx(t, s) != before || !bytes.Equal(key, readBytes(t, h.path(rootKeyFile))) {
		t.Error("something has changed")
	}
	wantNoNext(t, h)
}

// TestSealedRootKey: what may be wrong with it, and with the passphrase.
func TestSealedRootKey(t *testing.T) {
	h, keys := rotationHome(t, "open sesame")
	wantKeys(t, h, keys)
	if form, err := h.RootKeyForm(); form != RootKeyPassphrase || err != nil {
		t.Errorf("%s, %v", form, err)
	}
	good := readBytes(t, h.path(rootKeyFile))
	refusedStore(t, asking(h, "open rye"), ErrPassphrase)
	nobody := h
	nobody.Passphrase = nil
	if _, err := nobody.Dial(t.Context(), ""); err == nil || !strings.Contains(err.Error(), "sealed") {
		t.Errorf("with nobody to ask: %v", err)
	}
	put(t, h.path(rootKeyFile), good[:len(good)-1])
	refusedStore(t, h, ErrDamaged)
	future := bytes.Clone(good)
	future[11]++
	put(t, h.path(rootKeyFile), future)
	refusedStore(t, h, ErrVersion)
	for _, bit := range []int{8*14 + 1, 8 * 16, 8 * 30, 8 * 80, 8 * 95, 8 * 130} {
		flipped := bytes.Clone(good)
		flipped[bit/8] ^= 1 << (bit % 8)
		put(t, h.path(rootKeyFile), flipped)
		refusedStore(t, h, ErrDamaged)
	}
	put(t, h.path(rootKeyFile), good)
}

// TestForgedSealedRootKey: with a checksum that fits, what is authenticated is
// still noticed, and the cost is bounded.
func TestForgedSealedRootKey(t *testing.T) {
	words := passphrases{RootKeyPassphrase: {words: passphrase(t, "words")}, RootKeySystemd: {words: passphrase(t, "words")}}
	root := passphrase(t, strings.Repeat("k", rootKeySize))
	k, err := newKeeper(RootKeyPassphrase, words[RootKeyPassphrase].words, cheap)
	if err != nil {
		t.Fatal(err)
	}
	defer k.destroy()
	good, err := k.format(root)
	if err != nil || len(good) != sealedSize {
		t.Fatal(len(good), err)
	}
	kept, err := openRootKey(good, words)
	if err != nil || !kept.root.Equal(root) {
		t.Fatal(err)
	}
	kept.destroy()
	for what, at := range map[string]int{"form": 15, "passes": 16, "memory": 20, "sealed key": sealedHeader + 20, "tag": sealedSize - 33} {
		forged := bytes.Clone(good)
		forged[at] ^= 3
		sum := sha256.Sum256(forged[:sealedSize-sha256.Size])
		copy(forged[sealedSize-sha256.Size:], sum[:])
		if _, err := openRootKey(forged, words); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestBackupHoldsTheBareRootKey: it must open where the passphrase is not known,
// made while the key manager serves or not.
func TestBackupHoldsTheBareRootKey(t *testing.T) {
	t.Parallel()
	h, keys := rotationHome(t, "open sesame")
	idle := backup(t, h)
	serve(t, h)
	nobody := h
	nobody.Passphrase = nil
	for _, path := range []string{idle, backup(t, nobody)} {
		restored := restore(t, path)
		wantKeys(t, restored, keys)
		if form, err := restored.RootKeyForm(); form != RootKeyFile || err != nil {
			t.Errorf("%s, %v", form, err)
		}
	}
	other := sealedBy(emptyHome(t), RootKeySystemd, "new words")
	if err := other.Restore(idle, passphrase(t, secretWords)); err != nil {
		t.Fatal(err)
	}
	if form, err := other.RootKeyForm(); form != RootKeySystemd || err != nil {
		t.Errorf("%s, %v", form, err)
	}
	wantKeys(t, other, keys)
}

// TestInterruptedInit: what a crash may leave once there is a key manager.
func TestInterruptedInit(t *testing.T) {
	t.Parallel()
	for published := range 5 {
		h := emptyHome(t)
		if err := h.Init([]byte("first")); err != nil {
			t.Fatal(err)
		}
		whole := tree(t, h.ConfigDir())
		if err := os.Mkdir(h.path(unpublishedFolder), 0o700); err != nil {
			t.Fatal(err)
		}
		for i, name := range []string{"ca.pem", "client.pem", "client.key", "config.yaml"} {
			path := filepath.Join(h.ConfigDir(), name)
			put(t, h.unpublished(name), readBytes(t, path))
			if i >= published {
				if err := os.Remove(path); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := h.Init([]byte("second")); err != nil {
			t.Errorf("with %d files in place: %v", published, err)
		}
		sameTree(t, h.ConfigDir(), whole)
		if err := h.Init(nil); !errors.Is(err, ErrExists) {
			t.Errorf("once more: %v", err)
		}
	}
}

// TestInterruptedInitKeepsWhatIsThere: a file that is not ours is not replaced.
func TestInterruptedInitKeepsWhatIsThere(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	if err := os.Mkdir(h.path(unpublishedFolder), 0o700); err != nil {
		t.Fatal(err)
	}
	put(t, h.unpublished("ca.pem"), []byte("another"))
	before := tree(t, h.ConfigDir())
	if err := h.Init(nil); !errors.Is(err, ErrExists) {
		t.Errorf("error is %v", err)
	}
	sameTree(t, h.ConfigDir(), before)
	if err := h.Restore(filepath.Join(storeV1, "backup"), passphrase(t, secretWords)); !errors.Is(err, ErrExists) {
		t.Errorf("restore: %v", err)
	}
}
