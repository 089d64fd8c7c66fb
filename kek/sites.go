package kek

import (
	"context"
	"sync"
)

// here gives the servers of the own site, by their places in the configuration, and
// elsewhere those of others.
func (c *Cluster) here() (places []int) {
	return c.placesOf(func(s *server) bool { return s.Site == c.site })
}

func (c *Cluster) elsewhere() (places []int) {
	return c.placesOf(func(s *server) bool { return s.Site != c.site })
}

func (c *Cluster) placesOf(is func(*server) bool) (places []int) {
	for i, s := range c.servers {
		if is(s) {
			places = append(places, i)
		}
	}
	return places
}

// ownFirst has do ask each server: those of the own site all at once, and when these are
// done those of others, so that nothing is sent to another site first.
func (c *Cluster) ownFirst(do func(place int)) {
	for _, places := range [][]int{c.here(), c.elsewhere()} {
		together(len(places), func(i int) { do(places[i]) })
	}
}

// together does n things at once.
func together(n int, do func(i int)) {
	var asking sync.WaitGroup
	for i := range n {
		asking.Go(func() { do(i) })
	}
	asking.Wait()
}

// StatusHere is Status of the key managers of the own site alone. Who does not want to wait
// for those of others asks these later, with StatusElsewhere.
func (c *Cluster) StatusHere(ctx context.Context) []ServerStatus { return c.statusOf(ctx, c.here()) }

// StatusElsewhere is Status of the key managers of other sites alone.
func (c *Cluster) StatusElsewhere(ctx context.Context) []ServerStatus {
	return c.statusOf(ctx, c.elsewhere())
}

func (c *Cluster) statusOf(ctx context.Context, places []int) []ServerStatus {
	all := make([]ServerStatus, len(places))
	together(len(places), func(i int) { all[i] = c.servers[places[i]].status(ctx) })
	return all
}
