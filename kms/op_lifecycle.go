package kms

import (
	"github.com/gemalto/kmip-go/kmip14"

	"github.com/vmcrypt/vmcrypt/internal/kmipwire"
)

// activate is section 4.19.
func (r *request) activate(p *kmipwire.ActivateRequest) (any, error) {
	id, err := r.change(p.UniqueIdentifier, func(o *object) error {
		switch o.state() {
		case 0:
			return stateless(o)
		case kmip14.StatePreActive:
			o.State = uint32(kmip14.StateActive)
			o.Activation = r.now.Unix()
			return o.checkDates()
		}
		return fail(kmip14.ResultReasonPermissionDenied, "key %s cannot be activated: it is %s", o.id, o.condition())
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
		if o.state() == 0 {
			return stateless(o)
		}
		o.Revocation = &revocation{Code: uint32(code), Message: p.RevocationReason.RevocationMessage}
		if code == kmip14.RevocationReasonCodeKeyCompromise || code == kmip14.RevocationReasonCodeCACompromise {
			return r.compromise(o, p)
		}
		return r.deactivate(o)
	})
	return &kmipwire.RevokeResponse{UniqueIdentifier: id}, err
}

func (r *request) deactivate(o *object) error {
	if o.state() != kmip14.StateActive {
		return fail(kmip14.ResultReasonIllegalOperation, "key %s cannot be deactivated: it is %s", o.id, o.condition())
	}
	o.State = uint32(kmip14.StateDeactivated)
	o.Deactivation = r.now.Unix()
	return nil
}

func (r *request) compromise(o *object, p *kmipwire.RevokeRequest) error {
	switch o.state() {
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

// destroy deletes the content of an object and keeps its attributes (section
// 4.21).
func (r *request) destroy(p *kmipwire.DestroyRequest) (any, error) {
	id, err := r.change(p.UniqueIdentifier, func(o *object) error {
		switch {
		case o.destroyed():
			return fail(kmip14.ResultReasonPermissionDenied, "object %s is destroyed already", o.id)
		case o.state() == kmip14.StateActive:
			return fail(kmip14.ResultReasonPermissionDenied, "key %s is active: revoke it first", o.id)
		case o.state() == kmip14.StateCompromised:
			o.State = uint32(kmip14.StateDestroyedCompromised)
		case o.state() != 0:
			o.State = uint32(kmip14.StateDestroyed)
		}
		o.Digest = o.lastDigest()
		o.Destroy = r.now.Unix()
		o.wipe()
		return nil
	})
	return &kmipwire.DestroyResponse{UniqueIdentifier: id}, err
}

// condition says in words why an operation on an object is refused.
func (o *object) condition() string {
	if o.State == 0 {
		return "an object without a state"
	}
	return o.state().String()
}

func stateless(o *object) error {
	return fail(kmip14.ResultReasonIllegalOperation, "object %s is of a type that has no state", o.id)
}
