package kek

import (
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

// locatePage is how many keys are asked for at a time.
const locatePage = 1000

// List tells of the AES-256 keys that a key manager of the cluster has for this client,
// except of those that are destroyed. The first that answers is asked.
func (c *Cluster) List(ctx context.Context) ([]KeyInfo, error) {
	list := func(ctx context.Context, s *session) ([]KeyInfo, error) {
		ids, err := s.locateAll(ctx)
		if err != nil {
			return nil, err
		}
		return s.describeAll(ctx, ids)
	}
	return ask(ctx, c, list, func([]KeyInfo) {})
}

// AnyKey gives the ID of an active key that the cluster has for this client, always the
// same where the key managers keep their order. ErrNotFound if there is none.
func (c *Cluster) AnyKey(ctx context.Context) (string, error) {
	find := func(ctx context.Context, s *session) (string, error) {
		active := kmipwire.Attribute{AttributeName: kmipwire.AttrState, AttributeValue: kmip14.StateActive}
		ids, err := s.locateKeys(ctx, kmipwire.LocateRequest{MaximumItems: 1, Attribute: append(kekAttributes(), active)})
		if err != nil {
			return "", err
		}
		if len(ids) == 0 {
			return "", fmt.Errorf("%w that is active", ErrNotFound)
		}
		return ids[0], nil
	}
	return ask(ctx, c, find, func(string) {})
}

// Revoke takes a key out of use: nothing more can be wrapped under it, and what is can
// still be unwrapped. Compromised says that others may know it. It succeeds for a key
// that is revoked already.
func (c *Cluster) Revoke(ctx context.Context, id string, compromised bool) error {
	reason := kmip14.RevocationReasonCodeCessationOfOperation
	if compromised {
		reason = kmip14.RevocationReasonCodeKeyCompromise
	}
	req := kmipwire.RevokeRequest{
		UniqueIdentifier: id, RevocationReason: kmipwire.RevocationReason{RevocationReasonCode: reason},
	}
	return c.change(ctx, id, func(ctx context.Context, s *session) error {
		err := s.call(ctx, kmip14.OperationRevoke, req, new(kmipwire.RevokeResponse))
		if err == nil {
			return nil
		}
		state, stateErr := s.state(ctx, id)
		if stateErr == nil && (state == Compromised || state == Deactivated && !compromised) {
			return nil // perhaps the answer to an earlier try was lost
		}
		return fmt.Errorf("revoke key %q: %w", id, err)
	})
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
		case state == Active:
			return fmt.Errorf("destroy key %q: %w", id, ErrInUse)
		}
		req := kmipwire.DestroyRequest{UniqueIdentifier: id}
		if err := s.call(ctx, kmip14.OperationDestroy, req, new(kmipwire.DestroyResponse)); err != nil {
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

// locateAll finds all keys that can be KEKs. From a server that can't give them part by
// part, since that came with KMIP 1.3, it takes what it gives at once.
func (s *session) locateAll(ctx context.Context) (all []string, err error) {
	req := kmipwire.LocateRequest{Attribute: kekAttributes()}
	if s.version.ProtocolVersionMinor < 3 {
		return s.locateKeys(ctx, req)
	}
	req.MaximumItems = locatePage
	for {
		ids, err := s.locateKeys(ctx, req)
		if err != nil {
			return nil, err
		}
		all = append(all, ids...)
		if req.OffsetItems = len(all); len(ids) < locatePage {
			return all, nil
		}
	}
}

func (s *session) locateKeys(ctx context.Context, req kmipwire.LocateRequest) ([]string, error) {
	var resp kmipwire.LocateResponse
	if err := s.call(ctx, kmip14.OperationLocate, req, &resp); err != nil {
		return nil, fmt.Errorf("locate keys: %w", err)
	}
	for _, id := range resp.UniqueIdentifier {
		if err := checkID(id); err != nil {
			return nil, fmt.Errorf("locate keys: %w: %w", errProtocol, err)
		}
	}
	return resp.UniqueIdentifier, nil
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

func (s *session) describe(ctx context.Context, id string) (KeyInfo, error) {
	info := KeyInfo{ID: id}
	req := kmipwire.GetAttributesRequest{
		UniqueIdentifier: id,
		AttributeName:    []string{kmipwire.AttrState, kmipwire.AttrName, kmipwire.AttrInitialDate},
	}
	var resp kmipwire.GetAttributesResponse
	if err := s.call(ctx, kmip14.OperationGetAttributes, req, &resp); err != nil {
		return info, err
	}
	if err := sameID(resp.UniqueIdentifier, id); err != nil {
		return info, err
	}
	for _, a := range resp.Attribute {
		if err := info.take(a); err != nil {
			return info, err
		}
	}
	return info, nil
}

func (k *KeyInfo) take(a kmipwire.Attribute) (err error) {
	switch a.AttributeName {
	case kmipwire.AttrState:
		k.State, err = parseState(a.AttributeValue)
	case kmipwire.AttrInitialDate:
		k.Created, _ = a.AttributeValue.(time.Time)
	case kmipwire.AttrName:
		var name kmipwire.Name
		if k.Name == "" && kmipwire.UnmarshalPayload(a.AttributeValue, &name) == nil {
			k.Name = name.NameValue
		}
	}
	return err
}
