package vmx

import (
	"errors"
	"slices"
	"strings"
	"testing"
)

func TestDisksOfSamples(t *testing.T) {
	want := map[string][]Disk{
		"esxi.vmx": {
			{"scsi0:0", "db01.vmdk"},
			{"scsi0:1", "/vmfs/volumes/5c0ffee0-8badf00d-0000-000c29000001/db01/db01_1.vmdk"},
			{"nvme0:1", "db01_2.vmdk"},
		},
		"workstation.vmx": {
			{"sata0:0", "Größe €.vmdk"},
			{"ide0:0", "data disk.vmdk"},
			{"ide1:0", "raw.img"},
		},
		"gbk.vmx": {{"scsi0:0", "系统盘.vmdk"}},
	}
	for name, data := range samples(t) {
		got, err := parse(t, string(data)).Disks()
		if err != nil || !slices.Equal(got, want[name]) {
			t.Errorf("%s: disks are %q, %v; want %q", name, got, err, want[name])
		}
	}
}

func TestIsDisk(t *testing.T) {
	const name = "scsi0:0.fileName = \"x.vmdk\"\n"
	tests := []struct {
		file string
		want bool
	}{
		{name, true},
		{name + `scsi0:0.present = "TRUE"`, true},
		{name + `scsi0:0.present = "True"`, true},
		{name + `scsi0:0.present = TRUE`, true},
		{name + `scsi0:0.present = "FALSE"`, false},
		{name + `SCSI0:0.Present = "false"`, false},
		{name + `scsi0:1.present = "FALSE"`, true},
		{name + `scsi0.present = "FALSE"`, true},
		{name + `scsi0:0.deviceType = ""`, true},
		{name + `scsi0:0.deviceType = "disk"`, true},
		{name + `scsi0:0.deviceType = "scsi-hardDisk"`, true},
		{name + `scsi0:0.deviceType = "ata-hardDisk"`, true},
		{name + `scsi0:0.deviceType = "rawDisk"`, true},
		{name + `scsi0:0.deviceType = "scsi-passthru-rdm"`, true},
		{name + `scsi0:0.deviceType = "scsi-passthru"`, false},
		{name + `scsi0:0.deviceType = "atapi-cdrom"`, false},
		{name + `scsi0:0.deviceType = "CDROM-image"`, false},
		{name + `scsi0:0.deviceType = "cdrom-raw"`, false},
		{`scsi0:0.fileName = "x.ISO"`, false},
		{"scsi0:0.fileName = \"x.iso\"\nscsi0:0.deviceType = \"disk\"", true},
		{`scsi0:0.fileName = ""`, false},
		{`scsi0:0.fileName = "auto detect"`, false},
		{`scsi0:0.fileName = "Auto Detect"`, false},
		{`scsi0:0.fileName = "emptyBackingString"`, false},
		{`scsi0:0.present = "TRUE"`, false},
		{`# scsi0:0.fileName = "x.vmdk"`, false},
		{`scsi0.fileName = "x.vmdk"`, false},
		{`scsi00:0.fileName = "x.vmdk"`, false},
		{`scsi0:00.fileName = "x.vmdk"`, false},
		{`scsi0:1234.fileName = "x.vmdk"`, false},
		{`floppy0.fileName = "x.img"`, false},
		{`sched.scsi0:0.fileName = "x.img"`, false},
		{`scsi0:0.fileName.x = "x.img"`, false},
		{`nvme10:255.fileName = "x.vmdk"`, true},
		{`sata0:29.fileName = "x.vmdk"`, true},
		{`ide1:1.filename = x.vmdk`, true},
	}
	for _, tt := range tests {
		got, err := parse(t, tt.file).Disks()
		if err != nil || (len(got) == 1) != tt.want {
			t.Errorf("%q: disks are %q, %v", tt.file, got, err)
		}
	}
}

func TestDisksDoubtful(t *testing.T) {
	const name = "# first\nscsi0:0.fileName = \"x.vmdk\"\n"
	tests := []struct {
		file, says string
		err        error
	}{
		{name + `scsi0:0.filename = "x.vmdk"`, "lines 2, 3", ErrSyntax},
		{name + "scsi0:0.present = \"TRUE\"\nSCSI0:0.present = \"TRUE\"", "lines 3, 4", ErrSyntax},
		{name + "scsi0:0.deviceType = \"disk\"\n\nscsi0:0.deviceType = \"disk\"", "lines 3, 5", ErrSyntax},
		{name + `scsi0:0.present = "1"`, "line 3", ErrSyntax},
		{name + `scsi0:0.present = ""`, "line 3", ErrSyntax},
		{name + `scsi0:0.present = "FAL`, "line 3", ErrSyntax},
		{name + `scsi0:0.deviceType`, "line 3", ErrSyntax},
		{`scsi0:0.fileName = "x.vm`, "line 1", ErrSyntax},
		{`scsi0:0.fileName = x y.vmdk`, "line 1", ErrSyntax},
		{".encoding = \"x-klingon\"\nscsi0:0.fileName = \"\xfc\"", "line 2", ErrSyntax},
		{".encoding = \"GBK\"\nscsi0:0.fileName = \"\xff\"", "line 2", ErrSyntax},
		{name + "sata0:3.vmcrypt.uuid = \"1\"", "line 3: sata0:3.vmcrypt.uuid", ErrRecord},
		{name + "sata0:3.vmcrypt.ma", "line 3: sata0:3.vmcrypt.ma", ErrRecord},
	}
	for _, tt := range tests {
		got, err := parse(t, tt.file).Disks()
		if !errors.Is(err, tt.err) || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%q: disks are %q, error %v; want %q", tt.file, got, err, tt.says)
		}
	}
}

func TestAbsentDisks(t *testing.T) {
	f := parse(t, `scsi0:0.fileName = "a.vmdk"
scsi0:1.fileName = "b.vmdk"
scsi0:1.present = "FALSE"
sata0:0.fileName = "cd.iso"
sata0:0.present = "FALSE"
`)
	got, err := f.Absent()
	if err != nil || !slices.Equal(got, []Disk{{"scsi0:1", "b.vmdk"}}) {
		t.Errorf("absent are %q, %v", got, err)
	}
}

// TestDiskWithRecordIsSeen: no key beside its record hides an encrypted disk.
func TestDiskWithRecordIsSeen(t *testing.T) {
	for _, hidden := range []string{`present = "FALSE"`, `deviceType = "cdrom-image"`} {
		f := parse(t, "scsi0:0.fileName = \"a.iso\"\nscsi0:0."+hidden+"\n")
		if err := f.SetRecord("scsi0:0", newRecord()); err != nil {
			t.Fatal(err)
		}
		got, err := f.Disks()
		if err != nil || !slices.Equal(got, []Disk{{"scsi0:0", "a.iso"}}) {
			t.Errorf("%s: disks are %q, %v", hidden, got, err)
		}
	}
}

func TestCompanions(t *testing.T) {
	f := parse(t, `nvram = "vm.nvram"
extendedConfigFile = "vm.vmxf"
displayName = "disk.img"
scsi0:0.fileName = "disk.img"
scsi0:1.fileName = "detached.img"
scsi0:1.present = "FALSE"
sata0:0.fileName = "cd.iso"
floppy0.fileName = "floppy.flp"
floppy0.present = "FALSE"
`)
	got, err := f.Companions()
	want := []string{"vm.nvram", "vm.vmxf", "cd.iso", "floppy.flp"}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("companions are %q, %v; want %q", got, err, want)
	}
}
