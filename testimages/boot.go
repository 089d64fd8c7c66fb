package testimages

import "os"

// What the boot sector of the disk that [Boot] makes does.
const (
	// Banner is what it prints on the first serial port.
	Banner = "vmcrypt sample disk: boot sector runs\r\n"
	// Marker is what it then writes to the second sector of the disk.
	Marker = "vmcrypt sample disk was booted\r\n"
	// Written is what it prints at the end, before it turns the power off.
	Written = "marker written\r\n"
)

const writeFailed = "write failed\r\n"

// Where the texts lie in the boot sector, which the BIOS loads to 0x7c00.
const (
	bannerAt  = 0x80
	writtenAt = 0xc0
	failedAt  = 0xe0
	markerAt  = 0x100
)

// bootCode is the program, for 16-bit real mode.
var bootCode = []byte{
	0xfa,       // 00        cli
	0x31, 0xc0, //       01        xor   ax, ax
	0x8e, 0xd8, //       03        mov   ds, ax
	0x8e, 0xc0, //       05        mov   es, ax
	0x8e, 0xd0, //       07        mov   ss, ax
	0xbc, 0x00, 0x7c, // 09        mov   sp, 0x7c00
	0xfb,             // 0c        sti
	0xfc,             // 0d        cld
	0x52,             // 0e        push  dx            ; the BIOS gives the drive in dl
	0xb8, 0xe3, 0x00, // 0f        mov   ax, 0x00e3    ; serial port: 9600 baud, 8N1
	0x31, 0xd2, //       12        xor   dx, dx        ; the first one
	0xcd, 0x14, //       14        int   0x14
	0xbe, 0x80, 0x7c, // 16        mov   si, banner
	0xe8, 0x3c, 0x00, // 19        call  print
	0xbf, 0x00, 0x80, // 1c        mov   di, 0x8000    ; the sector to write
	0xb9, 0x00, 0x02, // 1f        mov   cx, 512
	0x31, 0xc0, //       22        xor   ax, ax
	0xf3, 0xaa, //       24        rep   stosb
	0xbf, 0x00, 0x80, // 26        mov   di, 0x8000
	0xbe, 0x00, 0x7d, // 29        mov   si, marker
	0xb9, 0x20, 0x00, // 2c        mov   cx, 32
	0xf3, 0xa4, //       2f        rep   movsb
	0x5a,             // 31        pop   dx
	0xb8, 0x01, 0x03, // 32        mov   ax, 0x0301    ; write one sector
	0xb9, 0x02, 0x00, // 35        mov   cx, 0x0002    ; cylinder 0, sector 2
	0xb6, 0x00, //       38        mov   dh, 0         ; head 0
	0xbb, 0x00, 0x80, // 3a        mov   bx, 0x8000
	0xcd, 0x13, //       3d        int   0x13
	0xbe, 0xc0, 0x7c, // 3f        mov   si, written
	0x73, 0x03, //       42        jnc   end
	0xbe, 0xe0, 0x7c, // 44        mov   si, failed
	0xe8, 0x0e, 0x00, // 47 end:   call  print
	0xb8, 0x07, 0x53, // 4a        mov   ax, 0x5307    ; APM: set power state
	0xbb, 0x01, 0x00, // 4d        mov   bx, 1         ; of all devices
	0xb9, 0x03, 0x00, // 50        mov   cx, 3         ; to off
	0xcd, 0x15, //       53        int   0x15
	0xf4,       //       55 halt:  hlt
	0xeb, 0xfd, //       56        jmp   halt
	0xac,       //       58 print: lodsb
	0x84, 0xc0, //       59        test  al, al
	0x74, 0x08, //       5b        jz    done
	0xb4, 0x01, //       5d        mov   ah, 1         ; send al
	0x31, 0xd2, //       5f        xor   dx, dx
	0xcd, 0x14, //       61        int   0x14
	0xeb, 0xf3, //       63        jmp   print
	0xc3, //             65 done:  ret
}

// Boot makes a disk of 1 MiB that a PC with BIOS boots: it prints [Banner] on
// the first serial port, writes [Marker] to the second sector, prints
// [Written], and turns the machine off.
func Boot(path string, seed int64) error {
	return create(path, 1*mib, func(f *os.File) error {
		if _, err := f.WriteAt(bootSector(), 0); err != nil {
			return err
		}
		_, err := f.WriteAt(content(seed, "boot", 64<<10), 64<<10)
		return err
	})
}

func bootSector() []byte {
	b := make([]byte, sector)
	copy(b, bootCode)
	copy(b[bannerAt:], Banner)
	copy(b[writtenAt:], Written)
	copy(b[failedAt:], writeFailed)
	copy(b[markerAt:], Marker)
	b[510], b[511] = 0x55, 0xaa
	return b
}
