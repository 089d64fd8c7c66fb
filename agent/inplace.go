package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/vmcrypt/vmcrypt/blockcrypt"
	"github.com/vmcrypt/vmcrypt/blockcrypt/conversion"
	"github.com/vmcrypt/vmcrypt/image"
	"github.com/vmcrypt/vmcrypt/vmx"
)

// InPlace says how disks are converted where they lie.
type InPlace struct {
	Abort bool // turn unfinished conversions round: the disks become what they were
	Zone  int  // the most, in bytes, that is between two commit points; 0 means conversion.DefaultZone
}

// kind is one of the three conversions in place.
type kind struct {
	state     string // of a disk while it is unfinished
	encrypted bool   // it begins with encrypted disks, not with plain ones
	once      bool   // a disk that it has finished with looks like one to begin with
}

var (
	encrypting = kind{state: vmx.StateEncrypting}
	decrypting = kind{state: vmx.StateDecrypting, encrypted: true}
	rekeying   = kind{state: vmx.StateRekeying, encrypted: true, once: true}
)

func kindOf(state string) kind {
	for _, k := range []kind{encrypting, decrypting} {
		if k.state == state {
			return k
		}
	}
	return rekeying
}

// begins tells whether the conversion takes a disk that is in no other.
func (k kind) begins(d Disk) bool { return (d.Record != nil) == k.encrypted }

// hasOthers tells whether the operation that finishes a disk in the given state
// would begin with others, if it were for all disks.
func (t *Target) hasOthers(state string) bool {
	k := kindOf(state)
	for _, d := range t.Disks {
		if !k.once && !d.amidConversion() && k.begins(d) {
			return true
		}
	}
	return false
}

func (d Disk) amidConversion() bool { return d.Record != nil && d.Record.Unfinished() }

// Unfinished tells whether a disk of the target is amid a conversion.
func (t *Target) Unfinished() bool {
	for _, d := range t.Disks {
		if d.amidConversion() {
			return true
		}
	}
	return false
}

// inPlace is a run of one of the conversions.
type inPlace struct {
	InPlace
	kind  kind
	nodes []string // none means all disks
	// begin gives each of the disks the record with which its conversion begins.
	begin func(context.Context, *keyring, []*conversionJob) error
}

// inPlace converts disks, or goes on with that, and returns their status. No disk
// is touched before all are known to be fit for it, all keys are had, and the
// descriptor has them durably.
func (h *Host) inPlace(ctx context.Context, t *Target, run *inPlace) (*Status, error) {
	if _, err := run.choose(t); err != nil {
		return nil, err
	}
	lock, err := t.lock()
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	if t, err = t.reopen(); err != nil {
		return nil, err
	}
	disks, err := run.choose(t)
	if err != nil {
		return nil, err
	}
	if err := h.convertAll(ctx, t, disks, run); err != nil {
		return nil, err
	}
	status, err := t.statusNow(run.nodes)
	if err != nil { // which must not look as if the conversion had failed
		return nil, fmt.Errorf("the conversion has come to its end, but what came of it can't be told: %v", err)
	}
	return status, nil
}

func (t *Target) statusNow(nodes []string) (*Status, error) {
	t, err := t.reopen()
	if err != nil {
		return nil, err
	}
	return t.Status(nodes)
}

// reopen reads a target again.
func (t *Target) reopen() (*Target, error) {
	switch {
	case t.beneath != nil:
		return OpenBeneath(t.beneath, t.Path)
	case t.bare:
		return Open(t.Path, t.Disks[0].Format)
	}
	return Open(t.Path, "")
}

// choose finds the disks to go on with and those to begin with.
func (run *inPlace) choose(t *Target) ([]Disk, error) {
	named, err := t.atNodes(run.nodes)
	if err != nil {
		return nil, err
	}
	var resumed, begun []Disk
	for _, d := range named {
		switch {
		case d.amidConversion() && d.Record.State == run.kind.state:
			resumed = append(resumed, d)
		case d.amidConversion():
			return nil, d.unfinished(nil)
		case run.kind.begins(d) && !run.Abort:
			begun = append(begun, d)
		}
	}
	if run.kind.once && len(resumed) > 0 {
		begun = nil
	}
	if len(resumed)+len(begun) == 0 {
		return nil, run.nothingToDo(t, named[0])
	}
	if len(begun) > 0 {
		err = run.checkBeginning(t, begun)
	}
	return append(resumed, begun...), err
}

func (run *inPlace) nothingToDo(t *Target, d Disk) error {
	if run.Abort {
		return fmt.Errorf("%w: there is nothing to abort: no disk of %s is %s", ErrState, t.Path, run.kind.state)
	}
	return t.checkState(d, run.kind.encrypted)
}

// checkBeginning looks at what may be in the way of a new conversion.
func (run *inPlace) checkBeginning(t *Target, begun []Disk) error {
	if len(run.nodes) == 0 {
		if err := t.checkAbsent(); err != nil {
			return err
		}
	}
	if err := t.checkPoweredOff(); err != nil {
		return err
	}
	return t.checkNoSnapshots(begun)
}

// convertAll converts one disk after the other.
func (h *Host) convertAll(ctx context.Context, t *Target, disks []Disk, run *inPlace) error {
	jobs, err := run.open(t, disks)
	defer closeConversions(jobs)
	if err != nil {
		return err
	}
	if err := h.prepare(ctx, t, jobs, run); err != nil {
		return orUnfinished(ctx, disks, err)
	}
	meter := &meter{report: h.Report}
	for _, j := range jobs {
		j.measure(meter, run.Abort)
	}
	var tooLate []error
	for i, j := range jobs {
		end, err := j.convert(ctx, h.Engine, run.InPlace, meter)
		if err != nil {
			return orNext(jobs[i+1:], err)
		}
		tooLate = append(tooLate, j.checkEnd(end, run.Abort))
	}
	return errors.Join(tooLate...)
}

// orUnfinished names the conversion that an interrupted run has not gone on with.
func orUnfinished(ctx context.Context, disks []Disk, err error) error {
	if ctx.Err() == nil || errors.Is(err, ErrUnfinished) {
		return err
	}
	for _, d := range disks {
		if d.amidConversion() {
			return d.unfinished(context.Cause(ctx))
		}
	}
	return err
}

// orNext names the first of the disks whose turn does not come, after an error of
// one that is finished.
func orNext(rest []*conversionJob, err error) error {
	if len(rest) == 0 || errors.Is(err, ErrUnfinished) || errors.Is(err, conversion.ErrJournal) {
		return err
	}
	return rest[0].disk.unfinished(err)
}

// open opens and locks all disks. After an error some are open.
func (run *inPlace) open(t *Target, disks []Disk) (jobs []*conversionJob, err error) {
	if err := t.checkNames(); err != nil {
		return nil, err
	}
	for _, d := range disks {
		f, err := d.openToConvert(len(run.nodes) > 0)
		if err != nil {
			return jobs, fmt.Errorf("disk %s: %w", d.Node, err)
		}
		jobs = append(jobs, &conversionJob{disk: d, file: f, descriptor: descriptor{t}, journal: journalOf(f.DataPath())})
		if err := d.checkConvertible(f); err != nil {
			return jobs, err
		}
	}
	return jobs, nil
}

func closeConversions(jobs []*conversionJob) {
	for _, j := range jobs {
		j.close()
	}
}

// openToConvert opens a disk to change it. One that the user did not name has to
// lie in the VM's folder: a descriptor must not have other files of the host
// changed.
func (d Disk) openToConvert(named bool) (*image.File, error) {
	if named || d.target.bare {
		return image.Open(d.Path, d.Format, image.ReadWrite)
	}
	f, err := image.OpenBeneath(filepath.Dir(d.target.Descriptor), d.fileName, d.Format, image.ReadWrite)
	if err != nil && !d.isBeneath() {
		return nil, fmt.Errorf("%w: %s is not in the VM's folder: name the disk if that file is to be converted", ErrInPlace, d.Path)
	}
	return f, err
}

// isBeneath tells whether a disk lies in its VM's folder, and no link leads to it.
func (d Disk) isBeneath() bool {
	if d.target.bare {
		return true
	}
	folder := resolved(filepath.Dir(d.target.Descriptor))
	return filepath.IsLocal(d.fileName) && resolved(d.Path) == filepath.Join(folder, d.fileName)
}

// checkNames refuses a target where somebody who comes by another name would not
// find what tells of the conversion: the descriptor of an image lies beside it.
func (t *Target) checkNames() error {
	if info, err := os.Lstat(t.Path); err == nil && t.bare && info.Mode()&os.ModeSymlink != 0 {
		return fmt.Errorf("%w: %s is a symbolic link: name the image itself, %s", ErrInPlace, t.Path, resolved(t.Path))
	}
	var stat unix.Stat_t
	if err := unix.Stat(t.Descriptor, &stat); err == nil && stat.Nlink > 1 {
		return fmt.Errorf("%w: %s has %d hard links, and the others would stay as they are", ErrInPlace, t.Descriptor, stat.Nlink)
	}
	seen := make(map[[2]uint64]Disk)
	for _, d := range t.Disks {
		if err := unix.Stat(d.Path, &stat); err != nil {
			continue // who opens it will tell
		}
		file := [2]uint64{stat.Dev, stat.Ino}
		if other, ok := seen[file]; ok {
			return fmt.Errorf("%w: the disks %s and %s are the same file, %s", ErrInPlace, other.Node, d.Node, d.Path)
		}
		seen[file] = d
	}
	return nil
}

// checkConvertible refuses a file that can't be converted in place.
func (d Disk) checkConvertible(f *image.File) error {
	if f.IsDevice() {
		return fmt.Errorf("%w: %s is a block device, beside which no journal can lie", ErrInPlace, f.DataPath())
	}
	links, err := f.Links()
	if err != nil {
		return err
	}
	if links > 1 {
		return fmt.Errorf("%w: %s has %d hard links, and what uses the disk by the others would not know",
			ErrInPlace, f.DataPath(), links)
	}
	if d.amidConversion() {
		return d.checkMarkOf(f)
	}
	if n := f.Beyond(); n > 0 {
		return fmt.Errorf("%w: %s has %d bytes more than its descriptor declares, which would stay as they are: cut them off, or a copy leaves them out",
			ErrInPlace, f.DataPath(), n)
	}
	return d.check(f)
}

// prepare has all keys before anything is written, and then those that the
// descriptor leads to as it lies on disk.
func (h *Host) prepare(ctx context.Context, t *Target, jobs []*conversionJob, run *inPlace) error {
	keys := newKeyring(h)
	defer keys.wipe()
	var begun []*conversionJob
	for _, j := range jobs {
		if !j.disk.amidConversion() {
			begun = append(begun, j)
			continue
		}
		if err := j.unwrap(ctx, keys); err != nil {
			return err
		}
		if err := j.check(h.Engine, run.InPlace); err != nil {
			return err
		}
	}
	if len(begun) == 0 {
		return nil
	}
	if err := run.begin(ctx, keys, begun); err != nil {
		return err
	}
	return begin(ctx, keys, t, begun)
}

// begin makes the first records of conversions durable, and takes the keys from
// what it reads back: the DEK that changes the first sector is one that can be had
// again.
func begin(ctx context.Context, keys *keyring, t *Target, jobs []*conversionJob) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	var changes []change
	for _, j := range jobs {
		changes = append(changes, change{node: j.disk.Node, was: j.disk.Record, is: j.first})
	}
	begun := jobs[0].disk
	begun.Record = jobs[0].first
	err := (descriptor{t}).apply(changes)
	switch {
	case isApplied(err):
		return begun.unfinished(err)
	case err != nil:
		return err
	}
	if err := readBackKeys(ctx, keys, t, jobs); err != nil {
		return begun.unfinished(fmt.Errorf("read back: %w", err))
	}
	return nil
}

func readBackKeys(ctx context.Context, keys *keyring, t *Target, jobs []*conversionJob) error {
	written, err := t.reopen()
	if err != nil {
		return err
	}
	for _, j := range jobs {
		if j.disk, err = written.disk(j.disk.Node); err != nil {
			return err
		}
		if !j.disk.amidConversion() {
			return fmt.Errorf("%w: disk %s has no conversion", ErrDescriptor, j.disk.Node)
		}
		if err := j.unwrap(ctx, keys); err != nil {
			return err
		}
	}
	return nil
}

// begin gives each disk a record with a DEK of its own.
func (opts EncryptOptions) begin(ctx context.Context, keys *keyring, jobs []*conversionJob) error {
	for _, j := range jobs {
		if err := blockcrypt.CheckSize(j.file.Size(), opts.SectorSize); err != nil {
			return fmt.Errorf("disk %s (%s): %w", j.disk.Node, j.disk.Path, err)
		}
	}
	wrapper, err := keys.forWrapping(ctx, disksOf(jobs), opts.Alias, opts.KEKID)
	if err != nil {
		return err
	}
	for _, j := range jobs {
		j.first = starting(opts.record(j.file.Size()), encrypting)
		if err := wrapNew(j.first, opts.Alias, wrapper); err != nil {
			return err
		}
	}
	return nil
}

// beginDecryption leaves each disk the keys that it has.
func beginDecryption(ctx context.Context, keys *keyring, jobs []*conversionJob) error {
	for _, j := range jobs {
		if err := j.unwrap(ctx, keys); err != nil {
			return err
		}
		j.first = starting(j.disk.Record, decrypting)
		if err := sign(j.first, j.keys...); err != nil {
			return err
		}
	}
	return nil
}

// starting is the record of a finished disk in the state of a new conversion.
func starting(rec *vmx.Record, k kind) *vmx.Record {
	first := *rec
	first.State, first.Conversion = k.state, &vmx.Conversion{UUID: uuid.New(), Phase: vmx.PhasePreparing}
	return &first
}

func disksOf(jobs []*conversionJob) (disks []Disk) {
	for _, j := range jobs {
		disks = append(disks, j.disk)
	}
	return disks
}
