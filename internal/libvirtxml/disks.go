package libvirtxml

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// VM is a VM with encrypted disks, as its descriptor has it.
type VM struct {
	Descriptor string // its path
	Disks      []Disk
}

// Disk is a disk of a VM.
type Disk struct {
	Node   string // scsi0:0
	Socket string // where it is served
	File   string // that it lies in
	Format string // of the file, as QEMU calls it
	Block  bool   // it is a block device
	// Target is the domain's disk to take, by the device that the guest may see it as,
	// or one that the domain does not have yet; "" for the one with this file.
	Target string
}

// The errors of Attach and Detach.
var (
	// ErrWhich is the error where it can't be told which disk of the domain is meant.
	ErrWhich = errors.New("which disk of the domain is it?")
	// ErrTransient is the error for a disk whose changes libvirt would throw away.
	ErrTransient = errors.New("a transient disk can't be served over NBD: take <transient/> out")
)

// Attach leads the domain's disks to where those of a VM are served, and names its
// descriptor in the metadata. Disks that are not there are added. QEMU tries for so
// many seconds to reach a disk server that went away; 0 leaves that as it is.
func (d *Domain) Attach(vm VM, reconnect int) error {
	elements, err := d.elements(vm.Disks)
	if err != nil {
		return err
	}
	for i, disk := range vm.Disks {
		e := elements[i]
		if e == nil {
			e, err = d.addDisk(disk)
		}
		if err == nil {
			err = serve(e, disk, reconnect)
		}
		if err != nil {
			return fmt.Errorf("disk %s: %w", disk.Node, err)
		}
	}
	d.setDescriptor(vm.Descriptor)
	return nil
}

// Detach undoes that: the domain's disks are files again, and its metadata have no
// descriptor. Disks that it does not have from vmcrypt stay as they are.
func (d *Domain) Detach(vm VM) error {
	for _, disk := range vm.Disks {
		served := d.find(func(e *element) bool { return isServed(e, disk) })
		if len(served) > 1 {
			return fmt.Errorf("disk %s: %w The domain has it %d times", disk.Node, ErrWhich, len(served))
		}
		for _, e := range served {
			unserve(e, disk)
		}
	}
	d.removeDescriptor()
	return nil
}

// devices gives the element with all devices.
func (d *Domain) devices() *element {
	if e := d.doc.root.child("devices"); e != nil {
		return e
	}
	return d.doc.root.insert(len(d.doc.root.children), "<devices/>")
}

// find lists the hard disks of which something is so.
func (d *Domain) find(so func(*element) bool) (out []*element) {
	devices := d.doc.root.child("devices")
	if devices == nil {
		return nil
	}
	for _, e := range devices.children {
		if e.is("disk") && slices.Contains([]string{"", "disk", "lun"}, e.attr("device")) && so(e) {
			out = append(out, e)
		}
	}
	return out
}

// elements finds the domain's elements of disks; nil for one that has to be added.
func (d *Domain) elements(disks []Disk) ([]*element, error) {
	elements := make([]*element, len(disks))
	for i, disk := range disks {
		found := d.find(func(e *element) bool { return isOf(e, disk) })
		switch {
		case len(found) > 1:
			return nil, fmt.Errorf("disk %s: %w The domain has it %d times", disk.Node, ErrWhich, len(found))
		case len(found) == 1 && slices.Contains(elements, found[0]):
			return nil, fmt.Errorf("disk %s: %w Another disk is there already", disk.Node, ErrWhich)
		case len(found) == 1:
			elements[i] = found[0]
		}
	}
	for i, disk := range disks {
		if elements[i] == nil && disk.Target == "" {
			if err := d.checkOthers(disk, elements); err != nil {
				return nil, err
			}
		}
	}
	return elements, nil
}

// isOf tells the domain's element for a disk.
func isOf(e *element, disk Disk) bool {
	if disk.Target != "" {
		return e.child("target").attr("dev") == disk.Target
	}
	return isServed(e, disk) || isFile(e, disk)
}

// checkOthers fails if one of the domain's other disks may be the one, under another
// name: as after a copy was encrypted.
func (d *Domain) checkOthers(disk Disk, known []*element) error {
	others := d.find(func(e *element) bool { return e.attr("type") != "network" && !slices.Contains(known, e) })
	if len(others) == 0 {
		return nil
	}
	return fmt.Errorf("disk %s: %w %s is none of the domain's files (%s)",
		disk.Node, ErrWhich, disk.File, strings.Join(described(others), ", "))
}

func described(disks []*element) (out []string) {
	for _, e := range disks {
		source := e.child("source")
		out = append(out, e.child("target").attr("dev")+": "+source.attr("file")+source.attr("dev")+source.attr("volume"))
	}
	return out
}

// isServed tells a disk that was led to its server before, though its descriptor may
// have been elsewhere then.
func isServed(e *element, disk Disk) bool {
	source := e.child("source")
	socket := source.child("host").attr("socket")
	return source.attr("protocol") == "nbd" &&
		(socket == disk.Socket || source.attr("name") == disk.Node && filepath.Base(socket) == filepath.Base(disk.Socket))
}

// isFile tells a disk that is the file itself.
func isFile(e *element, disk Disk) bool {
	source := e.child("source")
	path := source.attr("file")
	if e.attr("type") == "block" {
		path = source.attr("dev")
	}
	return path != "" && sameFile(path, disk.File)
}

// sameFile tells two names of one file, through symbolic links or without them.
func sameFile(a, b string) bool {
	if filepath.Clean(a) == filepath.Clean(b) {
		return true
	}
	infoA, errA := os.Stat(a)
	infoB, errB := os.Stat(b)
	return errA == nil && errB == nil && os.SameFile(infoA, infoB)
}

// addDisk adds a virtio disk.
func (d *Domain) addDisk(disk Disk) (*element, error) {
	dev, err := d.freeDevice(disk.Target)
	if err != nil {
		return nil, err
	}
	devices := d.devices()
	at := len(devices.children)
	for i, e := range devices.children {
		if e.is("disk") {
			at = i + 1
		}
	}
	return devices.insert(at, fmt.Sprintf("<disk type='network' device='disk'>\n  <target dev='%s'/>\n</disk>", escape(dev))), nil
}

// device is a name that libvirt takes.
var device = regexp.MustCompile(`^(hd|sd|vd|xvd)[a-zA-Z0-9_]+$`)

// freeDevice gives the name of a device that the domain does not have: the given one,
// or the first of virtio.
func (d *Domain) freeDevice(want string) (string, error) {
	used := map[string]bool{}
	for _, e := range d.devices().children {
		if e.is("disk") {
			used[e.child("target").attr("dev")] = true
		}
	}
	if want != "" && (used[want] || !device.MatchString(want)) {
		return "", fmt.Errorf("%w %q is no hard disk, and can't become one", ErrWhich, want)
	}
	if want != "" {
		return want, nil
	}
	for last := 'a'; last <= 'z'; last++ {
		if dev := "vd" + string(last); !used[dev] {
			return dev, nil
		}
	}
	return "", fmt.Errorf("%w All of vda to vdz are taken", ErrWhich)
}
