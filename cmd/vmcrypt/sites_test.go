package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vmcrypt/vmcrypt/internal/netns"
	"github.com/vmcrypt/vmcrypt/internal/testtool"
)

// twoSites is a host at one of two sites that a link connects, with two key managers at
// each, which are replicas of each other. Every process is one of its own, in the network
// namespace of its site.
type twoSites struct {
	*host
	link  *netns.Link
	here  *netns.Namespace // the host's
	own   [2]*manager
	disk  string
	names []string // the addresses of all four, as the host's configuration has them
}

// manager is a key manager that runs, until it is killed.
type manager struct {
	cmd     *exec.Cmd
	address string // as the host reaches it
	site    string
}

// The sites' addresses on their link.
var siteAddresses = map[string]string{"a": "10.77.0.1", "b": "10.77.0.2"}

// newTwoSites makes a host at site, whose configuration has the key managers in an order,
// such as "aabb", and begins with top.
func newTwoSites(t *testing.T, site, order, top string) *twoSites {
	t.Helper()
	namespaces := map[string]*netns.Namespace{"a": netns.New(t), "b": netns.New(t)}
	s := &twoSites{here: namespaces[site]}
	s.link = netns.Connect(t, namespaces["a"], namespaces["b"], siteAddresses["a"]+"/24", siteAddresses["b"]+"/24")
	s.host = newHost(t)
	s.start = func(cmd *exec.Cmd) error {
		s.here.Enter(cmd)
		return cmd.Start()
	}
	s.disk = s.image("disk.img")
	s.edit(s.disk+".vmx", `"local"`, `"prod"`)
	var all []*manager
	own := 0
	for i, c := range order {
		m := &manager{site: string(c), address: fmt.Sprintf("%s:%d", siteAddresses[string(c)], 5696+i)}
		if m.site == site { // since the link's address goes down with it
			m.address = fmt.Sprintf("127.0.0.1:%d", 5696+i)
			s.own[own], own = m, own+1
		}
		m.serve(s.home.copied(), namespaces[m.site], 5696+i)
		all, s.names = append(all, m), append(s.names, m.address)
	}
	s.setUp(top, all)
	return s
}

// serve runs a key manager with the home's keys.
func (m *manager) serve(h *home, n *netns.Namespace, port int) {
	h.t.Helper()
	m.cmd = h.command(context.Background(), "kms", "serve", "--listen", fmt.Sprintf("0.0.0.0:%d", port))
	n.Enter(m.cmd)
	out, err := m.cmd.StdoutPipe()
	if err == nil {
		err = m.cmd.Start()
	}
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(m.kill)
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || !strings.Contains(line, "listening at ") {
		h.t.Fatalf("kms serve: %q, %v", line, err)
	}
}

func (m *manager) kill() {
	_ = m.cmd.Process.Kill() // it may have ended
	_ = m.cmd.Wait()
}

// signal has it stop or go on: what is stopped takes connections, and says nothing.
func (m *manager) signal(t *testing.T, signal os.Signal) {
	t.Helper()
	if err := m.cmd.Process.Signal(signal); err != nil {
		t.Fatal(err)
	}
}

// setUp has the host use the key managers in this order.
func (s *twoSites) setUp(top string, all []*manager) {
	text := fmt.Sprintf("%s\ndefaultAlias: prod\ndatastores: [%q]\nagent: {socket: %q, qemuUser: \"%d\"}\naliases:\n  prod:\n    servers:\n",
		top, s.at(), s.socket(), os.Getuid())
	for _, m := range all {
		text += fmt.Sprintf("      - {address: %q, site: %s, serverName: localhost}\n", m.address, m.site)
	}
	text += "    clientCert: client.pem\n    clientKey: client.key\n    ca: ca.pem\n" +
		"    timeout: 10m\n    connectTimeout: 1s\n    hedgeAfter: 100ms\n"
	write(s.t, filepath.Join(s.home.dir, "config.yaml"), []byte(text))
}

// linkStates are how the way to the other site can be.
func (s *twoSites) linkStates() map[string]func() {
	return map[string]func(){"up": s.link.Mend, "down": s.link.Unplug, "losing all packets": s.link.Cut}
}

// power unlocks the VM, reads its disk and locks it, and gives how many packets were sent
// to the other site meanwhile, address resolution included.
func (s *twoSites) power() (sent int) {
	s.t.Helper()
	before := s.here.Sent()
	vm := s.unlock(s.disk)
	if out, ok := qemuIO(s.t, vm.Disks[0].URI, "read 0 64k"); !ok {
		s.t.Errorf("the disk can't be read: %s", out)
	}
	sent = s.here.Sent() - before
	s.lock(s.disk)
	return sent
}

// checkSilence: with the first key manager of the own site silent, the second gives the
// keys, and since the agent runs no packet at all was sent to the other site. The agent
// itself asks how that is, once its own has answered.
func (s *twoSites) checkSilence() {
	t := s.t
	t.Helper()
	s.own[0].signal(t, syscall.SIGSTOP)
	s.startAgent()
	for name, set := range s.linkStates() {
		set()
		if s.power(); s.here.Sent() != 0 {
			t.Errorf("link %s: %d packets were sent to the other site before all of the own one had answered", name, s.here.Sent())
		}
	}
	s.link.Mend()
	s.own[0].signal(t, syscall.SIGCONT)
	eventually(t, "all four answer", func() bool {
		return !slices.ContainsFunc(s.managerStates(), func(state string) bool { return state != "ok" })
	})
	if s.here.Sent() == 0 {
		t.Error("no packet was counted, though the other site has answered")
	}
}

func (s *twoSites) managerStates() (all []string) {
	s.t.Helper()
	for _, k := range s.overview().KeyManagers {
		all = append(all, k.State)
	}
	return all
}

// checkQuiet: to unlock takes no packet to the other site, however the link is. What the
// agent does beside may send one: then it is looked at again.
func (s *twoSites) checkQuiet(what string) {
	s.t.Helper()
	for name, set := range s.linkStates() {
		set()
		var sent []int
		for len(sent) < 20 && !slices.Contains(sent, 0) {
			sent = append(sent, s.power())
		}
		if !slices.Contains(sent, 0) {
			s.t.Errorf("%s, link %s: each unlock sends packets to the other site: %v", what, name, sent)
		}
	}
	s.link.Mend()
}

// checkAlone: without the own site's key managers the other's are asked. If they can't be
// reached, the error names all four, soon.
func (s *twoSites) checkAlone() {
	t := s.t
	t.Helper()
	s.stopAgent(os.Interrupt) // and connections that it keeps
	for name, set := range s.linkStates() {
		set()
		s.startAgent()
		begun := time.Now()
		if name == "up" {
			if s.power() == 0 {
				t.Error("the other site gave the key without a packet")
			}
		} else {
			s.fails(exitNoKeyManager, s.names, "unlock", s.disk)
		}
		if took := time.Since(begun); took > hang/2 { // the limit is 10 min for who is silent, and 1 s for who can't be reached
			t.Errorf("link %s: it took %v", name, took)
		}
		s.stopAgent(os.Interrupt)
	}
	s.link.Mend()
}

// TestHostAtASite: a host unlocks at the key managers of its own site, and sends no packet
// to the other one first, whether that can be reached or not.
func TestHostAtASite(t *testing.T) {
	testtool.Long(t)
	for name, test := range map[string]struct{ site, order, top string }{
		"site A":                {"a", "aabb", ""},
		"site B":                {"b", "bbaa", ""},
		"site B in A's order":   {"b", "aabb", "site: b"},
		"site B in mixed order": {"b", "abab", "site: b"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newTwoSites(t, test.site, test.order, test.top)
			s.checkSilence()
			s.checkQuiet("all are well")
			s.own[0].kill()
			s.checkQuiet("one is down")
			s.own[1].kill()
			s.checkAlone()
		})
	}
}
