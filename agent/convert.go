package agent

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"sync/atomic"

	"github.com/vmcrypt/vmcrypt/blockcrypt"
	"github.com/vmcrypt/vmcrypt/image"
)

// job is a disk to be written to the output.
type job struct {
	disk   Disk
	src    *image.File
	cipher *blockcrypt.Cipher // nil until its key is known, and for a disk that is copied as it is
	// begin marks the new file as what it is to be, and says what becomes of the
	// data on its way there.
	begin func(dst *image.File) (image.Transform, error)
}

// close closes the source and forgets the key.
func (j *job) close() {
	j.src.Close()
	if j.cipher != nil {
		j.cipher.Wipe()
	}
}

func closeAll(jobs []*job) {
	for _, j := range jobs {
		j.close()
	}
}

// openJobs makes a job of each disk, or closes what it opened.
func openJobs(disks []Disk, open func(Disk) (*job, error)) (jobs []*job, err error) {
	for _, d := range disks {
		j, err := open(d)
		if err != nil {
			closeAll(jobs)
			return nil, err
		}
		jobs = append(jobs, j)
	}
	return jobs, nil
}

// openOthers opens the VM's disks that were not chosen: they come along as they
// are.
func openOthers(t *Target, chosen []Disk) ([]*job, error) {
	others := slices.DeleteFunc(slices.Clone(t.Disks), func(d Disk) bool {
		return slices.ContainsFunc(chosen, func(c Disk) bool { return c.Node == d.Node })
	})
	return openJobs(others, func(d Disk) (*job, error) {
		f, err := d.openBeneath(filepath.Dir(t.Descriptor))
		return &job{disk: d, src: f, begin: d.asItIs}, err
	})
}

// asItIs takes a disk over, with the mark of an encrypted one.
func (d Disk) asItIs(dst *image.File) (image.Transform, error) {
	if d.Record == nil {
		return image.Transform{}, nil
	}
	return image.Transform{}, dst.SetDiskUUID(d.Record.DiskUUID.String())
}

// write fills the output's stage with the disks of all jobs.
func (h *Host) write(ctx context.Context, o *output, jobs []*job) error {
	meter := &meter{report: h.Report}
	for _, j := range jobs {
		meter.total += j.src.Size()
	}
	for _, j := range jobs {
		if err := j.run(ctx, o, meter.at(j.disk.Node)); err != nil {
			return fmt.Errorf("disk %s (%s): %w", j.disk.Node, j.disk.Path, err)
		}
	}
	return nil
}

// run makes the disk durable in the stage. Only then it gets the mode that lets
// others read it.
func (j *job) run(ctx context.Context, o *output, progress func(int64)) error {
	dst, err := o.createDisk(j)
	if err != nil {
		return err
	}
	err = j.copyTo(ctx, dst, progress)
	if closed := dst.Close(); err == nil {
		err = closed
	}
	if err != nil {
		return err
	}
	return o.copyMode(dst.DataPath(), j.src.DataPath())
}

func (j *job) copyTo(ctx context.Context, dst *image.File, progress func(int64)) error {
	transform, err := j.begin(dst)
	if err != nil {
		return err
	}
	if err := image.Copy(ctx, dst, j.src, transform, progress); err != nil {
		return err
	}
	return dst.Flush()
}

// meter adds up the progress of all disks of a run.
type meter struct {
	report func(Progress)
	total  int64
	done   atomic.Int64
}

func (m *meter) at(node string) func(int64) {
	return func(n int64) { m.add(node, n) }
}

func (m *meter) add(node string, n int64) {
	done := m.done.Add(n)
	if m.report != nil {
		m.report(Progress{Node: node, Done: done, Total: m.total})
	}
}
