package daemon

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/vmcrypt/vmcrypt/agent/api"
	"github.com/vmcrypt/vmcrypt/image"
)

// ErrOwned is the error for a VM that is unlocked for somebody else: two guests with the
// same disks would destroy them.
var ErrOwned = fmt.Errorf("%w: the VM is unlocked for another", image.ErrInUse)

// maxOwner bounds the name of an owner, in bytes.
const maxOwner = 256

func checkOwner(owner string) error {
	if len(owner) > maxOwner || !utf8.ValidString(owner) || strings.ContainsFunc(owner, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return fmt.Errorf("%w: an owner is at most %d bytes of printable text", ErrRequest, maxOwner)
	}
	return nil
}

// isFor tells whether an owner may use what is unlocked: who names none means any.
func (w *wish) isFor(owner string) bool { return owner == "" || w.Owner == "" || w.Owner == owner }

func (w *wish) owned() error {
	return fmt.Errorf("%w: %s, for %s", ErrOwned, w.VM.Descriptor, w.Owner)
}

// mayForce tells whether the disks may be taken from clients. Those of a VM that is
// unlocked for nobody, or nobody knows for whom, may be anybody's, not only the owner's
// who asks.
func (m *machine) mayForce(r api.LockRequest) (bool, error) {
	w := m.wants()
	switch {
	case r.Owner == "":
		return r.Force, nil
	case w == nil:
		return false, nil
	case !w.isFor(r.Owner):
		return false, w.owned()
	}
	return r.Force && w.Owner == r.Owner, m.checkWaiting(*w, r.Owner)
}

// checkWaiting keeps an owner from what is unlocked for nobody while its clients may be
// about to connect again.
func (m *machine) checkWaiting(w wish, owner string) error {
	if owner == "" || w.Owner != "" || w.Locking || !m.mayReconnect() {
		return nil
	}
	return fmt.Errorf("%w: %s, for nobody in particular", ErrWaiting, w.VM.Descriptor)
}

// setOwner notes for whom the VM is unlocked from now on.
func (m *machine) setOwner(w wish) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.wish = &w
}
