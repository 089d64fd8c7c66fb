package kms

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"

	streaming "github.com/tink-crypto/tink-go/v2/streamingaead/subtle"

	"github.com/vmcrypt/vmcrypt/internal/secret"
)

// The format of a backup is described in docs/format.md.
const (
	backupMagic   = "VMCRKMSB"
	backupVersion = 1
	headerSize    = 8 + 4 + kdfSize + sha256.Size
	segmentSize   = 1 << 20 // bytes of ciphertext
	maxStore      = 4 << 30 // bytes

	manifestEntry = "backup.json"
	storeEntry    = "kms/" + storeFile
)

var backupUse = use{check: "vmcrypt kms backup 1 check", key: "vmcrypt kms backup 1 stream"}

// backupHeader is the plaintext at the start of a backup.
type backupHeader struct{ kdf }

// bytes gives the header as it is written. Its checksum is against damage; what
// authenticates it is the encryption of what follows.
func (h *backupHeader) bytes() []byte {
	b := make([]byte, 0, headerSize)
	b = append(b, backupMagic...)
	b = binary.BigEndian.AppendUint32(b, backupVersion)
	b = h.append(b)
	sum := sha256.Sum256(b)
	return append(b, sum[:]...)
}

// parseBackupHeader accepts exactly what bytes gives.
func parseBackupHeader(b []byte) (*backupHeader, error) {
	if len(b) < headerSize || string(b[:8]) != backupMagic {
		return nil, fmt.Errorf("%w: not a backup of a key manager", ErrDamaged)
	}
	if v := binary.BigEndian.Uint32(b[8:]); v != backupVersion {
		return nil, fmt.Errorf("%w %d of the backup: this version of vmcrypt knows %d", ErrVersion, v, backupVersion)
	}
	h := &backupHeader{parseKDF(b[12 : 12+kdfSize])}
	if !bytes.Equal(h.bytes(), b[:headerSize]) {
		return nil, fmt.Errorf("%w: the header's checksum does not match", ErrDamaged)
	}
	return h, h.Cost.check()
}

// encodeBackup writes header and encrypted archive.
func encodeBackup(w io.Writer, a *archive, passphrase *secret.Buffer, cost kdfCost) error {
	derived, key, err := newKDF(cost, passphrase, backupUse)
	if err != nil {
		return err
	}
	defer secret.Wipe(key)
	h := &backupHeader{derived}
	if _, err := w.Write(h.bytes()); err != nil {
		return err
	}
	return encryptArchive(w, a, key, h.bytes())
}

func encryptArchive(w io.Writer, a *archive, key, header []byte) error {
	stream, err := streaming.NewAESGCMHKDF(key, "SHA256", 32, segmentSize, 0)
	if err != nil {
		return err
	}
	enc, err := stream.NewEncryptingWriter(w, header)
	if err != nil {
		return err
	}
	if err := a.writeTar(enc); err != nil {
		return err
	}
	return enc.Close()
}

// decodeBackup reads a backup to its end. The archive must be closed.
func decodeBackup(r io.Reader, passphrase *secret.Buffer) (*archive, error) {
	b := make([]byte, headerSize)
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, fmt.Errorf("%w: too short for a backup: %v", ErrDamaged, err)
	}
	h, err := parseBackupHeader(b)
	if err != nil {
		return nil, err
	}
	key, err := h.open(passphrase, backupUse)
	if err != nil {
		return nil, err
	}
	defer secret.Wipe(key)
	return decryptArchive(r, key, b)
}

func decryptArchive(r io.Reader, key, header []byte) (*archive, error) {
	stream, err := streaming.NewAESGCMHKDF(key, "SHA256", 32, segmentSize, 0)
	if err != nil {
		return nil, err
	}
	dec, err := stream.NewDecryptingReader(r, header)
	if err != nil {
		return nil, fmt.Errorf("%w: cut off after the header: %v", ErrDamaged, err)
	}
	a, err := readTar(dec)
	if err != nil {
		return nil, fmt.Errorf("%w: %v", ErrDamaged, err)
	}
	return a, nil
}

// writeTar writes the manifest, the files and the store.
func (a *archive) writeTar(w io.Writer) error {
	tw := tar.NewWriter(w)
	text, err := json.Marshal(a.manifest)
	if err != nil {
		return err
	}
	if err := writeEntry(tw, manifestEntry, int64(len(text)), bytes.NewReader(text)); err != nil {
		return err
	}
	for _, name := range homeFiles {
		data := a.files[name] // nothing if there is no such file
		if err := writeEntry(tw, name, int64(len(data)), bytes.NewReader(data)); err != nil {
			return err
		}
	}
	content, size := a.store.content()
	if err := writeEntry(tw, storeEntry, size, content); err != nil {
		return err
	}
	return tw.Close()
}

func writeEntry(tw *tar.Writer, name string, size int64, r io.Reader) error {
	h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o600, Format: tar.FormatUSTAR}
	if err := tw.WriteHeader(h); err != nil {
		return err
	}
	_, err := io.Copy(tw, r)
	return err
}

// readTar reads exactly what writeTar wrote, to the end of r.
func readTar(r io.Reader) (_ *archive, err error) {
	a := &archive{files: contents{}}
	defer func() {
		if err != nil {
			a.close()
		}
	}()
	tr := tar.NewReader(r)
	text, err := readEntry(tr, manifestEntry)
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(text, &a.manifest); err != nil {
		return nil, err
	}
	for _, name := range homeFiles {
		data, err := readEntry(tr, name)
		if err != nil {
			return nil, err
		}
		if len(data) > 0 { // an empty one says that there was none
			a.files[name] = data
		}
	}
	if err := a.readStore(tr); err != nil {
		return nil, err
	}
	return a, readEnd(tr, r)
}

func nextEntry(tr *tar.Reader, name string, limit int64) (int64, error) {
	h, err := tr.Next()
	switch {
	case err != nil:
		return 0, fmt.Errorf("%s: %w", name, err)
	case h.Name != name || h.Typeflag != tar.TypeReg:
		return 0, fmt.Errorf("%s is missing", name)
	case h.Size > limit:
		return 0, fmt.Errorf("%s has %d bytes", name, h.Size)
	}
	return h.Size, nil
}

func readEntry(tr *tar.Reader, name string) ([]byte, error) {
	size, err := nextEntry(tr, name, maxSmallFile)
	if err != nil {
		return nil, err
	}
	data := make([]byte, size)
	if _, err := io.ReadFull(tr, data); err != nil {
		secret.Wipe(data)
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return data, nil
}

func (a *archive) readStore(tr *tar.Reader) (err error) {
	if _, err := nextEntry(tr, storeEntry, maxStore); err != nil {
		return err
	}
	if a.store, err = newMemfile(); err != nil {
		return err
	}
	if _, err := io.Copy(a.store, tr); err != nil {
		return fmt.Errorf("%s: %w", storeEntry, err)
	}
	return nil
}

// readEnd makes sure that nothing follows and nothing was cut off: only the end
// of the stream proves the latter.
func readEnd(tr *tar.Reader, r io.Reader) error {
	if _, err := tr.Next(); err != io.EOF {
		return fmt.Errorf("something follows %s: %v", storeEntry, err)
	}
	_, err := io.Copy(io.Discard, r)
	return err
}
