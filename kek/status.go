package kek

import (
	"context"
	"time"

	"github.com/gemalto/kmip-go/kmip14"

	"github.com/vmcrypt/vmcrypt/internal/kmipwire"
	"github.com/vmcrypt/vmcrypt/internal/text"
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
	TLS     string        // as in "TLS 1.3"; "" unless State is StateOK
	Vendor  string        // as the server calls it; "" if it does not say
	Latency time.Duration // to connect and agree on the version
	Err     error         // nil if State is StateOK
	Expires time.Time     // until when it proves who it is by its certificate, in a handshake that was completed; else zero
}

// Expires tells until when the client certificate is valid.
func (c *Cluster) Expires() time.Time { return c.trust.expires() }

// Status asks every key manager of the cluster for the version of KMIP to speak: those of
// the own site all at once, and then those of others. The result is in the order of the
// configuration.
func (c *Cluster) Status(ctx context.Context) []ServerStatus {
	all := make([]ServerStatus, len(c.servers))
	c.ownFirst(func(i int) { all[i] = c.servers[i].status(ctx) })
	return all
}

// status makes a connection of its own: one that was kept proves little.
func (s *server) status(ctx context.Context) ServerStatus {
	start := time.Now()
	conn, err := s.connect(ctx)
	status := ServerStatus{Address: s.Address, Latency: time.Since(start)}
	if err == nil {
		defer conn.conn.Close()
		status.Vendor, err = conn.vendor(ctx)
	}
	if err != nil {
		s.noteFailure(ctx, err)
		f := s.cluster.diagnose(s.Address, err)
		status.State, status.Err = f.state, s.cluster.explainOne(ctx, f)
		return status
	}
	s.noteBack()
	status.State, status.Version, status.TLS = StateOK, conn.version.String(), conn.conn.TLSVersion()
	status.Expires = conn.conn.PeerExpires()
	return status
}

// maxVendor is how many bytes of a vendor's name are told.
const maxVendor = 100

// vendor asks a server who made it. One that refuses to say so is as good as others.
func (s *session) vendor(ctx context.Context) (string, error) {
	req := kmipwire.QueryRequest{QueryFunction: []kmip14.QueryFunction{kmip14.QueryFunctionQueryServerInformation}}
	var resp queryResponse
	err := s.call(ctx, kmip14.OperationQuery, req, &resp)
	if isAnswer(err) {
		err = nil
	}
	return resp.vendor(), err
}

// queryResponse is no more of a server's answer than is needed: the rest is the vendor's own.
type queryResponse struct {
	VendorIdentification string `ttlv:",omitempty"`
}

func (r *queryResponse) vendor() string {
	return text.Clip(printable(r.VendorIdentification), maxVendor)
}
