// Package diskserver is the process that serves the disks of one running VM, and
// the agent's way to it. Only this process has the data keys while the VM runs. It
// outlives the agent, which finds it again by its control socket.
//
// The agent opens and locks the disks, starts the process and hands it files and keys:
//
//	err := diskserver.Launch(ctx, exec.Command("/usr/bin/vmcrypt", "disk-server"), start)
//
// and later, as the same agent or another, of this release or another:
//
//	server, err := diskserver.Connect(ctx, directory)
//	status, err := server.Status(ctx)
//	failed, err := server.Stop(ctx)
//
// The process itself is Run. docs/diskserver.md has the start message, the control
// protocol and what the process is confined to.
package diskserver

import (
	"errors"
	"fmt"
	"strings"

	"github.com/google/uuid"

	"github.com/vmcrypt/vmcrypt/dek"
	"github.com/vmcrypt/vmcrypt/image"
	"github.com/vmcrypt/vmcrypt/vmx"
)

// version is the highest version of the start message and of the control protocol
// that this release knows.
const version = 1

const (
	controlSocket = "control.sock" // in the directory of the VM
	socketSuffix  = ".sock"        // after a disk's node
	maxSocketPath = 107            // bytes: unix(7)
	lockSuffix    = ".lock"        // after the directory
	aside         = ".aside-"      // after a directory that could not be removed
	maxRemoved    = 1024           // entries of a directory: more than a VM can have sockets
)

// VM tells which virtual machine a process serves.
type VM struct {
	Name       string `json:"name"`
	UUID       string `json:"uuid"`
	Descriptor string `json:"descriptor"` // its path
}

// Disk is what the process knows of a disk besides its key.
type Disk struct {
	Node     string       `json:"node"` // in lower case: "scsi0:0"
	ReadOnly bool         `json:"readOnly"`
	Format   image.Format `json:"format"`
	Path     string       `json:"path"`     // that the descriptor leads to
	DataPath string       `json:"dataPath"` // of the file with the sectors
	Record   Record       `json:"record"`
}

// Record is a vmx.Record of a disk that is not amid a conversion, as it goes over
// pipes and sockets.
type Record struct {
	State      string      `json:"state"`
	DiskUUID   uuid.UUID   `json:"uuid"`
	Size       int64       `json:"size"`
	Cipher     string      `json:"cipher"`
	SectorSize int         `json:"sectorSize"`
	Holes      string      `json:"holes"`
	MAC        []byte      `json:"mac"`
	Recipients []Recipient `json:"recipients"`
}

// Recipient is a wrapped copy of a disk's data key.
type Recipient struct {
	Alias      string `json:"alias"`
	KEKID      string `json:"kekID"`
	WrappedKey []byte `json:"wrappedKey"`
}

// RecordOf gives a record for a Disk. It leaves out what belongs to a conversion:
// the process refuses a record of such a state.
func RecordOf(r *vmx.Record) Record {
	out := Record{
		State: r.State, DiskUUID: r.DiskUUID, Size: r.Size, Cipher: r.Cipher,
		SectorSize: r.SectorSize, Holes: r.Holes, MAC: r.MAC,
	}
	for _, rc := range r.Recipients {
		out.Recipients = append(out.Recipients, Recipient(rc))
	}
	return out
}

// VMX is the inverse of RecordOf.
func (r *Record) VMX() *vmx.Record {
	out := &vmx.Record{
		State: r.State, DiskUUID: r.DiskUUID, Size: r.Size, Cipher: r.Cipher,
		SectorSize: r.SectorSize, Holes: r.Holes, MAC: r.MAC,
	}
	for _, rc := range r.Recipients {
		out.Recipients = append(out.Recipients, vmx.Recipient(rc))
	}
	return out
}

// dekState is what the record's MAC covers.
func (r *Record) dekState() dek.State {
	return dek.State{DiskUUID: r.DiskUUID, State: r.State, Size: uint64(r.Size)}
}

// binding is what the disk's data key is wrapped with under a KEK.
func (r *Record) binding(kekID string) dek.Binding {
	return dek.Binding{
		DiskUUID:   r.DiskUUID,
		Cipher:     r.Cipher,
		SectorSize: uint32(r.SectorSize),
		Holes:      r.Holes,
		KEKID:      kekID,
	}
}

// check refuses a disk that can't be served or whose record could not be written
// into a descriptor again.
func (d *Disk) check() error {
	if d.Node != strings.ToLower(d.Node) {
		return errors.New("the node is not in lower case")
	}
	if d.Record.State != vmx.StateEncrypted {
		return fmt.Errorf("the disk is %q, not encrypted", d.Record.State)
	}
	// SetRecord knows all that a node and a record can be.
	descriptor, err := vmx.Parse([]byte(".encoding = \"UTF-8\"\n" + d.Node + ".fileName = \"disk\"\n"))
	if err != nil {
		return err
	}
	return descriptor.SetRecord(d.Node, d.Record.VMX())
}

// socket is the name of the socket that the disk is served on.
func (d *Disk) socket() string { return SocketName(d.Node) }

// SocketName is that of a disk's socket in the directory of its VM.
func SocketName(node string) string { return node + socketSuffix }
