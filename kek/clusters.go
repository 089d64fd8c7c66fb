package kek

import (
	"context"
	"os"
	"sync"
	"time"
)

// Clusters keeps the clusters of aliases open, and their connections. It opens one anew
// when a file of its certificates has changed. The zero value is ready to use.
type Clusters struct {
	mu     sync.Mutex
	opened map[string]*Cluster // by alias
}

// Get gives the cluster of an alias, which open opens if need be. Nobody but Close closes
// it.
func (c *Clusters) Get(alias string, open func() (*Cluster, error)) (*Cluster, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	has := c.opened[alias]
	if has != nil && !has.hasChanged() {
		return has, nil
	}
	cluster, err := open()
	if err != nil {
		return nil, err
	}
	if has != nil {
		has.release()
	}
	if c.opened == nil {
		c.opened = map[string]*Cluster{}
	}
	cluster.keep()
	c.opened[alias] = cluster
	return cluster, nil
}

// Close closes the connections that are kept.
func (c *Clusters) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for alias, cluster := range c.opened {
		cluster.release()
		delete(c.opened, alias)
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

// stamp tells a file from another one at its path.
type stamp struct {
	path string
	size int64
	time time.Time
}

// stamps are those of the files that a configuration names.
func stamps(config Config) (all []stamp) {
	for _, path := range []string{config.ClientCert, config.ClientKey, config.CA} {
		all = append(all, stampOf(path))
	}
	return all
}

func stampOf(path string) stamp {
	s := stamp{path: path}
	if info, err := os.Stat(path); err == nil {
		s.size, s.time = info.Size(), info.ModTime()
	}
	return s
}

// hasChanged tells whether a file has changed since the cluster was opened.
func (c *Cluster) hasChanged() bool {
	for _, was := range c.files {
		if stampOf(was.path) != was {
			return true
		}
	}
	return false
}
