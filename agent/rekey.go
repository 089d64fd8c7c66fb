package agent

import "context"

// RekeyOptions says how disks get new keys.
type RekeyOptions struct {
	InPlace InPlace
	Disks   []string // nodes; none means all
	Alias   string   // the key managers of the new KEK; not needed to go on with what was begun
	KEKID   string   // the new KEK; none means a new one
}

// Rekey gives encrypted disks new DEKs, under one KEK, and rewrites them where
// they lie; or it goes on with that, and then with no other disk. It returns their
// status. After an error that is an Unfinished, the same call goes on.
func (h *Host) Rekey(ctx context.Context, t *Target, opts RekeyOptions) (*Status, error) {
	return h.inPlace(ctx, t, &inPlace{kind: rekeying, nodes: opts.Disks, InPlace: opts.InPlace, begin: opts.begin})
}

// begin gives each disk a new DEK beside the one that it has.
func (opts RekeyOptions) begin(ctx context.Context, keys *keyring, jobs []*conversionJob) error {
	for _, j := range jobs {
		if err := j.unwrap(ctx, keys); err != nil {
			return err
		}
	}
	wrapper, err := keys.forWrapping(ctx, disksOf(jobs), opts.Alias, opts.KEKID)
	if err != nil {
		return err
	}
	for _, j := range jobs {
		j.first = starting(j.disk.Record, rekeying)
		j.first.Previous = j.disk.Record.Recipients
		if err := wrapNew(j.first, opts.Alias, wrapper, j.keys...); err != nil {
			return err
		}
	}
	return nil
}
