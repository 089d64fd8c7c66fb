// Package agent holds vmcrypt's workflows: encrypt, decrypt, status and the look
// inside an encrypted disk. They are written once, here, for the command line
// and the daemon alike, and hold facts only; advice to people is the caller's.
//
// A workflow starts from a Target, which Open finds from a descriptor or a disk
// image, and runs on a Host, which knows the key managers:
//
//	t, err := agent.Open("web01.vmx", "")
//	if err != nil {
//		return err
//	}
//	_, err = host.Encrypt(ctx, t, agent.EncryptOptions{Output: "/srv/encrypted/web01"})
package agent

import (
	"errors"
	"fmt"

	"golang.org/x/sync/semaphore"

	"github.com/vmcrypt/vmcrypt/blockcrypt"
	"github.com/vmcrypt/vmcrypt/kek"
)

// The errors that callers tell apart, besides those of kek, dek, vmx and image.
var (
	// ErrState: the disk is encrypted already, or is not.
	ErrState = errors.New("wrong state for this operation")
	// ErrUnfinished: a conversion in place of the disk was interrupted.
	ErrUnfinished = errors.New("a conversion is not finished")
	// ErrInPlace: the disk can't be converted where it lies.
	ErrInPlace = errors.New("no conversion in place")
	// ErrNode: the descriptor has no disk at the named node, or several where one
	// must be named.
	ErrNode = errors.New("which disk")
	// ErrFormat: a format was given where there is no choice.
	ErrFormat = errors.New("no format can be chosen")
	// ErrAbsent: a disk is in the descriptor and has a file, but is not present.
	ErrAbsent = errors.New("a disk is not present in the VM")
	// ErrAlias: no key manager is configured under the alias.
	ErrAlias = errors.New("unknown KMS alias")
	// ErrDescriptor: the descriptor is missing, or does not fit the disk.
	ErrDescriptor = errors.New("descriptor unusable")
	// ErrUnrecorded: the disk is encrypted, and its descriptor lost.
	ErrUnrecorded = fmt.Errorf("%w: no record", ErrDescriptor)
	// ErrJournalOnly: a conversion of the disk is not finished, of which this
	// descriptor knows nothing.
	ErrJournalOnly = fmt.Errorf("%w: a journal that it knows nothing of", ErrDescriptor)
	// ErrOutput: the output can't be what was asked for.
	ErrOutput = errors.New("unusable output")
)

// Unfinished is the ErrUnfinished of one disk.
type Unfinished struct {
	Target string // as the user named it
	Node   string
	Path   string
	State  string // of the disk: vmx.StateEncrypting, ...
	Named  bool   // the disk has to be named to go on with it, and with no other
	Err    error  // what stopped the conversion in this run; nil if it was found so
}

func (u *Unfinished) Error() string {
	text := fmt.Sprintf("%v: disk %s (%s) is %s", ErrUnfinished, u.Node, u.Path, u.State)
	if u.Err != nil {
		text += ": " + u.Err.Error()
	}
	return text
}

// Unwrap gives ErrUnfinished, and what stopped the conversion.
func (u *Unfinished) Unwrap() []error {
	if u.Err == nil {
		return []error{ErrUnfinished}
	}
	return []error{ErrUnfinished, u.Err}
}

// Host is what the workflows need of the machine they run on.
type Host struct {
	// Cluster opens the key managers of an alias; ErrAlias if there are none.
	Cluster func(alias string) (*kek.Cluster, error)
	// Datastores are the folders in which the host's VMs lie.
	Datastores []string
	// KeyManagerVMs has for each alias who runs its key managers, in their order: the UUID
	// of a VM, or the absolute path of its descriptor; "" for none of this host's.
	KeyManagerVMs map[string][]string
	// Keys, if set, has workflows that run at once share the KEKs that they need.
	Keys *Keys
	// Turns, if set, bounds how many unlocks run at once.
	Turns *semaphore.Weighted
	// Engine does the encryption; the zero Engine is slow.
	Engine blockcrypt.Engine
	// Report, if set, hears how far long work has come. It is called from several
	// goroutines, one at a time.
	Report func(Progress)
}

// Progress is how far a conversion has come, in bytes.
type Progress struct {
	Node        string // the disk being worked on
	Done, Total int64  // over all disks of the run
}
