package kms

import (
	"github.com/gemalto/kmip-go/kmip14"
)

// The states of a key and the ways between them are those of section 3.22:
//
//	Pre-Active -> Active -> Deactivated -> Destroyed
//
// Before it is destroyed a key can be found compromised; it is Destroyed
// Compromised when both has happened. An active key must be revoked before it
// is destroyed. Templates and opaque objects have no state.

func (o *object) state() kmip14.State { return kmip14.State(o.State) }

func (o *object) destroyed() bool { return o.Destroy != 0 }

func (o *object) archived() bool { return o.Archive != 0 }

// advance makes the changes of state whose dates have come. They are in the
// record only when it is written for another reason.
func (o *object) advance(now int64) {
	if o.state() == kmip14.StatePreActive && o.Activation != 0 && o.Activation <= now {
		o.State = uint32(kmip14.StateActive)
		o.LastChange = max(o.LastChange, o.Activation)
	}
	if o.state() == kmip14.StateActive && o.Deactivation != 0 && o.Deactivation <= now {
		o.State = uint32(kmip14.StateDeactivated)
		o.LastChange = max(o.LastChange, o.Deactivation)
	}
}

// checkDates refuses dates that contradict each other (sections 3.24 to 3.27).
func (o *object) checkDates() error {
	order := [][2]int64{
		{o.Activation, o.Deactivation},
		{o.Activation, o.ProcessStart},
		{o.Activation, o.ProtectStop},
		{o.ProcessStart, o.Deactivation},
		{o.ProtectStop, o.Deactivation},
	}
	for _, d := range order {
		if d[0] != 0 && d[1] != 0 && d[0] > d[1] {
			return fail(kmip14.ResultReasonInvalidField, "the dates of the object contradict each other")
		}
	}
	return nil
}
