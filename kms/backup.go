package kms

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmcrypt/vmcrypt/internal/durable"
	"github.com/vmcrypt/vmcrypt/internal/secret"
)

// manifest tells what a backup holds. It stands in the backup and, once that
// is made or restored, in last-backup.
type manifest struct {
	Created time.Time `json:"created"`
	census
}

// Backup writes all that an empty home needs to be this one into the new file
// path, encrypted under passphrase. It is consistent even while the key manager
// serves. Before the file gets its name it is read back from disk and every
// key in it is opened. An existing path is refused with fs.ErrExist. What is
// missing of certificates and configuration is missing from the backup: keys
// are not to wait until they are back.
//
// The passphrase should be worth its while: the backup holds every key.
func (h Home) Backup(ctx context.Context, path string, passphrase *secret.Buffer) error {
	return h.backup(ctx, path, passphrase, defaultCost)
}

func (h Home) backup(ctx context.Context, path string, passphrase *secret.Buffer, cost kdfCost) error {
	if exists(path) {
		return &fs.PathError{Op: "create", Path: path, Err: fs.ErrExist}
	}
	a, err := h.gather(ctx)
	if err != nil {
		return err
	}
	defer a.close()
	if err := a.write(path, passphrase, cost); err != nil {
		return err
	}
	return h.record(a.manifest)
}

// archive is the content of a backup.
type archive struct {
	manifest manifest
	files    contents
	store    *memfile
}

func (a *archive) close() {
	a.files.wipe()
	if a.store != nil {
		a.store.Close()
	}
}

// gather takes a snapshot of the home.
func (h Home) gather(ctx context.Context) (_ *archive, err error) {
	a := &archive{}
	defer func() {
		if err != nil {
			a.close()
		}
	}()
	root, err := h.snapshot(ctx, a)
	if err != nil {
		return nil, err
	}
	defer root.Destroy()
	if a.files, err = h.read(); err != nil {
		return nil, err
	}
	// The backup must open without this host, so it holds the bare key.
	a.files[rootKeyEntry] = formatRootKey(root)
	a.manifest.Created = time.Now().UTC().Truncate(time.Second)
	a.manifest.census, err = a.open()
	return a, err
}

// open opens every object of the archive's store under its root key.
func (a *archive) open() (census, error) {
	s, err := openStore(a.store.path(), a.rootKeys, forReading, storePoll)
	if err != nil {
		return census{}, err
	}
	c, err := s.count()
	return c, errors.Join(err, s.close())
}

func (a *archive) rootKeys() ([]*kept, error) {
	k, err := openRootKey(a.files[rootKeyEntry], nil)
	if err != nil {
		return nil, err
	}
	return []*kept{k}, nil
}

// snapshot copies the store, as it is now, into the archive's memory and gives
// its root key.
func (h Home) snapshot(ctx context.Context, a *archive) (root *secret.Buffer, err error) {
	s, running, err := h.access(ctx, forReading)
	if err != nil {
		return nil, err
	}
	if running != nil {
		return h.fetchSnapshot(ctx, a)
	}
	a.store, root, err = s.snapshot()
	return root, errors.Join(err, s.close())
}

// fetchSnapshot asks the running server for a snapshot.
func (h Home) fetchSnapshot(ctx context.Context, a *archive) (*secret.Buffer, error) {
	body, err := h.call(ctx, http.MethodPost, "/snapshot", nil)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	root, err := a.readSnapshot(body)
	if err != nil {
		return nil, fmt.Errorf("copy the store of the key manager in %s: %w", h.Dir, err)
	}
	return root, nil
}

// readSnapshot reads what sendSnapshot sends: the root key as in a bare
// root.key, and the store.
func (a *archive) readSnapshot(r io.Reader) (root *secret.Buffer, err error) {
	text := make([]byte, bareSize)
	defer secret.Wipe(text)
	if _, err := io.ReadFull(r, text); err != nil {
		return nil, err
	}
	if root, err = parseRootKey(text); err != nil {
		return nil, err
	}
	if a.store, err = newMemfile(); err == nil {
		_, err = io.Copy(a.store, r)
	}
	if err != nil {
		root.Destroy()
		return nil, err
	}
	return root, nil
}

// sendSnapshot is the server's side of fetchSnapshot. The root key goes over a
// socket that leads to the same user only, who could read it here as well.
func sendSnapshot(w http.ResponseWriter, s *store) {
	m, root, err := s.snapshot()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer m.Close()
	defer root.Destroy()
	text := formatRootKey(root)
	defer secret.Wipe(text)
	content, size := m.content()
	w.Header().Set("Content-Length", strconv.FormatInt(int64(len(text))+size, 10))
	_, _ = io.Copy(w, io.MultiReader(bytes.NewReader(text), content)) // the client sees what is missing
}

// write makes the backup file and proves it before it gets its name.
func (a *archive) write(path string, passphrase *secret.Buffer, cost kdfCost) error {
	p, err := durable.Create(path, 0o600)
	if err != nil {
		return err
	}
	defer p.Abort()
	if err := encodeBackup(p, a, passphrase, cost); err != nil {
		return fmt.Errorf("write backup %s: %w", path, err)
	}
	if err := a.prove(p.Name(), passphrase); err != nil {
		return fmt.Errorf("check backup %s: %w", path, err)
	}
	return p.Publish()
}

// prove reads a backup from disk, opens every key in it and compares it with
// the archive that it was made from.
func (a *archive) prove(path string, passphrase *secret.Buffer) error {
	if err := dropCache(path); err != nil {
		return err
	}
	copied, err := readBackup(path, passphrase)
	if err != nil {
		return err
	}
	defer copied.close()
	if copied.manifest.census != a.manifest.census {
		return fmt.Errorf("%w: it holds another state of the store", ErrDamaged)
	}
	return nil
}

// dropCache sends a file to the disk and forgets it, so that it is read from
// there.
func dropCache(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		return err
	}
	return unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
}

// Restore puts the content of a backup into the home, which must be empty as
// for Init, whole or not at all. It fails with ErrPassphrase, ErrDamaged,
// ErrVersion or ErrExists.
func (h Home) Restore(path string, passphrase *secret.Buffer) error {
	resumed, err := h.resume()
	if resumed && err == nil {
		err = fmt.Errorf("%s: %w: what an interrupted init or restore had begun has now been finished", h.Dir, ErrExists)
	}
	if err != nil {
		return err
	}
	if err := h.refuseExisting(); err != nil {
		return err
	}
	a, err := readBackup(path, passphrase)
	if err != nil {
		return fmt.Errorf("backup %s: %w", path, err)
	}
	defer a.close()
	if err := h.keepAnew(a); err != nil {
		return err
	}
	return h.install(a.files, func(staged Home) error {
		if err := a.store.copyTo(staged.path(storeFile)); err != nil {
			return err
		}
		return staged.record(a.manifest)
	})
}

// keepAnew has the root key of a backup kept as the home wants it.
func (h Home) keepAnew(a *archive) error {
	root, err := parseRootKey(a.files[rootKeyEntry])
	if err != nil {
		return err
	}
	defer root.Destroy()
	secret.Wipe(a.files[rootKeyEntry])
	a.files[rootKeyEntry], err = h.keep(root)
	return err
}

// readBackup reads a backup whole and opens every key in it.
func readBackup(path string, passphrase *secret.Buffer) (*archive, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, errors.Join(err, errors.New("not a regular file"))
	}
	a, err := decodeBackup(f, passphrase)
	if err != nil {
		return nil, err
	}
	c, err := a.open()
	if err == nil && c != a.manifest.census {
		err = fmt.Errorf("%w: the store in it is not the one it names", ErrDamaged)
	}
	if err != nil {
		a.close()
		return nil, err
	}
	return a, nil
}

// record notes in last-backup that there is a backup.
func (h Home) record(m manifest) error {
	text, err := json.Marshal(m)
	if err != nil {
		return err
	}
	return durable.WriteForOwner(h.path(lastBackupFile), append(text, '\n'), 0o600)
}

// lastBackup reads what record wrote, or nil.
func (h Home) lastBackup() (*manifest, error) {
	text, err := readSmall(h.path(lastBackupFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	m := &manifest{}
	if err := json.Unmarshal(text, m); err != nil {
		return nil, fmt.Errorf("%s: %w: %v", h.path(lastBackupFile), ErrDamaged, err)
	}
	return m, nil
}

// LastBackup tells when the last backup was made, or the one that this home was
// restored from; false if there is none.
func (h Home) LastBackup() (time.Time, bool, error) {
	m, err := h.lastBackup()
	if m == nil || err != nil {
		return time.Time{}, false, err
	}
	return m.Created, true, nil
}

// BackupDue tells whether there are keys that no backup holds, or no backup at
// all: that of the certificates and the root key alone is worth having.
func (h Home) BackupDue(ctx context.Context) (bool, error) {
	last, err := h.lastBackup()
	if last == nil || err != nil {
		return err == nil, err
	}
	s, running, err := h.access(ctx, forReading)
	if err != nil {
		return false, err
	}
	if running != nil {
		return running.Sequence != last.Sequence, nil
	}
	var sequence uint64
	err = s.view(func(t *tx) error {
		sequence = t.sequence()
		return nil
	})
	return sequence != last.Sequence, errors.Join(err, s.close())
}
