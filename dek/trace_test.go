package dek

import (
	"testing"

	"github.com/vmcrypt/vmcrypt/internal/secret"
	"github.com/vmcrypt/vmcrypt/internal/secret/secrettest"
)

// TestNoTraceOfKeys wraps, unwraps and authenticates, and then wants no copy of a
// key in memory but its buffer. Tink and HKDF copy what they get, so the KEK and
// the derived keys vanish in builds with GOEXPERIMENT=runtimesecret only.
func TestNoTraceOfKeys(t *testing.T) {
	key, kek := randomSecret(t, Size), randomSecret(t, kekSize)
	previous := randomSecret(t, Size)
	var left, right, wrapKey, macKey, pairKey, journal *secret.Buffer
	secret.Do(func() {
		useKeys(t, key, previous, kek)
		left, right = take(t, key.Bytes()[:32]), take(t, key.Bytes()[32:])
		wrapKey, macKey = takeDerived(t, kek, infoWrapKey), takeDerived(t, key, infoStateMAC)
		both := takeBoth(t, previous, key)
		defer both.Destroy()
		pairKey = takeDerived(t, both, infoConversionMAC)
		journal = takeDerived(t, both, infoJournal+string(fixtureConversion[:]))
	})
	key.Destroy() // its halves are what is searched for
	wantNoTrace(t, "first half of the data key", left)
	wantNoTrace(t, "second half of the data key", right)
	if !erases {
		t.Log("built without GOEXPERIMENT=runtimesecret: not looking for the KEK and derived keys")
		return
	}
	wantNoTrace(t, "KEK", kek)
	wantNoTrace(t, "AEAD key", wrapKey)
	wantNoTrace(t, "previous data key", previous)
	wantNoTrace(t, "MAC key", macKey)
	wantNoTrace(t, "MAC key of two data keys", pairKey)
	wantNoTrace(t, "key of the journal", journal)
}

func wantNoTrace(t *testing.T, what string, key *secret.Buffer) {
	t.Helper()
	if traces := secrettest.Remaining(t, key); len(traces) != 0 {
		t.Errorf("%s is left at %q", what, traces)
	}
}

func randomSecret(t *testing.T, n int) *secret.Buffer {
	t.Helper()
	b, err := secret.Random(n)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Destroy)
	return b
}

func take(t *testing.T, p []byte) *secret.Buffer {
	t.Helper()
	b, err := secret.New(len(p))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Destroy)
	copy(b.Bytes(), p)
	return b
}

func takeBoth(t *testing.T, from, to *secret.Buffer) *secret.Buffer {
	t.Helper()
	both, err := secret.New(2 * Size)
	if err != nil {
		t.Fatal(err)
	}
	copy(both.Bytes(), from.Bytes())
	copy(both.Bytes()[Size:], to.Bytes())
	return both
}

func takeDerived(t *testing.T, key *secret.Buffer, info string) *secret.Buffer {
	t.Helper()
	derived, err := derive(key, info)
	if err != nil {
		t.Fatal(err)
	}
	defer secret.Wipe(derived)
	return take(t, derived)
}

// useKeys does all that this package does with keys.
//
//go:noinline
func useKeys(t *testing.T, key, previous, kek *secret.Buffer) {
	wrapped, err := Wrap(key, kek, fixtureBinding())
	if err != nil {
		t.Fatal(err)
	}
	again, err := Unwrap(wrapped, kek, fixtureBinding())
	if err != nil {
		t.Fatal(err)
	}
	defer again.Destroy()
	useStateKeys(t, fixtureState(), again)
	useStateKeys(t, rekeyingState(), previous, again)
	journal, err := JournalKey(fixtureConversion, previous, again)
	if err != nil {
		t.Fatal(err)
	}
	defer journal.Destroy()
	if _, err := Unwrap(wrapped, kek, Binding{}); err == nil {
		t.Fatal("another binding unwraps")
	}
}

func useStateKeys(t *testing.T, s State, keys ...*secret.Buffer) {
	mac, err := MAC(s, keys...)
	if err != nil {
		t.Fatal(err)
	}
	if err := VerifyMAC(mac, s, keys...); err != nil {
		t.Fatal(err)
	}
}
