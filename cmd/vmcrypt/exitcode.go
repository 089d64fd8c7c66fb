package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"

	"github.com/urfave/cli/v2"

	"github.com/vmcrypt/vmcrypt/agent"
	"github.com/vmcrypt/vmcrypt/agent/api"
	"github.com/vmcrypt/vmcrypt/agent/daemon"
	"github.com/vmcrypt/vmcrypt/blockcrypt"
	"github.com/vmcrypt/vmcrypt/blockcrypt/conversion"
	"github.com/vmcrypt/vmcrypt/browse"
	"github.com/vmcrypt/vmcrypt/dek"
	"github.com/vmcrypt/vmcrypt/image"
	"github.com/vmcrypt/vmcrypt/internal/audit"
	"github.com/vmcrypt/vmcrypt/internal/libvirtxml"
	"github.com/vmcrypt/vmcrypt/internal/systemd"
	"github.com/vmcrypt/vmcrypt/kek"
	"github.com/vmcrypt/vmcrypt/kms"
	"github.com/vmcrypt/vmcrypt/vmx"
)

// The exit codes. Programs rely on them: they never change their meaning.
const (
	exitDone         = 0
	exitFailure      = 1
	exitUsage        = 2
	exitNoKeyManager = 3
	exitKey          = 4
	exitTampered     = 5
	exitUnfinished   = 6
	exitInUse        = 7

	// exitConfiguration is for services that systemd starts only: to start them again
	// does not help. It is EX_CONFIG of sysexits(3).
	exitConfiguration = 78
)

const exitCodeHelp = `Exit codes: 0 done; 1 other failure; 2 usage; 3 no key manager answered;
4 key missing, denied or wrong; 5 descriptor, journal or key tampered with or unreadable;
6 an interrupted conversion must be resumed first; 7 the disk is in use;
78 the configuration does not let a service of systemd start.`

var errInterrupted = errors.New("interrupted; nothing was left behind")

// usageError is a mistake in the command line.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// configurationError is a mistake in the configuration of a service.
type configurationError struct{ error }

func (e configurationError) Unwrap() error { return e.error }

// codes maps errors to exit codes; the first that fits counts.
var codes = []struct {
	err  error
	code int
}{
	{image.ErrInUse, exitInUse},
	{agent.ErrOutside, exitFailure},
	{daemon.ErrUnknownVM, exitFailure},
	{conversion.ErrJournal, exitTampered},
	{agent.ErrUnfinished, exitUnfinished},
	{agent.ErrNode, exitUsage},
	{agent.ErrFormat, exitUsage},
	{daemon.ErrRequest, exitUsage},
	{daemon.ErrAmbiguous, exitUsage},
	{browse.ErrPath, exitUsage},
	{libvirtxml.ErrWhich, exitUsage},
	{dek.ErrTampered, exitTampered},
	{dek.ErrVersion, exitTampered},
	{vmx.ErrRecord, exitTampered},
	{vmx.ErrVersion, exitTampered},
	{vmx.ErrSyntax, exitTampered},
	{agent.ErrDescriptor, exitTampered},
	{audit.ErrChanged, exitTampered},
	{dek.ErrWrongKEK, exitKey},
	{agent.ErrAlias, exitKey},
	{kek.ErrNotFound, exitKey},
	{kek.ErrDenied, exitKey},
	{kek.ErrDestroyed, exitKey},
	{kek.ErrInactive, exitKey},
	{kek.ErrUnproven, exitKey},
	{kek.ErrUnsuitable, exitKey},
	{kek.ErrCanary, exitKey},
	{kek.ErrUnavailable, exitNoKeyManager},
}

func exitCode(err error) int {
	if wrong := (configurationError{}); errors.As(err, &wrong) && systemd.IsService() {
		return exitConfiguration
	}
	if usage := (usageError{}); errors.As(err, &usage) {
		return exitUsage
	}
	if told := (*api.Error)(nil); errors.As(err, &told) {
		return told.ExitCode
	}
	if errors.Is(err, agent.ErrPreflight) {
		return preflightCode(err)
	}
	for _, c := range codes {
		if errors.Is(err, c.err) {
			return c.code
		}
	}
	return exitFailure
}

// preflightCode is that of the gravest of the reasons why VMs could not be unlocked.
func preflightCode(err error) int {
	var reasons interface{ Unwrap() []error }
	if !errors.As(err, &reasons) {
		return exitFailure
	}
	found := map[int]bool{}
	for _, reason := range reasons.Unwrap() {
		found[exitCode(reason)] = true
	}
	for _, code := range []int{exitUnfinished, exitTampered, exitKey, exitNoKeyManager} {
		if found[code] {
			return code
		}
	}
	return exitFailure
}

// hints say what to do about errors that don't say it themselves.
var hints = []struct {
	err  error
	hint string
}{
	{agent.ErrPreflight, "the VMs' problems say what is wrong with each; \"vmcrypt kms status\" shows which key managers answer"},
	{agent.ErrReplicas, "see to it that the key managers replicate, and that all of them give this host the key"},
	{agent.ErrCircle, "encrypt it under an alias that other key managers serve, with --kms"},
	{errNeeded, "\"vmcrypt decrypt\" or \"vmcrypt rekey --deep\" has VMs need it no more; descriptors that are no VM's any more can be moved out of the datastores"},
	{kek.ErrInUse, "\"vmcrypt kms revoke-key\" has nothing more encrypted under it"},
	{daemon.ErrClients, "power the VM off first; --force takes its disks away from it"},
	{daemon.ErrSilent, "--force locks it all the same, and takes its disks away from a guest that still runs"},
	{daemon.ErrWaiting, "power the VM off first; then --force without --owner locks it"},
	{daemon.ErrUnlocked, "lock it first"},
	{image.ErrInUse, "power the VM off, or stop the program that has the disk open"},
	{dek.ErrTampered, "restore the descriptor from a backup; nothing was written"},
	{vmx.ErrRecord, "restore the descriptor from a backup; nothing was written"},
	{vmx.ErrVersion, "use the release of vmcrypt that wrote it, or a later one"},
	{dek.ErrVersion, "use the release of vmcrypt that wrote it, or a later one"},
	{dek.ErrWrongKEK, "the key manager gave another key than the disk was encrypted under: check which one the alias leads to"},
	{conversion.ErrJournal, "bring the journal back as it was, beside the disk; nothing was written"},
	{agent.ErrInPlace, "encrypt and decrypt can leave it as it is and write a copy, with --output PATH"},
	{agent.ErrState, "\"vmcrypt status\" shows what the disks are; --disk chooses among those of a VM"},
	{agent.ErrNode, "name a disk with --disk NODE"},
	{agent.ErrFormat, "leave --format out"},
	{agent.ErrAbsent, "attach it or take it out of the descriptor, or choose the disks with --disk"},
	{agent.ErrJournalOnly, "another descriptor may have a conversion of this disk that is not finished: name that one; or bring back the one that was there when it began"},
	{agent.ErrUnrecorded, "find the descriptor; if the disk is surely plain, remove its attribute user.vmcrypt.disk"},
	{blockcrypt.ErrSectorSize, "use --sector-size 512"},
	{agent.ErrAlias, "add the alias to the configuration, or name another one with --kms"},
	{kek.ErrUnproven, "nothing was encrypted with it; --kek names it once the key managers have replicated it, and minReplicas of the alias says how many have to have it"},
	{kek.ErrCanary, "\"vmcrypt preflight\" shows which VMs could not be unlocked for that"},
	{kek.ErrNotFound, "check that the alias leads to the key manager that the disk was encrypted under"},
	{kek.ErrDestroyed, "only a backup of the key manager can bring the key back"},
	{kek.ErrDenied, "let the key manager's administrator grant this host's certificate access to the key"},
	{agent.ErrOutside, "the agent opens VMs only in the datastores that its configuration names, and follows no symbolic link there"},
	{libvirtxml.ErrWhich, "name it with --target NODE=DEVICE, as scsi0:0=vda; a device that the domain does not have is added"},
	{libvirtxml.ErrMetadata, "\"vmcrypt libvirt-xml\" writes it"},
	{errElsewhere, "\"vmcrypt libvirt-xml\" and \"vmcrypt proxmox-args\" tell where its own disks are"},
	{api.ErrNoAgent, "\"vmcrypt agent\" runs the agent; --socket names another one's socket"},
	{daemon.ErrDenied, "let the administrator add this user to the group, and log in again"},
	{daemon.ErrUnknownVM, "\"vmcrypt list\" shows which VMs there are; a path names a VM, too"},
	{daemon.ErrRunning, "\"vmcrypt list\" asks the one that runs"},
	{kms.ErrClientExists, "to give it another certificate for the same keys, add --replace"},
	{errLost, "\"vmcrypt kms restore\" brings the key manager back from a backup; nothing else can"},
	{kek.ErrUnavailable, "\"vmcrypt kms status\" shows which key managers answer"},
	{syscall.ENOSPC, "make room"},
	{fs.ErrExist, "move it away or choose another name"},
	{fs.ErrPermission, "run as a user who may open it"},
}

// failure is the error of a command, with those of its flags that hints depend on.
type failure struct {
	error
	same   string // the flags by which another command finds the same disk and keys
	abort  bool
	copies bool // it writes to --output
}

func (f failure) Unwrap() error { return f.error }

func withFlags(c *cli.Context, err error) error {
	if err == nil {
		return nil
	}
	f := failure{error: err, abort: c.Bool("abort"), copies: c.String("output") != ""}
	for _, flag := range []string{"format", "config"} {
		if value := c.String(flag); value != "" {
			f.same += " --" + flag + " " + shellWord(value)
		}
	}
	return f
}

func hint(err error) string {
	f := failure{}
	_ = errors.As(err, &f) // what is no command's has no flags
	if u := (*agent.Unfinished)(nil); errors.As(err, &u) {
		return unfinishedHint(u, f)
	}
	if told := (*api.Error)(nil); errors.As(err, &told) {
		return told.Hint
	}
	if h := (hinted{}); errors.As(err, &h) {
		return h.hint
	}
	if f.copies && errors.Is(err, syscall.ENOSPC) {
		return "make room or choose another --output; nothing was left behind"
	}
	for _, h := range hints {
		if errors.Is(err, h.err) {
			return h.hint
		}
	}
	return ""
}

// report tells the user of an error: people on a line or two, programs in an
// object.
func report(err error, asJSON bool) {
	if asJSON {
		_ = writeJSON(os.Stderr, map[string]any{ // there is nobody else to tell
			"type": "error", "message": err.Error(), "hint": hint(err), "exitCode": exitCode(err),
		})
		return
	}
	fmt.Fprintf(os.Stderr, "vmcrypt: %s\n", plainText(err.Error()))
	if h := hint(err); h != "" {
		fmt.Fprintf(os.Stderr, "vmcrypt: %s\n", h)
	}
}
