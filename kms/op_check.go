package kms

import (
	"slices"
	"time"

	"github.com/gemalto/kmip-go/kmip14"

	"github.com/vmcrypt/vmcrypt/internal/kmipwire"
)

// check fails, and says why, if an object may not be used as the client wants to
// (section 4.10). There are no usage limits.
func (r *request) check(p *kmipwire.CheckRequest) (any, error) {
	o, err := r.loadUsable(p.UniqueIdentifier)
	if err != nil {
		return nil, err
	}
	defer o.wipe()
	if !cryptographic.has(o.Type) {
		return nil, fail(kmip14.ResultReasonIllegalOperation, "object %s is not for cryptography", o.id)
	}
	out := &kmipwire.CheckResponse{}
	if p.CryptographicUsageMask&^o.UsageMask != 0 {
		mask := kmip14.CryptographicUsageMask(o.UsageMask)
		out.CryptographicUsageMask = &mask
	}
	if most := leaseTime; p.LeaseTime != nil && *p.LeaseTime > most {
		out.LeaseTime = &most
	}
	if *out == (kmipwire.CheckResponse{}) {
		out.UniqueIdentifier = o.id.String()
		return out, nil
	}
	r.placeholder = ""
	denied := fail(kmip14.ResultReasonPermissionDenied, "object %s may not be used like that", o.id)
	denied.payload = out
	return nil, denied
}

// obtainLease is section 4.17. There are leases for keys that may still be used.
func (r *request) obtainLease(p *kmipwire.ObtainLeaseRequest) (any, error) {
	o, err := r.loadUsable(p.UniqueIdentifier)
	if err != nil {
		return nil, err
	}
	defer o.wipe()
	if !slices.Contains([]kmip14.State{kmip14.StatePreActive, kmip14.StateActive}, o.state()) {
		return nil, fail(kmip14.ResultReasonPermissionDenied, "no lease of object %s: it is %s", o.id, o.condition())
	}
	return &kmipwire.ObtainLeaseResponse{
		UniqueIdentifier: o.id.String(),
		LeaseTime:        leaseTime,
		LastChangeDate:   time.Unix(o.LastChange, 0),
	}, nil
}

func (r *request) loadUsable(id string) (o *object, err error) {
	err = r.view(func(t *tx) error {
		o, err = r.usable(t, id)
		return err
	})
	return o, err
}

// archive is section 4.22. Nothing is moved: an archived object is out of reach
// until it is recovered.
func (r *request) archive(p *kmipwire.ArchiveRequest) (any, error) {
	id, err := r.change(p.UniqueIdentifier, func(o *object) error {
		if o.destroyed() {
			return fail(kmip14.ResultReasonIllegalOperation, "object %s was destroyed", o.id)
		}
		o.Archive = r.now.Unix()
		return nil
	})
	return &kmipwire.ArchiveResponse{UniqueIdentifier: id}, err
}

// recover is section 4.23. It does no harm to an object that is not archived.
func (r *request) recover(p *kmipwire.RecoverRequest) (any, error) {
	out := &kmipwire.RecoverResponse{}
	err := r.update(func(t *tx) error {
		o, err := r.object(t, p.UniqueIdentifier)
		if err != nil {
			return err
		}
		defer o.wipe()
		out.UniqueIdentifier = o.id.String()
		if !o.archived() {
			return nil
		}
		o.Archive = 0
		return r.put(t, o)
	})
	return out, err
}
