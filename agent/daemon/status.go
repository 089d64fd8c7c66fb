package daemon

import (
	"cmp"
	"context"
	"os"

	"golang.org/x/sync/errgroup"

	"github.com/vmcrypt/vmcrypt/agent"
	"github.com/vmcrypt/vmcrypt/agent/api"
	"github.com/vmcrypt/vmcrypt/agent/diskserver"
)

// status is the operation of the API.
func (d *daemon) status(ctx context.Context, vm string) (*api.VM, error) {
	path, err := d.find(ctx, vm)
	if err != nil {
		return nil, err
	}
	if m := d.known(path); m != nil {
		if vm := m.status(ctx); vm != nil {
			return vm, nil
		}
	}
	return d.locked(path)
}

// askedAtOnce is how many disk servers are asked for their status at a time.
const askedAtOnce = 32

// unlockedVMs tells of the VMs that are not locked; some of them may be nil.
func (d *daemon) unlockedVMs(ctx context.Context) []*api.VM {
	machines := d.wanted()
	vms := make([]*api.VM, len(machines))
	var asking errgroup.Group
	asking.SetLimit(askedAtOnce)
	for i, m := range machines {
		asking.Go(func() error {
			vms[i] = m.status(ctx)
			return nil
		})
	}
	_ = asking.Wait() // they give no errors
	return vms
}

// status tells of a VM that is not locked; nil if it is by now.
func (m *machine) status(ctx context.Context) *api.VM {
	vm, err := m.ask(ctx)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.wish == nil {
		return nil
	}
	if err == nil {
		if m.wish.Locking {
			vm.Problem = cmp.Or(m.problem, "it is to be locked")
		}
		return vm
	}
	out := &api.VM{
		Name: m.wish.VM.Name, UUID: m.wish.VM.UUID, Descriptor: m.descriptor, State: api.Restarting,
		Disks: []api.Disk{}, Owner: m.wish.Owner, Problem: cmp.Or(m.problem, err.Error()),
	}
	if m.server.lives() || m.wish.Locking {
		out.State = api.Unlocked
	}
	return out
}

// ask has the disk server tell its status.
func (m *machine) ask(ctx context.Context) (*api.VM, error) {
	status, err := statusOfServer(ctx, m.directory)
	if err != nil {
		return nil, err
	}
	vm := unlockedVM(status)
	if w := m.wants(); w != nil {
		vm.Owner = w.Owner
	}
	return vm, nil
}

func unlockedVM(s *diskserver.Status) *api.VM {
	vm := &api.VM{
		Name: s.VM.Name, UUID: s.VM.UUID, Descriptor: s.VM.Descriptor, State: api.Unlocked, Since: &s.Since, PID: &s.PID,
	}
	for _, disk := range s.Disks {
		vm.Disks = append(vm.Disks, api.Disk{
			Node: disk.Node, URI: agent.NBDURI(disk.Node, disk.Socket), ReadOnly: disk.ReadOnly,
			BytesRead: disk.BytesRead, BytesWritten: disk.BytesWritten, Connections: disk.Connections,
		})
	}
	return vm
}

// self tells about the agent.
func (d *daemon) self() *api.Agent {
	return &api.Agent{Release: d.Release, PID: os.Getpid(), Since: d.since, Datastores: d.Datastores}
}
