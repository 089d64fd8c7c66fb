package testimages

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// vmx is the descriptor of the virtual machine, as VMware writes it: with its
// escapes, a CD drive beside the disks, and a disk that is not present.
const vmx = `.encoding = "UTF-8"
config.version = "8"
virtualHW.version = "19"
vmci0.present = "TRUE"
displayName = "web01 – Wörter |22quoted|22"
guestOS = "debian11-64"
nvram = "web01.nvram"
numvcpus = "2"
memSize = "2048"
firmware = "bios"
uuid.bios = "%[1]s"
uuid.location = "%[1]s"
floppy0.present = "FALSE"
scsi0.present = "TRUE"
scsi0.virtualDev = "pvscsi"
scsi0:0.present = "TRUE"
scsi0:0.fileName = "web01.vmdk"
scsi0:0.deviceType = "scsi-hardDisk"
scsi0:1.present = "TRUE"
scsi0:1.fileName = "web01_1.vmdk"
scsi0:1.mode = "independent-persistent"
scsi0:2.present = "FALSE"
scsi0:2.fileName = "web01_2.vmdk"
sata0.present = "TRUE"
sata0:0.present = "TRUE"
sata0:0.deviceType = "cdrom-raw"
sata0:0.fileName = "auto detect"
sata0:0.startConnected = "FALSE"
sata0:1.present = "TRUE"
sata0:1.fileName = "web01-data.img"
ethernet0.present = "TRUE"
ethernet0.virtualDev = "vmxnet3"
ethernet0.connectionType = "nat"
ethernet0.addressType = "generated"
ethernet0.generatedAddress = "00:0c:29:3e:53:70"
extendedConfigFile = "web01.vmxf"
annotation = "first line|0Asecond line"
`

// vmxf is what VMware keeps beside the descriptor.
const vmxf = `<?xml version="1.0"?>
<Foundry>
<VM>
<VMId type="string">52 4d 6f 1c 2b 9a 77 03-11 aa bb cc dd ee ff 00</VMId>
<ClientMetaData>
<clientMetaDataAttributes/>
<HistoryEventList/></ClientMetaData>
<vmxPathName type="string">web01.vmx</vmxPathName></VM></Foundry>
`

// workstationVMDK is a descriptor in the spelling of VMware Workstation.
const workstationVMDK = `# Disk DescriptorFile
version=1
encoding="UTF-8"
CID=%08x
parentCID=ffffffff
isNativeSnapshot="no"
createType="monolithicFlat"

# Extent description
RW %d FLAT "%s" 0

# The Disk Data Base 
#DDB

ddb.adapterType = "lsilogic"
ddb.geometry.cylinders = "%d"
ddb.geometry.heads = "64"
ddb.geometry.sectors = "32"
ddb.longContentID = "7c0bfeb5d8a31e1fd2f3a8b6fffffffe"
ddb.toolsVersion = "11360"
ddb.virtualHWVersion = "19"
`

// esxiVMDK is a descriptor in the spelling of ESXi.
const esxiVMDK = `# Disk DescriptorFile
version=1
encoding="UTF-8"
CID=%08x
parentCID=ffffffff
createType="vmfs"

# Extent description
RW %d VMFS "%s"

# The Disk Data Base 
#DDB

ddb.adapterType = "lsilogic"
ddb.geometry.cylinders = "%d"
ddb.geometry.heads = "64"
ddb.geometry.sectors = "32"
ddb.thinProvisioned = "1"
ddb.virtualHWVersion = "19"
`

// VM makes the virtual machine web01 in the folder dir, which must not exist:
// web01.vmx with the disks scsi0:0 (web01.vmdk, a flat VMDK as of VMware
// Workstation that holds what [MBR] makes), scsi0:1 (web01_1.vmdk, a flat VMDK
// as of ESXi that holds what [Thin] makes) and sata0:1 (web01-data.img, a raw
// image that holds what [Odd] makes), and the small files that VMware keeps
// beside them.
func VM(dir string, seed int64) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	texts := map[string]string{
		"web01.vmx":    fmt.Sprintf(vmx, vmwareUUID(seed)),
		"web01.vmxf":   vmxf,
		"web01.vmsd":   "",
		"web01.nvram":  string(content(seed, "nvram", 8684)),
		"web01.vmdk":   vmdk(workstationVMDK, "web01-flat.vmdk", 34*mib),
		"web01_1.vmdk": vmdk(esxiVMDK, "web01_1-flat.vmdk", thinSize),
	}
	for name, text := range texts {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return makeDisks(dir, seed)
}

func makeDisks(dir string, seed int64) error {
	if _, err := MBR(filepath.Join(dir, "web01-flat.vmdk"), seed+1); err != nil {
		return err
	}
	if err := Thin(filepath.Join(dir, "web01_1-flat.vmdk"), seed+1); err != nil {
		return err
	}
	return Odd(filepath.Join(dir, "web01-data.img"), seed+1)
}

func vmdk(text, extent string, size int64) string {
	const cylinder = 64 * 32 * sector
	return fmt.Sprintf(text, size/sector^0x5eed, size/sector, extent, size/cylinder)
}

// vmwareUUID is a UUID as VMware spells it: in pairs of digits and two halves.
func vmwareUUID(seed int64) string {
	b := content(seed, "uuid.bios", 16)
	pairs := strings.Fields(fmt.Sprintf("% x", b))
	return strings.Join(pairs[:8], " ") + "-" + strings.Join(pairs[8:], " ")
}
