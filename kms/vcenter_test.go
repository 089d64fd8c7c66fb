package kms

import (
	"net"
	"testing"

	"github.com/vmcrypt/vmcrypt/internal/kmipwire"
)

// newPlayer plays test cases over a connection of its own.
func newPlayer(t *testing.T, h Home) *player {
	t.Helper()
	return &player{client: dial(t, h), registered: map[string]bool{}, values: map[string]string{}}
}

// TestVCenter plays what VMware's vCenter sends to a key manager: probes, a key
// for a virtual machine, and the way back to it. It speaks KMIP 1.1 only.
func TestVCenter(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	address, _ := serve(t, h)
	for range 3 { // it looks whether somebody listens
		conn, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		conn.Close()
		dial(t, h).conn.Close()
	}
	first, second := newPlayer(t, h), newPlayer(t, h)
	for _, p := range []*player{first, second, first} {
		if err := p.play("testdata/vcenter.xml"); err != nil {
			t.Fatal(err)
		}
		p.values = map[string]string{}
	}
}

// TestVCenterProbes sends on two connections by turns, as vCenter does to see
// whether a key manager is well.
func TestVCenterProbes(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	serve(t, h)
	messages, err := readXML("testdata/vcenter.xml")
	if err != nil {
		t.Fatal(err)
	}
	players := []*player{newPlayer(t, h), newPlayer(t, h)}
	for i := 0; i < 6; i += 2 { // as far as the key is made
		for _, p := range players {
			if err := p.exchange(messages[i], messages[i+1]); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestLocateBatch plays a client that asks for everything in one message: what
// the server can do, which object has its custom attributes, the object, and
// its attributes, by the ID placeholder.
func TestLocateBatch(t *testing.T) {
	t.Parallel()
	for _, v := range kmipwire.Versions() {
		t.Run(v.String(), func(t *testing.T) {
			h := newHome(t)
			serve(t, h)
			p := newPlayer(t, h)
			p.values["$MINOR"] = v.String()[2:]
			if err := p.play("testdata/locate_batch.xml"); err != nil {
				t.Error(err)
			}
		})
	}
}
