package kek

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"

	"github.com/gemalto/kmip-go/kmip14"
	"github.com/gemalto/kmip-go/ttlv"

	"github.com/vmcrypt/vmcrypt/internal/kmipwire"
	"github.com/vmcrypt/vmcrypt/internal/secret"
)

const (
	keySize  = 32  // bytes of an AES-256 key
	maxIDLen = 256 // bytes of a Unique Identifier
)

// Key is a key-encryption key in memory.
type Key struct {
	ID       string         // its KMIP Unique Identifier
	State    State          // as the key manager had it when the key was fetched
	Material *secret.Buffer // 32 bytes
}

// State is where a key is in its life (KMIP 1.4, section 3.22).
type State string

// The states that a key can be fetched in.
const (
	PreActive   State = "pre-active"
	Active      State = "active"
	Deactivated State = "deactivated"
	Compromised State = "compromised"
	// Expired is an active key whose time is over by its Protect Stop Date or Deactivation
	// Date (sections 3.26 and 3.27): not every key manager has its state follow these.
	Expired State = "expired"
)

// Destroy wipes the key's bytes here; the key manager keeps its own.
func (k *Key) Destroy() {
	if k != nil {
		k.Material.Destroy()
	}
}

// Usable tells whether data keys may be wrapped under the key: only an active
// one may, others can but unwrap. The error wraps ErrInactive.
func (k *Key) Usable() error {
	if k.State == Active {
		return nil
	}
	return fmt.Errorf("key %q is %s: %w: name an active key, or none to have one made", k.ID, k.State, ErrInactive)
}

// Get fetches the key with the Unique Identifier id, in whatever state it is
// unless that is destroyed: see Key.Usable. A server that does not have it is not
// the last: another may.
func (c *Cluster) Get(ctx context.Context, id string) (*Key, error) {
	if err := checkID(id); err != nil {
		return nil, fmt.Errorf("alias %q: %w: %w", c.alias, ErrNotFound, err)
	}
	return ask(ctx, c, func(ctx context.Context, s *session) (*Key, error) { return s.get(ctx, id) }, (*Key).Destroy)
}

// get fetches a key, and then its state: so the state is no older than the key.
func (s *session) get(ctx context.Context, id string) (*Key, error) {
	material, err := s.material(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("get key %q: %w", id, s.clarify(ctx, id, err))
	}
	state, err := s.state(ctx, id)
	if err != nil {
		material.Destroy()
		return nil, fmt.Errorf("get state of key %q: %w", id, err)
	}
	return &Key{ID: id, State: state, Material: material}, nil
}

// clarify asks for the state of a key that a server has refused to give, since
// servers differ in how they refuse one that is destroyed.
func (s *session) clarify(ctx context.Context, id string, err error) error {
	if _, ok := errors.AsType[*refusal](err); !ok {
		return err
	}
	if _, stateErr := s.state(ctx, id); errors.Is(stateErr, ErrDestroyed) {
		return stateErr
	}
	return err
}

// material fetches the bytes of a key.
func (s *session) material(ctx context.Context, id string) (_ *secret.Buffer, err error) {
	defer s.server.cluster.watch(ctx, s.server.Address, kmip14.OperationGet.String(), time.Now(), &err)
	req := kmipwire.GetRequest{UniqueIdentifier: id, KeyFormatType: kmip14.KeyFormatTypeRaw}
	msg, err := s.ask(ctx, kmip14.OperationGet, req)
	if err != nil {
		return nil, err
	}
	return takeKey(msg, id)
}

// takeKey takes the key with the given ID out of msg, which it wipes.
func takeKey(msg []byte, id string) (*secret.Buffer, error) {
	defer kmipwire.Wipe(msg)
	var resp kmipwire.GetResponse
	if err := decode(msg, kmip14.OperationGet, &resp); err != nil {
		return nil, err
	}
	if err := sameID(resp.UniqueIdentifier, id); err != nil {
		return nil, err
	}
	if err := checkKey(&resp); err != nil {
		return nil, err
	}
	return secret.Take(resp.SymmetricKey.KeyBlock.KeyValue.KeyMaterial)
}

// checkKey tells whether what a server gave is the bytes of an AES-256 key.
func checkKey(resp *kmipwire.GetResponse) error {
	if resp.ObjectType != kmip14.ObjectTypeSymmetricKey || resp.SymmetricKey == nil {
		return fmt.Errorf("%w: it is no symmetric key", ErrUnsuitable)
	}
	b := &resp.SymmetricKey.KeyBlock
	switch {
	case b.KeyWrappingData != nil:
		return fmt.Errorf("%w: the key manager gives it wrapped only", ErrUnsuitable)
	case b.KeyFormatType != kmip14.KeyFormatTypeRaw:
		return fmt.Errorf("%w: the key manager does not give it in the format Raw", ErrUnsuitable)
	case b.CryptographicAlgorithm != kmip14.CryptographicAlgorithmAES:
		return fmt.Errorf("%w: it is for another algorithm", ErrUnsuitable)
	case b.CryptographicLength != 8*keySize:
		return fmt.Errorf("%w: it has %d bits", ErrUnsuitable, b.CryptographicLength)
	case len(b.KeyValue.KeyMaterial) != keySize:
		return fmt.Errorf("%w: %d bytes of key material", ErrUnsuitable, len(b.KeyValue.KeyMaterial))
	}
	return nil
}

// state asks for the state of a key. The error wraps ErrDestroyed when that is
// its state.
func (s *session) state(ctx context.Context, id string) (State, error) {
	attributes, err := s.attributes(ctx, id, stateAttributes)
	if err != nil {
		return "", err
	}
	return stateOf(attributes)
}

// attributes asks for attributes of a key by their names.
func (s *session) attributes(ctx context.Context, id string, names []string) ([]kmipwire.Attribute, error) {
	req := kmipwire.GetAttributesRequest{UniqueIdentifier: id, AttributeName: names}
	var resp kmipwire.GetAttributesResponse
	if err := s.call(ctx, kmip14.OperationGetAttributes, req, &resp); err != nil {
		return nil, err
	}
	return resp.Attribute, sameID(resp.UniqueIdentifier, id)
}

// stateAttributes are those that tell what a key may be used for.
var stateAttributes = []string{kmipwire.AttrState, kmipwire.AttrProtectStopDate, kmipwire.AttrDeactivationDate}

// stateOf takes the state of a key out of its attributes.
func stateOf(attributes []kmipwire.Attribute) (state State, err error) {
	err = fmt.Errorf("%w: no key state", errProtocol)
	over := false
	for _, a := range attributes {
		switch a.AttributeName {
		case kmipwire.AttrState:
			state, err = parseState(a.AttributeValue)
		case kmipwire.AttrProtectStopDate, kmipwire.AttrDeactivationDate:
			end, isDate := a.AttributeValue.(time.Time)
			over = over || isDate && !time.Now().Before(end)
		}
	}
	if state == Active && over {
		state = Expired
	}
	return state, err
}

func parseState(value any) (State, error) {
	enum, ok := value.(ttlv.EnumValue)
	if !ok {
		return "", fmt.Errorf("%w: a key state of the wrong type", errProtocol)
	}
	switch s := kmip14.State(enum); s {
	case kmip14.StatePreActive:
		return PreActive, nil
	case kmip14.StateActive:
		return Active, nil
	case kmip14.StateDeactivated:
		return Deactivated, nil
	case kmip14.StateCompromised:
		return Compromised, nil
	case kmip14.StateDestroyed, kmip14.StateDestroyedCompromised:
		return "", ErrDestroyed
	default:
		return "", fmt.Errorf("%w: key state %d", errProtocol, s)
	}
}

// sameID refuses an answer about another object than the one asked for.
func sameID(got, want string) error {
	if got != want {
		return fmt.Errorf("%w: it is about key %.80q", errProtocol, got)
	}
	return nil
}

// checkID refuses identifiers that cannot stand in a descriptor.
func checkID(id string) error {
	if id == "" || len(id) > maxIDLen || strings.ContainsFunc(id, unicode.IsControl) {
		return fmt.Errorf("key ID %.80q: want 1 to %d printable bytes", id, maxIDLen)
	}
	return nil
}
