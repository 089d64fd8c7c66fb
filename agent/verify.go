package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/vmcrypt/vmcrypt/dek"
	"github.com/vmcrypt/vmcrypt/internal/secret"
	"github.com/vmcrypt/vmcrypt/kek"
	"github.com/vmcrypt/vmcrypt/vmx"
)

// ErrReplicas means that a key manager does not have a key as it should.
var ErrReplicas = errors.New("not every key manager has every key")

// errUnasked means that all that is wrong is that key managers can't be reached.
var errUnasked = errors.New("not every key manager could be asked")

// Verification is how the key managers have the keys of disks.
type Verification struct {
	Disks []DiskVerification `json:"disks"` // the encrypted ones
}

// DiskVerification is how the key managers have the keys of one disk.
type DiskVerification struct {
	Target     string                  `json:"target"` // the descriptor
	Node       string                  `json:"node"`
	Recipients []RecipientVerification `json:"recipients"`
}

// RecipientVerification is how the key managers have one KEK of a disk.
type RecipientVerification struct {
	Alias    string               `json:"alias"`
	KEKID    string               `json:"kekID"`
	Previous bool                 `json:"previous,omitempty"` // of the data key before, which a rekey still needs
	Servers  []ServerVerification `json:"servers"`            // of the alias, in their order
	Unwraps  bool                 `json:"unwraps"`            // with it comes the disk's data key
	// Problem says why no key manager was asked, or why the right KEK does not help.
	Problem string `json:"problem,omitempty"`

	err error // of which Problem is the text
}

// ServerVerification is how one key manager has one KEK.
type ServerVerification struct {
	Address string        `json:"address"`
	Result  kek.KeyResult `json:"result"`
	Detail  string        `json:"detail"`

	unwraps bool
}

// Verify has every key manager give every KEK of the targets' encrypted disks, or those
// at the given nodes, and tries each on the data key that it is to unwrap.
func (h *Host) Verify(ctx context.Context, targets []*Target, nodes []string) (*Verification, error) {
	var disks []Disk
	for _, t := range targets {
		of, err := t.toVerify(nodes)
		if err != nil {
			return nil, err
		}
		disks = append(disks, of...)
	}
	return h.verify(ctx, disks)
}

func (t *Target) toVerify(nodes []string) ([]Disk, error) {
	if len(nodes) == 0 {
		return t.encrypted()
	}
	disks, err := t.atNodes(nodes)
	for _, d := range disks {
		if d.Record == nil {
			return nil, t.checkState(d, true)
		}
	}
	return disks, err
}

func (h *Host) verify(ctx context.Context, disks []Disk) (*Verification, error) {
	v := &verifying{uses: map[string]map[string][]*use{}}
	for _, d := range disks {
		v.add(d)
	}
	var aliases sync.WaitGroup
	for alias, keys := range v.uses {
		aliases.Go(func() { v.survey(ctx, h, alias, keys) })
	}
	aliases.Wait()
	out := &Verification{Disks: make([]DiskVerification, len(disks))}
	for i, d := range v.disks {
		out.Disks[i] = d.finish()
	}
	return out, ctx.Err()
}

// verifying is a verification under way.
type verifying struct {
	disks []*verifiedDisk
	uses  map[string]map[string][]*use // by alias and KEK ID: to whom the key is told
}

// verifiedDisk is a disk of which the keys are verified.
type verifiedDisk struct {
	disk Disk
	uses []*use
}

// use is a KEK that unwraps a data key of a disk.
type use struct {
	disk Disk
	by   vmx.Recipient

	mu     sync.Mutex
	result RecipientVerification
	dek    *secret.Buffer // until it is known whether it is the right one
}

func (v *verifying) add(d Disk) {
	out := &verifiedDisk{disk: d}
	for _, group := range []struct {
		recipients []vmx.Recipient
		previous   bool
	}{{d.Record.Recipients, false}, {d.Record.Previous, true}} {
		for _, r := range group.recipients {
			u := &use{disk: d, by: r}
			u.result = RecipientVerification{Alias: r.Alias, KEKID: r.KEKID, Previous: group.previous, Servers: []ServerVerification{}}
			out.uses = append(out.uses, u)
			v.tell(u)
		}
	}
	v.disks = append(v.disks, out)
}

func (v *verifying) tell(u *use) {
	if v.uses[u.by.Alias] == nil {
		v.uses[u.by.Alias] = map[string][]*use{}
	}
	v.uses[u.by.Alias][u.by.KEKID] = append(v.uses[u.by.Alias][u.by.KEKID], u)
}

// survey asks the key managers of an alias for all its keys.
func (v *verifying) survey(ctx context.Context, h *Host, alias string, keys map[string][]*use) {
	ids := make([]string, 0, len(keys))
	for id := range keys {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	cluster, err := h.Cluster(alias)
	if err != nil {
		for _, id := range ids {
			for _, u := range keys[id] {
				u.fail(err)
			}
		}
		return
	}
	cluster.Survey(ctx, ids, func(id string, server int, check kek.KeyCheck, key *kek.Key) {
		for _, u := range keys[id] {
			u.see(server, check, key)
		}
	})
}

// see notes what a key manager has.
func (u *use) see(server int, check kek.KeyCheck, key *kek.Key) {
	u.mu.Lock()
	defer u.mu.Unlock()
	unwraps := false
	if key != nil {
		switch err := u.try(key); {
		case err == nil:
			unwraps = true
		case errors.Is(err, dek.ErrWrongKEK):
			check = check.Different("its key is not the one that the disk's data key was wrapped under")
		default:
			u.result.Problem, u.result.err = err.Error(), err
		}
	}
	for len(u.result.Servers) <= server {
		u.result.Servers = append(u.result.Servers, ServerVerification{})
	}
	u.result.Servers[server] = ServerVerification{Address: check.Address, Result: check.Result, Detail: check.Detail, unwraps: unwraps}
	u.result.Unwraps = u.result.Unwraps || unwraps
}

func (u *use) fail(err error) { u.result.Problem, u.result.err = err.Error(), err }

// try unwraps the data key. It is kept only where the record is not authentic without
// another data key.
func (u *use) try(wrapper *kek.Key) error {
	rec := u.disk.Record
	key, err := dek.Unwrap(u.by.WrappedKey, wrapper.Material, binding(rec, u.by.KEKID))
	if err != nil {
		return err
	}
	if len(rec.Previous) == 0 {
		defer key.Destroy()
		return dek.VerifyMAC(rec.MAC, state(rec), key)
	}
	u.dek.Destroy()
	u.dek = key
	return nil
}

// finish tells what came of a disk, and wipes what is left of its keys.
func (v *verifiedDisk) finish() DiskVerification {
	v.checkTogether()
	out := DiskVerification{Target: v.disk.target.Descriptor, Node: v.disk.Node, Recipients: []RecipientVerification{}}
	for _, u := range v.uses {
		u.dek.Destroy()
		out.Recipients = append(out.Recipients, u.result)
	}
	return out
}

// checkTogether finds out which data keys of a disk that is amid a rekey are right. Where
// there is one of but one kind, that can't be told.
func (v *verifiedDisk) checkTogether() {
	authentic, tried := map[*use]bool{}, map[*use]bool{}
	for _, old := range v.uses {
		for _, now := range v.uses {
			if !old.result.Previous || now.result.Previous || old.dek == nil || now.dek == nil {
				continue
			}
			err := dek.VerifyMAC(v.disk.Record.MAC, state(v.disk.Record), old.dek, now.dek)
			for _, u := range []*use{old, now} {
				authentic[u], tried[u] = authentic[u] || err == nil, true
			}
		}
	}
	for u := range tried {
		if !authentic[u] {
			u.fail(fmt.Errorf("%w: the record is not authentic under this key", dek.ErrTampered))
			u.result.Unwraps = false
		}
	}
}

// opens tells whether the keys of a disk can be had.
func (d *DiskVerification) opens() bool {
	for _, previous := range []bool{false, true} {
		needed, had := false, false
		for _, r := range d.Recipients {
			if r.Previous == previous {
				needed, had = true, had || r.Unwraps
			}
		}
		if needed && !had {
			return false
		}
	}
	return true
}

// Err is nil if every key manager has every key, and each is right. Else it wraps
// ErrReplicas, and what is wrong.
func (v *Verification) Err() error {
	var causes []error
	closed := 0
	for i := range v.Disks {
		d := &v.Disks[i]
		if !d.opens() {
			closed++
		}
		causes = append(causes, d.causes()...)
	}
	kind := ErrReplicas
	if len(causes) > 0 && !slices.ContainsFunc(causes, func(err error) bool { return !errors.Is(err, kek.ErrUnavailable) }) {
		kind = errUnasked
	}
	switch {
	case closed > 0:
		return &verdict{fmt.Sprintf("the keys of %d of %d disks are not to be had", closed, len(v.Disks)), append(causes, kind)}
	case len(causes) > 0:
		return &verdict{"the keys of every disk are to be had, but " + kind.Error(), append(causes, kind)}
	}
	return nil
}

// wrongs says what a result means.
var wrongs = map[kek.KeyResult]error{
	kek.KeyMissing: kek.ErrNotFound, kek.KeyDenied: kek.ErrDenied, kek.KeyInactive: kek.ErrInactive,
	kek.KeyDifferent: dek.ErrWrongKEK, kek.KeyUnreachable: kek.ErrUnavailable,
}

func (d *DiskVerification) causes() (all []error) {
	for _, r := range d.Recipients {
		if r.err != nil {
			all = append(all, r.err)
		}
		for _, s := range r.Servers {
			if err := wrongs[s.Result]; err != nil {
				all = append(all, err)
			}
		}
	}
	return all
}

// verdict is an error that sums several up.
type verdict struct {
	text   string
	causes []error
}

func (v *verdict) Error() string   { return v.text }
func (v *verdict) Unwrap() []error { return v.causes }
