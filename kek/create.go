package kek

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/gemalto/kmip-go/kmip14"
	"github.com/google/uuid"

	"github.com/vmcrypt/vmcrypt/internal/kmipwire"
)

// Create has a key manager make an AES-256 key for encryption and decryption,
// activates it and fetches it. Its Name there is vmcrypt-kek- and a UUID, so
// that no two are alike.
//
// Where it is not clear whether a server has made the key, the others are asked for its
// name. If none has it, another one is made, under another name: the first, should it come
// to be all the same, is used by nobody.
func (c *Cluster) Create(ctx context.Context) (*Key, error) {
	var faults []*fault
	for _, site := range c.order() {
		for _, s := range site {
			key, err := c.createAt(ctx, s)
			if err == nil {
				return key, nil
			}
			faults = append(faults, c.diagnose(s.Address, err))
			if ctx.Err() != nil {
				return nil, c.explain(ctx, faults...)
			}
		}
	}
	return nil, c.explain(ctx, faults...)
}

// createAt has one server make a key, unless it turns out that others have it.
func (c *Cluster) createAt(ctx context.Context, s *server) (*Key, error) {
	if err := c.pace(ctx); err != nil {
		return nil, err
	}
	conn, err := s.takeNew(ctx)
	if err != nil {
		return nil, err
	}
	name := newName()
	key, err := conn.create(ctx, name)
	s.done(ctx, conn, err)
	if _, isUnclear := errors.AsType[*unclear](err); !isUnclear || ctx.Err() != nil {
		return key, err
	}
	find := func(ctx context.Context, conn *session) (*Key, error) { return conn.find(ctx, name) }
	if key, notFound := ask(ctx, c, find, (*Key).Destroy); notFound == nil {
		return key, nil
	}
	return nil, err
}

// unclear is the failure of an operation that may have been carried out.
type unclear struct{ err error }

func (u *unclear) Error() string { return u.err.Error() }

func (u *unclear) Unwrap() error { return u.err }

// create makes a key, activates it and fetches it.
func (s *session) create(ctx context.Context, name string) (*Key, error) {
	req := kmipwire.CreateRequest{
		ObjectType:        kmip14.ObjectTypeSymmetricKey,
		TemplateAttribute: kmipwire.TemplateAttribute{Attribute: newKeyAttributes(name)},
	}
	var resp kmipwire.CreateResponse
	if err := s.call(ctx, kmip14.OperationCreate, req, &resp); err != nil {
		return nil, fmt.Errorf("create key: %w", orUnclear(err))
	}
	id := resp.UniqueIdentifier
	if err := checkID(id); err != nil {
		return nil, &unclear{fmt.Errorf("create key: %w: %w", errProtocol, err)}
	}
	if err := s.activate(ctx, id); err != nil {
		return nil, orUnclear(err)
	}
	key, err := s.usable(ctx, id)
	if err != nil {
		return nil, orUnclear(err) // others may give it
	}
	return key, nil
}

// orUnclear tells a refusal, after which nothing was done, from other errors.
func orUnclear(err error) error {
	if _, refused := errors.AsType[*refusal](err); refused {
		return err
	}
	return &unclear{err}
}

// usable fetches a key that others may be wrapped under.
func (s *session) usable(ctx context.Context, id string) (*Key, error) {
	key, err := s.get(ctx, id)
	if err != nil {
		return nil, err
	}
	if err := key.Usable(); err != nil {
		key.Destroy()
		return nil, err
	}
	return key, nil
}

func (s *session) activate(ctx context.Context, id string) error {
	var resp kmipwire.ActivateResponse
	err := s.call(ctx, kmip14.OperationActivate, kmipwire.ActivateRequest{UniqueIdentifier: id}, &resp)
	if err == nil {
		err = sameID(resp.UniqueIdentifier, id)
	}
	if err != nil {
		return fmt.Errorf("activate key %q: %w", id, err)
	}
	return nil
}

// find fetches the key of a name, and activates it if it is not. The error is ErrNotFound
// if there is none.
func (s *session) find(ctx context.Context, name string) (*Key, error) {
	id, err := s.locate(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("look for key %q: %w", name, err)
	}
	state, err := s.stateOfNamed(ctx, id, name)
	if err == nil && state == PreActive {
		err = s.activate(ctx, id)
	}
	if err != nil {
		return nil, err
	}
	return s.usable(ctx, id)
}

// stateOfNamed asks for the state of a key, which must have a name: a server that heeds no
// names gives the one key that it has, which others may use, for any of them.
func (s *session) stateOfNamed(ctx context.Context, id, name string) (State, error) {
	attributes, err := s.attributes(ctx, id, describing)
	if err != nil {
		return "", err
	}
	if !slices.ContainsFunc(attributes, func(a kmipwire.Attribute) bool { return nameOf(a) == name }) {
		return "", fmt.Errorf("look for key %q: %w: key %q has another name", name, errProtocol, id)
	}
	return stateOf(attributes)
}

// locate gives the Unique Identifier of the one key of a name.
func (s *session) locate(ctx context.Context, name string) (string, error) {
	req := kmipwire.LocateRequest{Attribute: []kmipwire.Attribute{nameAttribute(name)}}
	var resp kmipwire.LocateResponse
	if err := s.call(ctx, kmip14.OperationLocate, req, &resp); err != nil {
		return "", err
	}
	switch ids := resp.UniqueIdentifier; len(ids) {
	case 0:
		return "", ErrNotFound
	case 1:
		return ids[0], checkID(ids[0])
	}
	return "", fmt.Errorf("%w: several keys have this name", errProtocol)
}

func newName() string { return "vmcrypt-kek-" + uuid.NewString() }

func newKeyAttributes(name string) []kmipwire.Attribute {
	return []kmipwire.Attribute{
		{AttributeName: kmipwire.AttrCryptographicAlgorithm, AttributeValue: kmip14.CryptographicAlgorithmAES},
		{AttributeName: kmipwire.AttrCryptographicLength, AttributeValue: int32(8 * keySize)},
		{
			AttributeName:  kmipwire.AttrCryptographicUsageMask,
			AttributeValue: kmip14.CryptographicUsageMaskEncrypt | kmip14.CryptographicUsageMaskDecrypt,
		},
		nameAttribute(name),
	}
}

func nameAttribute(name string) kmipwire.Attribute {
	return kmipwire.Attribute{AttributeName: kmipwire.AttrName, AttributeValue: kmipwire.Name{
		NameValue: name, NameType: kmip14.NameTypeUninterpretedTextString,
	}}
}
