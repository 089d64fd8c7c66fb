package kms

import (
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/gemalto/kmip-go/kmip14"
	"github.com/google/uuid"
	"go.etcd.io/bbolt"

	"github.com/vmcrypt/vmcrypt/internal/kmipwire"
)

// ownersServer is a server that has looked at its whole store.
func ownersServer(t testing.TB, h Home) *server {
	t.Helper()
	s, err := h.openToServe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.close() })
	return s
}

func (c *client) located(e *engine, owner string) (ids []string, ok bool) {
	c.t.Helper()
	out := c.ask(e, owner, items(kmip14.OperationLocate, &kmipwire.LocateRequest{}))
	if out[0].ResultStatus != kmip14.ResultStatusSuccess {
		return nil, false
	}
	return payloadOf[kmipwire.LocateResponse](c.t, out[0]).UniqueIdentifier, true
}

func (c *client) makeFor(e *engine, owner string) string {
	c.t.Helper()
	out := c.ask(e, owner, items(kmip14.OperationCreate, createRequest()))
	return payloadOf[kmipwire.CreateResponse](c.t, out[0]).UniqueIdentifier
}

// damage makes the record of an object unreadable.
func damage(t *testing.T, s *store, id string) {
	t.Helper()
	err := s.db.Update(func(b *bbolt.Tx) error {
		key := uuid.MustParse(id)
		return b.Bucket(objectsBucket).Put(key[:], []byte("no record"))
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestLocateOpensNothingOfOthers: were a record of another client opened, it
// would be found to be damaged.
func TestLocateOpensNothingOfOthers(t *testing.T) {
	t.Parallel()
	h := emptyHome(t) // whose store is not whole in the end
	if err := h.Init([]byte("# test\n")); err != nil {
		t.Fatal(err)
	}
	c := &client{t: t, version: newest}
	s := ownersServer(t, h)
	before, theirs := c.makeFor(s.engine, "me"), c.makeFor(s.engine, "other")
	if err := s.close(); err != nil {
		t.Fatal(err)
	}
	s = ownersServer(t, h)
	since := c.makeFor(s.engine, "me")
	damage(t, s.engine.store, theirs)
	if got, ok := c.located(s.engine, "me"); !ok || !slices.Equal(got, []string{before, since}) {
		t.Errorf("located %v, want %v", got, []string{before, since})
	}
	if _, ok := c.located(s.engine, "other"); ok {
		t.Error("the damage was not noticed by those it is done to")
	}
}

// TestLocateInABatch: what a batch has made is found in it and, unless it is
// undone, after it.
func TestLocateInABatch(t *testing.T) {
	t.Parallel()
	c := &client{t: t, version: newest}
	s := ownersServer(t, newHome(t))
	kept := c.makeFor(s.engine, "me")
	for _, last := range []string{kept, uuid.NewString()} {
		in := c.message(items(
			kmip14.OperationCreate, createRequest(), kmip14.OperationCreate, createRequest(),
			kmip14.OperationLocate, &kmipwire.LocateRequest{},
			kmip14.OperationGetAttributeList, &kmipwire.GetAttributeListRequest{UniqueIdentifier: last})...)
		in.RequestHeader.BatchErrorContinuationOption = kmip14.BatchErrorContinuationOptionUndo
		r := &request{engine: s.engine, client: "me", version: newest}
		msg, err := kmipwire.Marshal(in)
		if err != nil {
			t.Fatal(err)
		}
		var decoded kmipwire.RequestMessage
		if err := kmipwire.Unmarshal(msg, &decoded); err != nil {
			t.Fatal(err)
		}
		before, _ := c.located(s.engine, "me")
		done := r.batch(&decoded)
		after, _ := c.located(s.engine, "me")
		if last != kept {
			if !slices.Equal(after, before) {
				t.Errorf("undone, but located %v", after)
			}
			continue
		}
		within := done[2].ResponsePayload.(*kmipwire.LocateResponse).UniqueIdentifier
		if len(within) != len(before)+2 || !slices.Equal(within, after) || !slices.IsSorted(within) {
			t.Errorf("located %v in the batch, %v after it", within, after)
		}
	}
}

// TestOwnersTogether: clients that make keys and locate them at once see all that
// they have been told of.
func TestOwnersTogether(t *testing.T) {
	t.Parallel()
	s := ownersServer(t, newHome(t))
	var wg sync.WaitGroup
	for i := range 4 {
		for range 2 {
			wg.Go(func() {
				c := &client{t: t, version: newest}
				owner := fmt.Sprint(i)
				for range 10 {
					id := c.makeFor(s.engine, owner)
					if got, _ := c.located(s.engine, owner); !slices.Contains(got, id) || !slices.IsSorted(got) {
						t.Errorf("%s is not in %v", id, got)
					}
				}
			})
		}
	}
	wg.Wait()
	for i := range 4 {
		if got, _ := (&client{t: t, version: newest}).located(s.engine, fmt.Sprint(i)); len(got) != 20 {
			t.Errorf("%d objects", len(got))
		}
	}
}

// TestOwnersOutOfOrder: IDs need not come in their order.
func TestOwnersOutOfOrder(t *testing.T) {
	o := &owners{}
	o.add("a", uuid.UUID{1}) // nobody has asked yet
	if _, known := o.of("a"); known {
		t.Error("known before it was made")
	}
	o.set(map[string][]uuid.UUID{"a": {{2}, {4}}})
	old, _ := o.of("a")
	o.add("a", uuid.UUID{3})
	o.add("a", uuid.UUID{5})
	o.add("a", uuid.UUID{1})
	got, _ := o.of("a")
	if want := []uuid.UUID{{1}, {2}, {3}, {4}, {5}}; !slices.Equal(got, want) || !slices.Equal(old, []uuid.UUID{{2}, {4}}) {
		t.Errorf("%v, and before %v", got, old)
	}
}
