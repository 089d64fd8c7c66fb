package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"

	"github.com/google/uuid"

	"github.com/vmcrypt/vmcrypt/dek"
	"github.com/vmcrypt/vmcrypt/internal/secret"
	"github.com/vmcrypt/vmcrypt/kek"
	"github.com/vmcrypt/vmcrypt/vmx"
)

// keyring fetches each KEK of a run once, and lets go of them all at its end.
type keyring struct {
	host *Host
	keys map[kekRef]*kek.Key

	shared map[kekRef]*awaited         // of those that other runs may use, too
	used   map[uuid.UUID]vmx.Recipient // by which a disk's DEK was unwrapped
}

type kekRef struct{ alias, id string }

func newKeyring(h *Host) *keyring {
	return &keyring{
		host: h, keys: make(map[kekRef]*kek.Key),
		shared: make(map[kekRef]*awaited), used: make(map[uuid.UUID]vmx.Recipient),
	}
}

func (k *keyring) get(ctx context.Context, alias, id string) (*kek.Key, error) {
	ref := kekRef{alias, id}
	if key, ok := k.keys[ref]; ok {
		return key, nil
	}
	if k.host.Keys != nil {
		return k.await(ref).get(ctx, func() (*kek.Key, error) { return k.host.fetch(ctx, ref) })
	}
	key, err := k.host.fetch(ctx, ref)
	if err != nil {
		return nil, err
	}
	k.keys[ref] = key
	return key, nil
}

// await has a shared key kept for this run from now on.
func (k *keyring) await(ref kekRef) *awaited {
	key, ok := k.shared[ref]
	if !ok {
		key = k.host.Keys.await(ref)
		k.shared[ref] = key
	}
	return key
}

func (h *Host) fetch(ctx context.Context, ref kekRef) (*kek.Key, error) {
	cluster, err := h.Cluster(ref.alias)
	if err != nil {
		return nil, err
	}
	key, err := cluster.Get(ctx, ref.id)
	if err == nil && key.State != kek.Active {
		slog.Warn("a KEK is not active: what is encrypted under it can be unlocked until it is destroyed, so rekey it",
			"alias", ref.alias, "kek", ref.id, "state", string(key.State))
	}
	return key, err
}

// forWrapping returns the KEK that new DEKs of a target's disks are wrapped under: the
// named one, or one that the key manager makes now. Every key manager of the alias has it.
func (k *keyring) forWrapping(ctx context.Context, disks []Disk, alias, id string) (*kek.Key, error) {
	if err := k.host.checkCircle(ctx, disks, alias); err != nil {
		return nil, err
	}
	cluster, err := k.host.Cluster(alias)
	if err != nil {
		return nil, err
	}
	key, err := k.newOr(ctx, cluster, alias, id)
	if err != nil {
		return nil, err
	}
	if err := key.Usable(); err != nil {
		return nil, err
	}
	return key, cluster.Prove(ctx, key)
}

// newOr returns the named KEK, or one that is made now.
func (k *keyring) newOr(ctx context.Context, cluster *kek.Cluster, alias, id string) (*kek.Key, error) {
	if id != "" {
		return k.get(ctx, alias, id)
	}
	key, err := cluster.Create(ctx)
	if err != nil {
		return nil, err
	}
	k.keys[kekRef{alias, key.ID}] = key
	return key, nil
}

func (k *keyring) wipe() {
	for ref, key := range k.keys {
		key.Destroy()
		delete(k.keys, ref)
	}
	for ref := range k.shared {
		k.host.Keys.release(ref)
		delete(k.shared, ref)
	}
}

// unwrap returns the DEK of a disk that is not amid a conversion, once the record
// is shown to be authentic under it.
func (k *keyring) unwrap(ctx context.Context, d Disk) (*secret.Buffer, error) {
	keys, err := k.unwrapAll(ctx, d)
	if err != nil {
		return nil, err
	}
	return keys[0], nil
}

// unwrapAll returns all DEKs of a disk, in the order that dek.MAC takes them: two
// of one that is rekeyed. Of the recipients of each DEK the first counts that
// leads to one under which the record is authentic.
func (k *keyring) unwrapAll(ctx context.Context, d Disk) ([]*secret.Buffer, error) {
	groups := [][]vmx.Recipient{d.Record.Recipients}
	if len(d.Record.Previous) > 0 {
		groups = [][]vmx.Recipient{d.Record.Previous, d.Record.Recipients}
	}
	keys, err := k.unwrapGroups(ctx, d.Record, groups, nil)
	if err != nil {
		return nil, fmt.Errorf("disk %s: %w", d.Node, err)
	}
	return keys, nil
}

// unwrapGroups adds a DEK of each group to those that it has.
func (k *keyring) unwrapGroups(ctx context.Context, rec *vmx.Record, groups [][]vmx.Recipient, has []*secret.Buffer) ([]*secret.Buffer, error) {
	if len(groups) == 0 {
		return has, dek.VerifyMAC(rec.MAC, state(rec), has...)
	}
	var failed []error
	for _, r := range groups[0] {
		key, err := k.unwrapBy(ctx, rec, r)
		if err == nil {
			var all []*secret.Buffer
			if all, err = k.unwrapGroups(ctx, rec, groups[1:], append(slices.Clone(has), key)); err == nil {
				k.used[rec.DiskUUID] = r
				return all, nil
			}
			key.Destroy()
		}
		failed = append(failed, fmt.Errorf("KEK %s at %q: %w", r.KEKID, r.Alias, err))
	}
	return nil, errors.Join(failed...)
}

func (k *keyring) unwrapBy(ctx context.Context, rec *vmx.Record, r vmx.Recipient) (*secret.Buffer, error) {
	wrapper, err := k.get(ctx, r.Alias, r.KEKID)
	if err != nil {
		return nil, err
	}
	return dek.Unwrap(r.WrappedKey, wrapper.Material, binding(rec, r.KEKID))
}

// destroyAll forgets keys.
func destroyAll(keys []*secret.Buffer) {
	for _, key := range keys {
		key.Destroy()
	}
}

// wrapNew gives a record a new DEK, with one recipient, and its MAC. The keys that
// the disk has already come first in that.
func wrapNew(rec *vmx.Record, alias string, wrapper *kek.Key, has ...*secret.Buffer) error {
	key, err := dek.New()
	if err != nil {
		return err
	}
	defer key.Destroy()
	wrapped, err := dek.Wrap(key, wrapper.Material, binding(rec, wrapper.ID))
	if err != nil {
		return err
	}
	rec.Recipients = []vmx.Recipient{{Alias: alias, KEKID: wrapper.ID, WrappedKey: wrapped}}
	return sign(rec, append(slices.Clone(has), key)...)
}

// sign gives a record its MAC.
func sign(rec *vmx.Record, keys ...*secret.Buffer) (err error) {
	rec.MAC, err = dek.MAC(state(rec), keys...)
	return err
}

func binding(rec *vmx.Record, kekID string) dek.Binding {
	return dek.Binding{
		DiskUUID:   rec.DiskUUID,
		Cipher:     rec.Cipher,
		SectorSize: uint32(rec.SectorSize),
		Holes:      rec.Holes,
		KEKID:      kekID,
	}
}

func state(rec *vmx.Record) dek.State {
	s := dek.State{DiskUUID: rec.DiskUUID, State: rec.State, Size: uint64(rec.Size)}
	if c := rec.Conversion; c != nil {
		s.Conversion, s.Phase = c.UUID, c.Phase
	}
	return s
}
