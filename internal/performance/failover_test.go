package main

import (
	"errors"
	"net/netip"
	"reflect"
	"testing"
	"time"
)

// stormOf is one in which unlocks took so many ms before the accident, and so many after it;
// those of the calm VMs after it took calm.
func stormOf(before, after, calm int) *storm {
	s := &storm{unlocks: make([]timed, manyVMs+calmVMs), struck: time.Unix(1000, 0)}
	for i := range s.unlocks {
		took, ended := before, s.struck
		if i >= manyVMs/2 {
			took, ended = after, ended.Add(time.Second)
		}
		if i >= manyVMs {
			took = calm
		}
		s.unlocks[i] = timed{begun: ended.Add(-time.Duration(took) * time.Millisecond), ended: ended}
	}
	return s
}

func TestFate(t *testing.T) {
	rounds := []*storm{stormOf(9, 27, 20), stormOf(11, 41, 30)}
	rounds[0].unlocks[0].err = errors.New("no key manager")
	for i := manyVMs - 7; i < manyVMs; i++ { // more than 1 % of those after, not of all
		rounds[1].unlocks[i].begun = rounds[1].unlocks[i].ended.Add(-2001 * time.Millisecond)
	}
	rounds[0].most, rounds[1].most = [replicaCount]int{4, 1, 1}, [replicaCount]int{1, 4, 1}
	rounds[0].connects = [replicaCount]int{7, 0, 0}
	got := fateOf(rounds)
	want := fate{
		lost: 1, before: 10, after: 34, more: 9, least: 7, greatest: 11, most: 41, mostAfter: 2001, all: 2001, hedged: 7,
		atOnce: [replicaCount]int{4, 4, 1}, made: [replicaCount]int{7, 0, 0},
	}
	if got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestPercentile99(t *testing.T) {
	values := make([]float64, 1000)
	for i := range values {
		values[i] = float64(i + 1)
	}
	if got := percentile99(values); got != 990 {
		t.Errorf("of 1000: %v", got)
	}
	if got := percentile99(values[:1]); got != 1 {
		t.Errorf("of one: %v", got)
	}
}

func TestFailoverVerdicts(t *testing.T) {
	fates := []fate{{}, {more: 5.5, lost: 1}, {most: 2250}, {most: 2251, atOnce: [replicaCount]int{1, 6, 1}}}
	var met []string
	for _, row := range failoverVerdicts(fates) {
		met = append(met, row[3])
	}
	if want := []string{"**no**", "**no**", "yes", "**no**", "**no**"}; !reflect.DeepEqual(met, want) {
		t.Errorf("got %q", met)
	}
}

func TestConnectionsTo(t *testing.T) {
	const table = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1640 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0
   1: 0100007F:9C40 0100007F:1640 01 00000000:00000000 00:00000000 00000000     0        0 2 1 0
   2: 0100007F:9C40 0100007F:1640 01 00000000:00000000 00:00000000 00000000     0        0 2 1 0
   3: 0100007F:9C41 0100007F:1640 02 00000000:00000000 00:00000000 00000000     0        0 3 1 0
   4: 0100007F:9C42 0100007F:1640 06 00000000:00000000 00:00000000 00000000     0        0 4 1 0
   5: 0100007F:1640 0100007F:9C40 01 00000000:00000000 00:00000000 00000000     0        0 5 1 0
`
	if n := connectionsTo(table, netip.MustParseAddrPort("127.0.0.1:5696")); n != 2 {
		t.Errorf("%d connections", n)
	}
}

func TestCountExchanges(t *testing.T) {
	const metrics = `# TYPE vmcrypt_key_manager_requests_total counter
vmcrypt_key_manager_requests_total{alias="cluster",operation="Get",result="ok",server="127.0.0.1:5696"} 1000
vmcrypt_key_manager_requests_total{alias="cluster",operation="GetAttributes",result="ok",server="127.0.0.1:5696"} 1
vmcrypt_key_manager_requests_total{alias="cluster",operation="connect",result="ok",server="127.0.0.1:5696"} 4
vmcrypt_key_manager_requests_total{alias="cluster",operation="connect",result="unreachable",server="127.0.0.1:5696"} 3
vmcrypt_key_manager_requests_total{alias="cluster",operation="connect",result="ok",server="127.0.0.1:5697"} 9
`
	if n := countExchanges(metrics, "127.0.0.1:5696", "Get", "ok"); n != 1000 {
		t.Errorf("%d keys", n)
	}
	if n := countExchanges(metrics, "127.0.0.1:5696", "connect", `[^"]*`); n != 7 {
		t.Errorf("%d connections", n)
	}
}
