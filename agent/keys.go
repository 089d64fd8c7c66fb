package agent

import (
	"context"
	"errors"
	"fmt"

	"github.com/vmcrypt/vmcrypt/dek"
	"github.com/vmcrypt/vmcrypt/internal/secret"
	"github.com/vmcrypt/vmcrypt/kek"
	"github.com/vmcrypt/vmcrypt/vmx"
)

// keyring fetches each KEK of a run once and wipes them all at its end.
type keyring struct {
	host *Host
	keys map[kekRef]*kek.Key
}

type kekRef struct{ alias, id string }

func newKeyring(h *Host) *keyring {
	return &keyring{host: h, keys: make(map[kekRef]*kek.Key)}
}

func (k *keyring) get(ctx context.Context, alias, id string) (*kek.Key, error) {
	ref := kekRef{alias, id}
	if key, ok := k.keys[ref]; ok {
		return key, nil
	}
	cluster, err := k.host.Cluster(alias)
	if err != nil {
		return nil, err
	}
	key, err := cluster.Get(ctx, id)
	if err != nil {
		return nil, err
	}
	k.keys[ref] = key
	return key, nil
}

// forWrapping returns the KEK that new DEKs are wrapped under: the named one, or
// one that the key manager makes now.
func (k *keyring) forWrapping(ctx context.Context, alias, id string) (*kek.Key, error) {
	if id != "" {
		key, err := k.get(ctx, alias, id)
		if err != nil {
			return nil, err
		}
		return key, key.Usable()
	}
	cluster, err := k.host.Cluster(alias)
	if err != nil {
		return nil, err
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
}

// unwrap returns the DEK of a disk by the first of its recipients that leads to
// one, once the record is shown to be authentic under it.
func (k *keyring) unwrap(ctx context.Context, d Disk) (*secret.Buffer, error) {
	var failed []error
	for _, r := range d.Record.Recipients {
		key, err := k.unwrapBy(ctx, d.Record, r)
		if err == nil {
			return key, nil
		}
		failed = append(failed, fmt.Errorf("disk %s: KEK %s at %q: %w", d.Node, r.KEKID, r.Alias, err))
	}
	return nil, errors.Join(failed...)
}

func (k *keyring) unwrapBy(ctx context.Context, rec *vmx.Record, r vmx.Recipient) (*secret.Buffer, error) {
	wrapper, err := k.get(ctx, r.Alias, r.KEKID)
	if err != nil {
		return nil, err
	}
	key, err := dek.Unwrap(r.WrappedKey, wrapper.Material, binding(rec, r.KEKID))
	if err != nil {
		return nil, err
	}
	if err := dek.VerifyMAC(rec.MAC, state(rec), key); err != nil {
		key.Destroy()
		return nil, err
	}
	return key, nil
}

// seal gives a record its one recipient and its MAC.
func seal(rec *vmx.Record, key *secret.Buffer, alias string, wrapper *kek.Key) error {
	wrapped, err := dek.Wrap(key, wrapper.Material, binding(rec, wrapper.ID))
	if err != nil {
		return err
	}
	rec.Recipients = []vmx.Recipient{{Alias: alias, KEKID: wrapper.ID, WrappedKey: wrapped}}
	rec.MAC, err = dek.MAC(state(rec), key)
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
