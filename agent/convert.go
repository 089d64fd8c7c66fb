package agent

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"sync/atomic"

	"github.com/vmcrypt/vmcrypt/image"
)

// job is a disk to be written to the output.
type job struct {
	disk Disk
	file *image.File // the source's file
	src  image.Disk  // what is read: the file, or its plaintext
	// sink makes what is written to of the new file: the file itself, or its
	// plaintext, which encrypts.
	sink func(*image.File) (image.Disk, error)
}

func closeAll(jobs []job) {
	for _, j := range jobs {
		j.src.Close()
	}
}

// openJobs makes a job of each disk, or closes what it opened.
func openJobs(disks []Disk, open func(Disk) (job, error)) (jobs []job, err error) {
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
func openOthers(t *Target, chosen []Disk) ([]job, error) {
	others := slices.DeleteFunc(slices.Clone(t.Disks), func(d Disk) bool {
		return slices.ContainsFunc(chosen, func(c Disk) bool { return c.Node == d.Node })
	})
	return openJobs(others, func(d Disk) (job, error) {
		f, err := d.openBeneath(filepath.Dir(t.Descriptor))
		return job{disk: d, file: f, src: f, sink: d.asItIs}, err
	})
}

// asItIs takes a disk over, with the mark of an encrypted one.
func (d Disk) asItIs(f *image.File) (image.Disk, error) {
	if d.Record == nil {
		return plainFile(f)
	}
	return f, f.SetDiskUUID(d.Record.DiskUUID.String())
}

// plainFile is the sink of a disk that is plain, or no longer encrypted.
func plainFile(f *image.File) (image.Disk, error) { return f, nil }

// write fills the output's stage with the disks of all jobs.
func (h *Host) write(ctx context.Context, o *output, jobs []job) error {
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

func (j job) run(ctx context.Context, o *output, progress func(int64)) error {
	f, err := o.createDisk(j)
	if err != nil {
		return err
	}
	dst, err := j.sink(f)
	if err != nil {
		f.Close()
		return err
	}
	err = image.Copy(ctx, dst, j.src, progress)
	if err == nil {
		err = dst.Flush()
	}
	if closed := dst.Close(); err == nil {
		err = closed
	}
	return err
}

// meter adds up the progress of all disks of a run.
type meter struct {
	report func(Progress)
	total  int64
	done   atomic.Int64
}

func (m *meter) at(node string) func(int64) {
	if m.report == nil {
		return nil
	}
	return func(n int64) {
		m.report(Progress{Node: node, Done: m.done.Add(n), Total: m.total})
	}
}
