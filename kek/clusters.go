package kek

import (
	"context"
	"sync"
)

// Clusters keeps the clusters of aliases open, and their connections. The zero value is
// ready to use.
type Clusters struct {
	mu     sync.Mutex
	opened map[string]*Cluster // by name
}

// Get gives the cluster of a name, which open opens if need be. Nobody but Close closes
// it.
func (c *Clusters) Get(name string, open func() (*Cluster, error)) (*Cluster, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if has := c.opened[name]; has != nil {
		return has, nil
	}
	cluster, err := open()
	if err != nil {
		return nil, err
	}
	if c.opened == nil {
		c.opened = map[string]*Cluster{}
	}
	cluster.keep()
	c.opened[name] = cluster
	return cluster, nil
}

// Close closes the connections that are kept.
func (c *Clusters) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for name, cluster := range c.opened {
		cluster.release()
		delete(c.opened, name)
	}
}

// keep has connections kept until release, and servers that fail looked after.
func (c *Cluster) keep() { c.kept, c.close = context.WithCancel(context.Background()) }

// release closes the connections that are kept. Those in use are closed when they are not
// any more.
func (c *Cluster) release() {
	c.close()
	for _, s := range c.servers {
		s.close()
	}
}

// keeps tells whether connections are to be kept.
func (c *Cluster) keeps() bool { return c.kept != nil && c.kept.Err() == nil }
