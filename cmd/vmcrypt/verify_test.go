package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/gemalto/kmip-go/kmip14"

	"github.com/vmcrypt/vmcrypt/agent"
	"github.com/vmcrypt/vmcrypt/internal/kmipwire"
	"github.com/vmcrypt/vmcrypt/kek"
)

// copied is a key manager with what another one holds now.
func (h *home) copied() *home {
	h.t.Helper()
	out := &home{h.t, filepath.Join(h.t.TempDir(), "copy")}
	if text, err := exec.CommandContext(h.t.Context(), "cp", "-a", h.dir, out.dir).CombinedOutput(); err != nil {
		h.t.Fatalf("%v: %s", err, text)
	}
	return out
}

const forgedKey = "FORGEDFORGEDFORGEDFORGEDFORGED!!"

// forger runs a key manager that gives its own bytes for every key, and looks like h's.
func (h *home) forger() string {
	h.t.Helper()
	cert, err := tls.LoadX509KeyPair(filepath.Join(h.dir, "kms/server.pem"), filepath.Join(h.dir, "kms/server.key"))
	if err != nil {
		h.t.Fatal(err)
	}
	config := kmipwire.TLSConfig()
	config.Certificates, config.ClientAuth = []tls.Certificate{cert}, tls.RequireAnyClientCert
	l, err := new(net.ListenConfig).Listen(h.t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go forge(tls.Server(conn, config))
		}
	}()
	return l.Addr().String()
}

func forge(raw *tls.Conn) {
	ctx, conn := context.Background(), kmipwire.NewConn(raw, kmipwire.DefaultTimeouts)
	defer conn.Close()
	if conn.Handshake(ctx) != nil {
		return
	}
	for {
		msg, err := conn.Read(ctx)
		if err != nil {
			return
		}
		var req kmipwire.RequestMessage
		if kmipwire.Unmarshal(msg, &req) != nil {
			return
		}
		out, err := kmipwire.Marshal(kmipwire.ResponseMessage{
			ResponseHeader: kmipwire.ResponseHeader{ProtocolVersion: req.RequestHeader.ProtocolVersion, BatchCount: 1},
			BatchItem:      []kmipwire.ResponseBatchItem{{Operation: req.BatchItem[0].Operation, ResponsePayload: forged(req.BatchItem[0])}},
		})
		if err != nil || conn.Write(ctx, out) != nil {
			return
		}
	}
}

func forged(item kmipwire.RequestBatchItem) any {
	switch item.Operation {
	case kmip14.OperationGet:
		var req kmipwire.GetRequest
		_ = kmipwire.UnmarshalPayload(item.RequestPayload, &req) // then the ID is wrong, which is noticed
		return &kmipwire.GetResponse{
			ObjectType: kmip14.ObjectTypeSymmetricKey, UniqueIdentifier: req.UniqueIdentifier,
			SymmetricKey: &kmipwire.SymmetricKey{KeyBlock: kmipwire.KeyBlock{
				KeyFormatType: kmip14.KeyFormatTypeRaw, KeyValue: kmipwire.KeyValue{KeyMaterial: []byte(forgedKey)},
				CryptographicAlgorithm: kmip14.CryptographicAlgorithmAES, CryptographicLength: 256,
			}},
		}
	case kmip14.OperationGetAttributes:
		var req kmipwire.GetAttributesRequest
		_ = kmipwire.UnmarshalPayload(item.RequestPayload, &req)
		return &kmipwire.GetAttributesResponse{UniqueIdentifier: req.UniqueIdentifier, Attribute: []kmipwire.Attribute{
			{AttributeName: kmipwire.AttrState, AttributeValue: kmip14.StateActive},
		}}
	}
	return &kmipwire.DiscoverVersionsResponse{ProtocolVersion: kmipwire.Versions()}
}

// client makes this home one of a host without a key manager, whose alias "local" has
// these servers: addresses, or an address and " vm: …" after it.
func (h *home) client(keys *home, datastore string, servers ...string) *home {
	text := "defaultAlias: local\ndatastores: [" + datastore + "]\naliases:\n  local:\n    servers:\n"
	for _, s := range servers {
		address, vm, _ := strings.Cut(s, " ")
		text += "      - address: " + address + "\n"
		if vm != "" {
			text += "        " + vm + "\n"
		}
	}
	for key, file := range map[string]string{"clientCert": "client.pem", "clientKey": "client.key", "ca": "ca.pem"} {
		text += "    " + key + ": " + filepath.Join(keys.dir, file) + "\n"
	}
	if err := os.MkdirAll(h.dir, 0o700); err != nil {
		h.t.Fatal(err)
	}
	write(h.t, filepath.Join(h.dir, "config.yaml"), []byte(text))
	return h
}

// verified runs "vmcrypt verify", which must end with code, and returns what it says of
// the one recipient of each disk: the results, and whether the key unwraps.
func (h *home) verified(code int, targets ...string) (all []string) {
	h.t.Helper()
	r := h.run(append([]string{"verify", "--json"}, targets...)...)
	if r.code != code {
		h.t.Errorf("exit code %d, want %d: %s", r.code, code, r.stderr)
	}
	prose := h.run(append([]string{"verify"}, targets...)...)
	for _, text := range []string{r.stdout, r.stderr, prose.stdout, prose.stderr} {
		if strings.Contains(text, forgedKey[:6]) || strings.Contains(text, fmt.Sprintf("%x", forgedKey[:6])) {
			h.t.Errorf("a key is in %q", text)
		}
	}
	for _, d := range parseJSON[agent.Verification](h.t, r.stdout).Disks {
		text := d.Node
		for _, s := range d.Recipients[0].Servers {
			text += "," + string(s.Result)
			if (s.Detail == "") != (s.Result == kek.KeyOK) || s.Address == "" {
				h.t.Errorf("%+v", s)
			}
			if !strings.Contains(prose.stdout, s.Address+"  "+string(s.Result)) {
				h.t.Errorf("people are not told of %+v", s)
			}
		}
		all = append(all, fmt.Sprint(text, ",", d.Recipients[0].Unwraps))
	}
	return all
}

// replicated is two disks, and key managers that have the key of the second in one way
// each. The first disk's key all of them have.
type replicated struct {
	right, lacks, inactive, forger, gone string // addresses

	home          *home // the right key manager's
	datastore     string
	first, second string
}

func newReplicated(t *testing.T) *replicated {
	r := &replicated{home: newHome(t), datastore: t.TempDir(), gone: "127.0.0.1:1"}
	r.first, r.second = filepath.Join(r.datastore, "first.img"), filepath.Join(r.datastore, "second.img")
	for _, path := range []string{r.first, r.second} {
		smallImage(t, path)
	}
	r.home.ok("encrypt", r.first)
	lacks := r.home.copied()
	r.home.ok("encrypt", r.second)
	inactive := r.home.copied()
	inactive.ok("kms", "revoke-key", r.key(r.second))
	r.right, r.lacks, r.inactive = r.home.serveKMS(), lacks.serveKMS(), inactive.serveKMS()
	r.forger = r.home.forger()
	return r
}

// key is the ID of a disk's KEK.
func (r *replicated) key(path string) string {
	r.home.t.Helper()
	return parseJSON[agent.Status](r.home.t, r.home.ok("status", "--json", path)).Disks[0].Recipients[0].KEKID
}

// byName is another address of a server, which thus stands for a replica of it.
func byName(address string) string { return strings.Replace(address, "127.0.0.1", "localhost", 1) }

func TestVerify(t *testing.T) {
	t.Parallel()
	r := newReplicated(t)
	for name, test := range map[string]struct {
		servers []string
		code    int
		want    []string
	}{
		"all are well": {[]string{r.right, byName(r.right)}, exitDone, []string{"scsi0:0,ok,ok,true", "scsi0:0,ok,ok,true"}},
		"all are ill": {[]string{r.right, r.lacks, r.inactive, r.forger, r.gone}, exitKey, []string{
			"scsi0:0,ok,ok,ok,different,unreachable,true", "scsi0:0,ok,missing,inactive,different,unreachable,true",
		}},
		"one has it":      {[]string{r.lacks, r.gone, r.inactive}, exitKey, []string{"scsi0:0,ok,unreachable,ok,true", "scsi0:0,missing,unreachable,inactive,true"}},
		"none has it":     {[]string{r.forger, r.lacks}, exitKey, []string{"scsi0:0,different,ok,true", "scsi0:0,different,missing,false"}},
		"one is gone":     {[]string{r.gone, r.right}, exitNoKeyManager, []string{"scsi0:0,unreachable,ok,true", "scsi0:0,unreachable,ok,true"}},
		"nobody is there": {[]string{r.gone}, exitNoKeyManager, []string{"scsi0:0,unreachable,false", "scsi0:0,unreachable,false"}},
	} {
		t.Run(name, func(t *testing.T) {
			h := emptyHome(t).client(r.home, r.datastore, test.servers...)
			if got := h.verified(test.code, r.first, r.second); !slices.Equal(got, test.want) {
				t.Errorf("%q, want %q", got, test.want)
			}
		})
	}
	h := emptyHome(t).client(r.home, r.datastore, r.right)
	plain := filepath.Join(t.TempDir(), "plain.img")
	smallImage(t, plain)
	h.fails(exitTampered, []string{"missing"}, "verify", plain) // as far as can be told
	h.fails(exitUsage, nil, "verify")
	h.fails(exitUsage, []string{"scsi0:1"}, "verify", r.first, "--disk", "scsi0:1")
	r.verifyForeign(h)
	r.verifyTampered(h)
}

// verifyForeign: an alias that this host does not know can't be verified.
func (r *replicated) verifyForeign(h *home) {
	t, path := h.t, r.second+".vmx"
	good := read(t, path)
	defer write(t, path, good)
	write(t, path, []byte(strings.Replace(string(good), `"local"`, `"escrow"`, 1)))
	if got := h.verified(exitKey, r.second); !slices.Equal(got, []string{"scsi0:0,false"}) {
		t.Errorf("%q", got)
	}
}

// verifyTampered: the key managers are not to blame for what was done to a descriptor.
func (r *replicated) verifyTampered(h *home) {
	t, path := h.t, r.second+".vmx"
	good := read(t, path)
	defer write(t, path, good)
	write(t, path, []byte(strings.Replace(string(good), `sectorSize = "512"`, `sectorSize = "4096"`, 1)))
	if got := h.verified(exitTampered, r.second); !slices.Equal(got, []string{"scsi0:0,ok,false"}) {
		t.Errorf("%q", got)
	}
}

// TestVerifyRekeying: a disk amid a rekey has two data keys, and needs both.
func TestVerifyRekeying(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	path := filepath.Join(t.TempDir(), "disk.img")
	holedImage(t, path, 2<<20)
	h.ok("encrypt", path)
	h.interrupted(agent.StateRekeying, "rekey", path, "--deep")
	v := parseJSON[agent.Verification](t, h.ok("verify", path, "--json"))
	if rs := v.Disks[0].Recipients; len(rs) != 2 || rs[0].Previous || !rs[1].Previous || !rs[0].Unwraps || !rs[1].Unwraps {
		t.Errorf("%+v", v)
	}
	previous := v.Disks[0].Recipients[1].KEKID
	h.ok("kms", "revoke-key", previous)
	h.fails(exitFailure, []string{previous, "no datastores", "--unchecked"}, "kms", "destroy-key", previous, "--yes")
	h.fails(exitUsage, []string{"--yes"}, "kms", "destroy-key", previous, "--unchecked")
	h.ok("kms", "destroy-key", previous, "--yes", "--unchecked")
	h.fails(exitKey, []string{"1 of 1"}, "verify", path)
}

func TestPreflight(t *testing.T) {
	t.Parallel()
	r := newReplicated(t)
	for name, test := range map[string]struct {
		servers []string
		code    int
		want    string // of each VM
		word    string // in a problem or a warning
	}{
		"all are well":     {[]string{r.right}, exitDone, "true,true", ""},
		"a replica lags":   {[]string{r.right, r.lacks}, exitDone, "true,true", "missing"},
		"none has one key": {[]string{r.gone, r.lacks}, exitKey, "true,false", "missing"},
		"nobody is there":  {[]string{r.gone}, exitNoKeyManager, "false,false", "unreachable"},
		"in a VM":          {[]string{r.right + " vm: " + r.first + ".vmx"}, exitNoKeyManager, "false,false", "would be locked"},
		"in a VM of many":  {[]string{r.lacks, r.right + " vm: " + r.first + ".vmx"}, exitDone, "true,true", ""},
		"in a plain VM":    {[]string{r.right + " vm: " + filepath.Join(r.datastore, "plain.vmx")}, exitDone, "true,true", ""},
	} {
		t.Run(name, func(t *testing.T) {
			h := emptyHome(t).client(r.home, r.datastore, test.servers...)
			out := h.run("preflight", "--json")
			p := parseJSON[agent.Preflight](t, out.stdout)
			var unlocks, texts []string
			for _, vm := range p.VMs {
				unlocks = append(unlocks, fmt.Sprint(vm.Unlocks))
				texts = append(texts, slices.Concat(vm.Problems, vm.Warnings)...)
			}
			if out.code != test.code || strings.Join(unlocks, ",") != test.want {
				t.Errorf("exit code %d, %+v, %s", out.code, p, out.stderr)
			}
			text := strings.Join(texts, "\n")
			if !strings.Contains(text, test.word) || (test.word == "") != (text == "") && test.code == exitDone && len(test.servers) == 1 {
				t.Errorf("want %q in %q", test.word, text)
			}
			if prose := h.run("preflight"); prose.code != test.code || !strings.Contains(prose.stdout, r.second+".vmx") {
				t.Errorf("exit code %d: %s", prose.code, prose.stdout)
			}
		})
	}
	r.preflightDisks()
}

// preflightDisks: keys are not all that it takes.
func (r *replicated) preflightDisks() {
	t := r.home.t
	h := emptyHome(t).client(r.home, r.datastore, r.right)
	if err := os.Truncate(r.first, 32<<10); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(r.second); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(r.datastore, "third.vmx"), []byte("\n"))
	h.checkProblems(exitTampered, "32768 bytes", "no such file", "names no disk")

	lacks := emptyHome(t).client(r.home, r.datastore, r.lacks)
	outside := strings.Replace(string(read(t, r.first+".vmx")), `fileName = "first.img"`, `fileName = "/elsewhere/first.img"`, 1)
	write(t, filepath.Join(r.datastore, "third.vmx"), []byte(outside))
	lacks.checkProblems(exitTampered, "32768 bytes", "not to be had", "not in a datastore") // the gravest

	missing := filepath.Join(r.datastore, "missing")
	h.client(r.home, missing, r.right)
	h.fails(exitFailure, []string{missing}, "preflight")
}

func (h *home) checkProblems(code int, words ...string) {
	t := h.t
	out := h.run("preflight", "--json")
	p := parseJSON[agent.Preflight](t, out.stdout)
	if out.code != code || len(p.VMs) != len(words) {
		t.Fatalf("exit code %d: %s%s", out.code, out.stdout, out.stderr)
	}
	for i, word := range words {
		if text := strings.Join(p.VMs[i].Problems, "\n"); p.VMs[i].Unlocks || !strings.Contains(text, word) {
			t.Errorf("%s: want %q in %q", p.VMs[i].Descriptor, word, text)
		}
	}
}

// TestKeyManagerInItsOwnVM: what runs a key manager is not encrypted under its keys alone,
// and who has done so elsewhere is told.
func TestKeyManagerInItsOwnVM(t *testing.T) {
	t.Parallel()
	keys, datastore := newHome(t), t.TempDir()
	address := keys.serveKMS()
	path := filepath.Join(datastore, "kms.img")
	smallImage(t, path)
	vm := address + " vm: " + path + ".vmx"
	before := sum(t, path)

	h := emptyHome(t).client(keys, datastore, vm)
	unchanged(t, datastore, func() {
		h.fails(exitFailure, []string{path, "local", "--kms"}, "encrypt", path, "--output", path+".enc")
	})
	h.fails(exitFailure, []string{path, "local", "--kms"}, "encrypt", path)
	if sum(t, path) != before {
		t.Fatal("it was encrypted all the same")
	}
	h.ok("kms", "status")

	h.client(keys, datastore, vm, byName(address)) // there is another
	h.ok("encrypt", path)
	h.client(keys, datastore, vm) // no more
	h.fails(exitFailure, []string{"local"}, "rekey", "--deep", path)
	status := parseJSON[kmsReport](t, h.ok("kms", "status", "--json"))
	if len(status.Warnings) != 1 || !strings.Contains(status.Warnings[0], path) {
		t.Errorf("%+v", status)
	}
	p := parseJSON[agent.Preflight](t, h.run("preflight", "--json").stdout)
	if len(p.Circles) != 1 || len(p.VMs) != 1 || p.VMs[0].Unlocks {
		t.Errorf("%+v", p)
	}
}

func TestKMSStatusTriesKeys(t *testing.T) {
	t.Parallel()
	r := newReplicated(t)
	h := emptyHome(t).client(r.home, r.datastore, r.right, r.forger, r.gone, r.lacks)
	a := h.kmsStatus().Aliases[0]
	var got []kek.KeyResult
	for _, s := range a.Servers {
		got = append(got, s.Canary)
	}
	if want := []kek.KeyResult{"ok", "different", "unreachable", "missing"}; a.Canary != r.key(r.second) || !slices.Equal(got, want) {
		t.Errorf("%q: %v, want %v", a.Canary, got, want)
	}
	for _, word := range []string{"gives keys", "but key " + a.Canary + " is different", "is missing"} {
		if text := h.ok("kms", "status"); !strings.Contains(text, word) {
			t.Errorf("nothing of %q in %q", word, text)
		}
	}
}

func TestKeysOfTheKeyManager(t *testing.T) {
	t.Parallel()
	h, datastore := newHome(t), t.TempDir()
	config := filepath.Join(h.dir, "config.yaml")
	write(t, config, append([]byte("datastores: ["+datastore+"]\n"), read(t, config)...))
	path := filepath.Join(datastore, "disk.img")
	smallImage(t, path)
	id := parseJSON[keyResult](t, h.ok("kms", "create-key", "--json")).ID
	orphan := parseJSON[keyResult](t, h.ok("kms", "create-key", "--json")).ID
	h.ok("encrypt", path, "--kek", id)

	list := parseJSON[keyList](t, h.ok("kms", "list-keys", "--json"))
	if len(list.Keys) != 2 || list.Keys[0].ID != id || list.Keys[0].Orphan || !slices.Equal(list.Keys[0].VMs, []string{path + ".vmx"}) ||
		list.Keys[1].ID != orphan || !list.Keys[1].Orphan || list.Keys[1].State != "active" || list.Keys[1].Created == nil {
		t.Errorf("%+v", list)
	}
	if text := h.ok("kms", "list-keys"); !strings.Contains(text, path+".vmx") || !strings.Contains(text, orphan) {
		t.Error(text)
	}

	h.fails(exitFailure, []string{"revoke-key"}, "kms", "destroy-key", orphan, "--yes")
	h.ok("kms", "revoke-key", orphan, "--compromised")
	h.fails(exitUsage, []string{"--yes"}, "kms", "destroy-key", orphan)
	h.ok("kms", "destroy-key", orphan, "--yes")
	h.fails(exitKey, nil, "kms", "revoke-key", "no-such-key")

	h.ok("kms", "revoke-key", id)
	other := filepath.Join(t.TempDir(), "other.img")
	smallImage(t, other)
	h.fails(exitKey, []string{"not active"}, "encrypt", other, "--kek", id)
	h.keepsNeeded(id, path)
	descriptor := read(t, path+".vmx")
	if r := h.run("decrypt", path); r.code != exitDone || !strings.Contains(r.stderr, id) || !strings.Contains(r.stderr, "deactivated") {
		t.Errorf("no warning of a key that is revoked: %+v", r)
	}
	h.keepsUnseen(id, datastore)
	h.keepsCopies(id, path, descriptor)
	h.ok("kms", "destroy-key", id, "--yes")
	if list := parseJSON[keyList](t, h.ok("kms", "list-keys", "--json")); len(list.Keys) != 0 {
		t.Errorf("%+v", list)
	}
}

// keepsNeeded: a key is not destroyed that a VM needs, or may need, by whatever name.
func (h *home) keepsNeeded(id, path string) {
	t, descriptor := h.t, path+".vmx"
	good := string(read(t, descriptor))
	for _, text := range []string{
		good,
		strings.Replace(good, `"local"`, `"as it was called before"`, 1),
		strings.Replace(good, `scsi0:0.present = "TRUE"`, `scsi0:0.present = "FALSE"`, 1),
		"\n",
	} {
		write(t, descriptor, []byte(text))
		h.fails(exitFailure, []string{descriptor}, "kms", "destroy-key", id, "--yes")
	}
	write(t, descriptor, []byte(good))
	h.fails(exitFailure, []string{"is that of", descriptor}, "kms", "destroy-key", id, "--yes", "--unchecked")
	if r := h.run("verify", path); r.code != exitKey || !strings.Contains(r.stdout, "inactive") || !strings.Contains(r.stdout, ": unwraps its key") {
		t.Errorf("exit code %d: %s", r.code, r.stdout)
	}
}

// keepsUnseen: nor is one where there may be VMs that are not looked at. That others tell,
// too.
func (h *home) keepsUnseen(id, datastore string) {
	deep := filepath.Join(datastore, strings.Repeat("x/", 17))
	if err := os.MkdirAll(deep, 0o700); err != nil {
		h.t.Fatal(err)
	}
	h.fails(exitFailure, []string{deep, "--unchecked"}, "kms", "destroy-key", id, "--yes")
	if err := os.RemoveAll(filepath.Join(datastore, "x")); err != nil {
		h.t.Fatal(err)
	}
	t, elsewhere := h.t, h.t.TempDir()
	link := filepath.Join(datastore, "link")
	for _, target := range []string{elsewhere, filepath.Join(elsewhere, "gone")} {
		if err := os.Symlink(target, link); err != nil {
			t.Fatal(err)
		}
		h.fails(exitFailure, []string{"not all VMs were looked at", link + ": a symbolic link"}, "kms", "destroy-key", id, "--yes")
		if text := h.ok("kms", "list-keys"); !strings.Contains(text, "may need any of them: "+link) {
			t.Error(text)
		}
		if text := h.ok("preflight"); !strings.Contains(text, "warning: "+link) {
			t.Error(text)
		}
		if err := os.Remove(link); err != nil {
			t.Fatal(err)
		}
	}
}

// keepsCopies: nor is one that a descriptor needs that somebody keeps under another name.
// The VM's other files need none, whatever their names.
func (h *home) keepsCopies(id, path string, descriptor []byte) {
	for _, name := range []string{path + ".vmx.bak", path + ".VMX~", filepath.Join(filepath.Dir(path), ".vm.vmx.x.vmcrypt-tmp")} {
		write(h.t, name, descriptor)
		h.fails(exitFailure, []string{name}, "kms", "destroy-key", id, "--yes")
		write(h.t, name, bytes.Replace(descriptor, []byte("recipient0.kekID"), []byte("recipient0.keyID"), 1))
		h.fails(exitFailure, []string{"not all VMs were looked at", name}, "kms", "destroy-key", id, "--yes")
		if err := os.Remove(name); err != nil {
			h.t.Fatal(err)
		}
	}
	write(h.t, path+".vmxf", []byte("<?xml version=\"1.0\"?>\n<Foundry/>\n"))
	write(h.t, path+".vmx.gz", []byte("\x1f\x8b\x00"))
}
