package kms

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"
)

// The errors of the registry of clients.
var (
	// ErrClientExists: there is a client of that name.
	ErrClientExists = errors.New("a client of that name exists")
	// ErrNoClient: there is none.
	ErrNoClient = errors.New("no such client")
	// ErrClientName: the name cannot be a client's.
	ErrClientName = errors.New("a client's name has 1 to 64 letters, digits and . _ - @, the first of them a letter or digit")
)

// Client is an identity: whoever holds the key of its certificate can use the
// objects made under its name. It has one certificate at a time.
type Client struct {
	Name string `json:"name"`
	// Serial is the certificate's serial number, in hexadecimal. It is empty for
	// the first client of a key manager from before there was a registry.
	Serial  string     `json:"serial"`
	Since   time.Time  `json:"since"`
	Until   time.Time  `json:"until"`             // when the certificate ends
	Revoked *time.Time `json:"revoked,omitempty"` // when it was revoked; it never works again
}

// registered is a client as the store knows it.
type registered struct {
	Client
	Certificate string `json:"certificate,omitempty"` // SHA-256, in hexadecimal
}

// registeredAs gives the entry of a certificate.
func registeredAs(cert *x509.Certificate) registered {
	return registered{Certificate: fingerprint(cert), Client: Client{
		Name:   cert.Subject.CommonName,
		Serial: fmt.Sprintf("%x", cert.SerialNumber),
		Since:  time.Now().UTC().Truncate(time.Second),
		Until:  cert.NotAfter.UTC(),
	}}
}

func fingerprint(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.Raw)
	return hex.EncodeToString(sum[:])
}

// firstClient is the one client of stores of schema 1, which have no registry.
// Their certificate authority has signed one certificate for clients, which may
// have been moved anywhere since.
var firstClient = registered{Client: Client{Name: clientName}}

var clientNames = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$`)

// registry holds the clients of a store that is open. Changes are in the store
// before they take effect.
type registry struct {
	store   *store
	mu      sync.RWMutex
	clients map[string]registered
}

func newRegistry(s *store) (*registry, error) {
	r := &registry{store: s}
	return r, r.load()
}

func (r *registry) load() error {
	return r.store.view(func(t *tx) (err error) {
		r.clients, err = t.clients()
		return err
	})
}

// clients reads the registry.
func (t *tx) clients() (map[string]registered, error) {
	notes, err := t.notes(clientsBucket)
	if err != nil {
		return nil, err
	}
	all := map[string]registered{}
	for _, n := range notes {
		var c registered
		if err := json.Unmarshal(n.Value, &c); err != nil {
			return nil, fmt.Errorf("client %q: %w: %v", n.Name, ErrDamaged, err)
		}
		all[n.Name] = c
	}
	return all, nil
}

func (t *tx) putClient(c registered) error { return t.putNote(clientsBucket, c.Name, c) }

// list gives the clients in the order of their names.
func (r *registry) list() []Client {
	r.mu.RLock()
	defer r.mu.RUnlock()
	out := make([]Client, 0, len(r.clients))
	for _, c := range r.clients {
		out = append(out, c.Client)
	}
	slices.SortFunc(out, func(a, b Client) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// add registers a client. One of that name must not be there, or it must be if
// it is to be replaced.
func (r *registry) add(c registered, replace bool) error {
	return r.change(c.Name, func(_ registered, there bool) (registered, error) {
		switch {
		case there && !replace:
			return c, fmt.Errorf("%w: %s", ErrClientExists, c.Name)
		case !there && replace:
			return c, fmt.Errorf("%w: %s", ErrNoClient, c.Name)
		}
		return c, nil
	})
}

// revoke ends a client's certificate for ever.
func (r *registry) revoke(name string) error {
	return r.change(name, func(c registered, there bool) (registered, error) {
		if !there {
			return c, fmt.Errorf("%w: %s", ErrNoClient, name)
		}
		if c.Revoked == nil {
			now := time.Now().UTC().Truncate(time.Second)
			c.Revoked = &now
		}
		return c, nil
	})
}

// change replaces an entry with what fn makes of it.
func (r *registry) change(name string, fn func(c registered, there bool) (registered, error)) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	old, there := r.clients[name]
	c, err := fn(old, there)
	if err != nil {
		return err
	}
	if err := r.store.update(func(t *tx) error { return t.putClient(c) }); err != nil {
		return err
	}
	r.clients = maps.Clone(r.clients)
	r.clients[name] = c
	return nil
}

// notAdmitted is the error of a client that gets no access.
type notAdmitted struct{ client, why string }

func (e *notAdmitted) Error() string { return fmt.Sprintf("client %q: %s", e.client, e.why) }

// admit tells why a certificate, which the authority has signed, gives no
// access; nil if it does.
func (r *registry) admit(cert *x509.Certificate) error {
	r.mu.RLock()
	c, there := r.clients[cert.Subject.CommonName]
	r.mu.RUnlock()
	var why string
	switch {
	case !there:
		why = "there is none of that name"
	case c.Revoked != nil:
		why = "revoked"
	case c.Certificate != "" && c.Certificate != fingerprint(cert):
		why = "not its certificate, or not any more"
	case time.Now().After(cert.NotAfter):
		why = "its certificate has ended"
	default:
		return nil
	}
	return &notAdmitted{cert.Subject.CommonName, why}
}
