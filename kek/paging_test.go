package kek

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/gemalto/kmip-go/kmip14"

	"github.com/vmcrypt/vmcrypt/internal/kmipwire"
	"github.com/vmcrypt/vmcrypt/internal/ovhkmip"
	"github.com/vmcrypt/vmcrypt/internal/pykmip"
	"github.com/vmcrypt/vmcrypt/internal/testtool"
)

// TestListPages: all keys are listed, once each, also where there are more than are asked for
// at a time: by a server that tells how many there are, one that always begins at the first,
// and one that does neither.
func TestListPages(t *testing.T) {
	t.Run("ours", func(t *testing.T) { listMany(t, newKMS(t)) })
	t.Run("ovh/kmip-go", func(t *testing.T) {
		server := ovhkmip.Start(t)
		listMany(t, open(t, server.PKI, server.Address))
	})
	t.Run("PyKMIP", func(t *testing.T) {
		testtool.Long(t)
		server := pykmip.Start(t)
		listMany(t, open(t, server.PKI, server.Address))
	})
}

// listMany lists more keys than are asked for at a time.
func listMany(t *testing.T, c *Cluster) {
	want := createMany(t, c, locatePage+1)
	keys, err := c.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, key := range keys {
		got = append(got, key.ID)
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("%d keys, want %d", len(got), len(want))
	}
}

// TestListQuirks: a server may give fewer keys than it is asked for, or all the same; a key
// may be made meanwhile.
func TestListQuirks(t *testing.T) {
	for name, test := range map[string]struct {
		total int
		parts [][2]int // the first and the last key of each answer
		want  int
	}{
		"few":                     {0, [][2]int{{1, 3}}, 3},
		"none":                    {0, [][2]int{{1, 0}}, 0},
		"fewer than asked for":    {5, [][2]int{{1, 2}, {3, 4}, {5, 5}}, 5},
		"fewer than there are":    {9, [][2]int{{1, 2}, {3, 2}}, 2},
		"no word of the rest":     {0, [][2]int{{1, locatePage}, {locatePage + 1, locatePage + 2}}, locatePage + 2},
		"exactly a part":          {0, [][2]int{{1, locatePage}, {1, 0}}, locatePage},
		"more than asked for":     {0, [][2]int{{1, locatePage + 1}, {1, locatePage + 1}}, locatePage + 1},
		"no offset":               {0, [][2]int{{1, locatePage}, {1, locatePage}, {1, locatePage + 1}}, locatePage + 1},
		"a key is made meanwhile": {0, [][2]int{{1, locatePage}, {locatePage, locatePage + 2}}, locatePage + 2},
	} {
		t.Run(name, func(t *testing.T) {
			f := &fake{}
			answers := test.parts
			f.edit = func(op kmip14.Operation, resp *kmipwire.ResponseMessage) {
				if op != kmip14.OperationLocate || len(answers) == 0 {
					return
				}
				out := new(kmipwire.LocateResponse)
				if test.total > 0 {
					out.LocatedItems = &test.total
				}
				for id := answers[0][0]; id <= answers[0][1]; id++ {
					out.UniqueIdentifier = append(out.UniqueIdentifier, strconv.Itoa(id))
				}
				answers = answers[1:]
				resp.BatchItem[0].ResponsePayload = out
			}
			c := startFake(t, f)
			ids, err := ask(t.Context(), c, func(ctx context.Context, s *session) ([]string, error) { return s.locateAll(ctx, kekAttributes()) }, func([]string) {})
			if err != nil || len(answers) > 0 || len(ids) != test.want || len(slices.Compact(slices.Sorted(slices.Values(ids)))) != test.want {
				t.Errorf("%d keys, %v; %d answers are left", len(ids), err, len(answers))
			}
			f.mu.Lock()
			defer f.mu.Unlock()
			if len(f.skips) > 1 && f.skips[1] != test.parts[0][1] { // after that it may begin anew
				t.Errorf("it goes on after %d keys, want %d", f.skips[1], test.parts[0][1])
			}
		})
	}
}

// TestListEnds: a server that always finds more keys is not listened to for ever.
func TestListEnds(t *testing.T) {
	next := 0
	c := startFake(t, &fake{edit: item(kmip14.OperationLocate, func(i *kmipwire.ResponseBatchItem) {
		out := new(kmipwire.LocateResponse)
		for range min(20*locatePage, 2*maxLocated-next) { // more than it is asked for
			next++
			out.UniqueIdentifier = append(out.UniqueIdentifier, strconv.Itoa(next))
		}
		i.ResponsePayload = out
	})})
	_, _, err := c.Canary(t.Context())
	expect(t, err, ErrUnavailable)
	if next == 2*maxLocated || !strings.Contains(err.Error(), strconv.Itoa(maxLocated)) {
		t.Errorf("after %d keys: %v", next, err)
	}
}

// createMany makes keys, many in a message.
func createMany(t *testing.T, c *Cluster, n int) (ids []string) {
	t.Helper()
	s, err := c.servers[0].connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer s.conn.Close()
	for len(ids) < n {
		ids = append(ids, s.createBatch(t, min(64, n-len(ids)))...)
	}
	return ids
}

func (s *session) createBatch(t *testing.T, n int) (ids []string) {
	t.Helper()
	req := kmipwire.RequestMessage{RequestHeader: kmipwire.RequestHeader{ProtocolVersion: s.version, BatchCount: n}}
	for i := range n {
		req.BatchItem = append(req.BatchItem, kmipwire.RequestBatchItem{
			Operation: kmip14.OperationCreate, UniqueBatchItemID: fmt.Append(nil, i),
			RequestPayload: kmipwire.CreateRequest{
				ObjectType: kmip14.ObjectTypeSymmetricKey, TemplateAttribute: kmipwire.TemplateAttribute{Attribute: newKeyAttributes(newName())},
			},
		})
	}
	out, err := kmipwire.Marshal(req)
	if err != nil {
		t.Fatal(err)
	}
	msg, err := s.roundTrip(t.Context(), out)
	if err != nil {
		t.Fatal(err)
	}
	var resp kmipwire.ResponseMessage
	if err := kmipwire.Unmarshal(msg, &resp); err != nil {
		t.Fatal(err)
	}
	for _, item := range resp.BatchItem {
		var created kmipwire.CreateResponse
		if err := kmipwire.UnmarshalPayload(item.ResponsePayload, &created); err != nil {
			t.Fatal(err)
		}
		ids = append(ids, created.UniqueIdentifier)
	}
	return ids
}
