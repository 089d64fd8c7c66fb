package kek

import (
	"context"
	"fmt"
	"net"
	"slices"
	"sync"
	"testing"

	"github.com/gemalto/kmip-go/kmip14"

	"github.com/vmcrypt/vmcrypt/internal/kmipwire"
)

// observed keeps what a cluster tells of its exchanges.
func observed(t *testing.T, c *Cluster) (take func() []string) {
	var mu sync.Mutex
	var all []string
	c.Observe(func(x Exchange) {
		mu.Lock()
		defer mu.Unlock()
		if x.Alias != c.alias || x.Server == "" || x.Took <= 0 {
			t.Errorf("%+v", x)
		}
		all = append(all, x.Operation+" "+x.Result)
	})
	return func() []string {
		mu.Lock()
		defer mu.Unlock()
		defer func() { all = nil }()
		return all
	}
}

// TestObserve: each exchange is told once, with how it ended.
func TestObserve(t *testing.T) {
	good := []string{"DiscoverVersions ok", "connect ok"}
	for name, test := range map[string]struct {
		edit func(kmip14.Operation, *kmipwire.ResponseMessage)
		want []string
	}{
		"good":      {nil, []string{"Get ok", "GetAttributes ok"}},
		"not found": {fail(kmip14.OperationGet, kmip14.ResultReasonItemNotFound, ""), []string{"Get not-found", "GetAttributes ok"}},
		"denied":    {fail(kmip14.OperationGet, kmip14.ResultReasonPermissionDenied, ""), []string{"Get denied", "GetAttributes ok"}},
		"refused":   {fail(kmip14.OperationGet, kmip14.ResultReasonGeneralFailure, ""), []string{"Get refused", "GetAttributes ok"}},
		"destroyed": {fail(kmip14.OperationGet, resultReasonObjectDestroyed, ""), []string{"Get destroyed", "GetAttributes ok"}},
	} {
		c := startFake(t, &fake{edit: test.edit})
		take := observed(t, c)
		if key, err := c.Get(t.Context(), "7"); err == nil {
			key.Destroy()
		}
		want := slices.Concat(good, test.want)
		if got := take(); !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}

func TestObserveWhatIsNoKeyManager(t *testing.T) {
	c := startFake(t, &fake{})
	take := observed(t, c)
	c.at(listen(t, func(c net.Conn) { c.Close() }), listen(t, func(c net.Conn) { fmt.Fprint(c, "SSH-2.0-x\r\n"); c.Close() }))
	if _, err := c.Get(t.Context(), "7"); err == nil {
		t.Error("a key came from nowhere")
	}
	if got, want := fmt.Sprint(take()), "[connect unreachable connect not-kmip]"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, _ = c.Get(ctx, "7")
	if got := fmt.Sprint(take()); got != "[connect canceled]" && got != "[]" { // nobody waits for it
		t.Error(got)
	}
}
