package page

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/vmcrypt/vmcrypt/internal/durable"
)

// Token is what opens a page on a TCP port, which every user of the host can connect to:
// 256 random bits in hexadecimal digits. Only its digest is kept.
type Token struct {
	File   string // that has it
	digest [sha256.Size]byte
}

const tokenBits = 256

// OpenToken reads the token in a file, which it makes if there is none. Its owner and the
// group can read it, or the owner alone, if the group is negative. A file that others can
// read, or with something else in it, is refused. The folder must be one that nobody else
// can change.
func OpenToken(path string, group int) (*Token, error) {
	text, err := readToken(path)
	if errors.Is(err, fs.ErrNotExist) {
		text, err = makeToken(path)
	}
	if err != nil {
		return nil, err
	}
	if err := share(path, group); err != nil {
		return nil, err
	}
	return &Token{path, sha256.Sum256(text)}, nil
}

// share has the members of a group read a file; nobody but its owner, if there is none.
func share(path string, group int) error {
	if group < 0 {
		return os.Chmod(path, 0o600)
	}
	return errors.Join(os.Chown(path, -1, group), os.Chmod(path, 0o640)) //nolint:gosec // as is said above
}

func makeToken(path string) ([]byte, error) {
	random := make([]byte, tokenBits/8)
	_, _ = rand.Read(random) // it never fails
	text := hex.AppendEncode(nil, random)
	return text, durable.WriteFile(path, append(text, '\n'), 0o600)
}

func readToken(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Mode().Perm()&0o037 != 0 {
		return nil, fmt.Errorf("%s has the mode %v, by which others may know the token: remove it to get a new one", path, info.Mode())
	}
	text, err := io.ReadAll(io.LimitReader(f, tokenBits))
	if err != nil {
		return nil, err
	}
	return parseToken(path, text)
}

// parseToken refuses, above all, an empty file, which would let everybody in.
func parseToken(path string, text []byte) ([]byte, error) {
	const digits = tokenBits / 4
	if len(text) == digits+1 && text[digits] == '\n' {
		text = text[:digits]
	}
	if _, err := hex.Decode(make([]byte, tokenBits), text); err != nil || len(text) != digits {
		return nil, fmt.Errorf("%s has no token of %d hexadecimal digits: remove it to get a new one", path, digits)
	}
	return text, nil
}

// is tells, in a time that says nothing of the token, whether the text is it.
func (t *Token) is(text string) bool {
	digest := sha256.Sum256([]byte(text))
	return subtle.ConstantTimeCompare(t.digest[:], digest[:]) == 1
}
