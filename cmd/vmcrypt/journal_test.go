package main

import (
	"os"
	"testing"

	"github.com/vmcrypt/vmcrypt/agent"
)

// TestInPlaceOneBadJournal: no disk of a VM is gone on with if the journal of
// another does not fit.
func TestInPlaceOneBadJournal(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	at := vm(t, "scsi0:0.fileName = \"a.img\"\nscsi0:1.fileName = \"b.img\"\n")
	holedImage(t, at("vm/a.img"), 2<<20)
	holedImage(t, at("vm/b.img"), 2<<20)
	target, journal := at("vm/vm.vmx"), at("vm/b.img.vmcrypt-journal")
	h.interrupted(agent.StateEncrypting, "encrypt", target) // amid the first disk
	copyFile(t, journal, at("vm/a.img.vmcrypt-journal"))
	before := sums(t, at("vm"))
	h.fails(exitTampered, []string{"b.img"}, "encrypt", target)
	if after := sums(t, at("vm")); after != before {
		t.Errorf("something changed: %s\nbefore: %s", after, before)
	}
	if err := os.Remove(journal); err != nil {
		t.Fatal(err)
	}
	h.ok("encrypt", target)
}
