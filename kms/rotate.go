package kms

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"

	"go.etcd.io/bbolt"

	"github.com/vmcrypt/vmcrypt/internal/durable"
	"github.com/vmcrypt/vmcrypt/internal/secret"
)

// nextRootKeyFile holds the root key that is about to take the place of the one
// in root.key. Whoever opens the store tries both.
const nextRootKeyFile = "root.key.next"

var rootKeyFiles = []string{rootKeyFile, nextRootKeyFile}

// RotateRoot makes a new root key and seals everything in the store anew, while
// the key manager serves or not. The new root key is kept as h.RootKey says, or,
// if that is empty, as the old one was, under the same passphrase. Clients
// notice nothing but a short delay of what they change.
//
// Whenever it is interrupted, the store opens: the new root key is on disk, in
// root.key.next, before the one transaction that seals everything under it, and
// takes the place of the old one afterwards.
func (h Home) RotateRoot(ctx context.Context) error {
	var k *keeper
	if h.RootKey != "" {
		var err error
		if k, err = h.newKeeper(); err != nil {
			return err
		}
		defer k.destroy()
	}
	return h.administer(ctx,
		func(s *server) error { return s.rotateRoot(h, k) },
		func() error { return h.askRotation(ctx, k) })
}

// rotate gives an open store a new root key, kept by k or, if that is nil, as
// the old one is.
func (h Home) rotate(s *store, k *keeper) error {
	s.committer.turn <- struct{}{}
	defer func() { <-s.committer.turn }()
	if k == nil {
		k = s.keeper
	}
	if err := h.settleRootKey(s); err != nil {
		return err
	}
	root, err := secret.Random(rootKeySize)
	if err != nil {
		return err
	}
	defer root.Destroy()
	if err := h.writeNext(k, root); err != nil {
		return err
	}
	err = s.rotate(root)
	if err != nil && s.committer.failed == nil { // nothing was sealed under it
		return errors.Join(err, os.Remove(h.path(nextRootKeyFile)))
	}
	if err != nil {
		return err
	}
	s.keyFile = nextRootKeyFile
	if err := s.keepBy(k); err != nil {
		return err
	}
	return h.settleRootKey(s)
}

func (h Home) writeNext(k *keeper, root *secret.Buffer) error {
	text, err := k.format(root)
	if err != nil {
		return err
	}
	defer secret.Wipe(text)
	return durable.WriteForOwner(h.path(nextRootKeyFile), text, 0o600)
}

// settleRootKey ends a rotation, which may have been interrupted: the root key
// that the store is sealed under gets the name root.key, and the other one goes.
// The caller has the committer's turn, or the store to itself.
func (h Home) settleRootKey(s *store) error {
	if s.keyFile != nextRootKeyFile {
		err := os.Remove(h.path(nextRootKeyFile))
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	if err := os.Rename(h.path(nextRootKeyFile), h.path(rootKeyFile)); err != nil {
		return fmt.Errorf("the new root key is in effect, but stays in %s: %w", h.path(nextRootKeyFile), err)
	}
	s.keyFile = rootKeyFile
	return durable.SyncDir(h.Dir)
}

// rotate seals everything anew under root. The caller has the committer's turn.
// Who reads waits for the commit only.
func (s *store) rotate(root *secret.Buffer) error {
	if s.committer.failed != nil {
		return s.committer.failed
	}
	to, err := newSealer(root, s.sealer.store, schemaVersion)
	if err != nil {
		return err
	}
	err = guard(func() error {
		b, err := s.db.Begin(true)
		if err != nil {
			return err
		}
		defer b.Rollback() //nolint:errcheck // it has been committed, mostly
		if err := reseal(b, s.sealer, to); err != nil {
			return err
		}
		return s.exchange(b, to)
	})
	if s.sealer != to {
		to.destroy()
	}
	return err
}

// exchange commits b and with it takes the sealer to into use.
func (s *store) exchange(b *bbolt.Tx, to *sealer) error {
	s.rotation.Lock()
	defer s.rotation.Unlock()
	if err := b.Commit(); err != nil {
		s.committer.failed = fmt.Errorf("%s: the new root key could not be written, and no change will be until the key manager is restarted: %w", s.path, err)
		if !s.sealedUnder(to) {
			return s.committer.failed
		}
	}
	s.sealer.destroy()
	s.sealer = to
	return s.committer.failed
}

// sealedUnder tells whether what can be read is sealed under a sealer's root
// key.
func (s *store) sealedUnder(to *sealer) (is bool) {
	_ = s.db.View(func(b *bbolt.Tx) error {
		is = bytes.Equal(b.Bucket(metaBucket).Get(checkValueKey), to.check)
		return nil
	})
	return is
}

// keepBy takes over a copy of k.
func (s *store) keepBy(k *keeper) error {
	if k == s.keeper {
		return nil
	}
	own, err := parseKeeper(k.bytes())
	if err != nil {
		return err
	}
	s.keeper.destroy()
	s.keeper = own
	return nil
}

// A keeper travels through control.sock as the header of a sealed root.key and
// the key that seals; as nothing if root keys are to be kept bare.

const keeperSize = sealedHeader + rootKeySize

func (k *keeper) bytes() []byte {
	if k.form == RootKeyFile {
		return nil
	}
	return append(k.header(), k.key.Bytes()...)
}

// parseKeeper reads what bytes gave, and wipes it.
func parseKeeper(b []byte) (*keeper, error) {
	defer secret.Wipe(b)
	if len(b) == 0 {
		return &keeper{form: RootKeyFile}, nil
	}
	if len(b) != keeperSize {
		return nil, fmt.Errorf("%d bytes are no way to keep a root key", len(b))
	}
	form, ok := sealedForms[binary.BigEndian.Uint32(b[12:])]
	if !ok {
		return nil, errors.New("the root key cannot be kept in an unknown way")
	}
	key, err := secret.Take(b[sealedHeader:])
	return &keeper{form: form, kdf: parseKDF(b[16:sealedHeader]), key: key}, err
}

// askRotation has the server that runs rotate its root key.
func (h Home) askRotation(ctx context.Context, k *keeper) error {
	path, body := "/rotate-root", []byte(nil)
	if k != nil {
		path, body = "/rotate-root?keep=anew", k.bytes()
		defer secret.Wipe(body)
	}
	answer, err := h.call(ctx, http.MethodPost, path, body)
	if err != nil {
		return err
	}
	return answer.Close()
}

// answerRotation is the server's side of askRotation.
func (h Home) answerRotation(w http.ResponseWriter, r *http.Request, s *server) {
	if err := h.rotateAsAsked(s, r); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
	}
}

func (h Home) rotateAsAsked(s *server, r *http.Request) error {
	if r.URL.Query().Get("keep") == "" {
		return s.rotateRoot(h, nil)
	}
	b, err := io.ReadAll(io.LimitReader(r.Body, keeperSize+1))
	if err != nil {
		return err
	}
	k, err := parseKeeper(b)
	if err != nil {
		return err
	}
	defer k.destroy()
	return s.rotateRoot(h, k)
}
