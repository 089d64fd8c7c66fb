package systemd

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// listen makes the socket at which systemd would hear the service.
func listen(t *testing.T) *net.UnixConn {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	t.Setenv("NOTIFY_SOCKET", path)
	return conn
}

func hear(t *testing.T, conn *net.UnixConn) string {
	t.Helper()
	if err := conn.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	message := make([]byte, 100)
	n, err := conn.Read(message)
	if err != nil {
		t.Fatal(err)
	}
	return string(message[:n])
}

func TestReady(t *testing.T) {
	conn := listen(t)
	t.Setenv("WATCHDOG_USEC", "30000")
	ctx, stop := context.WithCancel(t.Context())
	asked := make(chan error)
	Ready(ctx, func(context.Context) error { return <-asked })
	if got := hear(t, conn); got != "READY=1" {
		t.Errorf("at first it says %q", got)
	}
	for range 3 {
		asked <- nil
		if got := hear(t, conn); got != "WATCHDOG=1" {
			t.Errorf("alive, it says %q", got)
		}
	}
	asked <- errors.New("dead")
	stop()
	if got := hear(t, conn); got != "STOPPING=1" {
		t.Errorf("neither alive nor going on, it says %q", got)
	}
}

// TestCheckHangs: a check that does not end in time has failed.
func TestCheckHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		err := checkWithin(t.Context(), time.Minute, func(ctx context.Context) error {
			<-ctx.Done()
			return ctx.Err()
		})
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
	})
}

func TestWithoutSystemd(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	Ready(t.Context(), nil)
}

func TestEnviron(t *testing.T) {
	listen(t)
	t.Setenv("WATCHDOG_USEC", "1")
	t.Setenv("NOTIFY_SOCKETS", "kept")
	var got []string
	for _, v := range Environ() {
		if len(v) > 8 && (v[:6] == "NOTIFY" || v[:8] == "WATCHDOG") {
			got = append(got, v)
		}
	}
	if !slices.Equal(got, []string{"NOTIFY_SOCKETS=kept"}) {
		t.Errorf("left is %q", got)
	}
}
