package main

import (
	"path/filepath"
	"testing"

	"github.com/google/uuid"

	"github.com/vmcrypt/vmcrypt/agent"
	"github.com/vmcrypt/vmcrypt/vmx"
)

// TestUnfinishedConversion: a disk that is half of one kind and half of the other
// is taken for neither, not even to come along with another disk.
func TestUnfinishedConversion(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	smallImage(t, at("a"))
	smallImage(t, at("b"))
	write(t, at("plain.vmx"), []byte("scsi0:0.fileName = \"a\"\nscsi0:1.fileName = \"b\"\n"))
	h.ok("encrypt", at("plain.vmx"), "--output", at("vm"), "--disk", "scsi0:1")
	target := at("vm/plain.vmx")
	good := read(t, target)
	for state, command := range map[string]string{
		vmx.StateEncrypting: "vmcrypt encrypt", vmx.StateDecrypting: "vmcrypt decrypt", vmx.StateRekeying: "vmcrypt rekey --deep",
	} {
		write(t, target, unfinished(t, good, "scsi0:1", state))
		for _, args := range [][]string{
			{"encrypt", target, "--output", at("out"), "--disk", "scsi0:0"},
			{"encrypt", target, "--output", at("out"), "--disk", "scsi0:1"},
			{"decrypt", target, "--output", at("out"), "--disk", "scsi0:1"},
			{"ls", target, "--disk", "scsi0:1"},
			{"cat", target, "/x", "--disk", "scsi0:1"},
		} {
			unchanged(t, dir, func() {
				h.fails(exitUnfinished, []string{"scsi0:1", at("vm/b"), state, command}, args...)
			})
		}
		s := parseJSON[agent.Status](t, h.ok("status", target, "--json"))
		if s.Disks[1].State != state {
			t.Errorf("status of a disk that is %s: %s", state, s.Disks[1].State)
		}
	}
}

// unfinished gives a descriptor in which the conversion of a disk has begun.
func unfinished(t *testing.T, descriptor []byte, node, state string) []byte {
	t.Helper()
	f, err := vmx.Parse(descriptor)
	if err != nil {
		t.Fatal(err)
	}
	r, err := f.Record(node)
	if err != nil {
		t.Fatal(err)
	}
	r.State, r.Conversion = state, &vmx.Conversion{UUID: uuid.New(), Phase: vmx.PhaseConverting}
	if state == vmx.StateRekeying {
		r.Previous = r.Recipients
	}
	if err := f.SetRecord(node, r); err != nil {
		t.Fatal(err)
	}
	return f.Bytes()
}
