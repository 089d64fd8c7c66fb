// Package libvirtxml reads and changes libvirt's XML of a domain: it finds out which
// VM's disks a domain needs, and leads its disks to where they are served.
// https://libvirt.org/formatdomain.html tells what the elements mean.
package libvirtxml

import (
	"errors"
	"fmt"
	"io"

	"github.com/google/uuid"
)

// Namespace is that of the element in a domain's metadata which names the VM:
//
//	<vmcrypt:vm xmlns:vmcrypt="urn:vmcrypt:libvirt:1" descriptor="/vms/web01/web01.vmx"/>
const Namespace = "urn:vmcrypt:libvirt:1"

// MaxSize bounds the XML of a domain, in bytes.
const MaxSize = 16 << 20

var (
	// ErrXML is the error for what is not the XML of a domain.
	ErrXML = errors.New("this is not the XML of a libvirt domain")
	// ErrMetadata is the error for an element of our namespace that is not as it should be.
	ErrMetadata = errors.New("the domain's metadata for vmcrypt is wrong")
)

// Domain is a domain's XML.
type Domain struct{ doc *document }

// Read reads the XML of a domain, up to MaxSize.
func Read(r io.Reader) (*Domain, error) {
	text, err := io.ReadAll(io.LimitReader(r, MaxSize+1))
	if err != nil {
		return nil, err
	}
	if len(text) > MaxSize {
		return nil, fmt.Errorf("%w: it has more than %d MiB", ErrXML, MaxSize>>20)
	}
	doc, err := parse(string(text))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrXML, err)
	}
	if !doc.root.is("domain") {
		return nil, fmt.Errorf("%w, but of a %s", ErrXML, doc.root.name.Local)
	}
	return &Domain{doc}, nil
}

// String gives the XML: as it was read, but for what was changed.
func (d *Domain) String() string { return d.doc.String() }

// UUID gives the domain's UUID.
func (d *Domain) UUID() (uuid.UUID, error) {
	e := d.doc.root.child("uuid")
	if e == nil {
		return uuid.Nil, fmt.Errorf("%w: it has no uuid", ErrXML)
	}
	id, err := uuid.Parse(trimmed(e.tail))
	if err != nil {
		return uuid.Nil, fmt.Errorf("%w: its uuid: %w", ErrXML, err)
	}
	return id, nil
}

// Descriptor gives the path of the descriptor that the metadata names, "" where they
// have nothing of vmcrypt.
func (d *Domain) Descriptor() (string, error) {
	ours := d.ours()
	if len(ours) == 0 {
		return "", nil
	}
	if len(ours) > 1 {
		return "", fmt.Errorf("%w: there are %d elements, and one is all that it can have", ErrMetadata, len(ours))
	}
	return descriptorIn(ours[0])
}

// ours lists the elements of our namespace in the metadata.
func (d *Domain) ours() (out []*element) {
	for _, m := range d.doc.root.children {
		if !m.is("metadata") {
			continue
		}
		for _, e := range m.children {
			if e.name.Space == Namespace {
				out = append(out, e)
			}
		}
	}
	return out
}

func descriptorIn(e *element) (string, error) {
	if e.name.Local != "vm" || len(e.children) > 0 {
		return "", fmt.Errorf("%w: the element is <vm descriptor=…/>, not %q", ErrMetadata, e.name.Local)
	}
	for _, a := range e.attrs {
		if a.Name.Space == "" && a.Name.Local != "descriptor" && a.Name.Local != "xmlns" {
			return "", fmt.Errorf("%w: there is no attribute %q", ErrMetadata, a.Name.Local)
		}
	}
	path := e.attr("descriptor")
	if path == "" {
		return "", fmt.Errorf("%w: it names no descriptor", ErrMetadata)
	}
	return path, nil
}
