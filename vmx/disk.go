package vmx

import (
	"fmt"
	"regexp"
	"strings"
)

// Disk is a virtual disk of a VM.
type Disk struct {
	Node     string // controller and unit in lower case, as in "scsi0:0"
	FileName string // as in the descriptor: absolute, or relative to its folder
}

var nodePattern = regexp.MustCompile(
	`^((?:scsi|nvme|sata|ide)(?:0|[1-9][0-9]{0,2}):(?:0|[1-9][0-9]{0,2}))(?:\.(.+))?$`)

// splitNode takes a key in lower case apart: node and what follows its dot. Both
// are "" for a key of something else.
func splitNode(key string) (node, rest string) {
	m := nodePattern.FindStringSubmatch(key)
	if m == nil {
		return "", ""
	}
	return m[1], m[2]
}

func isNode(s string) bool {
	node, rest := splitNode(s)
	return node != "" && rest == ""
}

// Disks lists the virtual disks in the order of their file names in the file:
// the nodes of SCSI, NVMe, SATA and IDE controllers with a fileName that are
// present and are disks.
//
// A node without `present` counts as present. VMware would not show it to the
// guest, but its file is there, and is not to be left in plain text unnoticed.
// A node is a disk unless its deviceType is one of VMware's others (CD-ROM,
// floppy, SCSI pass-through), its file name is empty or one of VMware's
// placeholders for an empty drive, or there is no deviceType and the file name
// ends in .iso. A node with a record is a present disk whatever these keys say:
// who can change them must not make an encrypted disk go unnoticed.
//
// It fails with ErrSyntax where one of these values is doubtful: given twice,
// unreadable, or a `present` other than TRUE or FALSE; and with ErrRecord where
// a node has a record and no fileName, as in a file that was cut short.
func (f *File) Disks() ([]Disk, error) { return f.disks(true) }

// Absent lists what would be disks if they were present.
func (f *File) Absent() ([]Disk, error) { return f.disks(false) }

func (f *File) disks(present bool) ([]Disk, error) {
	var disks []Disk
	recorded := f.recorded()
	for i, l := range f.lines {
		node, rest := splitNode(l.key)
		switch {
		case node == "":
		case rest == "filename":
			d, is, err := f.disk(node, recorded[node])
			if err != nil {
				return nil, err
			}
			if d.FileName != "" && is == present {
				disks = append(disks, d)
			}
		case strings.HasPrefix(rest, recordPrefix) && !f.hasFile(node):
			key := strings.TrimPrefix(rest, recordPrefix)
			return nil, f.recordError(node, key, map[string]int{key: i}, noFile)
		}
	}
	return disks, nil
}

// disk gives the disk at a node that has a fileName, none if that is something
// else, and whether it is present.
func (f *File) disk(node string, recorded bool) (Disk, bool, error) {
	file, err := f.text(node + ".fileName")
	if err != nil {
		return Disk{}, false, err
	}
	device, err := f.text(node + ".deviceType")
	if err != nil {
		return Disk{}, false, err
	}
	present, err := f.present(node)
	switch {
	case err != nil:
		return Disk{}, false, err
	case recorded:
		return Disk{Node: node, FileName: file}, true, nil
	case !isDisk(lower(device), lower(file)):
		return Disk{}, false, nil
	}
	return Disk{Node: node, FileName: file}, present, nil
}

// recorded is the nodes that have a record, or a part of one.
func (f *File) recorded() map[string]bool {
	nodes := make(map[string]bool)
	for _, l := range f.lines {
		if node, rest := splitNode(l.key); strings.HasPrefix(rest, recordPrefix) {
			nodes[node] = true
		}
	}
	return nodes
}

// Companions lists the files besides its disks that a VM's descriptor names: the
// firmware's variables, the extended configuration, and what other devices have
// as their fileName.
func (f *File) Companions() ([]string, error) {
	var files []string
	recorded := f.recorded()
	for _, l := range f.lines {
		other := strings.HasSuffix(l.key, ".filename")
		if node, rest := splitNode(l.key); other && node != "" {
			d, _, err := f.disk(node, recorded[node])
			if err != nil {
				return nil, err
			}
			other = rest == "filename" && d.FileName == ""
		}
		if name, ok := f.Get(l.key); ok && name != "" && (other || l.key == "nvram" || l.key == "extendedconfigfile") {
			files = append(files, name)
		}
	}
	return files, nil
}

// isDisk tells by type and file name, both in lower case.
func isDisk(device, file string) bool {
	switch {
	case file == "" || file == "auto detect" || file == "emptybackingstring":
		return false
	case device == "":
		return !strings.HasSuffix(file, ".iso")
	case device == "scsi-passthru": // a tape or a changer; an RDM is scsi-passthru-rdm
		return false
	}
	return !strings.Contains(device, "cdrom") && !strings.Contains(device, "floppy")
}

func (f *File) present(node string) (bool, error) {
	key := node + ".present"
	i, err := f.find(key)
	if err != nil || i < 0 {
		return err == nil, err
	}
	switch lower(unescape(f.lines[i].value)) {
	case "true":
		return true, nil
	case "false":
		return false, nil
	}
	return false, fmt.Errorf("line %d: %w: %s is neither TRUE nor FALSE", i+1, ErrSyntax, key)
}

// hasFile tells whether a node has a fileName, readable or not.
func (f *File) hasFile(node string) bool {
	return len(f.index[node+".filename"]) > 0
}
