package kms

import (
	"github.com/gemalto/kmip-go/kmip14"

	"github.com/vmcrypt/vmcrypt/internal/kmipwire"
)

// The states of a key and the ways between them are those of section 3.22:
//
//	Pre-Active -> Active -> Deactivated -> Destroyed
//
// Before it is destroyed a key can be found compromised; it is Destroyed
// Compromised when both has happened. An active key must be revoked before it
// is destroyed.

// activate is section 4.19.
func (r *request) activate(p *kmipwire.ActivateRequest) (any, error) {
	id, err := r.change(p.UniqueIdentifier, func(o *object) error {
		if kmip14.State(o.State) != kmip14.StatePreActive {
			return fail(kmip14.ResultReasonPermissionDenied, "key %s cannot be activated: it is %s", o.id, kmip14.State(o.State))
		}
		o.State = uint32(kmip14.StateActive)
		o.Activation = r.now.Unix()
		return nil
	})
	return &kmipwire.ActivateResponse{UniqueIdentifier: id}, err
}

// revoke is section 4.20.
func (r *request) revoke(p *kmipwire.RevokeRequest) (any, error) {
	code := p.RevocationReason.RevocationReasonCode
	if code < kmip14.RevocationReasonCodeUnspecified || code > kmip14.RevocationReasonCodePrivilegeWithdrawn {
		return nil, fail(kmip14.ResultReasonInvalidField, "unknown revocation reason %d", uint32(code))
	}
	if len(p.RevocationReason.RevocationMessage) > maxText {
		return nil, fail(kmip14.ResultReasonInvalidField, "the revocation message is longer than %d bytes", maxText)
	}
	id, err := r.change(p.UniqueIdentifier, func(o *object) error {
		o.Revocation = &revocation{Code: uint32(code), Message: p.RevocationReason.RevocationMessage}
		if code == kmip14.RevocationReasonCodeKeyCompromise || code == kmip14.RevocationReasonCodeCACompromise {
			return r.compromise(o, p)
		}
		return r.deactivate(o)
	})
	return &kmipwire.RevokeResponse{UniqueIdentifier: id}, err
}

func (r *request) deactivate(o *object) error {
	if kmip14.State(o.State) != kmip14.StateActive {
		return fail(kmip14.ResultReasonIllegalOperation, "key %s cannot be deactivated: it is %s", o.id, kmip14.State(o.State))
	}
	o.State = uint32(kmip14.StateDeactivated)
	o.Deactivation = r.now.Unix()
	return nil
}

func (r *request) compromise(o *object, p *kmipwire.RevokeRequest) error {
	switch kmip14.State(o.State) {
	case kmip14.StateCompromised, kmip14.StateDestroyedCompromised:
		return fail(kmip14.ResultReasonIllegalOperation, "key %s is known as compromised", o.id)
	case kmip14.StateDestroyed:
		o.State = uint32(kmip14.StateDestroyedCompromised)
	default:
		o.State = uint32(kmip14.StateCompromised)
	}
	o.Compromise = r.now.Unix()
	o.CompromiseOccr = o.Initial
	if p.CompromiseOccurrenceDate != nil {
		o.CompromiseOccr = p.CompromiseOccurrenceDate.Unix()
	}
	return nil
}

// destroy deletes the key and keeps its attributes (section 4.21).
func (r *request) destroy(p *kmipwire.DestroyRequest) (any, error) {
	id, err := r.change(p.UniqueIdentifier, func(o *object) error {
		switch kmip14.State(o.State) {
		case kmip14.StatePreActive, kmip14.StateDeactivated:
			o.State = uint32(kmip14.StateDestroyed)
		case kmip14.StateCompromised:
			o.State = uint32(kmip14.StateDestroyedCompromised)
		case kmip14.StateActive:
			return fail(kmip14.ResultReasonPermissionDenied, "key %s is active: revoke it first", o.id)
		default:
			return fail(kmip14.ResultReasonPermissionDenied, "key %s is destroyed already", o.id)
		}
		o.Destroy = r.now.Unix()
		o.wipe()
		return nil
	})
	return &kmipwire.DestroyResponse{UniqueIdentifier: id}, err
}

// change applies fn to the object that a request means, and tells its ID.
func (r *request) change(id string, fn func(*object) error) (changed string, err error) {
	err = r.store.update(func(t *tx) error {
		o, err := r.object(t, id)
		if err != nil {
			return err
		}
		defer o.wipe()
		if err := fn(o); err != nil {
			return err
		}
		o.LastChange = r.now.Unix()
		changed = o.id.String()
		return t.put(o)
	})
	return changed, err
}
