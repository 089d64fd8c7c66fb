// Package systemd tells systemd how a service is (sd_notify(3)), and puts processes into
// scopes of their own (org.freedesktop.systemd1(5)). Where systemd does not run, or did
// not start the process, it does nothing.
package systemd

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/coreos/go-systemd/v22/dbus"
	"github.com/coreos/go-systemd/v22/util"
)

// Ready tells that the service has started, and keeps telling that it is alive, as often
// as the unit's WatchdogSec asks for, as long as check succeeds; once ctx ends, that it is
// about to stop. It returns at once.
func Ready(ctx context.Context, check func(context.Context) error) {
	notify(daemon.SdNotifyReady)
	context.AfterFunc(ctx, func() { notify(daemon.SdNotifyStopping) })
	if limit, err := daemon.SdWatchdogEnabled(false); err == nil && limit > 0 {
		go keepAlive(ctx, limit, check)
	}
}

func keepAlive(ctx context.Context, limit time.Duration, check func(context.Context) error) {
	tick := time.NewTicker(limit / 3)
	defer tick.Stop()
	for {
		if err := checkWithin(ctx, limit/2, check); err == nil {
			notify(daemon.SdNotifyWatchdog)
		} else if ctx.Err() == nil {
			slog.Warn("the service does not answer itself", "error", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

func checkWithin(ctx context.Context, limit time.Duration, check func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return check(ctx)
}

func notify(state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		slog.Warn("systemd can't be told how the service is", "error", err)
	}
}

// own are the variables by which systemd knows the process that it started.
var own = []string{"NOTIFY_SOCKET=", "WATCHDOG_USEC=", "WATCHDOG_PID="}

// Environ is the environment for another process: without what is for this one only.
func Environ() []string {
	return slices.DeleteFunc(os.Environ(), func(v string) bool {
		return slices.ContainsFunc(own, func(name string) bool { return strings.HasPrefix(v, name) })
	})
}

// Scope is a transient unit of processes that systemd did not start.
type Scope struct {
	Name          string // without its suffix: letters, digits and hyphens
	Description   string
	Before, After []string // units; at shutdown it is the other way round
}

// scopeTime is how long systemd has to start a scope.
const scopeTime = 5 * time.Second

// IsService tells whether systemd started this process and wants to know how it is.
func IsService() bool { return os.Getenv("NOTIFY_SOCKET") != "" }

// Installed tells whether systemd runs and knows all of these units.
func Installed(units ...string) bool {
	return util.IsRunningSystemd() && !slices.ContainsFunc(units, func(unit string) bool { return !known(unit) })
}

// unitFolders are where packages and administrators put units: systemd.unit(5).
var unitFolders = []string{"/etc/systemd/system", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"}

func known(unit string) bool {
	return slices.ContainsFunc(unitFolders, func(folder string) bool {
		_, err := os.Stat(filepath.Join(folder, unit))
		return err == nil
	})
}

// CanScope tells whether this process may start scopes: as root, where systemd runs.
func CanScope() bool { return os.Geteuid() == 0 && util.IsRunningSystemd() }

// Start moves a process of this one's children into the scope, which ends with it.
func (s Scope) Start(ctx context.Context, pid int) error {
	ctx, cancel := context.WithTimeout(ctx, scopeTime)
	defer cancel()
	conn, err := dbus.NewWithContext(ctx)
	if err != nil {
		return fmt.Errorf("connect to systemd: %w", err)
	}
	defer conn.Close()
	name, result := s.Name+".scope", make(chan string, 1)
	if _, err := conn.StartTransientUnitContext(ctx, name, "fail", s.properties(pid), result); err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	select {
	case r := <-result:
		if r != "done" {
			return fmt.Errorf("start %s: %s", name, r)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("start %s: %w", name, ctx.Err())
	}
}

func (s Scope) properties(pid int) []dbus.Property {
	return []dbus.Property{
		dbus.PropDescription(s.Description),
		dbus.PropPids(uint32(pid)),
		dbus.PropBefore(s.Before...),
		dbus.PropAfter(s.After...),
	}
}
