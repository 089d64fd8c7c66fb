package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

const (
	clusterAlias = "cluster"
	replicaCount = 3
	// calmAlias has a key manager of its own, which stays well. Its VMs are unlocked among
	// the others, so that both have the same from whatever else the machine does.
	calmAlias = "calm"
	calmVMs   = manyVMs / 2
)

// measureFailover tells what becomes of unlocks in the midst of which the first of several
// key managers fails.
func measureFailover(ctx context.Context, rounds int) ([]table, error) {
	w, err := openWorkshop(ctx)
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(w.folder)
	s := w.newReplicated()
	defer s.close()
	if err := s.open(ctx); err != nil {
		return nil, err
	}
	storms := make([][]*storm, len(accidents))
	for range rounds {
		for i, a := range accidents {
			one, err := s.endure(ctx, a)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", a.name, err)
			}
			storms[i] = append(storms[i], one)
		}
	}
	return failoverTables(storms), nil
}

// accident is what becomes of the first key manager, and what makes it well again.
type accident struct {
	name   string
	happen func(*replicated) error
	undo   func(context.Context, *replicated) error
}

// accidents take turns.
var accidents = []accident{
	{"none fails", func(*replicated) error { return nil }, func(context.Context, *replicated) error { return nil }},
	{"the first is killed", (*replicated).killFirst, restartFirst},
	{"the first hangs", (*replicated).stopFirst, continueFirst},
	{"it hangs, and no connection is open", (*replicated).stopFirstAnew, continueFirst},
}

// replicated is a host with an agent, and key managers that are replicas of each other.
type replicated struct {
	*site
	replicas []*replica
	calm     *replica
	metrics  http.Client // of the agent
}

// replica is a key manager on a copy of the same store.
type replica struct {
	*floor
	home    string
	process *exec.Cmd
}

func (w workshop) newReplicated() *replicated {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", w.in("metrics.sock"))
	}
	return &replicated{site: w.newSite(), metrics: http.Client{Transport: &http.Transport{DialContext: dial}}}
}

// open makes the VMs with the first key manager alone, and the others from what it has then.
func (s *replicated) open(ctx context.Context) error {
	if err := s.configure(ctx); err != nil {
		return err
	}
	first := s.replicas[0]
	if err := s.serve(ctx, first); err != nil {
		return err
	}
	if err := s.makeVMs(ctx); err != nil {
		return err
	}
	if err := errors.Join(first.process.Process.Signal(syscall.SIGTERM), first.process.Wait()); err != nil {
		return err
	}
	for _, r := range append(s.replicas[1:], s.calm) {
		if _, err := run(ctx, []string{"cp", "-a", first.home, r.home}); err != nil {
			return err
		}
	}
	for _, r := range append(s.replicas, s.calm) {
		if err := s.serve(ctx, r); err != nil {
			return err
		}
	}
	return s.start(ctx, []string{"agent"})
}

// makeVMs has those of calmAlias be made where the others are.
func (s *replicated) makeVMs(ctx context.Context) error {
	log.Printf("making %d VMs", manyVMs+calmVMs)
	if err := s.writeConfig(calmAlias, s.replicas[0]); err != nil {
		return err
	}
	if err := s.encrypt(ctx, manyVMs, manyVMs+calmVMs); err != nil {
		return err
	}
	if err := s.writeConfig(clusterAlias, s.calm); err != nil {
		return err
	}
	return s.encrypt(ctx, 0, manyVMs)
}

// configure gives each key manager its place.
func (s *replicated) configure(ctx context.Context) error {
	first, err := openFloor(s.in("home/config.yaml"))
	if err != nil {
		return err
	}
	var all []*replica
	for i := range replicaCount + 1 {
		own := *first
		if own.address, err = freeAddress(ctx); err != nil {
			return err
		}
		all = append(all, &replica{floor: &own, home: s.in(fmt.Sprintf("kms%d", i))})
	}
	s.replicas, s.calm = all[:replicaCount:replicaCount], all[replicaCount]
	_, err = run(ctx, []string{"cp", "-a", s.in("home"), s.replicas[0].home})
	return errors.Join(err, os.Mkdir(s.in("vms"), 0o700))
}

// writeConfig leaves all limits at their defaults.
func (s *replicated) writeConfig(defaultAlias string, calm *replica) error {
	text := fmt.Sprintf("defaultAlias: %s\ndatastores: [%s]\nagent: {metrics: %s}\naliases:\n%s%s",
		defaultAlias, s.in("vms"), s.in("metrics.sock"), aliasOf(clusterAlias, s.replicas...), aliasOf(calmAlias, calm))
	return os.WriteFile(s.in("home/config.yaml"), []byte(text), 0o600)
}

func aliasOf(name string, all ...*replica) string {
	var servers []string
	for _, r := range all {
		servers = append(servers, fmt.Sprintf("{address: %q}", r.address))
	}
	return fmt.Sprintf("  %s: {servers: [%s], clientCert: client.pem, clientKey: client.key, ca: ca.pem}\n", name, strings.Join(servers, ", "))
}

// freeAddress is one that nobody listens at now.
func freeAddress(ctx context.Context) (string, error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

// serve starts a key manager, and waits until it answers.
func (s *replicated) serve(ctx context.Context, r *replica) error {
	r.process = exec.CommandContext(ctx, ourBinary, "kms", "serve", "--listen", r.address) //nolint:gosec // the program that is measured
	r.process.Env = append(os.Environ(), "VMCRYPT_HOME="+r.home)
	if err := r.process.Start(); err != nil {
		return err
	}
	return soon(func() error { return r.visit(ctx) })
}

func (s *replicated) close() {
	s.site.close()
	for _, r := range append(s.replicas, s.calm) {
		if r != nil && r.process != nil && r.process.Process != nil {
			_ = r.process.Process.Kill() // fails if it has ended
			_ = r.process.Wait()         // of what was told to end
		}
	}
}

func (s *replicated) killFirst() error { return s.replicas[0].process.Process.Kill() }

func restartFirst(ctx context.Context, s *replicated) error {
	_ = s.replicas[0].process.Wait() // of what was killed
	return s.serve(ctx, s.replicas[0])
}

// stopFirst leaves the kernel to accept connections, which nobody serves.
func (s *replicated) stopFirst() error { return s.replicas[0].process.Process.Signal(syscall.SIGSTOP) }

// stopFirstAnew also has the agent make its connections anew: it uses none that was made by
// certificates which have changed since.
func (s *replicated) stopFirstAnew() error {
	now := time.Now()
	return errors.Join(s.stopFirst(), os.Chtimes(s.in("home/client.pem"), now, now))
}

func continueFirst(_ context.Context, s *replicated) error {
	return s.replicas[0].process.Process.Signal(syscall.SIGCONT)
}

// endure unlocks all VMs, with an accident half-way. At the end all is as it was.
func (s *replicated) endure(ctx context.Context, a accident) (*storm, error) {
	if err := s.recover(ctx); err != nil {
		return nil, err
	}
	log.Printf("%s", a.name)
	result, err := s.storm(ctx, func() error { return a.happen(s) })
	if err := errors.Join(err, a.undo(ctx, s)); err != nil {
		return nil, err
	}
	return result, s.all(manyVMs+calmVMs, func(i int) error {
		if result.unlocks[i].isLost() {
			return nil
		}
		return s.lock(ctx, i)
	})
}

// recover waits until the agent asks the first key manager again.
func (s *replicated) recover(ctx context.Context) error {
	return soon(func() error {
		before, err := s.exchanges(ctx)
		if err != nil {
			return err
		}
		if err := errors.Join(s.unlock(ctx, 0), s.lock(ctx, 0)); err != nil {
			return err
		}
		after, err := s.exchanges(ctx)
		if err == nil && after.gets[0] == before.gets[0] {
			err = errors.New("the agent does not ask the first key manager again")
		}
		return err
	})
}
