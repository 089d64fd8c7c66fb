package kms

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	gemaltottlv "github.com/gemalto/kmip-go/ttlv"
	ovh "github.com/ovh/kmip-go"
	"github.com/ovh/kmip-go/ttlv"

	"github.com/vmcrypt/vmcrypt/internal/kmipwire"
)

// oasisMessages are all messages of the OASIS test cases, in binary, what is
// left open in them filled in.
func oasisMessages(t testing.TB) [][]byte {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(oasisFolder(t), "v1.?", "*.xml"))
	if err != nil || len(paths) == 0 {
		t.Fatalf("%d files, %v", len(paths), err)
	}
	var all [][]byte
	for _, path := range paths {
		messages, err := readXML(path)
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		for _, m := range messages {
			m.numberNames()
			v, err := m.toTTLV("", fillIn)
			if err != nil {
				t.Fatalf("%s: %v", path, err)
			}
			all = append(all, ttlv.MarshalTTLV(v))
		}
	}
	return all
}

// fillIn gives a value for what a test case does not know beforehand.
func fillIn(placeholder string) (string, error) {
	if strings.HasPrefix(placeholder, "$NOW") {
		return placeholder, nil
	}
	if strings.HasPrefix(placeholder, "$UNIQUE_IDENTIFIER") {
		return fuzzID.String(), nil
	}
	return "deadbeefcafe", nil
}

// numbers are those of enumerations whose names ovh/kmip-go spells otherwise.
var numbers = map[string]string{
	"PolynomialSharingGF2_8": "3", // Split Key Method
	"SHA_256":                "6", // Hashing Algorithm, where it is for a mask generator
	"SHA_384":                "7",
	"SHA_512":                "8",
	"HASH":                   "2", // Derivation Method
}

func (i *xmlItem) numberNames() {
	numbered := i.name == "SplitKeyMethod" || i.name == "MaskGeneratorHashingAlgorithm" || i.name == "DerivationMethod"
	if n := numbers[i.value]; n != "" && numbered {
		i.value = n
	}
	for _, c := range i.items {
		c.numberNames()
	}
}

// decoders are the ways into the two libraries. Each panics on some input.
var decoders = map[string]func(msg []byte) error{
	"kmip-go": func(msg []byte) error {
		if isRequest(msg) {
			return new(gemaltottlv.Decoder).DecodeValue(&kmipwire.RequestMessage{}, msg)
		}
		return new(gemaltottlv.Decoder).DecodeValue(&kmipwire.ResponseMessage{}, msg)
	},
	"kmip-go, any": func(msg []byte) error {
		if err := gemaltottlv.TTLV(msg).Valid(); err != nil {
			return err
		}
		return gemaltottlv.Print(&bytes.Buffer{}, "", " ", msg)
	},
	"ovh": func(msg []byte) error {
		if isRequest(msg) {
			return ttlv.UnmarshalTTLV(msg, &ovh.RequestMessage{})
		}
		return ttlv.UnmarshalTTLV(msg, &ovh.ResponseMessage{})
	},
	"ovh, any": func(msg []byte) error { return ttlv.UnmarshalTTLV(msg, &ttlv.Value{}) },
}

func isRequest(msg []byte) bool { return len(msg) > 2 && msg[2] == 0x78 }

// panics tells what a decoder panicked with, nil if it didn't.
func panics(decode func([]byte) error, msg []byte) (reason any) {
	defer func() { reason = recover() }()
	_ = decode(msg)
	return nil
}

// TestValidatorAgrees: what OASIS sends is accepted by the validator and by both
// libraries, and means the same to them.
func TestValidatorAgrees(t *testing.T) {
	for i, msg := range oasisMessages(t) {
		if err := kmipwire.Validate(msg); err != nil {
			t.Errorf("message %d: %v", i, err)
		}
		for _, name := range []string{"kmip-go", "kmip-go, any", "ovh, any"} {
			if err := decoders[name](msg); err != nil {
				t.Errorf("message %d: %s: %v", i, name, err)
			}
		}
	}
}

// wanted is how many messages have to be found that make a library panic.
const wanted = 10_000

// TestValidatorProtects: no message that makes either library panic is accepted,
// and what is accepted is well-formed to both.
func TestValidatorProtects(t *testing.T) {
	all := oasisMessages(t)
	rng := rand.New(rand.NewPCG(3, 14))
	found, accepted, tries := 0, 0, 0
	for ; found < wanted; tries++ {
		msg := mutate(rng, all)
		ok := kmipwire.Validate(msg) == nil
		if name, reason := panicking(msg); reason != nil {
			found++
			if ok {
				t.Fatalf("accepted, but %s panics: %v\n%x", name, reason, msg)
			}
		} else if ok {
			accepted++
			for _, name := range []string{"kmip-go, any", "ovh, any"} {
				if err := decoders[name](msg); err != nil {
					t.Fatalf("accepted, but %s fails: %v\n%x", name, err, msg)
				}
			}
		}
	}
	t.Logf("%d of %d messages make a library panic; %d are accepted", found, tries, accepted)
}

// panicking names a decoder that panics, and why.
func panicking(msg []byte) (name string, reason any) {
	for name, d := range decoders {
		if reason := panics(d, msg); reason != nil {
			return name, reason
		}
	}
	return "", nil
}

// mutate damages a message in a few places: bytes, lengths, types, ends.
func mutate(rng *rand.Rand, all [][]byte) []byte {
	msg := slices.Clone(all[rng.IntN(len(all))])
	for range 1 + rng.IntN(3) {
		at := 8 * rng.IntN(len(msg)/8)
		switch rng.IntN(6) {
		case 0:
			msg[rng.IntN(len(msg))] ^= byte(1 + rng.IntN(255))
		case 1: // a length, small enough not to exhaust the memory
			binary.BigEndian.PutUint32(msg[at+4:], uint32(rng.IntN(2*len(msg))))
		case 2:
			msg[at+3] = byte(rng.IntN(14))
		case 3:
			msg = msg[:max(8, rng.IntN(len(msg)))]
			msg = append(msg, make([]byte, -len(msg)&7)...)
		case 4:
			other := all[rng.IntN(len(all))]
			from := 8 * rng.IntN(len(other)/8)
			copy(msg[at:], other[from:])
		case 5:
			binary.BigEndian.PutUint32(msg[at+4:], 0xfffffff0+uint32(rng.IntN(16)))
		}
	}
	return msg
}
