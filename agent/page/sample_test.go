package page

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/vmcrypt/vmcrypt/agent/api"
)

// fixed is an overview that tests can change.
type fixed struct {
	mu       sync.Mutex
	overview *api.Overview
	err      error
	loads    int
}

func (f *fixed) get(context.Context) (*api.Overview, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.loads++
	return f.overview, f.err
}

func (f *fixed) set(o *api.Overview) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.overview = o
}

func ago(d time.Duration) *time.Time {
	t := time.Now().Add(-d)
	return &t
}

func sampleAgent() api.Agent {
	return api.Agent{Release: "1.0.0", PID: 812, Since: *ago(9*day + 5*time.Hour), Datastores: []string{"/var/lib/libvirt/images"}}
}

// nothing is a host without VMs or key managers.
func nothing() *api.Overview { return &api.Overview{Agent: sampleAgent()} }

// sample is a host on a bad day.
func sample() *api.Overview {
	const folder = "/var/lib/libvirt/images/"
	pid, position := 4711, int64(8<<30)
	return &api.Overview{
		Agent: sampleAgent(),
		VMs: []api.VM{
			{
				Name: "db01", UUID: "564d0c4a-1b2c-4d5e-8f90-a1b2c3d4e5f6", Descriptor: folder + "db01/db01.vmx", State: api.Locked,
				Disks: []api.Disk{{Node: "scsi0:0", Conversion: &api.Conversion{State: "encrypting", PositionBytes: &position, SizeBytes: 20 << 30}}},
			},
			{
				Name: "mail01", UUID: "564d7777-1b2c-4d5e-8f90-a1b2c3d4e5f6", Descriptor: folder + "mail01/mail01.vmx", State: api.Restarting,
				Owner: "libvirt:564d7777-1b2c-4d5e-8f90-a1b2c3d4e5f6", Disks: []api.Disk{{Node: "scsi0:0"}},
				Problem: "no key manager of KMSCluster answered: kms-b.example.com:5696: connection refused",
			},
			{
				Name: "web01", UUID: "564dffff-1b2c-4d5e-8f90-a1b2c3d4e5f6", Descriptor: folder + "web01/web01.vmx", State: api.Unlocked,
				Since: ago(3*day + 4*time.Hour + time.Minute), PID: &pid, Owner: "libvirt:564dffff-1b2c-4d5e-8f90-a1b2c3d4e5f6",
				Disks: []api.Disk{
					{Node: "scsi0:0", URI: "nbd+unix:///scsi0:0?socket=/run/vmcrypt/vms/5f2c/scsi0:0.sock", BytesRead: 48318382080, BytesWritten: 3758096384, Connections: 1},
					{Node: "scsi0:1", URI: "nbd+unix:///scsi0:1?socket=/run/vmcrypt/vms/5f2c/scsi0:1.sock", BytesRead: 912680550, BytesWritten: 0, ReadOnly: true},
				},
			},
		},
		KeyManagers: []api.KeyManager{
			{Alias: "KMSCluster", Address: "kms-a.example.com:5696", State: "ok", Checked: ago(20 * time.Second), Version: "1.4", LatencyMs: 4.2, Canary: "ok", Expires: ago(-17*day - time.Hour), ClientExpires: ago(-300*day - time.Hour)},
			{Alias: "KMSCluster", Address: "kms-b.example.com:5696", State: "unreachable", Checked: ago(20 * time.Second), Problem: "dial tcp 10.0.4.12:5696: connect: connection refused", Canary: "unreachable", CanaryProblem: "key 7: no answer in time", ClientExpires: ago(-300*day - time.Hour)},
		},
		Warnings: []api.Warning{
			{Severity: api.Critical, Subject: folder + "mail01/mail01.vmx", Text: "restarting: no key manager of KMSCluster answered: kms-b.example.com:5696: connection refused"},
			{Severity: api.Notice, Subject: "KMSCluster kms-b.example.com:5696", Text: "unreachable: dial tcp 10.0.4.12:5696: connect: connection refused"},
			{Severity: api.Notice, Subject: "KMSCluster kms-a.example.com:5696", Text: "the key manager's certificate expires in 17 days: renew it before"},
		},
	}
}

// well is a host with nothing but n VMs that are well, a third of them locked.
func well(n int) *api.Overview {
	o := sample()
	web := o.VMs[2]
	o.VMs, o.KeyManagers, o.Warnings = nil, o.KeyManagers[:1], nil
	o.KeyManagers[0].Expires = ago(-200 * day)
	for i := range n {
		vm := web
		vm.Name, vm.Descriptor = fmt.Sprintf("app%04d", i), fmt.Sprintf("/var/lib/libvirt/images/app%04d/app%04d.vmx", i, i)
		if i%3 == 0 {
			vm.State, vm.Since, vm.PID, vm.Owner = api.Locked, nil, nil, ""
			vm.Disks = []api.Disk{{Node: "scsi0:0"}}
		}
		o.VMs = append(o.VMs, vm)
	}
	return o
}

// hostile is a host whose datastore somebody writes who likes to do harm.
func hostile() *api.Overview {
	o := sample()
	long := ""
	for len(long) < 250 {
		long += "verylongname"
	}
	for i, name := range []string{
		`<script>alert(1)</script>`, `"><img src=x onerror=alert(1)>`, "\u202egnp.exe\u202c", "line\nbreak\r\n\ttab\x00", long,
		"javascript:alert(1)", "{{.}}", "\xff\xfe", "مرحبا", "</main></body><style>*{display:none}</style>",
	} {
		vm := o.VMs[2]
		vm.Name, vm.Owner, vm.UUID = name, name, name
		vm.Descriptor = fmt.Sprintf("/ds/%d/%s.vmx", i, name)
		vm.Problem = name
		o.VMs = append(o.VMs, vm)
		o.Warnings = append(o.Warnings, api.Warning{Severity: api.Notice, Subject: vm.Descriptor, Text: name})
	}
	o.VMs[0].Name, o.VMs[0].Descriptor = long, "/ds/$(reboot)/it's; rm -rf ~.vmx"
	return o
}
