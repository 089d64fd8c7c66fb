package agent

import (
	"os"

	"github.com/vmcrypt/vmcrypt/blockcrypt/conversion"
	"github.com/vmcrypt/vmcrypt/image"
	"github.com/vmcrypt/vmcrypt/vmx"
)

// The states of a disk.
const (
	StatePlain      = "plain"
	StateEncrypted  = vmx.StateEncrypted
	StateEncrypting = vmx.StateEncrypting
	StateDecrypting = vmx.StateDecrypting
	StateRekeying   = vmx.StateRekeying
)

// Status is what is known of a target without asking a key manager.
type Status struct {
	Descriptor string       `json:"descriptor"` // empty where there is none
	Disks      []DiskStatus `json:"disks"`
}

// DiskStatus is what is known of a disk without its key. The fields from
// DiskUUID on are those of an encrypted disk.
type DiskStatus struct {
	Node       string            `json:"node"`
	File       string            `json:"file"`
	Format     image.Format      `json:"format"`
	SizeBytes  int64             `json:"sizeBytes"`
	State      string            `json:"state"`
	DiskUUID   string            `json:"diskUUID,omitempty"`
	Cipher     string            `json:"cipher,omitempty"`
	SectorSize int               `json:"sectorSize,omitempty"`
	Holes      string            `json:"holes,omitempty"`
	Recipients []RecipientStatus `json:"recipients,omitempty"`
	Previous   []RecipientStatus `json:"previous,omitempty"` // of the key before, which a rekey still needs
	Conversion *ConversionStatus `json:"conversion,omitempty"`
}

// ConversionStatus is how far an unfinished conversion has come. Position and
// direction are what its journal says, whose key is not at hand here: whoever can
// write it can make it say anything. They are missing where Journal says why.
type ConversionStatus struct {
	Phase         string `json:"phase"`                   // as vmx.Conversion has it
	PositionBytes *int64 `json:"positionBytes,omitempty"` // below it the disk has its new content
	Direction     string `json:"direction,omitempty"`     // DirectionForward or DirectionBackward
	Journal       string `json:"journal,omitempty"`       // JournalMissing or JournalUnreadable
	Running       bool   `json:"running"`                 // a process is at it
}

// Why a journal does not tell how far its conversion has come.
const (
	JournalMissing    = "missing"
	JournalUnreadable = "unreadable"
)

// The directions of a conversion. Backward it goes after it was aborted.
const (
	DirectionForward  = "forward"
	DirectionBackward = "backward"
)

// RecipientStatus names one key that opens a disk.
type RecipientStatus struct {
	Alias string `json:"alias"`
	KEKID string `json:"kekID"`
}

// Status describes the target's disks at the given nodes, or all of them.
func (t *Target) Status(nodes []string) (*Status, error) {
	s := &Status{Disks: []DiskStatus{}}
	if t.file != nil {
		s.Descriptor = t.Descriptor
	}
	disks, err := t.atNodes(nodes)
	if err != nil {
		return nil, err
	}
	for _, d := range disks {
		ds, err := d.status()
		if err != nil {
			return nil, err
		}
		s.Disks = append(s.Disks, ds)
	}
	return s, nil
}

func (d Disk) status() (DiskStatus, error) {
	s := DiskStatus{Node: d.Node, File: d.Path, Format: d.Format, State: StatePlain}
	info, err := d.inspect()
	if err != nil {
		return s, err
	}
	if !d.amidConversion() { // a mark without a record is then no lost descriptor
		if err := checkNoJournal(info.DataPath); err != nil {
			return s, err
		}
	}
	if err := d.checkMark(info.DiskUUID); err != nil {
		return s, err
	}
	s.SizeBytes = info.Size
	if r := d.Record; r != nil {
		s.State, s.DiskUUID, s.Cipher = r.State, r.DiskUUID.String(), r.Cipher
		s.SectorSize, s.Holes = r.SectorSize, r.Holes
		s.Recipients, s.Previous = recipientStatus(r.Recipients), recipientStatus(r.Previous)
	}
	if d.amidConversion() {
		s.Conversion = d.conversionStatus(info.DataPath)
	}
	return s, nil
}

func (d Disk) inspect() (image.Info, error) {
	if beneath := d.target.beneath; beneath != nil {
		return beneath.inspect(d.Path, d.Format)
	}
	return image.Inspect(d.Path, d.Format)
}

func recipientStatus(recipients []vmx.Recipient) (s []RecipientStatus) {
	for _, to := range recipients {
		s = append(s, RecipientStatus{Alias: to.Alias, KEKID: to.KEKID})
	}
	return s
}

func (d Disk) conversionStatus(dataPath string) *ConversionStatus {
	s := &ConversionStatus{Phase: d.Record.Conversion.Phase, Running: d.target.isLocked()}
	j := journalOf(dataPath)
	if d.target.beneath != nil {
		j.path = dataPath + journalSuffix // which no link leads to
	}
	at := d.target.peek(j)
	switch {
	case at != nil && at.Backward:
		s.PositionBytes, s.Direction = &at.Bytes, DirectionBackward
	case at != nil:
		s.PositionBytes, s.Direction = &at.Bytes, DirectionForward
	default:
		s.Journal = JournalUnreadable
		if there, err := j.exists(); err == nil && !there {
			s.Journal = JournalMissing
		}
	}
	return s
}

// peek tells what the journal of one of the target's disks says.
func (t *Target) peek(j sidecar) *conversion.Position {
	f, err := t.openOwn(j.path)
	if err != nil {
		return nil
	}
	defer f.Close()
	return peek(f)
}

// openOwn opens a file of vmcrypt's own beside the target's, for reading.
func (t *Target) openOwn(path string) (*os.File, error) {
	if t.beneath != nil {
		return t.beneath.openRegular(path)
	}
	return openRegular(path, os.O_RDONLY)
}
