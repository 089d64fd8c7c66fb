package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/netip"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	// stormWorkers unlock at once: twice as many as there are connections to a key manager.
	stormWorkers = 8
	// watchPause is between two looks at the connections.
	watchPause = 20 * time.Millisecond
)

// storm is what became of many unlocks.
type storm struct {
	unlocks []timed   // those of calmAlias come last
	struck  time.Time // when the accident happened
	most    [replicaCount]int
	exchanges
}

// timed is an unlock.
type timed struct {
	begun, ended time.Time
	err          error
}

func (u timed) isLost() bool { return u.err != nil }

// exchanges are how often the agent has fetched a key from each key manager, and how often
// it has tried to connect.
type exchanges struct{ gets, connects [replicaCount]int }

// storm unlocks all VMs, a few at once. Half-way it has something happen.
func (s *replicated) storm(ctx context.Context, happen func() error) (*storm, error) {
	before, err := s.exchanges(ctx)
	if err != nil {
		return nil, err
	}
	r := &storm{unlocks: make([]timed, manyVMs+calmVMs)}
	stop := s.watch(&r.most)
	err = s.unlockAll(ctx, r, happen)
	if err := errors.Join(err, stop()); err != nil {
		return nil, err
	}
	if r.exchanges, err = s.exchanges(ctx); err != nil {
		return nil, err
	}
	fetched := 0
	for i := range replicaCount {
		r.gets[i] -= before.gets[i]
		r.connects[i] -= before.connects[i]
		fetched += r.gets[i]
	}
	if fetched < manyVMs-r.lost() {
		return nil, fmt.Errorf("only %d keys were fetched", fetched)
	}
	return r, nil
}

func (s *replicated) unlockAll(ctx context.Context, r *storm, happen func() error) (err error) {
	next := make(chan int)
	var workers sync.WaitGroup
	for range stormWorkers {
		workers.Go(func() {
			for i := range next {
				u := &r.unlocks[i]
				u.begun = time.Now()
				u.err = s.unlock(ctx, i)
				u.ended = time.Now()
				if u.isLost() {
					log.Printf("lost: %v", u.err)
				}
			}
		})
	}
	for i := range manyVMs {
		if i == manyVMs/2 {
			r.struck = time.Now()
			err = happen()
		}
		next <- i
		if i%(manyVMs/calmVMs) == 0 {
			next <- manyVMs + i/(manyVMs/calmVMs)
		}
	}
	close(next)
	workers.Wait()
	return err
}

func (r *storm) lost() (n int) {
	for _, u := range r.unlocks {
		if u.isLost() {
			n++
		}
	}
	return n
}

// times are how long those of the cluster's and the calm VMs took that were not lost, in ms:
// before are those that had ended when the accident happened.
func (r *storm) times() (before, after, calmAfter []float64) {
	before, after = r.timesOf(r.unlocks[:manyVMs])
	_, calmAfter = r.timesOf(r.unlocks[manyVMs:])
	return before, after, calmAfter
}

func (r *storm) timesOf(unlocks []timed) (before, after []float64) {
	for _, u := range unlocks {
		took := float64(u.ended.Sub(u.begun)) / float64(time.Millisecond)
		switch {
		case u.isLost():
		case u.ended.After(r.struck):
			after = append(after, took)
		default:
			before = append(before, took)
		}
	}
	return before, after
}

// watch looks until stop at how many connections the key managers have.
func (s *replicated) watch(most *[replicaCount]int) (stop func() error) {
	done, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		for {
			select {
			case <-done:
				ended <- nil
				return
			case <-time.After(watchPause):
			}
			if err := s.look(most); err != nil {
				ended <- err
				return
			}
		}
	}()
	return func() error { close(done); return <-ended }
}

func (s *replicated) look(most *[replicaCount]int) error {
	table, err := os.ReadFile("/proc/net/tcp")
	if err != nil {
		return err
	}
	for i, r := range s.replicas {
		address, err := netip.ParseAddrPort(r.address)
		if err != nil {
			return err
		}
		most[i] = max(most[i], connectionsTo(string(table), address))
	}
	return nil
}

// connectionsTo counts the connections to an address that are open, or about to be, in
// proc_net_tcp(5)'s table: those on the client's side. The table may have one twice, if
// others come or go while it is read.
func connectionsTo(table string, address netip.AddrPort) int {
	remote := fmt.Sprintf(":%04X", address.Port())
	clients := map[string]bool{}
	for line := range strings.Lines(table) {
		fields := strings.Fields(line)
		if len(fields) > 3 && strings.HasSuffix(fields[2], remote) && (fields[3] == tcpEstablished || fields[3] == tcpSynSent) {
			clients[fields[1]] = true
		}
	}
	return len(clients)
}

// States of connections in proc_net_tcp(5)'s table.
const tcpEstablished, tcpSynSent = "01", "02"

// exchanges reads the agent's metrics.
func (s *replicated) exchanges(ctx context.Context) (e exchanges, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://agent/metrics", nil)
	if err != nil {
		return e, err
	}
	resp, err := s.metrics.Do(req)
	if err != nil {
		return e, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	for i, r := range s.replicas {
		e.gets[i] = countExchanges(string(text), r.address, "Get", "ok")
		e.connects[i] = countExchanges(string(text), r.address, "connect", "[^\"]*")
	}
	return e, err
}

// countExchanges sums what a key manager was asked for; result is a regular expression.
func countExchanges(metrics, address, operation, result string) (sum int) {
	line := regexp.MustCompile(fmt.Sprintf(`(?m)^vmcrypt_key_manager_requests_total\{alias="%s",operation="%s",result="%s",server="%s"\} (\d+)$`,
		clusterAlias, operation, result, regexp.QuoteMeta(address)))
	for _, match := range line.FindAllStringSubmatch(metrics, -1) {
		n, _ := strconv.Atoi(match[1]) // digits
		sum += n
	}
	return sum
}
