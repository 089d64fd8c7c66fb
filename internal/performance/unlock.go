package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/gemalto/kmip-go/kmip14"
	"golang.org/x/sync/errgroup"

	"github.com/vmcrypt/vmcrypt/agent/api"
	"github.com/vmcrypt/vmcrypt/internal/config"
	"github.com/vmcrypt/vmcrypt/internal/kmipwire"
)

const (
	unlocksPerRound = 20
	manyVMs         = 1000
)

// measureUnlock compares how long it takes to unlock a VM with what it takes at least.
func measureUnlock(ctx context.Context, rounds int) ([]table, error) {
	w, err := openWorkshop(ctx)
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(w.folder)
	site, err := w.openSite(ctx)
	if err != nil {
		return nil, err
	}
	defer site.close()
	return site.measure(ctx, rounds)
}

// site is a host with an agent, and a key manager.
type site struct {
	workshop
	client    *api.Client
	kms       *floor
	processes []*exec.Cmd
}

func (w workshop) newSite() *site {
	return &site{workshop: w, client: api.NewClient(w.in("home/run/agent.sock"))}
}

func (w workshop) openSite(ctx context.Context) (s *site, err error) {
	s = w.newSite()
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if err := s.configure(); err != nil {
		return nil, err
	}
	if s.kms, err = openFloor(w.in("home/config.yaml")); err != nil {
		return nil, err
	}
	for _, command := range [][]string{{"kms", "serve"}, {"agent"}} {
		if err := s.start(ctx, command); err != nil {
			return nil, err
		}
	}
	return s, soon(func() error {
		_, err := s.client.Agent(ctx)
		return errors.Join(err, s.kms.visit(ctx))
	})
}

// configure makes a datastore with small VMs, each with a KEK of its own.
func (s *site) configure() error {
	f, err := os.OpenFile(s.in("home/config.yaml"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(f, "\ndatastores: [%s]\n", s.in("vms"))
	return errors.Join(err, f.Close(), os.Mkdir(s.in("vms"), 0o700))
}

func (s *site) start(ctx context.Context, args []string) error {
	cmd := exec.CommandContext(ctx, ourBinary, args...) //nolint:gosec // the program that is measured
	log, err := os.Create(s.in(args[len(args)-1] + ".log"))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd.Stderr = log
	s.processes = append(s.processes, cmd)
	return cmd.Start()
}

func (s *site) close() {
	for _, p := range s.processes {
		if p.Process != nil {
			_ = p.Process.Signal(syscall.SIGTERM) // fails if it has ended
			_ = p.Wait()                          // of what was told to end
		}
	}
}

// soon tries until it works, or for a minute.
func soon(try func() error) error {
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		err := try()
		if err == nil || time.Now().After(deadline) {
			return err
		}
	}
}

// disk is the path of one of the VMs, a bare image.
func (s *site) disk(i int) string { return s.in(fmt.Sprintf("vms/%04d.img", i)) }

// encrypt makes VMs.
func (s *site) encrypt(ctx context.Context, from, to int) error {
	for i := from; i < to; i++ {
		if err := os.WriteFile(s.disk(i), make([]byte, 1<<20), 0o600); err != nil {
			return err
		}
		if _, err := run(ctx, []string{ourBinary, "encrypt", s.disk(i)}); err != nil {
			return err
		}
	}
	return nil
}

// measure times single unlocks beside the floor, and then many at once.
func (s *site) measure(ctx context.Context, rounds int) ([]table, error) {
	log.Printf("making %d VMs", manyVMs)
	if err := s.encrypt(ctx, 0, manyVMs); err != nil {
		return nil, err
	}
	var floors, byAPI, byCLI, locks []float64
	for range rounds * unlocksPerRound {
		for _, step := range []struct {
			times *[]float64
			do    func() error
		}{
			{&floors, func() error { return s.kms.visit(ctx) }},
			{&byAPI, func() error { return s.unlock(ctx, 0) }},
			{&locks, func() error { return s.lock(ctx, 0) }},
			{&byCLI, func() error { _, err := run(ctx, []string{ourBinary, "unlock", s.disk(0)}); return err }},
			{&locks, func() error { return s.lock(ctx, 0) }},
		} {
			begin := time.Now()
			if err := step.do(); err != nil {
				return nil, err
			}
			*step.times = append(*step.times, time.Since(begin).Seconds()*1e3)
		}
	}
	ratio := ratios(byAPI, floors)
	storm, pss, err := s.storm(ctx)
	if err != nil {
		return nil, err
	}
	return []table{
		{"A VM with one disk, medians:", []string{"", "ms"}, [][]string{
			{"the floor: TLS 1.3 with both certificates, and one request", ms(floors)},
			{"unlock, from the request to the agent to its answer", ms(byAPI)},
			{"vmcrypt unlock, the whole command", ms(byCLI)},
			{"lock", ms(locks)},
		}},
		{fmt.Sprintf("%d VMs, each with a KEK of its own, unlocked at once:", manyVMs), []string{"", ""}, [][]string{
			{"seconds", fmt.Sprintf("%.1f", storm.Seconds())},
			{"VMs in a second", fmt.Sprintf("%.0f", manyVMs/storm.Seconds())},
			{"proportional memory of a disk server, MiB", fmt.Sprintf("%.1f", pss)},
		}},
		{"Against the targets:", []string{"", "is", "at most", "met"}, [][]string{
			atMost("unlock, the floor = 1", ratio, 10),
			atMost("vmcrypt unlock, ms", middle(byCLI), 50),
			atMost("proportional memory of an idle disk server, MiB", pss, 15),
		}},
	}, nil
}

func ratios(a, b []float64) float64 {
	values := make([]float64, len(a))
	for i := range a {
		values[i] = a[i] / b[i]
	}
	return middle(values)
}

func ms(values []float64) string { return fmt.Sprintf("%.2f", middle(values)) }

func (s *site) unlock(ctx context.Context, i int) error {
	_, err := s.client.Unlock(ctx, api.UnlockRequest{VM: s.disk(i)})
	return err
}

func (s *site) lock(ctx context.Context, i int) error {
	_, err := s.client.Lock(ctx, api.LockRequest{VM: s.disk(i)})
	return err
}

// storm unlocks all VMs at once, tells how long that took and what memory a disk
// server has then, and locks them again.
func (s *site) storm(ctx context.Context) (took time.Duration, mib float64, err error) {
	begin := time.Now()
	if err := s.all(manyVMs, func(i int) error { return s.unlock(ctx, i) }); err != nil {
		return 0, 0, err
	}
	took = time.Since(begin)
	list, err := s.client.List(ctx)
	if err != nil {
		return 0, 0, err
	}
	var sizes []float64
	for _, vm := range list.VMs {
		if vm.PID == nil {
			return 0, 0, fmt.Errorf("%s is %s", vm.Name, vm.State)
		}
		size, err := proportional(*vm.PID)
		if err != nil {
			return 0, 0, err
		}
		sizes = append(sizes, size)
	}
	return took, middle(sizes), s.all(manyVMs, func(i int) error { return s.lock(ctx, i) })
}

func (s *site) all(n int, do func(i int) error) error {
	var all errgroup.Group
	for i := range n {
		all.Go(func() error { return do(i) })
	}
	return all.Wait()
}

// proportional is the memory of a process, with its share of what it has in common
// with others, in MiB: Pss of proc_pid_smaps_rollup(5).
func proportional(pid int) (float64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); len(fields) > 1 && fields[0] == "Pss:" {
			kib, err := strconv.ParseFloat(fields[1], 64)
			return kib / 1024, err
		}
	}
	return 0, errors.New("the kernel does not tell what memory a process has")
}

// floor is the least that it takes to get something from a key manager.
type floor struct {
	address string
	tls     *tls.Config
	request []byte
}

func openFloor(configFile string) (*floor, error) {
	c, err := config.Load(configFile)
	if err != nil {
		return nil, err
	}
	alias, _ := c.Alias(config.LocalAlias)
	cert, err := tls.LoadX509KeyPair(alias.ClientCert, alias.ClientKey)
	if err != nil {
		return nil, err
	}
	ca, err := os.ReadFile(filepath.Clean(alias.CA))
	if err != nil {
		return nil, err
	}
	f := &floor{address: alias.Servers[0].Address, tls: kmipwire.TLSConfig()}
	f.tls.MinVersion = tls.VersionTLS13
	f.tls.Certificates = []tls.Certificate{cert}
	f.tls.RootCAs = x509.NewCertPool()
	f.tls.RootCAs.AppendCertsFromPEM(ca)
	if f.tls.ServerName, _, err = net.SplitHostPort(f.address); err != nil {
		return nil, err
	}
	f.request, err = kmipwire.Marshal(kmipwire.RequestMessage{
		RequestHeader: kmipwire.RequestHeader{
			ProtocolVersion: kmipwire.ProtocolVersion{ProtocolVersionMajor: 1, ProtocolVersionMinor: 4}, BatchCount: 1,
		},
		BatchItem: []kmipwire.RequestBatchItem{{Operation: kmip14.OperationDiscoverVersions, RequestPayload: kmipwire.DiscoverVersionsRequest{}}},
	})
	return f, err
}

// visit connects, asks, and leaves.
func (f *floor) visit(ctx context.Context) error {
	raw, err := new(net.Dialer).DialContext(ctx, "tcp", f.address)
	if err != nil {
		return err
	}
	c := kmipwire.Client(raw, f.tls, kmipwire.DefaultTimeouts)
	defer c.Close()
	if err := c.Handshake(ctx); err != nil {
		return err
	}
	if err := c.Write(ctx, f.request); err != nil {
		return err
	}
	_, err = c.Read(ctx)
	return err
}
