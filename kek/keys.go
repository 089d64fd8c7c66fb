package kek

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/gemalto/kmip-go/kmip14"

	"github.com/vmcrypt/vmcrypt/internal/kmipwire"
)

// KeyInfo is what a key manager tells of a key besides its bytes.
type KeyInfo struct {
	ID      string
	Name    string    // the first that it has; may be empty
	State   State     // as the key manager has it
	Created time.Time // zero if the key manager does not tell
}

const (
	locatePage = 1000    // how many keys are asked for at a time
	maxLocated = 250_000 // how many a server may have: one that always finds more would fill the memory
)

// List tells of the AES-256 keys that a key manager of the cluster has for this client,
// except of those that are destroyed. The first that answers is asked.
func (c *Cluster) List(ctx context.Context) ([]KeyInfo, error) {
	list := func(ctx context.Context, s *session) ([]KeyInfo, error) {
		ids, err := s.locateAll(ctx, kekAttributes())
		if err != nil {
			return nil, err
		}
		return s.describeAll(ctx, ids)
	}
	return ask(ctx, c, list, func([]KeyInfo) {})
}

// Revoke takes a key out of use: nothing more can be wrapped under it, and what is can
// still be unwrapped. Compromised says that others may know it. It succeeds for a key
// that is revoked already. ErrDestroyed: it is destroyed, which some servers call ErrNotFound.
func (c *Cluster) Revoke(ctx context.Context, id string, compromised bool) error {
	reason := kmip14.RevocationReasonCodeCessationOfOperation
	if compromised {
		reason = kmip14.RevocationReasonCodeKeyCompromise
	}
	req := kmipwire.RevokeRequest{
		UniqueIdentifier: id, RevocationReason: kmipwire.RevocationReason{RevocationReasonCode: reason},
	}
	return c.change(ctx, id, func(ctx context.Context, s *session) error {
		var resp kmipwire.RevokeResponse
		err := s.call(ctx, kmip14.OperationRevoke, req, &resp)
		if err == nil {
			err = sameID(resp.UniqueIdentifier, id)
		} else {
			err = s.clarifyRevoked(ctx, id, compromised, err)
		}
		if err != nil {
			return fmt.Errorf("revoke key %q: %w", id, err)
		}
		return nil
	})
}

// clarifyRevoked asks for the state of a key that a server has refused to revoke: perhaps
// it was already, and the answer to that was lost.
func (s *session) clarifyRevoked(ctx context.Context, id string, compromised bool, err error) error {
	if _, refused := errors.AsType[*refusal](err); !refused {
		return err
	}
	state, stateErr := s.state(ctx, id)
	switch {
	case errors.Is(stateErr, ErrDestroyed):
		return stateErr
	case state == Compromised, state == Deactivated && !compromised:
		return nil
	}
	return err
}

// Destroy has the bytes of a key deleted, for ever. It succeeds for a key that is
// destroyed already. ErrInUse: the key is active.
func (c *Cluster) Destroy(ctx context.Context, id string) error {
	return c.change(ctx, id, func(ctx context.Context, s *session) error {
		switch state, err := s.state(ctx, id); {
		case errors.Is(err, ErrDestroyed):
			return nil
		case err != nil:
			return fmt.Errorf("get state of key %q: %w", id, err)
		case state == Active, state == Expired:
			return fmt.Errorf("destroy key %q: %w", id, ErrInUse)
		}
		var resp kmipwire.DestroyResponse
		err := s.call(ctx, kmip14.OperationDestroy, kmipwire.DestroyRequest{UniqueIdentifier: id}, &resp)
		if err == nil {
			err = sameID(resp.UniqueIdentifier, id)
		}
		if err != nil {
			return fmt.Errorf("destroy key %q: %w", id, err)
		}
		return nil
	})
}

// ErrInUse means that a key that is active can't be destroyed.
var ErrInUse = errors.New("the key is active")

// change has the first key manager change something that answers. One that knows no such
// key may be late, so that the next is asked.
func (c *Cluster) change(ctx context.Context, id string, do func(context.Context, *session) error) error {
	if err := checkID(id); err != nil {
		return fmt.Errorf("alias %q: %w: %w", c.alias, ErrNotFound, err)
	}
	var faults []*fault
	for _, site := range c.order() {
		for _, s := range site {
			err := c.changeAt(ctx, s, do)
			if err == nil {
				return nil
			}
			f := c.diagnose(s.Address, err)
			faults = append(faults, f)
			if f.answered && !errors.Is(err, ErrNotFound) || ctx.Err() != nil {
				return c.explain(ctx, faults...)
			}
		}
	}
	return c.explain(ctx, faults...)
}

func (c *Cluster) changeAt(ctx context.Context, s *server, do func(context.Context, *session) error) error {
	if err := c.pace(ctx); err != nil {
		return err
	}
	_, err := work(ctx, s, func(ctx context.Context, conn *session) (struct{}, error) { return struct{}{}, do(ctx, conn) })
	return err
}

// kekAttributes are those by which keys are found that can be KEKs.
func kekAttributes() []kmipwire.Attribute {
	return []kmipwire.Attribute{
		{AttributeName: kmipwire.AttrObjectType, AttributeValue: kmip14.ObjectTypeSymmetricKey},
		{AttributeName: kmipwire.AttrCryptographicAlgorithm, AttributeValue: kmip14.CryptographicAlgorithmAES},
		{AttributeName: kmipwire.AttrCryptographicLength, AttributeValue: int32(8 * keySize)},
	}
}

// locateAll finds all keys that have the attributes. From a server that can't give them part by
// part, since that came with KMIP 1.3 or it heeds no offset, it takes what it gives at once.
func (s *session) locateAll(ctx context.Context, attributes []kmipwire.Attribute) (all []string, err error) {
	whole := kmipwire.LocateRequest{Attribute: attributes}
	if s.version.ProtocolVersionMinor < 3 {
		all, _, err = s.locateKeys(ctx, whole)
		return all, err
	}
	part, seen := whole, map[string]bool{}
	part.MaximumItems = locatePage
	for {
		ids, total, err := s.locateKeys(ctx, part)
		if err != nil {
			return nil, err
		}
		before := len(all)
		all = appendNew(all, seen, ids)
		part.OffsetItems += len(ids)
		if len(all) > maxLocated {
			return nil, fmt.Errorf("locate keys: %w: there are more than %d", errProtocol, maxLocated)
		}
		switch isNew := len(all) > before; {
		case isNew && (len(ids) >= locatePage || part.OffsetItems < total): // it may give fewer than it is asked for
		case !isNew && len(ids) == locatePage: // the same again
			all, _, err = s.locateKeys(ctx, whole)
			return all, err
		default:
			return all, nil
		}
	}
}

// appendNew appends those that were not seen before: a key that is made while others are
// listed may move them.
func appendNew(all []string, seen map[string]bool, ids []string) []string {
	for _, id := range ids {
		if !seen[id] {
			seen[id] = true
			all = append(all, id)
		}
	}
	return all
}

// locateKeys gives the keys that are asked for, and how many there are in all, or 0 if the
// server does not say.
func (s *session) locateKeys(ctx context.Context, req kmipwire.LocateRequest) (ids []string, total int, err error) {
	var resp kmipwire.LocateResponse
	if err := s.call(ctx, kmip14.OperationLocate, req, &resp); err != nil {
		return nil, 0, fmt.Errorf("locate keys: %w", err)
	}
	for _, id := range resp.UniqueIdentifier {
		if err := checkID(id); err != nil {
			return nil, 0, fmt.Errorf("locate keys: %w: %w", errProtocol, err)
		}
	}
	if resp.LocatedItems != nil {
		total = *resp.LocatedItems
	}
	return resp.UniqueIdentifier, total, nil
}

// describeAll leaves out keys that are destroyed, perhaps meanwhile.
func (s *session) describeAll(ctx context.Context, ids []string) (all []KeyInfo, err error) {
	for _, id := range ids {
		info, err := s.describe(ctx, id)
		switch {
		case errors.Is(err, ErrDestroyed), errors.Is(err, ErrNotFound):
			continue
		case err != nil:
			return nil, fmt.Errorf("get attributes of key %q: %w", id, err)
		}
		all = append(all, info)
	}
	return all, nil
}

// describing are the attributes that KeyInfo is made of.
var describing = append([]string{kmipwire.AttrName, kmipwire.AttrInitialDate}, stateAttributes...)

func (s *session) describe(ctx context.Context, id string) (KeyInfo, error) {
	attributes, err := s.attributes(ctx, id, describing)
	if err != nil {
		return KeyInfo{}, err
	}
	return keyInfo(id, attributes)
}

func keyInfo(id string, attributes []kmipwire.Attribute) (info KeyInfo, err error) {
	info.ID = id
	for _, a := range attributes {
		info.take(a)
	}
	info.State, err = stateOf(attributes)
	return info, err
}

func (k *KeyInfo) take(a kmipwire.Attribute) {
	if a.AttributeName == kmipwire.AttrInitialDate {
		k.Created, _ = a.AttributeValue.(time.Time)
	}
	k.Name = cmp.Or(k.Name, nameOf(a))
}

// nameOf is the name that an attribute gives a key; empty if it is another attribute.
func nameOf(a kmipwire.Attribute) string {
	var name kmipwire.Name
	if a.AttributeName != kmipwire.AttrName || kmipwire.UnmarshalPayload(a.AttributeValue, &name) != nil {
		return ""
	}
	return name.NameValue
}
