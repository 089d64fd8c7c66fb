package kms

import (
	"bytes"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/vmcrypt/vmcrypt/internal/secret"
)

const (
	rootKeySize  = 32 // bytes
	rootKeyMagic = "vmcrypt-kms-root-key-1\n"
)

// formatRootKey gives the text of root.key: the magic line, then the key as 64
// lower-case hexadecimal digits and a line feed.
func formatRootKey(root *secret.Buffer) []byte {
	text := make([]byte, len(rootKeyMagic)+2*rootKeySize+1)
	n := copy(text, rootKeyMagic)
	n += hex.Encode(text[n:], root.Bytes())
	text[n] = '\n'
	return text
}

// parseRootKey reads what formatRootKey wrote and accepts nothing else.
func parseRootKey(text []byte) (*secret.Buffer, error) {
	digits, ok := bytes.CutPrefix(text, []byte(rootKeyMagic))
	if !ok || len(digits) != 2*rootKeySize+1 || digits[2*rootKeySize] != '\n' {
		return nil, fmt.Errorf("%w: not a root key file", ErrDamaged)
	}
	root, err := secret.New(rootKeySize)
	if err != nil {
		return nil, err
	}
	_, err = hex.Decode(root.Bytes(), digits[:2*rootKeySize])
	again := formatRootKey(root)
	defer secret.Wipe(again)
	if err != nil || subtle.ConstantTimeCompare(again, text) == 0 {
		root.Destroy()
		return nil, fmt.Errorf("%w: not a root key file", ErrDamaged) // err quotes the key
	}
	return root, nil
}

// rootKey reads root.key, which nobody but its owner may be able to read.
func (h Home) rootKey() (*secret.Buffer, error) {
	path := h.path(rootKeyFile)
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s is gone: without it the keys in %s cannot be read: %w", path, h.path(storeFile), err)
	}
	if err != nil {
		return nil, err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s: others may access it (mode %04o): run chmod 600", path, info.Mode().Perm())
	}
	text, err := readSmall(path)
	if err != nil {
		return nil, err
	}
	defer secret.Wipe(text)
	root, err := parseRootKey(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return root, nil
}
