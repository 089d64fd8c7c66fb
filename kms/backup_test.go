package kms

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gemalto/kmip-go/kmip14"

	"github.com/vmcrypt/vmcrypt/internal/kmipwire"
)

// cheap makes deriving a key from a passphrase as quick as it may be.
var cheap = kdfCost{Passes: 1, Memory: 8, Lanes: 1}

const secretWords = "correct horse battery staple"

// backup makes a cheap backup of the home.
func backup(t *testing.T, h Home) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "backup")
	if err := h.backup(t.Context(), path, passphrase(t, secretWords), cheap); err != nil {
		t.Fatal(err)
	}
	return path
}

func restore(t *testing.T, path string) Home {
	t.Helper()
	h := emptyHome(t)
	if err := h.Restore(path, passphrase(t, secretWords)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { checkStore(t, h) })
	return h
}

// TestBackupAndRestore uses the real cost of the passphrase.
func TestBackupAndRestore(t *testing.T) {
	t.Parallel()
	h, keys := filledHome(t)
	path := filepath.Join(t.TempDir(), "backup")
	if err := h.Backup(t.Context(), path, passphrase(t, secretWords)); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	restored := restore(t, path)
	wantKeys(t, restored, keys)
	serve(t, restored)
	wantKeys(t, restored, keys)
	for _, name := range homeFiles {
		a, errA := os.ReadFile(h.place(name))
		b, errB := os.ReadFile(restored.place(name))
		if errA != nil || errB != nil || !bytes.Equal(a, b) {
			t.Errorf("%s differs: %v, %v", name, errA, errB)
		}
	}
	if info, err := os.Stat(restored.Dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("folder has mode %v, %v", info.Mode(), err)
	}
}

// TestBackupWithoutCertificates: nothing but the store and its root key have to
// be there, and all else comes back as it was.
func TestBackupWithoutCertificates(t *testing.T) {
	t.Parallel()
	for _, served := range []bool{false, true} {
		h, _ := filledHome(t)
		c := checkStore(t, h)
		if served {
			serve(t, h)
		}
		lost := []string{"kms/server.key", "config/client.pem", "config/config.yaml"}
		for i, name := range lost {
			lost[i] = h.place(name)
			if err := os.Remove(lost[i]); err != nil {
				t.Fatal(err)
			}
		}
		if got := h.Missing(); !slices.Equal(got, lost) {
			t.Errorf("missing: %v", got)
		}
		restored := restore(t, backup(t, h))
		if got := checkStore(t, restored); got != c {
			t.Errorf("%+v, want %+v", got, c)
		}
		for _, name := range homeFiles {
			if name != rootKeyEntry && exists(restored.place(name)) != exists(h.place(name)) {
				t.Errorf("%s: %v", name, exists(restored.place(name)))
			}
		}
	}
	h, _ := filledHome(t)
	for _, name := range homeFiles {
		if name != rootKeyEntry {
			os.Remove(h.place(name))
		}
	}
	restore(t, backup(t, h))
}

func TestBackupHoldsNothingInTheClear(t *testing.T) {
	t.Parallel()
	h, keys := filledHome(t)
	data, err := os.ReadFile(backup(t, h))
	if err != nil {
		t.Fatal(err)
	}
	root, err := os.ReadFile(h.path(rootKeyFile))
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"PRIVATE KEY", "ustar", rootKeyMagic, string(root[len(root)-20:]), secretWords} {
		if bytes.Contains(data, []byte(text)) {
			t.Errorf("%q is in the backup in the clear", text)
		}
	}
	for _, key := range keys {
		if bytes.Contains(data, []byte(key)) {
			t.Error("a key is in the backup in the clear")
		}
	}
}

func TestBackupRefuses(t *testing.T) {
	t.Parallel()
	h, _ := filledHome(t)
	dir := t.TempDir()
	taken := filepath.Join(dir, "taken")
	if err := os.WriteFile(taken, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := h.Backup(t.Context(), taken, passphrase(t, "x")); !errors.Is(err, fs.ErrExist) {
		t.Errorf("existing file: %v", err)
	}
	if err := h.Backup(t.Context(), filepath.Join(dir, "empty"), nil); err == nil {
		t.Error("an empty passphrase was accepted")
	}
	if err := h.Backup(t.Context(), filepath.Join(dir, "no/folder"), passphrase(t, "x")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no folder: %v", err)
	}
	client := filepath.Join(h.ConfigDir(), "client.key")
	if err := errors.Join(os.Remove(client), os.Mkdir(client, 0o700)); err != nil {
		t.Fatal(err)
	}
	if err := h.Backup(t.Context(), filepath.Join(dir, "part"), passphrase(t, "x")); err == nil {
		t.Error("a folder was taken for a missing file")
	}
	sameTree(t, dir, map[string]string{"taken": "-rw------- mine"})
	if _, ok, err := h.LastBackup(); ok || err != nil {
		t.Errorf("a failed backup was recorded: %v, %v", ok, err)
	}
}

// TestBackupIsProved: a file that did not reach the disk as it was written is
// no backup.
func TestBackupIsProved(t *testing.T) {
	t.Parallel()
	h, _ := filledHome(t)
	path := backup(t, h)
	a, err := h.gather(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer a.close()
	if err := a.prove(path, passphrase(t, secretWords)); err != nil {
		t.Fatal(err)
	}
	a.manifest.Objects++
	if err := a.prove(path, passphrase(t, secretWords)); !errors.Is(err, ErrDamaged) {
		t.Errorf("another number of objects: %v", err)
	}
}

func TestRestoreRefusesToOverwrite(t *testing.T) {
	t.Parallel()
	h, _ := filledHome(t)
	path := backup(t, h)
	before := tree(t, h.ConfigDir())
	if err := h.Restore(path, passphrase(t, secretWords)); !errors.Is(err, ErrExists) {
		t.Errorf("error is %v", err)
	}
	sameTree(t, h.ConfigDir(), before)
}

// refusedBackup fails the test unless restoring fails with want and leaves
// nothing.
func refusedBackup(t *testing.T, data []byte, words string, want error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "backup")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	h := emptyHome(t)
	err := h.Restore(path, passphrase(t, words))
	if !errors.Is(err, want) || !strings.Contains(err.Error(), path) {
		t.Errorf("error is %v, want %v", err, want)
	}
	sameTree(t, h.ConfigDir(), nil)
}

func readBytes(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestRestoreRefuses(t *testing.T) {
	t.Parallel()
	h, _ := filledHome(t)
	good := readBytes(t, backup(t, h))
	future := bytes.Clone(good)
	binary.BigEndian.PutUint32(future[8:], backupVersion+1)
	refusedBackup(t, good, "incorrect horse", ErrPassphrase)
	refusedBackup(t, future, secretWords, ErrVersion)
	refusedBackup(t, nil, secretWords, ErrDamaged)
	refusedBackup(t, []byte("not a backup"), secretWords, ErrDamaged)
	refusedBackup(t, append(bytes.Clone(good), 0), secretWords, ErrDamaged)
	if err := emptyHome(t).Restore(filepath.Join(t.TempDir(), "none"), passphrase(t, "x")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	if err := emptyHome(t).Restore(t.TempDir(), passphrase(t, "x")); err == nil {
		t.Error("a folder was restored")
	}
}

func TestRestoreRefusesTruncated(t *testing.T) {
	t.Parallel()
	h, _ := filledHome(t)
	good := readBytes(t, backup(t, h))
	for _, n := range []int{1, 8, headerSize - 1, headerSize, headerSize + 20, headerSize + 40, headerSize + 41, len(good) / 2, len(good) - 1} {
		refusedBackup(t, good[:n], secretWords, ErrDamaged)
	}
}

// TestRestoreRefusesFlips: every bit of the header, and bits all over the rest.
func TestRestoreRefusesFlips(t *testing.T) {
	t.Parallel()
	h, _ := filledHome(t)
	good := readBytes(t, backup(t, h))
	words := passphrase(t, secretWords)
	r := rand.New(rand.NewPCG(3, 4))
	var bits []int
	for i := range 8 * headerSize {
		bits = append(bits, i)
	}
	for range 300 {
		bits = append(bits, 8*headerSize+r.IntN(8*(len(good)-headerSize)))
	}
	for _, bit := range bits {
		data := bytes.Clone(good)
		data[bit/8] ^= 1 << (bit % 8)
		a, err := decodeBackup(bytes.NewReader(data), words)
		if err == nil {
			a.close()
		}
		if !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrVersion) {
			t.Fatalf("bit %d: %v", bit, err)
		}
	}
}

// TestForgedCost: a header cannot make us spend more than the bounds allow.
func TestForgedCost(t *testing.T) {
	for _, c := range []kdfCost{
		{0, 64, 1}, {17, 64, 1}, {1 << 31, 64, 1}, {1, 7, 1}, {1, 1<<20 + 1, 1}, {1, 1<<32 - 1, 1}, {1, 64, 0}, {1, 1 << 20, 17}, {1, 64, 257}, {1, 31, 4},
	} {
		h := &backupHeader{kdf{Cost: c}}
		if _, err := parseBackupHeader(h.bytes()); !errors.Is(err, ErrDamaged) {
			t.Errorf("%+v: %v", c, err)
		}
	}
	if err := defaultCost.check(); err != nil {
		t.Error(err)
	}
}

// TestBackupOfABrokenStore: what cannot be opened must not count as backup.
func TestBackupOfABrokenStore(t *testing.T) {
	t.Parallel()
	h, _ := filledHome(t)
	good := readBytes(t, backup(t, h))
	for what, damage := range map[string]func(*archive) error{
		"store":    func(a *archive) error { _, err := a.store.WriteAt(make([]byte, 16<<10), 0); return err },
		"root key": func(a *archive) error { a.files["kms/root.key"] = []byte("no key"); return nil },
		"sequence": func(a *archive) error { a.manifest.Sequence++; return nil },
	} {
		t.Run(what, func(t *testing.T) {
			a, err := decodeBackup(bytes.NewReader(good), passphrase(t, secretWords))
			if err != nil {
				t.Fatal(err)
			}
			defer a.close()
			if err := damage(a); err != nil {
				t.Fatal(err)
			}
			var b bytes.Buffer
			if err := encodeBackup(&b, a, passphrase(t, secretWords), cheap); err != nil {
				t.Fatal(err)
			}
			refusedBackup(t, b.Bytes(), secretWords, ErrDamaged)
		})
	}
}

// TestBackupWhileServing: backups taken under load hold a state that was.
func TestBackupWhileServing(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	_, stop := serve(t, h)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		c := dial(t, h)
		for i := 0; ctx.Err() == nil; i++ {
			out, err := c.roundTrip(c.message(items(kmip14.OperationCreate, createRequest(nameAttribute(fmt.Sprint(i))))...))
			if err != nil || out.BatchItem[0].ResultStatus != kmip14.ResultStatusSuccess {
				t.Errorf("create %d: %v", i, err)
				return
			}
		}
	})
	last := 0
	for range 4 {
		time.Sleep(20 * time.Millisecond)
		restored := restore(t, backup(t, h))
		c := checkStore(t, restored)
		if c.Objects < last || uint64(c.Objects) != c.Sequence {
			t.Errorf("%+v after %d objects", c, last)
		}
		last = c.Objects
	}
	cancel()
	wg.Wait()
	if last == 0 {
		t.Error("no backup holds a key")
	}
	if due, err := h.BackupDue(t.Context()); err != nil || !due {
		t.Errorf("due: %v, %v", due, err)
	}
	stop()
}

func TestBackupDue(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	want := func(when string, h Home, want bool) {
		t.Helper()
		if due, err := h.BackupDue(t.Context()); err != nil || due != want {
			t.Errorf("%s: due %v, %v", when, due, err)
		}
	}
	if _, ok, err := h.LastBackup(); ok || err != nil {
		t.Errorf("new home has a backup: %v, %v", ok, err)
	}
	want("new", h, true)
	fill(t, h, "a")
	want("first key", h, true)
	path := backup(t, h)
	want("backed up", h, false)
	when, ok, err := h.LastBackup()
	if !ok || err != nil || time.Since(when) > time.Minute || time.Since(when) < 0 {
		t.Errorf("last backup %v, %v, %v", when, ok, err)
	}
	restored := restore(t, path)
	want("restored", restored, false)
	if at, ok, err := restored.LastBackup(); !ok || err != nil || !at.Equal(when) {
		t.Errorf("last backup of the restored home: %v, %v, %v", at, ok, err)
	}
	serve(t, h)
	want("served", h, false)
	fill(t, h, "b")
	want("second key", h, true)
	backup(t, h)
	want("backed up again", h, false)
	c := dial(t, h)
	id := c.locate(nameAttribute("a"))[0]
	do[kmipwire.DestroyResponse](c, kmip14.OperationDestroy, &kmipwire.DestroyRequest{UniqueIdentifier: id})
	want("only destroyed since", h, false)
}

func TestDamagedLastBackup(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	if err := os.WriteFile(h.path(lastBackupFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := h.LastBackup(); !errors.Is(err, ErrDamaged) {
		t.Errorf("error is %v", err)
	}
}
