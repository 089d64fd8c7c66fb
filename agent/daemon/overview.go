package daemon

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/vmcrypt/vmcrypt/agent"
	"github.com/vmcrypt/vmcrypt/agent/api"
	"github.com/vmcrypt/vmcrypt/kek"
)

// overview is the operation of the API.
func (d *daemon) overview(ctx context.Context) (*api.Overview, error) {
	list, err := d.list(ctx)
	if err != nil {
		return nil, err
	}
	o := &api.Overview{Agent: *d.self(), VMs: list.VMs, KeyManagers: d.health.all()}
	if o.KeyManagers == nil {
		o.KeyManagers = []api.KeyManager{}
	}
	o.Warnings = warnings(o, d.unreadDatastores(), time.Now())
	return o, nil
}

func (d *daemon) unreadDatastores() map[string]error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return maps.Clone(d.unread)
}

// warnings are what an operator should look at, the worst first.
func warnings(o *api.Overview, unread map[string]error, now time.Time) []api.Warning {
	all := keyManagerWarnings(o.KeyManagers, now)
	for _, root := range o.Agent.Datastores {
		all = append(all, datastoreWarnings(root, unread[root])...)
	}
	for _, vm := range o.VMs {
		all = append(all, vmWarnings(vm)...)
	}
	slices.SortStableFunc(all, func(a, b api.Warning) int { return strings.Compare(a.Severity, b.Severity) }) // critical, warning
	if all == nil {
		all = []api.Warning{}
	}
	return all
}

// datastoreWarnings are critical for one that can't be read at all: perhaps it is not
// mounted.
func datastoreWarnings(root string, err error) []api.Warning {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, agent.ErrLimit):
		return []api.Warning{{Severity: api.Notice, Subject: root, Text: "some VMs in it are not shown: " + err.Error()}}
	}
	return []api.Warning{{Severity: api.Critical, Subject: root, Text: "no VM in it can be unlocked: " + err.Error()}}
}

func vmWarnings(vm api.VM) []api.Warning {
	converting := slices.ContainsFunc(vm.Disks, func(d api.Disk) bool { return d.Conversion != nil && d.Conversion.Running })
	switch {
	case vm.Problem == "" || converting:
		return nil
	case vm.State == api.Locked:
		return []api.Warning{{Severity: api.Notice, Subject: vm.Descriptor, Text: "can't be unlocked: " + vm.Problem}}
	}
	return []api.Warning{{Severity: api.Critical, Subject: vm.Descriptor, Text: vm.State + ": " + vm.Problem}}
}

// keyManagerWarnings are critical where an alias has no key manager left.
func keyManagerWarnings(servers []api.KeyManager, now time.Time) (all []api.Warning) {
	usable := map[string]int{}
	for _, k := range servers {
		if (k.State == string(kek.StateOK) || k.State == stateUnknown) && !hasFailed(k) {
			usable[k.Alias]++
		}
	}
	for _, k := range servers {
		subject := k.Alias + " " + k.Address
		if hasFailed(k) || k.State != string(kek.StateOK) && k.State != stateUnknown {
			w := api.Warning{Severity: api.Notice, Subject: subject, Text: k.State + ": " + k.Problem}
			if hasFailed(k) {
				w.Text = "it does not give a key that it should: " + k.Canary + ": " + k.CanaryProblem
			}
			if usable[k.Alias] == 0 {
				w.Severity, w.Text = api.Critical, "no key manager of "+k.Alias+" is left: "+w.Text
			}
			all = append(all, w)
		}
		all = append(all, expiryWarnings(subject, k, now)...)
	}
	return all
}

func expiryWarnings(subject string, k api.KeyManager, now time.Time) (all []api.Warning) {
	for _, c := range []struct {
		name string
		ends *time.Time
	}{
		{"the key manager's certificate", k.Expires},
		{"the certificate by which this host is known to it", k.ClientExpires},
	} {
		if c.ends == nil {
			continue
		}
		if left := c.ends.Sub(now); left < expirySoon {
			severity := api.Notice
			if left < expiryVerySoon {
				severity = api.Critical
			}
			all = append(all, api.Warning{Severity: severity, Subject: subject, Text: expiryText(c.name, *c.ends, left)})
		}
	}
	return all
}

// When the end of a certificate is something to look at.
const (
	day            = 24 * time.Hour
	expirySoon     = kek.ExpirySoon
	expiryVerySoon = 7 * day
)

func expiryText(name string, ends time.Time, left time.Duration) string {
	on := ends.UTC().Format(time.DateOnly)
	if left < 0 {
		return fmt.Sprintf("%s expired on %s: renew it", name, on)
	}
	return fmt.Sprintf("%s expires on %s, in %d days: renew it before", name, on, int(left/day))
}
