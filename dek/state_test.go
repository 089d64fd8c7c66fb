package dek

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"testing"

	"github.com/google/uuid"

	"github.com/vmcrypt/vmcrypt/internal/secret"
	"github.com/vmcrypt/vmcrypt/vmx"
)

var fixtureConversion = uuid.MustParse("7c8d9eaf-b0c1-4d2e-9f3a-4b5c6d7e8f90")

// stateFixture is a MAC of format version 1, computed like the wrapped key's
// fixture with another implementation. Never change one, add some for each new
// version.
type stateFixture struct {
	state, phase string
	keys         func(testing.TB) []*secret.Buffer
	mac          string
}

var stateFixtures = []stateFixture{
	{"encrypted", "", theKey, "6394ae3701a6e253cd97d86d8ccab558a6182b15e58bca3478b95b999290e262"},
	{"encrypting", "preparing", theKey, "fcc1d24ff851b0338b8c3c11fdbaac277a4090aa07d20dccab66569b78aacbed"},
	{"encrypting", "converting", theKey, "10289358b226f086bf63d4c687d59c03b3e91a49c48e64cb5b7600508de7d8ca"},
	{"decrypting", "converting", theKey, "5c7bf8e751a5643e7d4637292886b8b21baae8f73f46ab62651d024ccc16820d"},
	{"rekeying", "converting", bothKeys, "d67ae47a676326531549757d20da0ca09cd5798a6f42959519126d9a2fff87ed"},
	{"rekeying", "converted", bothKeys, "ee66cbe3ab08ade21dcd63e5d3ba606da9c72a59101871eef9d6708c16a2733a"},
	{"rekeying", "reverted", bothKeys, "293b691989039c69d38555a7e3235918abc3669e908a32769250c0b138a37a41"},
}

const (
	fixtureJournalKey         = "5134e64933879196e6991f2c4e0a8cce3b2fc3ffc2629f3946156bffae523824"
	fixtureRekeyingJournalKey = "9344d09d9383d2b328c812cf7fe83848a1bc50640f9785fdece6b3abdc7f9388"
	fixtureStateMessage       = "0000000101" +
		"000000100d1e2f3a4b5c4d6e8f708192a3b4c5d6" +
		"0000000872656b6579696e67" +
		"000000080000000280000000" +
		"000000107c8d9eafb0c14d2e9f3a4b5c6d7e8f90" +
		"0000000a636f6e76657274696e67"
)

func (f stateFixture) value() State {
	s := State{DiskUUID: fixtureUUID, State: f.state, Size: 10 << 30, Phase: f.phase}
	if f.phase != "" {
		s.Conversion = fixtureConversion
	}
	return s
}

func fixtureState() State { return stateFixtures[0].value() }

// rekeyingState is one that has all that a State can have.
func rekeyingState() State { return stateFixtures[4].value() }

func fixturePrevious(t testing.TB) *secret.Buffer { return counting(t, 0x80, 64) }

func theKey(t testing.TB) []*secret.Buffer { return []*secret.Buffer{fixtureDEK(t)} }
func bothKeys(t testing.TB) []*secret.Buffer {
	return []*secret.Buffer{fixturePrevious(t), fixtureDEK(t)}
}

// tampered wants a MAC to be found not to fit.
func tampered(t *testing.T, mac []byte, s State, keys []*secret.Buffer, what string) {
	t.Helper()
	if err := VerifyMAC(mac, s, keys...); !errors.Is(err, ErrTampered) {
		t.Errorf("%+v: %s: error is %v, want %v", s, what, err, ErrTampered)
	}
}

func TestStateFixturesOfVersion1(t *testing.T) {
	for _, f := range stateFixtures {
		if mac, err := MAC(f.value(), f.keys(t)...); err != nil || !bytes.Equal(mac, unhex(t, f.mac)) {
			t.Errorf("%s, %s: MAC is %x, error %v", f.state, f.phase, mac, err)
		}
		if err := VerifyMAC(unhex(t, f.mac), f.value(), f.keys(t)...); err != nil {
			t.Errorf("%s, %s: %v", f.state, f.phase, err)
		}
	}
	if got := rekeyingState().encode(); !bytes.Equal(got, unhex(t, fixtureStateMessage)) {
		t.Errorf("the MAC is made over %x", got)
	}
}

// TestRecordsOfVersion1 opens the keys of the descriptors that package vmx keeps,
// and wants their MACs to fit.
func TestRecordsOfVersion1(t *testing.T) {
	paths, err := filepath.Glob("../vmx/testdata/records/1-*.vmx")
	if err != nil || len(paths) != 4 {
		t.Fatalf("descriptors %v, error %v", paths, err)
	}
	for _, path := range paths {
		f, err := vmx.Read(path)
		if err != nil {
			t.Fatal(err)
		}
		r, err := f.Record("scsi0:0")
		if err != nil {
			t.Fatal(err)
		}
		keys := append(unwrapAll(t, r, r.Previous), unwrapAll(t, r, r.Recipients)...)
		s := State{DiskUUID: r.DiskUUID, State: r.State, Size: uint64(r.Size)}
		if c := r.Conversion; c != nil {
			s.Conversion, s.Phase = c.UUID, c.Phase
		}
		if err := VerifyMAC(r.MAC, s, keys...); err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func unwrapAll(t *testing.T, r *vmx.Record, recipients []vmx.Recipient) (keys []*secret.Buffer) {
	t.Helper()
	for _, rc := range recipients {
		b := Binding{r.DiskUUID, r.Cipher, uint32(r.SectorSize), r.Holes, rc.KEKID}
		key, err := Unwrap(rc.WrappedKey, fixtureKEK(t), b)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(key.Destroy)
		keys = append(keys, key)
	}
	return keys
}

func TestEveryFlippedBitOfTheMAC(t *testing.T) {
	for _, f := range stateFixtures {
		mac, keys := unhex(t, f.mac), f.keys(t)
		for bit := range 8 * len(mac) {
			changed := bytes.Clone(mac)
			changed[bit/8] ^= 1 << (bit % 8)
			tampered(t, changed, f.value(), keys, fmt.Sprintf("bit %d of the MAC flipped", bit))
		}
		for n := range mac {
			tampered(t, mac[:n], f.value(), keys, fmt.Sprintf("%d bytes of the MAC", n))
		}
		tampered(t, append(mac, 0), f.value(), keys, "a byte more")
	}
}

func TestEveryFlippedBitOfTheState(t *testing.T) {
	for _, f := range stateFixtures {
		mac, keys := unhex(t, f.mac), f.keys(t)
		for what, s := range neighbors(f.value()) {
			tampered(t, mac, s, keys, what)
		}
	}
}

// neighbors are the states that are one bit from s.
func neighbors(s State) map[string]State {
	all := make(map[string]State)
	for bit := range 64 {
		n := s
		n.Size ^= 1 << bit
		all[fmt.Sprintf("bit %d of the size flipped", bit)] = n
	}
	for bit := range 128 {
		n := s
		n.DiskUUID[bit/8] ^= 1 << (bit % 8)
		all[fmt.Sprintf("bit %d of the disk UUID flipped", bit)] = n
		n = s
		n.Conversion[bit/8] ^= 1 << (bit % 8)
		all[fmt.Sprintf("bit %d of the conversion UUID flipped", bit)] = n
	}
	for bit := range 8 * len(s.State) {
		n := s
		n.State = flipText(s.State, bit)
		all[fmt.Sprintf("bit %d of the state flipped", bit)] = n
	}
	for bit := range 8 * len(s.Phase) {
		n := s
		n.Phase = flipText(s.Phase, bit)
		all[fmt.Sprintf("bit %d of the phase flipped", bit)] = n
	}
	return all
}

func flipText(text string, bit int) string {
	p := []byte(text)
	p[bit/8] ^= 1 << (bit % 8)
	return string(p)
}

func TestEveryFlippedBitOfTheKeys(t *testing.T) {
	for _, f := range stateFixtures {
		keys := f.keys(t)
		for i, key := range keys {
			for bit := range 8 * Size {
				key.Bytes()[bit/8] ^= 1 << (bit % 8)
				tampered(t, unhex(t, f.mac), f.value(), keys, fmt.Sprintf("bit %d of key %d flipped", bit, i))
				key.Bytes()[bit/8] ^= 1 << (bit % 8)
			}
		}
	}
}

// TestNoOtherFixtureFits takes each MAC for each other state, phase and keys: a
// record can't be moved on, back, or to another kind of conversion.
func TestNoOtherFixtureFits(t *testing.T) {
	for i, f := range stateFixtures {
		for j, other := range stateFixtures {
			if i != j {
				tampered(t, unhex(t, f.mac), other.value(), other.keys(t), "the MAC of "+f.state+", "+f.phase)
			}
		}
	}
}

// TestSwappedKeysOfARekeying: who can write the descriptor can swap the wrapped
// keys, each of which opens in the other's place, or put one in both places, or
// leave one out. Sectors would be decrypted with the key that encrypted others.
func TestSwappedKeysOfARekeying(t *testing.T) {
	from, to := fixturePrevious(t), fixtureDEK(t)
	mac, err := MAC(rekeyingState(), from, to)
	if err != nil {
		t.Fatal(err)
	}
	for what, keys := range map[string][]*secret.Buffer{
		"swapped": {to, from}, "previous twice": {from, from}, "new one twice": {to, to},
		"previous alone": {from}, "new one alone": {to},
	} {
		tampered(t, mac, rekeyingState(), keys, what)
	}
	if err := VerifyMAC(mac, rekeyingState(), from, to); err != nil {
		t.Error(err)
	}
}

func TestTextCannotMoveBetweenFieldsOfTheState(t *testing.T) {
	for _, f := range stateFixtures[1:] {
		s := f.value()
		s.State, s.Phase = s.State+s.Phase[:1], s.Phase[1:]
		tampered(t, unhex(t, f.mac), s, f.keys(t), "text moved")
		s.State, s.Phase = f.phase, f.state
		tampered(t, unhex(t, f.mac), s, f.keys(t), "state and phase swapped")
	}
}

func TestJournalKey(t *testing.T) {
	for _, f := range []struct {
		keys []*secret.Buffer
		want string
	}{{theKey(t), fixtureJournalKey}, {bothKeys(t), fixtureRekeyingJournalKey}} {
		key := journalKeyOf(t, fixtureConversion, f.keys...)
		if !bytes.Equal(key.Bytes(), unhex(t, f.want)) {
			t.Errorf("key of the journal is %x, want %s", key.Bytes(), f.want)
		}
	}
}

// TestJournalKeysDiffer: a journal is of no use to another conversion of the
// same disk, nor with other keys.
func TestJournalKeysDiffer(t *testing.T) {
	from, to := fixturePrevious(t), fixtureDEK(t)
	key := journalKeyOf(t, fixtureConversion, from, to)
	for _, keys := range [][]*secret.Buffer{{to, from}, {from, from}, {from}, {to}} {
		if journalKeyOf(t, fixtureConversion, keys...).Equal(key) {
			t.Error("other keys give the same key for the journal")
		}
	}
	for bit := range 128 {
		other := fixtureConversion
		other[bit/8] ^= 1 << (bit % 8)
		if journalKeyOf(t, other, from, to).Equal(key) {
			t.Errorf("bit %d of the UUID flipped: the same key for the journal", bit)
		}
	}
}

func journalKeyOf(t *testing.T, conversion uuid.UUID, keys ...*secret.Buffer) *secret.Buffer {
	t.Helper()
	key, err := JournalKey(conversion, keys...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(key.Destroy)
	return key
}

// TestOtherKeysRefused: above all, no key at all must not make a MAC that
// everybody can.
func TestOtherKeysRefused(t *testing.T) {
	key, short := fixtureDEK(t), counting(t, 0, 32)
	for _, keys := range [][]*secret.Buffer{{}, {nil}, {short}, {key, nil}, {nil, key}, {key, short}, {short, short}, {key, key, key}} {
		if mac, err := MAC(rekeyingState(), keys...); err == nil {
			t.Errorf("%d keys authenticate: %x", len(keys), mac)
		}
		if err := VerifyMAC(nil, rekeyingState(), keys...); err == nil {
			t.Errorf("%d keys verify", len(keys))
		}
		if _, err := MAC(fixtureState(), keys...); err == nil {
			t.Errorf("%d keys authenticate an encrypted disk", len(keys))
		}
		if _, err := JournalKey(fixtureConversion, keys...); err == nil {
			t.Errorf("%d keys give one for the journal", len(keys))
		}
	}
	if _, err := MAC(fixtureState(), key, key); err == nil {
		t.Error("two keys authenticate a disk that is not converted")
	}
	s := fixtureState()
	s.Phase = "converting"
	if _, err := MAC(s, key); err == nil {
		t.Error("a phase without a conversion is authenticated")
	}
	if _, err := JournalKey(uuid.Nil, key); err == nil {
		t.Error("a journal of no conversion has a key")
	}
}

// FuzzVerifyMAC wants nothing but what was authenticated to be taken for it.
func FuzzVerifyMAC(f *testing.F) {
	for _, fixture := range stateFixtures {
		s := fixture.value()
		f.Add(unhex(f, fixture.mac), s.DiskUUID[:], s.State, s.Size, s.Conversion[:], s.Phase, fixture.state == "rekeying")
	}
	f.Add([]byte{}, []byte{}, "", uint64(0), []byte{}, "", false)
	one, two := theKey(f), bothKeys(f)
	f.Fuzz(func(t *testing.T, mac, disk []byte, state string, size uint64, conversion []byte, phase string, rekeying bool) {
		s := State{State: state, Size: size, Phase: phase}
		copy(s.DiskUUID[:], disk)
		copy(s.Conversion[:], conversion)
		keys := one
		if rekeying {
			keys = two
		}
		if err := VerifyMAC(mac, s, keys...); err != nil {
			return
		}
		for _, fixture := range stateFixtures {
			if fixture.value() == s && bytes.Equal(mac, unhex(t, fixture.mac)) {
				return
			}
		}
		t.Errorf("%x authenticates %+v", mac, s)
	})
}
