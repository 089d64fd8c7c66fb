package libvirtxml

import (
	"fmt"
	"slices"
	"strings"
)

// serve has a disk be that at a socket.
func serve(e *element, disk Disk, reconnect int) error {
	if e.child("transient") != nil {
		return ErrTransient
	}
	if e.attr("device") == "lun" { // hands SCSI commands through to a block device
		e.setAttrs(attr("device", "disk"), attr("sgio", ""), attr("rawio", ""))
	}
	e.setAttrs(attr("type", "network"))
	setDriver(e, "raw")
	setSource(e, source(disk, again(e, reconnect)))
	dropFormat(e)
	return nil
}

// unserve has a disk be a file.
func unserve(e *element, disk Disk) {
	kind, name := "file", "file"
	if disk.Block {
		kind, name = "block", "dev"
	}
	e.setAttrs(attr("type", kind))
	setDriver(e, disk.Format)
	setSource(e, fmt.Sprintf("<source %s='%s'/>", name, escape(disk.File)))
}

// source is the element that leads to a disk's server.
func source(disk Disk, reconnect string) string {
	return fmt.Sprintf("<source protocol='nbd' name='%s'>\n  <host transport='unix' socket='%s'/>%s\n</source>",
		escape(disk.Node), escape(disk.Socket), reconnect)
}

// again is the element by which QEMU connects again: new, as it was, or none.
func again(e *element, seconds int) string {
	delay := e.child("source").child("reconnect").attr("delay")
	if seconds > 0 {
		delay = fmt.Sprint(seconds)
	}
	if delay == "" {
		return ""
	}
	return fmt.Sprintf("\n  <reconnect delay='%s'/>", escape(delay))
}

// setSource gives a disk its source, unless it is this one already.
func setSource(e *element, text string) {
	old := e.child("source")
	if old == nil {
		at := 0
		if len(e.children) > 0 && e.children[0].is("driver") {
			at = 1
		}
		e.insert(at, text)
		return
	}
	e.replace(old, text)
}

// setDriver keeps of a disk's driver what is of use for NBD, and for a file.
func setDriver(e *element, format string) {
	driver := e.child("driver")
	if driver == nil {
		driver = e.insert(0, "<driver name='qemu'/>")
	}
	discard := driver.attr("discard")
	if discard == "" {
		discard = "unmap"
	}
	driver.setAttrs(attr("name", "qemu"), attr("type", format), attr("cache", cacheMode(driver.attr("cache"))),
		attr("io", ""), attr("discard_no_unref", ""), attr("discard", discard))
	drop(driver, "metadata_cache") // of qcow2
}

// cacheMode gives the one that keeps the promise without O_DIRECT, which is for files.
func cacheMode(mode string) string {
	switch mode {
	case "none":
		return ""
	case "directsync":
		return "writethrough"
	}
	return mode
}

// dropFormat takes away what is about a file, its format, or a job that runs.
func dropFormat(e *element) { drop(e, "backingStore", "mirror", "encryption", "auth") }

func drop(e *element, names ...string) {
	for _, c := range slices.Clone(e.children) {
		if c.name.Space == "" && slices.Contains(names, c.name.Local) {
			e.remove(c)
		}
	}
}

func metadata(descriptor string) string {
	return fmt.Sprintf(`<vmcrypt:vm xmlns:vmcrypt="%s" descriptor="%s"/>`, Namespace, escape(descriptor))
}

// setDescriptor names the descriptor in the metadata, and there alone.
func (d *Domain) setDescriptor(path string) {
	if has, err := d.Descriptor(); err == nil && has == path {
		return
	}
	d.removeOurs()
	m := d.doc.root.child("metadata")
	if m == nil {
		m = d.addMetadata()
	}
	m.insert(len(m.children), metadata(path))
}

// addMetadata makes the element, where libvirt writes it.
func (d *Domain) addMetadata() *element {
	at := 0
	for i, e := range d.doc.root.children {
		if e.name.Space == "" && slices.Contains([]string{"name", "uuid", "genid", "title", "description"}, e.name.Local) {
			at = i + 1
		}
	}
	return d.doc.root.insert(at, "<metadata/>")
}

func (d *Domain) removeOurs() {
	for _, m := range d.doc.root.children {
		if m.is("metadata") {
			for _, e := range slices.Clone(m.children) {
				if e.name.Space == Namespace {
					m.remove(e)
				}
			}
		}
	}
}

// removeDescriptor leaves no metadata without content.
func (d *Domain) removeDescriptor() {
	if len(d.ours()) == 0 {
		return
	}
	d.removeOurs()
	if m := d.doc.root.child("metadata"); len(m.children) == 0 && trimmed(m.tail) == "" {
		d.doc.root.remove(m)
	}
}

func trimmed(text string) string { return strings.TrimSpace(text) }

// Fragments gives what a domain without any disk needs: first what belongs into its
// metadata, then its disks.
func Fragments(vm VM, reconnect int) (string, error) {
	disks, err := DisksOf(vm, reconnect)
	return metadata(vm.Descriptor) + "\n" + disks, err
}

// DisksOf gives the disks of a domain that has no others.
func DisksOf(vm VM, reconnect int) (string, error) {
	d := &Domain{&document{root: fragment("<domain>\n</domain>")}}
	if err := d.Attach(vm, reconnect); err != nil {
		return "", err
	}
	var b strings.Builder
	for _, e := range d.devices().children {
		e.write(&b)
	}
	return strings.ReplaceAll(b.String(), "\n    ", "\n")[1:] + "\n", nil
}
