package kms

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gemalto/kmip-go/kmip14"

	"github.com/vmcrypt/vmcrypt/internal/kmipwire"
	"github.com/vmcrypt/vmcrypt/internal/testtool"
)

func TestDialFindsTheServer(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	keys := fill(t, h, "before")
	address, stop := serve(t, h)
	conn, err := h.Dial(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	if got := conn.RemoteAddr().String(); got != address {
		t.Errorf("connected to %s, want %s", got, address)
	}
	conn.Close()
	maps.Copy(keys, fill(t, h, "during"))
	stop()
	if _, err := os.Lstat(h.path(controlFile)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
	wantKeys(t, h, keys)
}

func TestServeOnlyOnce(t *testing.T) {
	h := newHome(t)
	address, _ := serve(t, h)
	within(t, 2*time.Second, func() {
		err := h.Serve(t.Context(), "127.0.0.1:0", nil)
		if !errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), address) {
			t.Errorf("error is %v", err)
		}
	})
}

func TestServeOnAPortInUse(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	h := newHome(t)
	if err := h.Serve(t.Context(), l.Addr().String(), nil); err == nil || !strings.Contains(err.Error(), l.Addr().String()) {
		t.Errorf("error is %v", err)
	}
}

func TestStaleSocket(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	folder, path, err := h.socketPath()
	if err != nil {
		t.Fatal(err)
	}
	defer folder.Close()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	fill(t, h, "in-process")
	serve(t, h)
	fill(t, h, "served")
	if info, err := os.Stat(h.path(controlFile)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v %v", info, err)
	}
}

func TestHomeWithALongPath(t *testing.T) {
	h := homeIn(filepath.Join(t.TempDir(), strings.Repeat("long/", 40)))
	if err := h.Init(nil); err != nil {
		t.Fatal(err)
	}
	serve(t, h)
	fill(t, h, "k")
	if _, err := h.status(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestManyAtOnce: commands take turns at the store, and a server that starts
// and stops among them changes nothing for them.
func TestManyAtOnce(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	var wg sync.WaitGroup
	const workers, keys = 8, 3
	for w := range workers {
		wg.Go(func() {
			for k := range keys {
				if err := createOnce(t, h, fmt.Sprintf("%d.%d", w, k)); err != nil {
					t.Errorf("worker %d: %v", w, err)
				}
			}
		})
	}
	wg.Wait()
	if c := checkStore(t, h); c.Objects != workers*keys || c.Sequence != workers*keys {
		t.Errorf("%+v, want %d keys", c, workers*keys)
	}
}

// createOnce makes a key over a connection of its own.
func createOnce(t *testing.T, h Home, name string) error {
	c, err := dialErr(t, h)
	if err != nil {
		return err
	}
	defer c.conn.Close()
	out, err := c.roundTrip(c.message(items(kmip14.OperationCreate, createRequest(nameAttribute(name)))...))
	if err == nil && out.BatchItem[0].ResultStatus != kmip14.ResultStatusSuccess {
		err = errors.New(out.BatchItem[0].ResultMessage)
	}
	return err
}

func TestServeWaitsForCommands(t *testing.T) {
	h := newHome(t)
	conn, err := h.Dial(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(300*time.Millisecond, func() { conn.Close() })
	serve(t, h)
	fill(t, h, "k")
}

func TestDialGivesUpOnABusyStore(t *testing.T) {
	h := newHome(t)
	conn, err := h.Dial(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := h.Dial(ctx, ""); !errors.Is(err, ErrBusy) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error is %v", err)
	}
}

// TestCloseFreesTheStore: whatever the client has or has not done.
func TestCloseFreesTheStore(t *testing.T) {
	h := newHome(t)
	for what, use := range map[string]func(net.Conn){
		"nothing": func(net.Conn) {},
		"garbage": func(c net.Conn) { fmt.Fprint(c, "GET / HTTP/1.1\r\n\r\n") },
		"handshake": func(c net.Conn) {
			if err := tls.Client(c, clientTLS(t, h)).Handshake(); err != nil {
				t.Error(err)
			}
		},
		"half a message": func(c net.Conn) {
			if _, err := tls.Client(c, clientTLS(t, h)).Write([]byte{0x42, 0, 0x78}); err != nil {
				t.Error(err)
			}
		},
	} {
		t.Run(what, func(t *testing.T) {
			conn, err := h.Dial(t.Context(), "")
			if err != nil {
				t.Fatal(err)
			}
			use(conn)
			within(t, time.Second, func() { conn.Close() })
			s, err := h.open(forWriting, time.Nanosecond)
			if err != nil {
				t.Fatal(err)
			}
			s.close()
		})
	}
}

// TestSilentClientLosesTheStore: one that never starts TLS can't keep the
// store from others for long.
func TestSilentClientLosesTheStore(t *testing.T) {
	testtool.Long(t)
	t.Parallel()
	h := newHome(t)
	conn, err := h.Dial(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	within(t, localTimeouts.Handshake+2*time.Second, func() { fill(t, h, "k") })
}

// TestShutdownAnswersWhatArrived: a request in progress is answered.
func TestShutdownAnswersWhatArrived(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	_, stop := serve(t, h)
	var created []string
	for i := 0; ; i++ {
		c, err := dialErr(t, h)
		if err != nil {
			t.Fatal(err)
		}
		if i == 3 {
			go stop()
		}
		for j := 0; ; j++ {
			name := fmt.Sprintf("%d.%d", i, j)
			out, err := c.roundTrip(c.message(items(kmip14.OperationCreate, createRequest(nameAttribute(name)))...))
			if err != nil {
				break
			}
			created = append(created, payloadOf[kmipwire.CreateResponse](t, out.BatchItem[0]).UniqueIdentifier)
			if i < 3 && j == 2 {
				break
			}
		}
		c.conn.Close()
		if i == 3 {
			break
		}
	}
	stop()
	if c := checkStore(t, h); c.Objects != len(created) {
		t.Errorf("%d keys were acknowledged, %d are there", len(created), c.Objects)
	}
}

// TestHostileBytes: nothing that is sent to the port ends the server.
func TestHostileBytes(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	address, _ := serve(t, h)
	noise := make([]byte, 100_000)
	if _, err := rand.Read(noise); err != nil {
		t.Fatal(err)
	}
	for _, data := range [][]byte{nil, {0x16}, []byte("GET / HTTP/1.0\r\n\r\n"), noise} {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = conn.Write(data) // the server may hang up first
		conn.Close()
	}
	deep := strings.Repeat("\x42\x00\x78\x01\x00\x00\xff\xf8", 8000)
	for _, data := range []string{"", "x", "\x42\x00\x78\x01\xff\xff\xff\xf8", deep, string(noise), "\x42\x00\x78\x01\x00\x00\x00\x00"} {
		c := dial(t, h)
		_ = c.conn.Write(t.Context(), []byte(data))
		c.conn.Close()
	}
	fill(t, h, "still there")
}

// TestMalformedIsAnsweredAndClosed: KMIP says how to refuse what is not KMIP.
func TestMalformedIsAnsweredAndClosed(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	serve(t, h)
	for what, data := range map[string]string{
		"not TTLV":   "GET / HTTP/1.1\r\n\r\n",
		"too long":   "\x42\x00\x78\x01\x7f\xff\xff\xf8",
		"a response": "\x42\x00\x7b\x01\x00\x00\x00\x00",
	} {
		t.Run(what, func(t *testing.T) {
			c := dial(t, h)
			if err := c.conn.Write(t.Context(), []byte(data)); err != nil {
				t.Fatal(err)
			}
			msg, err := c.conn.Read(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			var out kmipwire.ResponseMessage
			if err := kmipwire.Unmarshal(msg, &out); err != nil || out.BatchItem[0].ResultReason != kmip14.ResultReasonInvalidMessage {
				t.Errorf("%+v %v", out, err)
			}
			if _, err := c.conn.Read(t.Context()); err == nil {
				t.Error("the connection goes on")
			}
		})
	}
}

func TestTLSIsMutualAndModern(t *testing.T) {
	t.Parallel()
	h, other := newHome(t), newHome(t)
	serve(t, h)
	for what, change := range map[string]func(*tls.Config){
		"no certificate":      func(c *tls.Config) { c.Certificates = nil },
		"foreign certificate": func(c *tls.Config) { c.Certificates = clientTLS(t, other).Certificates },
		"TLS 1.1":             func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS11 },
		"CBC": func(c *tls.Config) {
			c.MaxVersion, c.CipherSuites = tls.VersionTLS12, []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA}
		},
		"server as client": func(c *tls.Config) {
			cert, err := tls.LoadX509KeyPair(h.path("server.pem"), h.path("server.key"))
			if err != nil {
				t.Fatal(err)
			}
			c.Certificates = []tls.Certificate{cert}
		},
	} {
		t.Run(what, func(t *testing.T) {
			conn, err := h.Dial(t.Context(), "")
			if err != nil {
				t.Fatal(err)
			}
			config := clientTLS(t, h)
			change(config)
			c := &client{t: t, version: newest, conn: kmipwire.NewConn(tls.Client(conn, config), kmipwire.DefaultTimeouts)}
			defer c.conn.Close()
			if _, err := c.roundTrip(c.message(items(kmip14.OperationLocate, &kmipwire.LocateRequest{})...)); err == nil {
				t.Error("the server answered")
			}
		})
	}
	fill(t, h, "still there")
}

// failingListener fails a few times before it accepts, as when there are too
// many open files.
type failingListener struct {
	net.Listener
	failures int
}

func (l *failingListener) Accept() (net.Conn, error) {
	if l.failures > 0 {
		l.failures--
		return nil, errors.New("too many open files")
	}
	return l.Listener.Accept()
}

// newTestServer is a server that is not listening yet, closed when the test
// ends.
func newTestServer(t *testing.T, h Home) *server {
	t.Helper()
	srv := startServer(t, h)
	t.Cleanup(func() {
		if err := srv.close(); err != nil {
			t.Error(err)
		}
	})
	return srv
}

func TestAcceptErrorsDoNotEndTheServer(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	h := newHome(t)
	s := newTestServer(t, h)
	done := make(chan struct{})
	go func() { s.serve(ctx, &failingListener{l, 3}); close(done) }()
	conn, err := tls.Dial("tcp", l.Addr().String(), clientTLS(t, h))
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	cancel()
	<-done
}

func TestPanicEndsOnlyItsConnection(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	local, remote, err := socketPair()
	if err != nil {
		t.Fatal(err)
	}
	s := newTestServer(t, h)
	s.engine.operations[kmip14.OperationLocate] = func(*request, []byte) (any, error) { panic("a bug") }
	done := make(chan struct{})
	go func() { s.handle(t.Context(), s.guests.enter(t.Context(), remote)); close(done) }()
	c := &client{t: t, version: newest, conn: kmipwire.NewConn(tls.Client(local, clientTLS(t, h)), kmipwire.DefaultTimeouts)}
	defer c.conn.Close()
	if _, err := c.roundTrip(c.message(items(kmip14.OperationLocate, &kmipwire.LocateRequest{})...)); err == nil {
		t.Error("got an answer")
	}
	<-done
}
