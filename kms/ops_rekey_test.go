package kms

import (
	"slices"
	"testing"
	"time"

	"github.com/gemalto/kmip-go/kmip14"

	"github.com/vmcrypt/vmcrypt/internal/kmipwire"
)

func (c *client) reKey(p *kmipwire.ReKeyRequest) string {
	c.t.Helper()
	return do[kmipwire.ReKeyResponse](c, kmip14.OperationReKey, p).UniqueIdentifier
}

func (c *client) link(id string, t kmip14.LinkType) string {
	c.t.Helper()
	for _, a := range do[kmipwire.GetAttributesResponse](c, kmip14.OperationGetAttributes,
		&kmipwire.GetAttributesRequest{UniqueIdentifier: id, AttributeName: []string{kmipwire.AttrLink}}).Attribute {
		var l kmipwire.Link
		if err := kmipwire.UnmarshalPayload(a.AttributeValue, &l); err != nil {
			c.t.Fatal(err)
		}
		if l.LinkType == t {
			return l.LinkedObjectIdentifier
		}
	}
	return ""
}

func TestReKey(t *testing.T) {
	t.Parallel()
	c := dial(t, newHome(t))
	old := c.makeKey(nameAttribute("k"), attribute1("x-a", "1"), attribute1(kmipwire.AttrActivationDate, time.Now()))
	for range 2 { // again: the link leads to the latest
		req := &kmipwire.ReKeyRequest{UniqueIdentifier: old}
		id := c.reKey(req)
		if c.link(old, kmip14.LinkTypeReplacementObjectLink) != id || c.link(id, kmip14.LinkTypeReplacedObjectLink) != old {
			t.Error("the keys are not linked")
		}
		if c.get(old) == c.get(id) || c.state(id) != kmip14.StateActive {
			t.Error("not a new key in the state of the old one")
		}
		if got := c.attributes(id); got["x-a"] != "1" || got[kmipwire.AttrCryptographicUsageMask] != int32(12) || got[kmipwire.AttrCompromiseDate] != nil {
			t.Errorf("made %v", got)
		}
	}
	first := c.locate(nameAttribute("k"))
	if len(first) != 1 || first[0] == old {
		t.Errorf("named k: %v", first)
	}
	if got := c.attributes(old, kmipwire.AttrName); len(got) != 0 {
		t.Errorf("the old key has names %v", got)
	}
}

func TestReKeyNames(t *testing.T) {
	t.Parallel()
	c := dial(t, newHome(t))
	old := c.create("a")
	c.create("taken")
	p := &kmipwire.ReKeyRequest{UniqueIdentifier: old}
	p.TemplateAttribute.Attribute = []kmipwire.Attribute{nameAttribute("taken")}
	c.refused(kmip14.ResultReasonInvalidField, kmip14.OperationReKey, p)
	if got := c.locate(nameAttribute("a")); !slices.Equal(got, []string{old}) {
		t.Errorf("a refused re-key moved the name to %v", got)
	}
	p.TemplateAttribute.Attribute = []kmipwire.Attribute{nameAttribute("b")}
	id := c.reKey(p)
	for _, n := range []string{"a", "b"} {
		if got := c.locate(nameAttribute(n)); !slices.Equal(got, []string{id}) {
			t.Errorf("%s: %v", n, got)
		}
	}
}

// TestReKeyOffset: the dates keep their distances.
func TestReKeyOffset(t *testing.T) {
	t.Parallel()
	c := dial(t, newHome(t))
	start := time.Now().Add(-time.Hour)
	old := c.makeKey(attribute1(kmipwire.AttrActivationDate, start), attribute1(kmipwire.AttrProtectStopDate, start.Add(2*time.Hour)),
		attribute1(kmipwire.AttrDeactivationDate, start.Add(3*time.Hour)))
	offset := 10 * time.Minute
	got := c.attributes(c.reKey(&kmipwire.ReKeyRequest{UniqueIdentifier: old, Offset: &offset}))
	initial := got[kmipwire.AttrInitialDate].(time.Time)
	for name, want := range map[string]time.Duration{
		kmipwire.AttrActivationDate: offset, kmipwire.AttrProtectStopDate: offset + 2*time.Hour, kmipwire.AttrDeactivationDate: offset + 3*time.Hour,
	} {
		if d := got[name].(time.Time).Sub(initial); d != want {
			t.Errorf("%s: %s after the initial date, want %s", name, d, want)
		}
	}
	dated := &kmipwire.ReKeyRequest{UniqueIdentifier: old, Offset: &offset}
	dated.TemplateAttribute.Attribute = []kmipwire.Attribute{attribute1(kmipwire.AttrActivationDate, time.Now())}
	c.refused(kmip14.ResultReasonInvalidMessage, kmip14.OperationReKey, dated)
	c.refused(kmip14.ResultReasonIllegalOperation, kmip14.OperationReKey, &kmipwire.ReKeyRequest{UniqueIdentifier: c.makeKey(), Offset: &offset})
	gone := c.makeKey()
	do[kmipwire.DestroyResponse](c, kmip14.OperationDestroy, &kmipwire.DestroyRequest{UniqueIdentifier: gone})
	c.refused(kmip14.ResultReasonIllegalOperation, kmip14.OperationReKey, &kmipwire.ReKeyRequest{UniqueIdentifier: gone})
}

// TestDatesChangeStates, without waiting for them.
func TestDatesChangeStates(t *testing.T) {
	const now = 1000
	tests := map[string]struct {
		state, want              kmip14.State
		activation, deactivation int64
	}{
		"no date":          {kmip14.StatePreActive, kmip14.StatePreActive, 0, 0},
		"later":            {kmip14.StatePreActive, kmip14.StatePreActive, now + 1, 0},
		"now":              {kmip14.StatePreActive, kmip14.StateActive, now, now + 1},
		"over":             {kmip14.StatePreActive, kmip14.StateDeactivated, now - 2, now - 1},
		"end":              {kmip14.StateActive, kmip14.StateDeactivated, 1, now},
		"never activated":  {kmip14.StatePreActive, kmip14.StatePreActive, 0, now - 1},
		"compromised":      {kmip14.StateCompromised, kmip14.StateCompromised, 1, now - 1},
		"destroyed":        {kmip14.StateDestroyed, kmip14.StateDestroyed, 1, now - 1},
		"not a key at all": {0, 0, 1, 2},
	}
	for what, test := range tests {
		o := &object{}
		o.State, o.Activation, o.Deactivation = uint32(test.state), test.activation, test.deactivation
		o.advance(now)
		if o.state() != test.want {
			t.Errorf("%s: %s, want %s", what, o.state(), test.want)
		}
	}
}

// TestTimedStates: dates act on everything that a client sees.
func TestTimedStates(t *testing.T) {
	t.Parallel()
	c := dial(t, newHome(t))
	id := c.makeKey(attribute1(kmipwire.AttrActivationDate, time.Now().Add(time.Hour)))
	if c.state(id) != kmip14.StatePreActive {
		t.Error("active before its time")
	}
	c.modify(id, kmipwire.AttrActivationDate, 0, time.Now().Add(-time.Minute))
	active := attribute1(kmipwire.AttrState, kmip14.StateActive)
	if got := c.locate(active); !slices.Equal(got, []string{id}) {
		t.Errorf("active are %v", got)
	}
	c.refused(kmip14.ResultReasonPermissionDenied, kmip14.OperationActivate, &kmipwire.ActivateRequest{UniqueIdentifier: id})
	c.refused(kmip14.ResultReasonPermissionDenied, kmip14.OperationDestroy, &kmipwire.DestroyRequest{UniqueIdentifier: id})
	c.addAttribute(id, kmipwire.AttrDeactivationDate, time.Now())
	if got := c.locate(active); len(got) != 0 || c.state(id) != kmip14.StateDeactivated {
		t.Errorf("active are %v", got)
	}
	do[kmipwire.DestroyResponse](c, kmip14.OperationDestroy, &kmipwire.DestroyRequest{UniqueIdentifier: id})
}

func TestLocateByDates(t *testing.T) {
	t.Parallel()
	c := dial(t, newHome(t))
	day := func(n int) time.Time { return time.Unix(1_700_000_000+int64(n)*86400, 0) }
	var ids []string
	for n := range 3 {
		ids = append(ids, c.makeKey(attribute1(kmipwire.AttrActivationDate, day(n))))
	}
	date := func(n int) kmipwire.Attribute { return attribute1(kmipwire.AttrActivationDate, day(n)) }
	tests := map[string]struct {
		filter []kmipwire.Attribute
		want   []string
	}{
		"one":      {[]kmipwire.Attribute{date(1)}, ids[1:2]},
		"range":    {[]kmipwire.Attribute{date(0), date(1)}, ids[:2]},
		"reversed": {[]kmipwire.Attribute{date(5), date(1)}, ids[1:]},
		"none":     {[]kmipwire.Attribute{date(5), date(6)}, nil},
	}
	for what, test := range tests {
		if got := c.locate(test.filter...); !slices.Equal(got, test.want) {
			t.Errorf("%s: %v, want %v", what, got, test.want)
		}
	}
}
