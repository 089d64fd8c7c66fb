package image

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vmcrypt/vmcrypt/internal/testtool"
)

const qemuVMDK = `# Disk DescriptorFile
version=1
CID=e539795b
parentCID=ffffffff
createType="monolithicFlat"

# Extent description
RW 20480 FLAT "disk-flat.vmdk" 0

# The Disk Data Base
#DDB

ddb.virtualHWVersion = "4"
ddb.geometry.cylinders = "20"
ddb.geometry.heads = "16"
ddb.geometry.sectors = "63"
ddb.adapterType = "ide"
ddb.toolsVersion = "2147483647"
`

const esxiVMDK = `# Disk DescriptorFile
version=3
encoding="UTF-8"
CID=fffffffe
parentCID=ffffffff
isNativeSnapshot="no"
createType="vmfs"

# Extent description
RW 20480 VMFS "disk-flat.vmdk"

# Change Tracking File
changeTrackPath="disk-ctk.vmdk"

# The Disk Data Base 
#DDB

ddb.adapterType = "lsilogic"
ddb.thinProvisioned = "1"
ddb.uuid = "60 00 C2 9a 1d 4e 5d 4c-0c 1d 1b 1e 6a 0e 5c 7e"
`

// replaced gives variants of a descriptor.
func replaced(text string, oldNew ...string) string {
	return strings.NewReplacer(oldNew...).Replace(text)
}

func TestParseVMDK(t *testing.T) {
	for name, text := range map[string]string{
		"QEMU":                qemuVMDK,
		"ESXi":                esxiVMDK,
		"CRLF":                replaced(qemuVMDK, "\n", "\r\n"),
		"no final newline":    strings.TrimSuffix(qemuVMDK, "\n"),
		"spaces":              replaced(qemuVMDK, "=", " \t= ", "RW 20480 FLAT ", "  RW\t20480  FLAT   ", " 0\n", " 0 \n"),
		"quoted values":       replaced(qemuVMDK, "version=1", `version="1"`, "ffffffff", `"FFFFFFFF"`),
		"case of keys":        replaced(qemuVMDK, "createType", "CREATETYPE", "parentCID", "parentcid"),
		"VMFS with an offset": replaced(esxiVMDK, `flat.vmdk"`, `flat.vmdk" 0`),
		"one sector":          replaced(qemuVMDK, "20480", "1"),
		"padded by QEMU":      qemuVMDK + strings.Repeat("\x00", 512-len(qemuVMDK)),
		"shortened by QEMU":   qemuVMDK + "\x00" + qemuVMDK[len(qemuVMDK)-4:] + strings.Repeat("\x00", 507-len(qemuVMDK)),
		"version 4":           replaced(qemuVMDK, "version=1", "version=4"),
	} {
		v, err := ParseVMDK([]byte(text))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if v.ExtentName() != "disk-flat.vmdk" || v.Size()%512 != 0 || v.Size() < 512 {
			t.Errorf("%s: %q of %d bytes", name, v.ExtentName(), v.Size())
		}
	}
}

func TestParseVMDKRefuses(t *testing.T) {
	extent := `RW 20480 FLAT "disk-flat.vmdk" 0`
	for want, text := range map[string]string{
		"does not start with":         "version=1\n",
		"sparse VMDK":                 "KDMV\x01\x00\x00\x00",
		"qemu-img convert":            "COWD\x01\x00\x00\x00",
		"control character at byte":   replaced(qemuVMDK, "CID=e", "CID=\x00"),
		"longer than 65536":           qemuVMDK + strings.Repeat("#\n", 32<<10),
		`version ""`:                  replaced(qemuVMDK, "version=1", ""),
		`version "9"`:                 replaced(qemuVMDK, "version=1", "version=9"),
		"version is there twice":      replaced(qemuVMDK, "version=1", "version=1\nversion=2"),
		"createType is there twice":   replaced(qemuVMDK, "ddb.adapterType", "createType"),
		`createType "twoGbMaxExtent`:  replaced(qemuVMDK, "monolithicFlat", "twoGbMaxExtentFlat"),
		`createType "streamOptimized`: replaced(qemuVMDK, "monolithicFlat", "streamOptimized"),
		`createType "vmfsSparse`:      replaced(esxiVMDK, `"vmfs"`, `"vmfsSparse"`),
		`createType ""`:               replaced(qemuVMDK, `createType="monolithicFlat"`, ""),
		"snapshot":                    replaced(qemuVMDK, "ffffffff", "12345678"),
		"consolidate":                 replaced(qemuVMDK, "parentCID=ffffffff", "parentCID=ffffffff\nparentFileNameHint=\"base.vmdk\""),
		"parentCID is not":            replaced(qemuVMDK, "parentCID=ffffffff\n", ""),
		"character at byte 3":         qemuVMDK + "\x00" + qemuVMDK[len(qemuVMDK)-8:],
		"no extent":                   replaced(qemuVMDK, extent, ""),
		"several extents":             replaced(qemuVMDK, extent, extent+"\n"+extent),
		"line 8: only an extent":      replaced(qemuVMDK, "RW 20480", "RDONLY 20480"),
		"line 8: only":                replaced(qemuVMDK, "RW 20480", "NOACCESS 20480"),
		"only an extent like":         replaced(qemuVMDK, "20480", "-1"),
		"0 sectors":                   replaced(qemuVMDK, "20480", "0"),
		"36028797018963968 sectors":   replaced(qemuVMDK, "20480", "36028797018963968"),
		"99999999999999999999 sector": replaced(qemuVMDK, "20480", "99999999999999999999"),
		`not "128"`:                   replaced(qemuVMDK, `" 0`, `" 128`),
		`offset 0, not ""`:            replaced(qemuVMDK, `" 0`, `"`),
		"extent of type VMFS":         replaced(qemuVMDK, "FLAT", "VMFS"),
		"extent of type SPARSE":       replaced(qemuVMDK, "FLAT", "SPARSE"),
		`neither an extent nor`:       replaced(qemuVMDK, "CID=e", "CID e"),
		`line 3: neither`:             replaced(qemuVMDK, "CID=e539795b", `CID="e539795b`),
		`"/etc/shadow" is no plain`:   replaced(qemuVMDK, "disk-flat.vmdk", "/etc/shadow"),
		`"../x" is no plain`:          replaced(qemuVMDK, "disk-flat.vmdk", "../x"),
		`".." is no plain`:            replaced(qemuVMDK, "disk-flat.vmdk", ".."),
		`"" is no plain`:              replaced(qemuVMDK, "disk-flat.vmdk", ""),
		`lll" is no plain`:            replaced(qemuVMDK, "disk-flat.vmdk", strings.Repeat("l", 256)),
		`encoding "GBK"`:              replaced(esxiVMDK, "UTF-8", "GBK", "disk-flat", "d\xecsk"),
		"control character at byte 1": replaced(qemuVMDK, "disk-flat.vmdk", "disk\u0085flat"),
		`is not in encoding`:          replaced(esxiVMDK, "UTF-8", "windows-1252", "disk-flat", "a\x81b"),
	} {
		v, err := ParseVMDK([]byte(text))
		if v != nil || !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

func TestVMDKEncoding(t *testing.T) {
	latin := replaced(esxiVMDK, "UTF-8", "windows-1252", "disk-flat", "Kl\xf6ster \x80")
	v, err := ParseVMDK([]byte(latin))
	if err != nil {
		t.Fatal(err)
	}
	if v.ExtentName() != "Klöster €.vmdk" {
		t.Errorf("got %q", v.ExtentName())
	}
	if text, err := v.Rename("Grüße.vmdk"); err != nil || !bytes.Contains(text, []byte("\"Gr\xfc\xdfe.vmdk\"")) {
		t.Errorf("%q, %v", text, err)
	}
	if _, err := v.Rename("日本.vmdk"); err == nil {
		t.Error("a name that windows-1252 does not have")
	}
	utf8 := replaced(esxiVMDK, "disk-flat", "日本 Grüße")
	if v, err := ParseVMDK([]byte(utf8)); err != nil || v.ExtentName() != "日本 Grüße.vmdk" {
		t.Errorf("%v, %v", v, err)
	}
}

func TestVMDKRename(t *testing.T) {
	for _, text := range []string{qemuVMDK, qemuVMDK + "\x00\x00", esxiVMDK, replaced(qemuVMDK, "\n", "\r\n"), strings.TrimSpace(esxiVMDK)} {
		v, err := ParseVMDK([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"a", "disk-flat.vmdk", "new name.vmdk", strings.Repeat("x", 255)} {
			got, err := v.Rename(name)
			if err != nil || string(got) != replaced(text, "disk-flat.vmdk", name) {
				t.Errorf("Rename(%q) = %q, %v", name, got, err)
			}
		}
		for _, name := range []string{"", ".", "..", "a/b", `a"b`, "a\nb", "a\x00", strings.Repeat("x", 256)} {
			if got, err := v.Rename(name); err == nil {
				t.Errorf("Rename(%q) = %q", name, got)
			}
		}
	}
}

// writeVMDK makes a disk of 10 MiB less short bytes by its descriptor.
func writeVMDK(t *testing.T, text string, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.vmdk")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	extent := filepath.Join(filepath.Dir(path), "disk-flat.vmdk")
	if err := errors.Join(os.WriteFile(extent, []byte("data"), 0o600), os.Truncate(extent, size)); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestOpenVMDK(t *testing.T) {
	for _, size := range []int64{10 << 20, 11 << 20} { // exact, longer than declared
		disk := mustOpen(t, writeVMDK(t, esxiVMDK, size), VMDK, ReadWrite)
		if disk.Size() != 10<<20 || disk.Format() != VMDK || filepath.Base(disk.DataPath()) != "disk-flat.vmdk" {
			t.Errorf("%s of %d bytes in %s", disk.Format(), disk.Size(), disk.DataPath())
		}
		if got := mustRead(t, disk, 0, 4); string(got) != "data" {
			t.Errorf("got %q", got)
		}
		checkExtents(t, disk, 0, 10<<20)
		if _, err := disk.WriteAt([]byte{1}, 10<<20); err == nil {
			t.Error("a write beyond the declared size")
		}
	}
}

func TestOpenVMDKRefuses(t *testing.T) {
	short := writeVMDK(t, qemuVMDK, 10<<20-1)
	if _, err := Open(short, VMDK, ReadOnly); !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), "less than") {
		t.Errorf("short extent: %v", err)
	}
	itself := writeVMDK(t, replaced(qemuVMDK, "disk-flat.vmdk", "disk.vmdk", "20480", "1"), 0)
	if err := os.Truncate(itself, 512); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(itself, VMDK, ReadOnly); !errors.Is(err, ErrFormat) {
		t.Errorf("a disk in its own descriptor: %v", err)
	}
	missing := writeVMDK(t, replaced(qemuVMDK, "disk-flat", "other"), 10<<20)
	if _, err := Open(missing, VMDK, ReadOnly); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "extent of "+missing) {
		t.Errorf("missing extent: %v", err)
	}
	linked := writeVMDK(t, replaced(qemuVMDK, "disk-flat", "link"), 10<<20)
	if err := os.Symlink("/etc/passwd", filepath.Join(filepath.Dir(linked), "link.vmdk")); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(linked, VMDK, ReadOnly); err == nil || !strings.Contains(err.Error(), "symbolic link") {
		t.Errorf("extent elsewhere: %v", err)
	}
	// A guest writes a descriptor of its neighbour's disk into its own.
	extent := filepath.Join(filepath.Dir(short), "disk-flat.vmdk")
	if err := os.Truncate(extent, 10<<20); err != nil {
		t.Fatal(err)
	}
	guest := mustOpen(t, extent, Raw, ReadWrite)
	mustWrite(t, guest, []byte(qemuVMDK), 0)
	guest.Close()
	if _, err := Open(extent, VMDK, ReadOnly); !errors.Is(err, ErrFormat) {
		t.Errorf("flat extent as a descriptor: %v", err)
	}
}

func TestVMDKsOfQEMU(t *testing.T) {
	qemuImg := testtool.Need(t, "qemu-img")
	dir := t.TempDir()
	source := mustCreate(t, 7<<20+512)
	mustWrite(t, source, bytes.Repeat([]byte("vmcrypt "), 1000), 3<<20)
	source.Close()
	for subformat, supported := range map[string]bool{
		"monolithicFlat": true, "monolithicSparse": false, "streamOptimized": false,
		"twoGbMaxExtentFlat": false, "twoGbMaxExtentSparse": false,
	} {
		path := filepath.Join(dir, subformat+" ü.vmdk")
		out, err := exec.Command(qemuImg, "convert", "-O", "vmdk", "-o", "subformat="+subformat, source.DataPath(), path).CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		disk, err := Open(path, VMDK, ReadOnly)
		if !supported {
			if !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), "subformat=monolithicFlat") {
				t.Errorf("%s: %v", subformat, err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		defer disk.Close()
		want, err := os.ReadFile(source.DataPath())
		if err != nil || !bytes.Equal(mustRead(t, disk, 0, disk.Size()), want) {
			t.Errorf("%s differs from its source, %v", subformat, err)
		}
	}
}

func FuzzParseVMDK(f *testing.F) {
	for _, seed := range []string{
		qemuVMDK, esxiVMDK, replaced(qemuVMDK, "\n", "\r\n"), qemuVMDK + "\x00\x00", "KDMV", "COWD", vmdkHeading, "",
		replaced(esxiVMDK, "UTF-8", "windows-1252", "disk-flat", "d\xfcsk"),
		replaced(esxiVMDK, "UTF-8", "GBK"), replaced(qemuVMDK, "monolithicFlat", "fullDevice"),
		replaced(qemuVMDK, "ffffffff", "00000000"), replaced(qemuVMDK, "disk-flat.vmdk", "../../etc/shadow"),
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		v, err := ParseVMDK(text)
		if err != nil {
			if !errors.Is(err, ErrFormat) {
				t.Errorf("%v is no ErrFormat", err)
			}
			return
		}
		name := v.ExtentName()
		if name != filepath.Base(name) || name == ".." || name == "." || v.Size() < 512 {
			t.Errorf("%q of %d bytes", name, v.Size())
		}
		if same, err := v.Rename(name); err != nil || !bytes.Equal(same, text) {
			t.Errorf("renamed to the same name: %q, %v", same, err)
		}
		renamed, err := v.Rename("other-flat.vmdk")
		if err != nil {
			t.Fatal(err)
		}
		if again, err := ParseVMDK(renamed); err == nil {
			if again.ExtentName() != "other-flat.vmdk" || again.Size() != v.Size() {
				t.Errorf("after rename: %q of %d bytes", again.ExtentName(), again.Size())
			}
		} else if len(renamed) <= maxDescriptor {
			t.Error("after rename:", err)
		}
	})
}
