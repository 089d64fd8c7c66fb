package kek

import (
	"context"
	"sync"
	"time"
)

// ServerState says how a key manager answers.
type ServerState string

// What Status can find.
const (
	StateOK          ServerState = "ok"
	StateUnreachable ServerState = "unreachable" // no connection, no TLS, or no answer in time
	StateUntrusted   ServerState = "untrusted"   // its certificate does not prove who it is
	StateDenied      ServerState = "denied"      // it refuses vmcrypt's certificate
	StateNotKMIP     ServerState = "not-kmip"    // something answers, but not in KMIP 1.0 to 1.4
)

// ServerStatus is how one key manager answers.
type ServerStatus struct {
	Address string
	State   ServerState
	Version string        // of KMIP, as in "1.4"; "" unless State is StateOK
	Latency time.Duration // to connect and agree on the version
	Err     error         // nil if State is StateOK
	Expires time.Time     // until when it proves who it is by its certificate, in a handshake that was completed; else zero
}

// Expires tells until when the client certificate is valid.
func (c *Cluster) Expires() time.Time { return c.trust.expires() }

// Status asks every key manager of the cluster, all at once, for the version of
// KMIP to speak. The result is in the order of the configuration.
func (c *Cluster) Status(ctx context.Context) []ServerStatus {
	all := make([]ServerStatus, len(c.servers))
	var wg sync.WaitGroup
	for i, server := range c.servers {
		wg.Go(func() { all[i] = c.status(ctx, server) })
	}
	wg.Wait()
	return all
}

func (c *Cluster) status(ctx context.Context, server Server) ServerStatus {
	start := time.Now()
	s, err := c.connect(ctx, server)
	status := ServerStatus{Address: server.Address, Latency: time.Since(start)}
	if err != nil {
		f := c.diagnose(server.Address, err)
		status.State, status.Err = f.state, c.explain(ctx, f)
		return status
	}
	defer s.conn.Close()
	status.State, status.Version, status.Expires = StateOK, s.version.String(), s.conn.PeerExpires()
	return status
}
