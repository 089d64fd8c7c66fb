package kms

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/vmcrypt/vmcrypt/internal/durable"
	"github.com/vmcrypt/vmcrypt/internal/secret"
)

// The errors that callers tell apart.
var (
	// ErrExists: Init and Restore found something where they would write.
	ErrExists = errors.New("a key manager, or a part of one, exists already")
	// ErrMissing: there is no key manager in the home.
	ErrMissing = errors.New("no key manager here")
	// ErrBusy: another process has held the store for longer than we wait.
	ErrBusy = errors.New("the key manager's store is in use")
	// ErrRootKey: the store was sealed under another root key.
	ErrRootKey = errors.New("wrong root key")
	// ErrDamaged: a store or a backup is not what was written.
	ErrDamaged = errors.New("damaged")
	// ErrVersion: a store or a backup of a format this version does not know.
	ErrVersion = errors.New("unknown format version")
	// ErrPassphrase: the backup was encrypted, or the root key sealed, under
	// another passphrase.
	ErrPassphrase = errors.New("wrong passphrase")
)

// Home is where a key manager lives. Dir may lie in Config's folder, but not be
// it.
// All folders made are accessible to their owner only (0700, files 0600). Dir may belong
// to a user that the server runs as: what root makes in it later is that user's, too.
type Home struct {
	// Config is the configuration file. Beside it lies what the client needs:
	// client.pem, client.key, ca.pem.
	Config string
	// Dir holds store.db, root.key, ca.pem, ca.key, server.pem, server.key,
	// last-backup, audit.log with its former files and, while Serve runs,
	// control.sock; for moments, or after a crash, root.key.next and unpublished.
	// Nothing else may.
	Dir string
	// RootKey is how Init, Restore and RotateRoot keep the root key. Empty means
	// RootKeyFile, to RotateRoot as it was.
	RootKey RootKey
	// Passphrase is asked for the passphrase that the root key is sealed under or,
	// if fresh, is going to be. The buffer is destroyed after use. Where the root
	// key is in a file, nobody is asked, and it may be nil.
	Passphrase func(form RootKey, fresh bool) (*secret.Buffer, error)
	// Metrics is where Serve has its metrics scraped, as listen.CheckLocal takes it; empty
	// means nowhere. They name the Release.
	Metrics, Release string
}

const (
	storeFile      = "store.db"
	rootKeyFile    = "root.key"
	lastBackupFile = "last-backup"
	configFile     = "config.yaml"
	rootKeyEntry   = "kms/" + rootKeyFile

	// unpublishedFolder is there from the moment when there is a key manager to
	// the one when its clients' files are in their places, which it holds.
	unpublishedFolder = "unpublished"

	maxSmallFile = 1 << 20 // bytes, of every file but the store
)

// The files of a home, the store excepted, by their names in a backup: those
// beside Config begin with "config/", those in Dir with "kms/".
var homeFiles = []string{
	rootKeyEntry, "kms/ca.pem", "kms/ca.key", "kms/server.pem", "kms/server.key",
	"config/ca.pem", "config/client.pem", "config/client.key", "config/config.yaml",
}

// contents holds the files of a home by those names.
type contents map[string][]byte

func (c contents) wipe() {
	for _, b := range c {
		secret.Wipe(b)
	}
}

// Exists tells whether the home holds a key manager, or what is left of one.
func (h Home) Exists() bool {
	return exists(h.path(storeFile)) || exists(h.path(rootKeyFile))
}

// IsCA tells whether the file at path is the certificate of this key manager's
// certificate authority.
func (h Home) IsCA(path string) (bool, error) {
	own, err := readSmall(h.path("ca.pem"))
	if err != nil {
		return false, err
	}
	other, err := readSmall(path)
	if err != nil {
		return false, err
	}
	if len(own) == 0 || len(other) == 0 {
		return false, fmt.Errorf("%w: an empty certificate in %s or %s", ErrDamaged, h.path("ca.pem"), path)
	}
	return bytes.Equal(own, other), nil
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// ConfigDir is the folder of the configuration file.
func (h Home) ConfigDir() string { return filepath.Dir(h.Config) }

// path gives the place of a file in Dir.
func (h Home) path(name string) string { return filepath.Join(h.Dir, name) }

// place gives the place of one of homeFiles.
func (h Home) place(name string) string {
	dir, file := filepath.Split(name)
	switch {
	case name == "config/"+configFile:
		return h.Config
	case dir == "config/":
		return filepath.Join(h.ConfigDir(), file)
	}
	return h.path(file)
}

// Init makes a key manager: an empty store, its root key, a certificate
// authority with a server and a client certificate, and configYAML as
// config.yaml. It fails with ErrExists, having changed nothing, if any of
// these files is there. Nothing else ever makes a key manager, save Restore.
//
// The home appears whole or not at all. If the process is killed on the way,
// there is nothing, or what is there makes a whole of it when Init is called
// again.
func (h Home) Init(configYAML []byte) error {
	if resumed, err := h.resume(); resumed || err != nil {
		return err
	}
	root, err := secret.Random(rootKeySize)
	if err != nil {
		return err
	}
	defer root.Destroy()
	files, client, err := issueCertificates()
	if err != nil {
		return err
	}
	defer files.wipe()
	if files[rootKeyEntry], err = h.keep(root); err != nil {
		return err
	}
	files["config/config.yaml"] = bytes.Clone(configYAML) // files are wiped
	return h.install(files, func(staged Home) error { return createStore(staged.path(storeFile), root, registeredAs(client)) })
}

// keep gives the content of root.key for a new home.
func (h Home) keep(root *secret.Buffer) ([]byte, error) {
	k, err := h.newKeeper()
	if err != nil {
		return nil, err
	}
	defer k.destroy()
	return k.format(root)
}

// install puts files, and the store that makeStore adds to them, into an empty
// home.
func (h Home) install(files contents, makeStore func(staged Home) error) error {
	if err := h.refuseExisting(); err != nil {
		return err
	}
	tmp, err := h.stage(files, makeStore)
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	if err := makeFolder(h.ConfigDir()); err != nil {
		return err
	}
	// From here on there is a key manager.
	if err := publishFolder(tmp, h.Dir); err != nil {
		return err
	}
	if err := h.publishConfig(writeNew); err != nil {
		return errors.Join(err, h.takeBack())
	}
	return nil
}

// takeBack removes Dir at once, and what was in it after that.
func (h Home) takeBack() error {
	tmp := durable.TempName(filepath.Clean(h.Dir))
	return errors.Join(os.Rename(h.Dir, tmp), os.RemoveAll(tmp))
}

// resume finishes an Init or Restore that was interrupted when there was a key
// manager already, and tells whether there was one.
func (h Home) resume() (bool, error) {
	if !exists(h.path(unpublishedFolder)) {
		return false, nil
	}
	return true, h.publishConfig(writeSame)
}

// refuseExisting names the first file in the way. An empty Dir is not.
func (h Home) refuseExisting() error {
	if h.ConfigDir() == filepath.Clean(h.Dir) {
		return fmt.Errorf("%s: configuration and key manager need a folder each", h.Dir)
	}
	for _, name := range homeFiles {
		if path := h.place(name); exists(path) {
			return refused(path)
		}
	}
	entries, err := os.ReadDir(h.Dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if len(entries) > 0 {
		return refused(h.path(entries[0].Name()))
	}
	return nil
}

func refused(path string) error {
	return fmt.Errorf("%s: %w: move it away if you are sure that no disk depends on it", path, ErrExists)
}

// stage builds Dir as a temporary folder beside it.
func (h Home) stage(files contents, makeStore func(staged Home) error) (tmp string, err error) {
	if err := makeFolder(filepath.Dir(filepath.Clean(h.Dir))); err != nil {
		return "", err
	}
	tmp, err = durable.MkdirTemp(filepath.Clean(h.Dir), 0o700)
	if err != nil {
		return "", err
	}
	staged := Home{Dir: tmp}
	if err := staged.fill(files, makeStore); err != nil {
		return "", errors.Join(err, os.RemoveAll(tmp))
	}
	return tmp, nil
}

// fill writes the files, those of the configuration into unpublishedFolder.
func (h Home) fill(files contents, makeStore func(staged Home) error) error {
	if err := os.Mkdir(h.path(unpublishedFolder), 0o700); err != nil {
		return err
	}
	for name, data := range files {
		path := h.place(name)
		if filepath.Dir(name) == "config" {
			path = h.unpublished(name)
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			return err
		}
	}
	return makeStore(h)
}

// unpublished gives the place of a file of the configuration while it has not
// got to its own.
func (h Home) unpublished(name string) string {
	return filepath.Join(h.path(unpublishedFolder), filepath.Base(name))
}

// makeFolder makes a folder that is not there, and its parents, durably.
func makeFolder(dir string) error {
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	parent := filepath.Dir(filepath.Clean(dir))
	if err := makeFolder(parent); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return durable.SyncDir(parent)
}

// publishFolder moves tmp to dir, which may be there if it is empty.
func publishFolder(tmp, dir string) error {
	if err := unix.Rmdir(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return &fs.PathError{Op: "replace empty folder", Path: dir, Err: err}
	}
	err := durable.Publish(tmp, filepath.Clean(dir))
	if errors.Is(err, fs.ErrExist) {
		return refused(dir)
	}
	return err
}

// publishConfig writes the configuration's files in the order of homeFiles, and
// takes back what it wrote if one of them fails.
func (h Home) publishConfig(write func(path string, data []byte) error) (err error) {
	var done []string
	defer func() {
		if err != nil {
			removeAll(done)
		}
	}()
	for _, name := range homeFiles {
		if filepath.Dir(name) != "config" {
			continue
		}
		data, err := readSmall(h.unpublished(name))
		if errors.Is(err, fs.ErrNotExist) {
			continue // all were in their places before one went from here
		}
		if err != nil {
			return err
		}
		err = write(h.place(name), data)
		secret.Wipe(data)
		if err != nil {
			return err
		}
		done = append(done, h.place(name))
	}
	return os.RemoveAll(h.path(unpublishedFolder))
}

func removeAll(paths []string) {
	for _, path := range paths {
		os.Remove(path)
	}
}

// writeNew writes a file that must not be there, durably.
func writeNew(path string, data []byte) error {
	p, err := durable.Create(path, 0o600)
	if err != nil {
		return err
	}
	defer p.Abort()
	if _, err := p.Write(data); err != nil {
		return err
	}
	err = p.Publish()
	if errors.Is(err, fs.ErrExist) {
		return refused(path)
	}
	return err
}

// writeSame is writeNew for a file that may be there with the same content.
func writeSame(path string, data []byte) error {
	there, err := readSmall(path)
	if err != nil || !bytes.Equal(there, data) {
		return writeNew(path, data)
	}
	return nil
}

// read loads the files of the home except root.key; they hold keys and must be
// wiped.
func (h Home) read() (_ contents, err error) {
	files := contents{}
	defer func() {
		if err != nil {
			files.wipe()
		}
	}()
	for _, name := range homeFiles {
		if name == rootKeyEntry {
			continue
		}
		data, err := readSmall(h.place(name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		files[name] = data
	}
	return files, nil
}

// Missing gives the paths of certificates and configuration that the home ought
// to have and has not: a backup is made without them.
func (h Home) Missing() []string {
	paths := []string{}
	for _, name := range homeFiles {
		if path := h.place(name); name != rootKeyEntry && !exists(path) {
			paths = append(paths, path)
		}
	}
	return paths
}

// readSmall reads a regular file of at most maxSmallFile bytes into memory
// that holds the only copy.
func readSmall(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxSmallFile {
		return nil, fmt.Errorf("%s: not a file of at most %d bytes", path, maxSmallFile)
	}
	data := make([]byte, info.Size())
	if _, err := io.ReadFull(f, data); err != nil {
		secret.Wipe(data)
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return data, nil
}
