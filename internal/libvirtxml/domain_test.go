package libvirtxml

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the golden files anew")

// web01 is a VM with two disks.
func web01() VM {
	const sockets = "/run/vmcrypt/vms/0123456789abcdef/"
	return VM{Descriptor: "/vms/web01/web01.vmx", Disks: []Disk{
		{Node: "scsi0:0", Socket: sockets + "scsi0:0.sock", File: "/vms/web01/disk0.img", Format: "raw"},
		{Node: "scsi0:1", Socket: sockets + "scsi0:1.sock", File: "/dev/vg0/web01-data", Format: "raw", Block: true},
	}}
}

func read(t testing.TB, text string) *Domain {
	t.Helper()
	d, err := Read(strings.NewReader(text))
	if err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	return d
}

func file(t testing.TB, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// golden compares with a file that a person has looked through.
func golden(t *testing.T, name, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(filepath.Join("testdata", name), []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if want := file(t, name); got != want {
		t.Errorf("%s: got\n%s\nwant\n%s", name, got, want)
	}
}

// attached is a domain's XML with a VM's disks, which do not change any more.
func attached(t *testing.T, text string, vm VM, reconnect int) string {
	t.Helper()
	d := read(t, text)
	if err := d.Attach(vm, reconnect); err != nil {
		t.Fatal(err)
	}
	again := read(t, d.String())
	if err := again.Attach(vm, 0); err != nil {
		t.Fatal(err)
	}
	if again.String() != d.String() {
		t.Errorf("what is attached is changed once more, from\n%s\nto\n%s", d, again)
	}
	if got, err := again.Descriptor(); got != vm.Descriptor || err != nil {
		t.Errorf("the descriptor is %q, %v", got, err)
	}
	return d.String()
}

// TestAttach: only the disks and the metadata change.
func TestAttach(t *testing.T) {
	text := file(t, "virtinstall.xml")
	if got := read(t, text).String(); got != text {
		t.Fatalf("unchanged, it is\n%s", got)
	}
	served := attached(t, text, web01(), 0)
	golden(t, "attached.xml", served)
	d := read(t, served)
	if err := d.Detach(web01()); err != nil {
		t.Fatal(err)
	}
	golden(t, "detached.xml", d.String())
	if descriptor, err := d.Descriptor(); descriptor != "" || err != nil {
		t.Errorf("detached, the descriptor is %q, %v", descriptor, err)
	}
}

// TestAttachAgain: a VM that has moved is found again, and what connects again stays.
func TestAttachAgain(t *testing.T) {
	before := attached(t, file(t, "virtinstall.xml"), web01(), 300)
	if n := strings.Count(before, "<reconnect delay='300'/>"); n != 2 {
		t.Errorf("%d disks connect again", n)
	}
	moved := web01()
	moved.Descriptor = "/vms/b&w's/web01.vmx"
	for i := range moved.Disks {
		moved.Disks[i].Socket = strings.ReplaceAll(moved.Disks[i].Socket, "0123456789abcdef", "fedcba9876543210")
	}
	after := attached(t, before, moved, 0)
	want := strings.NewReplacer("0123456789abcdef", "fedcba9876543210", `"/vms/web01/web01.vmx"`, `"/vms/b&amp;w&#39;s/web01.vmx"`).Replace(before)
	if after != want {
		t.Errorf("got\n%s\nwant\n%s", after, want)
	}
}

// TestAttachNew: disks are added where a domain has none, however little it has.
func TestAttachNew(t *testing.T) {
	vm := web01()
	for text, devices := range map[string][2]string{
		"<domain/>":                          {"vda", "vdb"},
		"<domain></domain>":                  {"vda", "vdb"},
		"<domain><devices/></domain>":        {"vda", "vdb"},
		"<domain>\n<metadata/>\n</domain>\n": {"vda", "vdb"},
		"<domain><devices><disk device='cdrom'><target dev='vda'/></disk></devices></domain>": {"vdb", "vdc"},
	} {
		got := attached(t, text, vm, 0)
		for i, dev := range devices {
			if !strings.Contains(got, "protocol='nbd' name='"+vm.Disks[i].Node+"'") || strings.Count(got, "<target dev='"+dev+"'/>") != 1 {
				t.Errorf("no disk %s in\n%s", dev, got)
			}
		}
	}
	golden(t, "new.xml", attached(t, "<domain type='kvm'>\n  <name>a</name>\n  <devices>\n  </devices>\n</domain>\n", vm, 300))
}

// TestTargets: who names the domain's device gets it, whatever it has been.
func TestTargets(t *testing.T) {
	text := file(t, "virtinstall.xml")
	vm := web01()
	vm.Disks[0].File = "/vms/web01-encrypted/disk0.img"
	if err := read(t, text).Attach(vm, 0); !errors.Is(err, ErrWhich) || !strings.Contains(err.Error(), "sda: /vms/web01/disk0.img") {
		t.Errorf("a disk with another name: %v", err)
	}
	vm.Disks[0].Target = "sda"
	if got := attached(t, text, vm, 0); got != file(t, "attached.xml") {
		t.Errorf("by its device, the disk becomes\n%s", got)
	}
	vm.Disks[0].Target = "vdz"
	got := attached(t, text, vm, 0)
	if !strings.Contains(got, "<target dev='vdz'/>") || !strings.Contains(got, "'/vms/web01/disk0.img'") {
		t.Errorf("by a new device, the disk becomes\n%s", got)
	}
	vm.Disks[0].Target = "sdc"
	if err := read(t, text).Attach(vm, 0); !errors.Is(err, ErrWhich) {
		t.Errorf("a CD drive: %v", err)
	}
	vm.Disks[0].Target, vm.Disks[1].Target = "sda", "sda"
	if err := read(t, text).Attach(vm, 0); !errors.Is(err, ErrWhich) {
		t.Errorf("two disks at one device: %v", err)
	}
}

// TestAttachRefuses: what can't be told or can't be done changes nothing silently.
func TestAttachRefuses(t *testing.T) {
	disk := "<disk type='file'><source file='/vms/web01/disk0.img'/><target dev='vda'/></disk>"
	for text, want := range map[string]error{
		"<domain><devices>" + disk + disk + "</devices></domain>":                                                ErrWhich,
		"<domain><devices>" + strings.Replace(disk, "<target", "<transient/><target", 1) + "</devices></domain>": ErrTransient,
	} {
		if err := read(t, text).Attach(web01(), 0); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", text, err, want)
		}
	}
}

// TestSameFile: a disk is found by another name of its file.
func TestSameFile(t *testing.T) {
	dir := t.TempDir()
	vm := web01()
	vm.Disks = vm.Disks[:1]
	vm.Disks[0].File = filepath.Join(dir, "disk.img")
	if err := os.WriteFile(vm.Disks[0].File, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink("disk.img", link); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{link, dir + "/./disk.img"} {
		got := attached(t, "<domain><devices><disk type='file'><source file='"+path+"'/><target dev='hda'/></disk></devices></domain>", vm, 0)
		if strings.Count(got, "<disk ") != 1 || !strings.Contains(got, "protocol='nbd'") {
			t.Errorf("%s: %s", path, got)
		}
	}
}

// TestDescriptor: the metadata are as they should be, or the domain does not start.
func TestDescriptor(t *testing.T) {
	const ns = ` xmlns:v="urn:vmcrypt:libvirt:1"`
	for metadata, want := range map[string]string{
		``:                               "",
		`<v:vm descriptor="/a.vmx"/>`:    "", // of no namespace
		`<w xmlns="urn:other"><vm/></w>`: "",
		`<v:vm` + ns + ` descriptor="/a&amp;b.vmx"/>`:             "/a&b.vmx",
		`<vm xmlns="urn:vmcrypt:libvirt:1" descriptor='/a.vmx'/>`: "/a.vmx",
		`<w><v:vm` + ns + `/></w>`:                                "", // another's
		`<v:vm` + ns + `/>`:                                       "names no descriptor",
		`<v:vm` + ns + ` descriptor=""/>`:                         "names no descriptor",
		`<v:vm` + ns + ` descriptor="/a.vmx" path="/b"/>`:         `no attribute "path"`,
		`<v:vm` + ns + ` descriptor="/a.vmx"><v:vm/></v:vm>`:      "the element is",
		`<v:VM` + ns + ` descriptor="/a.vmx"/>`:                   "the element is",
		strings.Repeat(`<v:vm`+ns+` descriptor="/a.vmx"/>`, 2):    "there are 2 elements",
	} {
		got, err := read(t, "<domain><metadata>"+metadata+"</metadata></domain>").Descriptor()
		if err != nil {
			got = err.Error()
		}
		if errors.Is(err, ErrMetadata) == (err == nil) || !strings.Contains(got, want) || want == "" && got != "" {
			t.Errorf("%s: %q, %v, want %q", metadata, got, err, want)
		}
	}
}

func TestUUID(t *testing.T) {
	const id = "564d0ba1-0522-3344-5566-778899aabbcc"
	got, err := read(t, "<domain><uuid>\n "+strings.ToUpper(id)+"</uuid></domain>").UUID()
	if err != nil || got.String() != id {
		t.Errorf("%v, %v", got, err)
	}
	for _, text := range []string{"<domain/>", "<domain><uuid>web01</uuid></domain>"} {
		if _, err := read(t, text).UUID(); !errors.Is(err, ErrXML) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

// TestRead: what is no domain is refused in words, whatever its size.
func TestRead(t *testing.T) {
	for text, word := range map[string]string{
		"": "empty", "web01": "empty", "<domain>": "EOF", "<domain/><domain/>": "two documents",
		"<network/>": "network", "<domain a='1' a='2'/>": "twice", "<domain>&nbsp;</domain>": "entity",
		`<domain xmlns="urn:other"/>`: "domain", strings.Repeat("<a>", 1000): "in each other",
		"<domain>" + strings.Repeat("<a/>", maxElements): "100000 elements", strings.Repeat(" ", MaxSize) + "<domain/>": "16 MiB",
	} {
		if _, err := Read(strings.NewReader(text)); !errors.Is(err, ErrXML) || !strings.Contains(err.Error(), word) {
			t.Errorf("%.40q: %v, want a word of %q", text, err, word)
		}
	}
}

// TestFragments: what is to be pasted into a domain makes what Attach makes.
func TestFragments(t *testing.T) {
	text, err := Fragments(web01(), 300)
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "fragments.txt", text)
}

// FuzzAttach: whatever is read is kept, byte for byte; what is changed is a domain's XML
// again, and stays as it is from then on.
func FuzzAttach(f *testing.F) {
	for _, name := range []string{"virtinstall.xml", "attached.xml", "new.xml"} {
		f.Add(file(f, name), "sda")
	}
	f.Add("<domain><metadata><vm xmlns='urn:vmcrypt:libvirt:1'/></metadata><devices><disk><driver/></disk></devices></domain>", "")
	f.Fuzz(func(t *testing.T, text, target string) {
		d, err := Read(strings.NewReader(text))
		if err != nil {
			return
		}
		if d.String() != text {
			t.Fatalf("%q is written as %q", text, d)
		}
		vm := web01()
		vm.Disks[0].Target = target
		if d.Attach(vm, 0) != nil {
			return
		}
		again := read(t, d.String())
		if err := again.Attach(vm, 0); err != nil || again.String() != d.String() {
			t.Fatalf("%v: from %q to\n%s\nand then\n%s", err, text, d, again)
		}
		if again.Detach(vm) == nil {
			read(t, again.String())
		}
	})
}
