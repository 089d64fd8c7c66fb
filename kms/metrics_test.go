package kms

import (
	"crypto/tls"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gemalto/kmip-go/kmip14"

	"github.com/vmcrypt/vmcrypt/internal/kmipwire"
	"github.com/vmcrypt/vmcrypt/internal/metricstest"
)

// TestMetrics: what is scraped is what has happened, and tells no secret.
func TestMetrics(t *testing.T) {
	h := newHome(t)
	h.Metrics, h.Release = filepath.Join(t.TempDir(), "m"), "1.2"
	address, stop := serve(t, h)
	c := dial(t, h)
	ids := make([]string, 3)
	for i := range ids {
		ids[i] = c.create(string(rune('a' + i)))
	}
	c.activate(ids[0])
	c.activate(ids[1])
	do[kmipwire.DestroyResponse](c, kmip14.OperationDestroy, &kmipwire.DestroyRequest{UniqueIdentifier: ids[2]})
	c.refused(kmip14.ResultReasonItemNotFound, kmip14.OperationGet, &kmipwire.GetRequest{UniqueIdentifier: "none"})
	c.send(kmip14.Operation(0x2a), &kmipwire.GetRequest{})
	stranger, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	_ = tls.Client(stranger, &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12, MinVersion: tls.VersionTLS12}).Handshake() // it is to be refused
	var text string
	var got metricstest.Samples
	for begun := time.Now(); got[`vmcrypt_kms_refused_connections_total{reason="handshake"}`] < 1; time.Sleep(time.Millisecond) {
		if text, got = metricstest.Scrape(t, h.Metrics); time.Since(begun) > 30*time.Second {
			t.Fatal("the stranger is not counted")
		}
	}
	checkSamples(t, got)
	for _, id := range ids {
		if strings.Contains(text, id) {
			t.Errorf("the ID of a key is in\n%s", text)
		}
	}
	backup(t, h)
	if _, got := metricstest.Scrape(t, h.Metrics); got[`vmcrypt_kms_backup_due`] != 0 || got[`vmcrypt_kms_last_backup_timestamp_seconds`] < float64(time.Now().Add(-time.Hour).Unix()) {
		t.Errorf("after a backup: due %v, last %v", got[`vmcrypt_kms_backup_due`], got[`vmcrypt_kms_last_backup_timestamp_seconds`])
	}
	c.conn.Close()
	stop()
	serve(t, h)
	if _, got := metricstest.Scrape(t, h.Metrics); got[`vmcrypt_kms_objects{state="active"}`] != 2 || got[`vmcrypt_kms_objects{state="destroyed"}`] != 1 {
		t.Errorf("after a restart: %v", got)
	}
}

func checkSamples(t *testing.T, got metricstest.Samples) {
	t.Helper()
	for series, want := range map[string]float64{
		`vmcrypt_kms_requests_total{operation="Create",result="success"}`:     3,
		`vmcrypt_kms_requests_total{operation="Get",result="item_not_found"}`: 1,
		`vmcrypt_kms_request_duration_seconds_count{operation="Activate"}`:    2,
		`vmcrypt_kms_objects{state="active"}`:                                 2,
		`vmcrypt_kms_objects{state="destroyed"}`:                              1,
		`vmcrypt_kms_objects{state="pre_active"}`:                             0,
		`vmcrypt_kms_clients{state="active"}`:                                 1,
		`vmcrypt_kms_connections{state="identified"}`:                         1,
		`vmcrypt_kms_refused_connections_total{reason="not_admitted"}`:        0,
		`vmcrypt_kms_audit_write_failures_total`:                              0,
		`vmcrypt_kms_last_backup_timestamp_seconds`:                           0,
		`vmcrypt_kms_backup_due`:                                              1,
	} {
		if got[series] != want {
			t.Errorf("%s is %v, want %v", series, got[series], want)
		}
	}
	for series, least := range map[string]float64{
		`vmcrypt_kms_certificate_expiry_timestamp_seconds{kind="server",name=""}`:                   float64(time.Now().Unix()),
		`vmcrypt_kms_certificate_expiry_timestamp_seconds{kind="ca",name=""}`:                       float64(time.Now().Unix()),
		`vmcrypt_kms_certificate_expiry_timestamp_seconds{kind="client",name="` + clientName + `"}`: float64(time.Now().Unix()),
		`vmcrypt_kms_store_size_bytes`: 4096,
		`vmcrypt_kms_requests_total{operation="unknown",result="operation_not_supported"}`: 1,
	} {
		if got[series] < least {
			t.Errorf("%s is %v, want at least %v", series, got[series], least)
		}
	}
}

// TestStatesChangeWithTime: a date that comes changes a state, without a write.
func TestStatesChangeWithTime(t *testing.T) {
	var l lives
	l.set([16]byte{}, life{})
	if got := l.count(0); len(got) != 0 {
		t.Errorf("though nobody asks: %v", got)
	}
	l.begin()
	l.set([16]byte{1}, life{state: uint32(kmip14.StatePreActive), activation: 10, deactivation: 20})
	l.set([16]byte{2}, life{})
	for now, want := range map[int64]string{9: "pre_active", 10: "active", 19: "active", 20: "deactivated"} {
		if got := l.count(now); got[want] != 1 || got["none"] != 1 || len(got) != 2 {
			t.Errorf("at %d: %v", now, got)
		}
	}
}

// TestKeysWithoutMetrics: whoever has taken the address of the metrics keeps nobody from
// the keys.
func TestKeysWithoutMetrics(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	h := newHome(t)
	h.Metrics = l.Addr().String()
	serve(t, h)
	dial(t, h).create("key")
}

// TestMetricsAreDocumented: the agent's are its own affair.
func TestMetricsAreDocumented(t *testing.T) {
	h := newHome(t)
	srv, err := h.openToServe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer srv.close()
	metricstest.CheckDocuments(t, "..", metricstest.Names(h.registry(srv)),
		func(name string) bool { return strings.HasPrefix(name, "vmcrypt_kms_") })
}
