package kms

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/vmcrypt/vmcrypt/internal/durable"
)

// NewClient is what AddClient needs to know.
type NewClient struct {
	Name string
	// Request is a certificate signing request in PEM, of which only the public
	// key is taken. Without one, a key is made.
	Request []byte
	// Dir gets NAME.pem, NAME-ca.pem and, unless there was a request, NAME.key
	// (mode 0600). None of them may be there.
	Dir string
	// Replace gives a client that there is a new certificate; the one it had
	// works no more.
	Replace bool
}

// AddClient issues the certificate of a client. It fails with ErrClientExists,
// with Replace ErrNoClient, or ErrClientName.
func (h Home) AddClient(ctx context.Context, n NewClient) (*Client, error) {
	if !clientNames.MatchString(n.Name) {
		return nil, fmt.Errorf("%q: %w", n.Name, ErrClientName)
	}
	ca, err := h.authority()
	if err != nil {
		return nil, err
	}
	cert, files, err := ca.issueClient(n)
	if err != nil {
		return nil, err
	}
	defer files.wipe()
	staged, err := files.stageIn(n.Dir)
	if err != nil {
		return nil, err
	}
	defer staged.abort()
	c := registeredAs(cert)
	err = h.administer(ctx,
		func(s *server) error { return s.addClient(c, n.Replace) },
		func() error { return h.order(ctx, "/clients/add", addition{c, n.Replace}) })
	if err != nil {
		return nil, err
	}
	return &c.Client, staged.publish()
}

// issueClient gives the certificate and the files of a client.
func (id *identity) issueClient(n NewClient) (*x509.Certificate, contents, error) {
	t := leafTemplate(n.Name, x509.ExtKeyUsageClientAuth)
	files := contents{n.Name + "-ca.pem": id.certPEM()}
	if n.Request != nil {
		key, err := publicKey(n.Request)
		if err != nil {
			return nil, nil, fmt.Errorf("certificate signing request: %w", err)
		}
		cert, err := id.sign(t, key)
		if err != nil {
			return nil, nil, err
		}
		files[n.Name+".pem"] = (&identity{cert: cert}).certPEM()
		return cert, files, nil
	}
	made, err := issue(t, id)
	if err != nil {
		return nil, nil, err
	}
	files[n.Name+".pem"] = made.certPEM()
	files[n.Name+".key"], err = made.keyPEM()
	return made.cert, files, err
}

// stagedFiles are written but have no names yet.
type stagedFiles []*durable.Pending

// stageIn writes files into a folder, which it makes if it must, up to the point from which on little can
// go wrong.
func (c contents) stageIn(dir string) (staged stagedFiles, err error) {
	defer func() {
		if err != nil {
			staged.abort()
		}
	}()
	if err := makeFolder(filepath.Clean(dir)); err != nil {
		return nil, err
	}
	for name, data := range c {
		path := filepath.Join(dir, name)
		if exists(path) {
			return staged, &fs.PathError{Op: "create", Path: path, Err: fs.ErrExist}
		}
		p, err := durable.Create(path, 0o600)
		if err != nil {
			return staged, err
		}
		staged = append(staged, p)
		if _, err := p.Write(data); err != nil {
			return staged, err
		}
	}
	return staged, nil
}

func (s stagedFiles) publish() error {
	for _, p := range s {
		if err := p.Publish(); err != nil {
			return fmt.Errorf("the client is registered, but not all of its files are there; have its certificate replaced: %w", err)
		}
	}
	return nil
}

func (s stagedFiles) abort() {
	for _, p := range s {
		p.Abort()
	}
}

// RevokeClient ends the access of a client at once, on open connections too. It
// fails with ErrNoClient.
func (h Home) RevokeClient(ctx context.Context, name string) error {
	return h.administer(ctx,
		func(s *server) error { return s.revokeClient(name) },
		func() error { return h.order(ctx, "/clients/revoke", name) })
}

// Clients lists all clients there ever were, by name.
func (h Home) Clients(ctx context.Context) ([]Client, error) {
	s, running, err := h.access(ctx, forReading)
	if err != nil {
		return nil, err
	}
	if running != nil {
		var all []Client
		return all, h.fetch(ctx, "/clients", &all)
	}
	r, err := newRegistry(s)
	if err := errors.Join(err, s.close()); err != nil {
		return nil, err
	}
	return r.list(), nil
}

// administer has something done here, or else by the server that runs.
func (h Home) administer(ctx context.Context, here func(*server) error, there func() error) error {
	s, running, err := h.access(ctx, forWriting)
	if err != nil {
		return err
	}
	if running != nil {
		return there()
	}
	srv, err := h.newOffice(s)
	if err != nil {
		return errors.Join(err, s.close())
	}
	return errors.Join(here(srv), srv.close())
}
