package main

import (
	"context"
	"errors"
	"fmt"
	"log/syslog"
	"path/filepath"
	"regexp"
	"strings"
	"time"
	"unicode"

	"github.com/urfave/cli/v2"

	"github.com/vmcrypt/vmcrypt/agent/api"
	"github.com/vmcrypt/vmcrypt/agent/daemon"
)

// What the hooks of libvirt and Proxmox VE have in common: a guest starts only if its
// disks could be unlocked, and when it has ended, they are locked.

// hookTime is how long a hook waits for the agent, which has bounds of its own.
const hookTime = 2 * time.Minute

// errStart is the error for a guest that must not start.
var errStart = errors.New("the guest does not start, since its disks can't be unlocked")

// errElsewhere is the error for a guest that would get disks of another VM than it says.
var errElsewhere = errors.New("the guest has a disk of another VM than the one that it names")

// powerOn has the agent unlock a VM for a guest that is about to start, of which the
// configuration says where QEMU finds its disks.
func powerOn(c *cli.Context, descriptor, owner, configuration string) error {
	if err := checkSockets(c, descriptor, configuration); err != nil {
		return fmt.Errorf("%w: %w", errStart, err)
	}
	err := withAgent(c, func(ctx context.Context, client *api.Client) error {
		_, err := client.Unlock(ctx, api.UnlockRequest{VM: descriptor, Owner: owner})
		return err
	})
	if err != nil {
		return fmt.Errorf("%w: %w", errStart, err)
	}
	return nil
}

// checkSockets refuses the copy of a guest of which the descriptor was changed, and the
// disks were not: it would have those of the first one, whose owner it need not be.
func checkSockets(c *cli.Context, descriptor, configuration string) error {
	socket, err := clientSocket(c)
	if err != nil {
		return err
	}
	own := filepath.Dir(daemon.SocketPath(socket, descriptor, ""))
	anyVM := regexp.MustCompile(regexp.QuoteMeta(filepath.Dir(own)) + "/[0-9a-f]{16}/")
	for _, folder := range anyVM.FindAllString(configuration, -1) {
		if filepath.Clean(folder) != own {
			return fmt.Errorf("%w: it leads to %s, and the disks of %s are in %s", errElsewhere, folder, descriptor, own)
		}
	}
	return nil
}

// powerOff has it locked after the guest has ended.
func powerOff(c *cli.Context, descriptor, owner string) {
	err := withAgent(c, func(ctx context.Context, client *api.Client) error {
		_, err := client.Lock(ctx, api.LockRequest{VM: descriptor, Owner: owner, Force: true})
		return err
	})
	if err != nil {
		reportUnlocked(c, descriptor, err)
	}
}

// reportUnlocked says what is not locked. That there is no guest can't be undone: it is
// said on standard error and in the system's log, since libvirt does not show what a hook
// says that succeeds.
func reportUnlocked(c *cli.Context, what string, err error) {
	err = fmt.Errorf("%s was not locked when its guest had ended: %w", what, err)
	report(err, c.Bool("json"))
	if log, e := syslog.New(syslog.LOG_DAEMON|syslog.LOG_ERR, "vmcrypt"); e == nil {
		_ = log.Err(plainText(err.Error())) // it was reported already
		log.Close()
	}
}

func withAgent(c *cli.Context, ask func(context.Context, *api.Client) error) error {
	client, err := agentClient(c)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(c.Context, hookTime)
	defer cancel()
	err = ask(ctx, client)
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("the agent did not get done in %v", hookTime)
	case errors.Is(err, api.ErrNoAgent):
		return hinted{err, "start the agent, for instance with \"systemctl start vmcrypt-agent\""}
	}
	return err
}

// hinted is an error with a hint of its own.
type hinted struct {
	error
	hint string
}

func (h hinted) Unwrap() error { return h.error }

// checkDescriptor refuses what others than vmcrypt wrote as the path of a descriptor.
func checkDescriptor(path string) error {
	switch {
	case strings.ContainsFunc(path, unicode.IsControl):
		return fmt.Errorf("the path of the descriptor has control characters: %q", path)
	case !filepath.IsAbs(path) || filepath.Clean(path) != path:
		return fmt.Errorf("the path of the descriptor is not one from the root, without detours: %q", path)
	case !strings.EqualFold(filepath.Ext(path), ".vmx"):
		return fmt.Errorf("this is not the path of a descriptor, whose name ends in .vmx: %q", path)
	}
	return nil
}
