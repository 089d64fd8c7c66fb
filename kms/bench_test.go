package kms

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/gemalto/kmip-go/kmip14"

	"github.com/vmcrypt/vmcrypt/internal/kmipwire"
	"github.com/vmcrypt/vmcrypt/internal/pykmip"
)

// How a rate is measured: servers take turns, so that whatever else the machine
// does strikes both, and the median of the rounds counts.
const (
	benchRounds = 15
	benchRound  = 100 * time.Millisecond
)

// BenchmarkAgainstPyKMIP asks our server and PyKMIP's the same, over one
// connection each, and fails where ours is not faster by the factor promised.
func BenchmarkAgainstPyKMIP(b *testing.B) {
	theirs := dialPyKMIP(b, pykmip.Start(b))
	h := newHome(b)
	serve(b, h)
	ours := dial(b, h)
	ours.version = theirs.version
	for _, c := range []*client{ours, theirs} {
		c.get(c.createNameless()) // the first of a kind is slow
	}
	b.Run("Get", func(b *testing.B) {
		get := func(c *client) func() {
			return c.repeat(kmip14.OperationGet, &kmipwire.GetRequest{UniqueIdentifier: c.createNameless()})
		}
		race(b, 20, get(ours), get(theirs))
	})
	b.Run("Create", func(b *testing.B) {
		create := func(c *client) func() { return c.repeat(kmip14.OperationCreate, createRequest()) }
		race(b, 5, create(ours), create(theirs))
	})
}

// repeat does one operation again and again. So that the servers are measured
// and not the client, it encodes the request once, and looks no further into an
// answer than to see that it is as long as the first, which was a success.
func (c *client) repeat(op kmip14.Operation, payload any) func() {
	c.t.Helper()
	msg, err := kmipwire.Marshal(c.message(kmipwire.RequestBatchItem{Operation: op, RequestPayload: payload}))
	if err != nil {
		c.t.Fatal(err)
	}
	first := 0
	return func() {
		if err := c.conn.Write(context.Background(), msg); err != nil {
			c.t.Fatal(err)
		}
		answer, err := c.conn.Read(context.Background())
		if err != nil {
			c.t.Fatal(err)
		}
		if first == 0 {
			first = c.succeeded(answer)
		}
		if len(answer) != first {
			c.t.Fatalf("%d bytes, want %d", len(answer), first)
		}
	}
}

// succeeded returns the length of an answer that says success.
func (c *client) succeeded(answer []byte) int {
	c.t.Helper()
	var out kmipwire.ResponseMessage
	if err := kmipwire.Unmarshal(answer, &out); err != nil || out.BatchItem[0].ResultStatus != kmip14.ResultStatusSuccess {
		c.t.Fatalf("%v, %s", err, out.BatchItem[0].ResultMessage)
	}
	return len(answer)
}

func (c *client) createNameless() string {
	c.t.Helper()
	return do[kmipwire.CreateResponse](c, kmip14.OperationCreate, createRequest()).UniqueIdentifier
}

func dialPyKMIP(b *testing.B, s *pykmip.Server) *client {
	b.Helper()
	cert, err := tls.LoadX509KeyPair(s.ClientCert, s.ClientKey)
	if err != nil {
		b.Fatal(err)
	}
	ca, err := os.ReadFile(s.CA)
	if err != nil {
		b.Fatal(err)
	}
	config := kmipwire.TLSConfig()
	config.Certificates = []tls.Certificate{cert}
	config.RootCAs = x509.NewCertPool()
	config.RootCAs.AppendCertsFromPEM(ca)
	conn, err := tls.Dial("tcp", s.Address, config)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { conn.Close() })
	return &client{t: b, version: newest, conn: kmipwire.NewConn(conn, kmipwire.DefaultTimeouts)}
}

// race reports how often ours and theirs run in a second, and fails unless ours
// does factor times as often.
func race(b *testing.B, factor float64, ours, theirs func()) {
	b.Helper()
	for b.Loop() {
		var a, z []float64
		for range benchRounds {
			a, z = append(a, rate(ours)), append(z, rate(theirs))
		}
		slices.Sort(a)
		slices.Sort(z)
		ratio := a[benchRounds/2] / z[benchRounds/2]
		b.ReportMetric(a[benchRounds/2], "ours/s")
		b.ReportMetric(z[benchRounds/2], "pykmip/s")
		b.ReportMetric(ratio, "times")
		if ratio < factor {
			b.Errorf("%.0f a second against %.0f: %.1f times as fast, want %v", a[benchRounds/2], z[benchRounds/2], ratio, factor)
		}
	}
	b.ReportMetric(0, "ns/op") // of no meaning here
}

// rate is how often fn runs in a second.
func rate(fn func()) float64 {
	start, n := time.Now(), 0
	for time.Since(start) < benchRound {
		fn()
		n++
	}
	return float64(n) / time.Since(start).Seconds()
}
