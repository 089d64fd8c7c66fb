package agent

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"

	"github.com/vmcrypt/vmcrypt/image"
)

// job is a disk to be written to the output.
type job struct {
	disk Disk
	file *image.File // the source's file
	src  image.Disk  // what is read: the file, or its plaintext
	// seal turns the new file into what is written to: the file itself, or its
	// plaintext view, which encrypts.
	seal func(*image.File) (image.Disk, error)
}

func (j job) close() { j.src.Close() }

func unsealed(f *image.File) (image.Disk, error) { return f, nil }

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
	f, err := o.createDisk(j.disk, j.file)
	if err != nil {
		return err
	}
	dst, err := j.seal(f)
	if err != nil {
		f.Close()
		return err
	}
	if err := image.Copy(ctx, dst, j.src, progress); err != nil {
		dst.Close()
		return err
	}
	if err := dst.Flush(); err != nil {
		dst.Close()
		return err
	}
	return dst.Close()
}

// meter adds up the progress of all disks of a run.
type meter struct {
	report func(Progress)
	total  int64
	done   atomic.Int64
}

func (m *meter) at(node string) func(int64) {
	if m.report == nil {
		return func(int64) {}
	}
	return func(n int64) {
		m.report(Progress{Node: node, Done: m.done.Add(n), Total: m.total})
	}
}

// openOthers opens the VM's disks that are not converted: they come along as
// they are.
func openOthers(t *Target, converted []job) (jobs []job, err error) {
	for _, d := range t.Disks {
		if slices.ContainsFunc(converted, func(j job) bool { return j.disk.Node == d.Node }) {
			continue
		}
		f, err := image.Open(d.Path, d.Format, image.ReadOnly)
		if err != nil {
			closeAll(jobs)
			return nil, err
		}
		jobs = append(jobs, job{disk: d, file: f, src: f, seal: taking(d)})
	}
	return jobs, nil
}

// taking marks the copy of an encrypted disk as the disk that it is.
func taking(d Disk) func(*image.File) (image.Disk, error) {
	return func(f *image.File) (image.Disk, error) {
		if d.Record == nil {
			return f, nil
		}
		return f, f.SetDiskUUID(d.Record.DiskUUID.String())
	}
}

func closeAll(jobs []job) {
	for _, j := range jobs {
		j.close()
	}
}
