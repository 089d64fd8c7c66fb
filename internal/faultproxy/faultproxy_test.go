package faultproxy

import (
	"context"
	"crypto/tls"
	"errors"
	"os"
	"slices"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gemalto/kmip-go/kmip14"

	"github.com/vmcrypt/vmcrypt/internal/kmipwire"
)

// ask has a new client do one operation at a replica. It waits a minute.
func ask(ctx context.Context, r *Replicas, i int, op kmip14.Operation, request any) ([]byte, error) {
	raw, err := r.Dial(ctx, r.Proxies[i].Address)
	if err != nil {
		return nil, err
	}
	conn := kmipwire.NewConn(tls.Client(raw, clientTLS(r.t, r.Files)), kmipwire.DefaultTimeouts)
	defer conn.Close()
	if err := conn.Handshake(ctx); err != nil {
		return nil, err
	}
	msg, err := kmipwire.Marshal(kmipwire.RequestMessage{
		RequestHeader: kmipwire.RequestHeader{ProtocolVersion: kmipwire.Versions()[0], BatchCount: 1},
		BatchItem:     []kmipwire.RequestBatchItem{{Operation: op, RequestPayload: request}},
	})
	if err != nil {
		return nil, err
	}
	if err := conn.Write(ctx, msg); err != nil {
		return nil, err
	}
	return conn.Read(ctx)
}

// activate is what tests ask for: it shows in the key's state whether it was done.
func activate(t *testing.T, r *Replicas, f Fault) (took time.Duration, done bool, msg []byte, err error) {
	t.Helper()
	id := r.create(0)
	r.Proxies[0].Set(f, kmip14.OperationActivate)
	begun := time.Now()
	msg, err = ask(t.Context(), r, 0, kmip14.OperationActivate, kmipwire.ActivateRequest{UniqueIdentifier: id})
	took = time.Since(begun)
	last := r.Journal.Of()[len(r.Journal.Of())-1]
	want := Event{At: last.At, Server: r.Proxies[0].Address, Operation: "Activate", Subject: id, Version: "1.4", Fault: f.String()}
	if last != want {
		t.Errorf("the journal says %+v, want %+v", last, want)
	}
	return took, r.State(0, id) == kmip14.StateActive, msg, err
}

// TestFaults: each does to an operation what it says.
func TestFaults(t *testing.T) {
	for _, test := range []struct {
		fault  Fault
		took   time.Duration
		done   bool
		answer kmip14.ResultReason // 0: that it was done
	}{
		{None, 0, true, 0},
		{Hang, time.Minute, false, none},
		{Reset, 0, false, none},
		{Die, 0, false, none},
		{Garble, 0, true, none},
		{Lose, 0, true, none},
		{Swallow, time.Minute, true, none},
		{Deny, 0, false, kmip14.ResultReasonPermissionDenied},
		{Missing, 0, false, kmip14.ResultReasonItemNotFound},
		{Delay(7 * time.Second), 7 * time.Second, true, 0},
	} {
		t.Run("in memory "+test.fault.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				took, done, msg, err := activate(t, NewReplicasInMemory(t, 1), test.fault)
				if took != test.took || done != test.done || reason(msg, err) != test.answer {
					t.Errorf("after %v: done %v, reason %v, %v", took, done, reason(msg, err), err)
				}
			})
		})
		if test.took > 0 {
			continue
		}
		t.Run("on the loopback "+test.fault.String(), func(t *testing.T) {
			_, done, msg, err := activate(t, NewReplicas(t, 1), test.fault)
			if done != test.done || reason(msg, err) != test.answer {
				t.Errorf("done %v, reason %v, %v", done, reason(msg, err), err)
			}
		})
	}
}

// none stands for an answer that there is not, or that can't be read.
const none = kmip14.ResultReason(0xFFFF)

func reason(msg []byte, err error) kmip14.ResultReason {
	var resp kmipwire.ResponseMessage
	if err != nil || kmipwire.Unmarshal(msg, &resp) != nil {
		return none
	}
	return resp.BatchItem[0].ResultReason
}

// TestConnectionFaults: a key manager can be gone in several ways, and come back.
func TestConnectionFaults(t *testing.T) {
	query := func(ctx context.Context, r *Replicas) error {
		_, err := ask(ctx, r, 0, kmip14.OperationQuery, kmipwire.QueryRequest{})
		return err
	}
	t.Run("in memory", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r := NewReplicasInMemory(t, 1)
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			r.Proxies[0].Set(Refuse)
			if err := query(ctx, r); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("refused: %v", err)
			}
			r.Proxies[0].Set(Vanish)
			if err := query(ctx, r); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("vanished: %v", err)
			}
			r.Proxies[0].Set(None)
			if err := query(t.Context(), r); err != nil {
				t.Errorf("back again: %v", err)
			}
		})
	})
	t.Run("on the loopback", func(t *testing.T) {
		r := NewReplicas(t, 1)
		for range 2 {
			r.Proxies[0].Set(Refuse)
			if err := query(t.Context(), r); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("refused: %v", err)
			}
			r.Proxies[0].Set(Reset)
			if err := query(t.Context(), r); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("reset: %v", err)
			}
			r.Proxies[0].Set(None)
			if err := query(t.Context(), r); err != nil {
				t.Errorf("back again: %v", err)
			}
		}
	})
}

// TestLag: what is done at others does not reach a replica that lags.
func TestLag(t *testing.T) {
	for name, start := range map[string]func(testing.TB, int) *Replicas{"in memory": NewReplicasInMemory, "on the loopback": NewReplicas} {
		t.Run(name, func(t *testing.T) {
			r := start(t, 3)
			old := r.Create(0)
			r.Lag(1)
			fresh := r.Create(0)
			r.Revoke(1, old)
			if got := r.Keys(1); !slices.Equal(got, []string{old}) {
				t.Errorf("the replica that lags has %v, want %s", got, old)
			}
			if got := r.Keys(2); len(got) != 2 || !slices.Contains(got, fresh) {
				t.Errorf("the one that does not has %v", got)
			}
			if a, b := r.State(0, old), r.State(1, old); a != kmip14.StateActive || b != kmip14.StateDeactivated {
				t.Errorf("states %v and %v", a, b)
			}
		})
	}
}

// TestAlter: a key that comes through is another.
func TestAlter(t *testing.T) {
	r := NewReplicasInMemory(t, 2)
	id := r.Create(0)
	r.Proxies[1].Set(Alter)
	var keys [2][]byte
	for i := range keys {
		msg, err := ask(t.Context(), r, i, kmip14.OperationGet, kmipwire.GetRequest{UniqueIdentifier: id})
		if err != nil {
			t.Fatal(err)
		}
		var resp kmipwire.ResponseMessage
		var get kmipwire.GetResponse
		if err := errors.Join(kmipwire.Unmarshal(msg, &resp), kmipwire.UnmarshalPayload(resp.BatchItem[0].ResponsePayload, &get)); err != nil {
			t.Fatal(err)
		}
		keys[i] = get.SymmetricKey.KeyBlock.KeyValue.KeyMaterial
	}
	keys[0][0] ^= 1
	if len(keys[0]) != 32 || !slices.Equal(keys[0], keys[1]) {
		t.Error("the keys do not differ in one bit alone")
	}
}
