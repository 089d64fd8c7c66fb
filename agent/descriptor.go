package agent

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"

	"github.com/vmcrypt/vmcrypt/internal/durable"
	"github.com/vmcrypt/vmcrypt/vmx"
)

// descriptor is the descriptor of a target that is locked. Each change is made to
// what the file holds then: a conversion takes hours, and meanwhile people edit.
type descriptor struct{ target *Target }

// change is another record for a disk, in place of the one that was. One that is
// nil stands for no record.
type change struct {
	node    string
	was, is *vmx.Record
}

// appliedError is that of changes which others see all the same: they may not
// outlast a power cut, or could not be read back.
type appliedError struct{ error }

func (e appliedError) Unwrap() error { return e.error }

func isApplied(err error) bool {
	applied := appliedError{}
	return errors.As(err, &applied)
}

// apply makes changes durable, all or none, and reads them back. After an error
// there are none, unless that is an appliedError.
func (d descriptor) apply(changes []change) error {
	f, err := d.read()
	if err != nil {
		return err
	}
	for _, c := range changes {
		if err := c.in(f); err != nil {
			return fmt.Errorf("%s: %w", d.target.Descriptor, err)
		}
	}
	if d.isBlank(f) {
		return d.remove()
	}
	return d.write(f)
}

// read gives the descriptor or, for a bare image that has none, a new one.
func (d descriptor) read() (*vmx.File, error) {
	f, err := vmx.Read(d.target.Descriptor)
	if d.target.bare && errors.Is(err, fs.ErrNotExist) {
		return d.blank(), nil
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDescriptor, err)
	}
	return f, nil
}

func (d descriptor) blank() *vmx.File {
	return vmx.New(imageNode, filepath.Base(d.target.Path))
}

// isBlank tells a descriptor that says no more than that there is an image.
func (d descriptor) isBlank(f *vmx.File) bool {
	return d.target.bare && bytes.Equal(f.Bytes(), d.blank().Bytes())
}

func (c change) in(f *vmx.File) error {
	now, err := f.Record(c.node)
	if err != nil {
		return err
	}
	if !reflect.DeepEqual(now, c.was) {
		return fmt.Errorf("%w: somebody else changed the record of disk %s meanwhile", ErrDescriptor, c.node)
	}
	if c.is == nil {
		return f.RemoveRecord(c.node)
	}
	return f.SetRecord(c.node, c.is)
}

func (d descriptor) write(f *vmx.File) error {
	path := d.target.Descriptor
	err := f.Write(path)
	if errors.Is(err, durable.ErrNotDurable) {
		return appliedError{fmt.Errorf("write %s: %w", path, err)}
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	written, err := vmx.Read(path)
	if err != nil {
		return appliedError{fmt.Errorf("read back: %w", err)}
	}
	if !bytes.Equal(written.Bytes(), f.Bytes()) {
		return fmt.Errorf("%w: read back, %s is not as it was written", ErrDescriptor, path)
	}
	return nil
}

func (d descriptor) remove() error {
	if err := os.Remove(d.target.Descriptor); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := durable.SyncDir(filepath.Dir(d.target.Descriptor)); err != nil {
		return appliedError{fmt.Errorf("%s is gone, but may be back after a power cut: %w", d.target.Descriptor, err)}
	}
	return nil
}
