package diskserver

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/uuid"

	"github.com/vmcrypt/vmcrypt/dek"
)

// headerV1 is the header of a start message of the first release. Every release
// understands it.
const headerV1 = `{"version":1,"vm":{"name":"web01","uuid":"56 4d","descriptor":"/vm/web01.vmx"},` +
	`"directory":"/run/vmcrypt/web01","socketUser":{"uid":64055,"gid":107},"engine":"crypto-aes",` +
	`"disks":[{"node":"scsi0:0","readOnly":true,"format":"vmdk","path":"/vm/web01.vmdk","dataPath":"/vm/web01-flat.vmdk",` +
	`"record":{"state":"encrypted","uuid":"01020304-0506-0708-090a-0b0c0d0e0f10","size":1048576,` +
	`"cipher":"aes-256-xts-plain64","sectorSize":4096,"holes":"fill",` +
	`"mac":"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",` +
	`"recipients":[{"alias":"prod","kekID":"42","wrappedKey":"AQID"}]}}]}`

// message makes a start message.
func message(header string, keys ...byte) []byte {
	return append(append(binary.BigEndian.AppendUint32(nil, uint32(len(header))), header...), keys...)
}

var keyV1 = bytes.Repeat([]byte{1, 2, 3, 4}, dek.Size/4)

func TestStartVersion1(t *testing.T) {
	sent := message(headerV1, keyV1...)
	h, keys, err := receive(iotest.OneByteReader(bytes.NewReader(sent)))
	if err != nil {
		t.Fatal(err)
	}
	defer destroyAll(keys)
	mac := make([]byte, 32)
	for i := range mac {
		mac[i] = byte(i)
	}
	want := &header{
		Version: 1, VM: VM{"web01", "56 4d", "/vm/web01.vmx"}, Directory: "/run/vmcrypt/web01",
		SocketUser: User{64055, 107}, Engine: "crypto-aes",
		Disks: []Disk{{"scsi0:0", true, "vmdk", "/vm/web01.vmdk", "/vm/web01-flat.vmdk", Record{
			"encrypted", uuid.MustParse("01020304-0506-0708-090a-0b0c0d0e0f10"), 1 << 20, "aes-256-xts-plain64", 4096, "fill",
			mac, []Recipient{{"prod", "42", []byte{1, 2, 3}}},
		}}},
	}
	if !reflect.DeepEqual(h, want) || len(keys) != 1 || !bytes.Equal(keys[0].Bytes(), keyV1) {
		t.Errorf("received %+v, %d keys", h, len(keys))
	}
	if text, err := json.Marshal(h); err != nil || string(text) != headerV1 {
		t.Errorf("written as\n%s, %v, not\n%s", text, err, headerV1)
	}
}

func TestRecordOf(t *testing.T) {
	m := testMachine(t)
	r := m.Disks[0].Record
	if got := RecordOf(r.VMX()); !reflect.DeepEqual(got, r) {
		t.Errorf("%+v became %+v", r, got)
	}
}

func TestStartRefused(t *testing.T) {
	changed := func(old, now string) []byte {
		if !strings.Contains(headerV1, old) {
			t.Fatalf("the header has no %q", old)
		}
		return message(strings.Replace(headerV1, old, now, 1), keyV1...)
	}
	disk := headerV1[strings.Index(headerV1, `{"node"`) : len(headerV1)-2]
	for name, test := range map[string]struct {
		message []byte
		want    string
	}{
		"nothing":          {nil, "EOF"},
		"half a length":    {[]byte{0, 0}, "EOF"},
		"long header":      {[]byte{0, 16, 0, 1}, "more than"},
		"longest header":   {[]byte{0xff, 0xff, 0xff, 0xff}, "more than"},
		"half a header":    {message(headerV1)[:100], "EOF"},
		"no JSON":          {message("hello"), "invalid"},
		"no version":       {message("{}"), "version 0"},
		"later version":    {message(`{"version":2,"disks":7}`), "version 2; this release knows version 1"},
		"other types":      {message(`{"version":1,"disks":7}`), "cannot unmarshal"},
		"no key":           {message(headerV1), "EOF"},
		"half a key":       {message(headerV1, keyV1[:40]...), "EOF"},
		"more after it":    {message(headerV1, append(bytes.Clone(keyV1), 0)...), "does not end"},
		"directory":        {changed(`"/run/vmcrypt/web01"`, `"run"`), "absolute"},
		"parent directory": {changed(`/run/vmcrypt/web01`, `/run/../etc`), "shortest"},
		"long directory":   {changed(`/run/vmcrypt/web01`, "/"+strings.Repeat("d", 95)), "longer than the 107"},
		"no disks":         {message(headerV1[:strings.Index(headerV1, `"disks"`)] + `"disks":[]}`), "no disks"},
		"twice":            {changed(disk, disk+","+disk), "twice"},
		"engine":           {changed("crypto-aes", "enigma"), "enigma"},
		"user":             {changed(`"uid":64055`, `"uid":-1`), "cannot unmarshal"},
		"node":             {changed("scsi0:0", "usb0:0"), "no disk"},
		"node as a path":   {changed("scsi0:0", "../scsi0:0"), "no disk"},
		"node of lines":    {changed("scsi0:0", `scsi0:0.filename = \"x\"\nscsi0:0`), "no disk"},
		"node in capitals": {changed("scsi0:0", "SCSI0:0"), "lower case"},
		"state":            {changed(`"encrypted"`, `"rekeying"`), "not encrypted"},
		"cipher":           {changed("aes-256-xts-plain64", "rot13"), "cipher"},
		"sector size":      {changed("4096", "1024"), "sectorSize"},
		"size":             {changed("1048576", "1048577"), "size"},
		"negative size":    {changed("1048576", "-4096"), "size"},
		"large size":       {changed("1048576", "1152921504606846976"), "size"},
		"holes":            {changed(`"fill"`, `"dig"`), "holes"},
		"MAC":              {changed("AAEC", ""), "mac"},
		"recipients":       {changed(`{"alias":"prod","kekID":"42","wrappedKey":"AQID"}`, ""), "recipient"},
		"alias":            {changed("prod", `pr\nod`), "alias"},
	} {
		h, keys, err := receive(bytes.NewReader(test.message))
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v", name, err)
		}
		if h != nil || keys != nil {
			t.Errorf("%s: something was received", name)
		}
	}
}

// A field of a later release that needs no higher version changes nothing.
func TestStartOfALaterRelease(t *testing.T) {
	later := strings.Replace(headerV1, `"vm":{`, `"color":["blue"],"vm":{"annotation":"x",`, 1)
	h, keys, err := receive(bytes.NewReader(message(later, keyV1...)))
	destroyAll(keys)
	if err != nil || h.VM.Name != "web01" {
		t.Errorf("%+v, %v", h, err)
	}
}

// A message is received as it was sent, or not at all.
func FuzzStart(f *testing.F) {
	f.Add(message(headerV1, keyV1...))
	f.Add(message(headerV1, keyV1[:63]...))
	f.Add(message(`{"version":1,"directory":"/","disks":[{"node":"ide0:0"}]}`))
	f.Add([]byte{0, 16, 0, 0, '{'})
	f.Fuzz(func(t *testing.T, sent []byte) {
		h, keys, err := receive(bytes.NewReader(sent))
		defer destroyAll(keys)
		if err != nil {
			return
		}
		if len(h.Disks) == 0 || len(keys) != len(h.Disks) {
			t.Fatalf("%d keys for %d disks", len(keys), len(h.Disks))
		}
		for i, d := range h.Disks {
			if d.Node != strings.ToLower(d.Node) || strings.ContainsAny(d.socket(), "/\x00") {
				t.Errorf("a socket %q", d.socket())
			}
			end := len(sent) - (len(keys)-i)*dek.Size
			if !bytes.Equal(keys[i].Bytes(), sent[end:end+dek.Size]) {
				t.Errorf("another key of disk %d", i)
			}
		}
		text, err := json.Marshal(h)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := parseHeader(text); err != nil || !reflect.DeepEqual(again, h) {
			t.Errorf("%+v became %+v, %v", h, again, err)
		}
	})
}
