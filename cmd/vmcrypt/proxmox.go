package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/vmcrypt/vmcrypt/internal/libvirtxml"
)

func proxmoxHookCommand() *cli.Command {
	return command(cli.Command{
		Name:      "proxmox-hook",
		Usage:     "unlock a VM before Proxmox VE starts it, and lock it afterwards; a hookscript calls this",
		ArgsUsage: "VMID PHASE",
		Description: "The VM's notes name the descriptor in a line of its own, \"vmcrypt: /path/web01.vmx\". At pre-start the\n" +
			"disks are unlocked, and the VM starts only if that works; at post-stop they are locked.",
		Flags:  append(agentFlags(), &cli.StringFlag{Name: "conf", TakesFile: true, Usage: "the VM's configuration is in `FILE` (default: /etc/pve/qemu-server/VMID.conf)"}),
		Action: proxmoxHook,
	})
}

func proxmoxHook(c *cli.Context) error {
	args, err := nArgs(c, 2, 2)
	if err != nil {
		return err
	}
	id, err := strconv.ParseUint(args[0], 10, 32)
	if err != nil {
		return usageError{fmt.Errorf("%q is no VMID", args[0])}
	}
	conf := c.String("conf")
	if conf == "" {
		conf = fmt.Sprintf("/etc/pve/qemu-server/%d.conf", id)
	}
	owner := fmt.Sprintf("proxmox:%d", id)
	switch args[1] {
	case "pre-start":
		descriptor, args, err := readConf(conf)
		if err != nil {
			return fmt.Errorf("%w: %w", errStart, err)
		}
		return powerOn(c, descriptor, owner, args)
	case "post-stop":
		// The notes may have changed since it was started: then nobody else says that it
		// stays unlocked.
		descriptor, _, err := readConf(conf)
		if err != nil {
			reportUnlocked(c, fmt.Sprintf("what VM %d had unlocked", id), err)
			return nil
		}
		powerOff(c, descriptor, owner)
	}
	return nil
}

// errNotes is the error for notes from which no descriptor can be told.
var errNotes = errors.New("the VM's notes must have one line \"vmcrypt: /path/web01.vmx\"")

// maxConf bounds the configuration of a VM, in bytes; Proxmox VE has 1 MiB for a file.
const maxConf = 1 << 20

// readConf reads from a VM's configuration which descriptor its notes name, and what args
// it has for QEMU. The notes are the lines that begin with # before the first section:
// those are of snapshots, and of changes that are still to be made.
func readConf(conf string) (descriptor, args string, err error) {
	f, err := os.Open(conf)
	if err != nil {
		return "", "", err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxConf))
	if err != nil {
		return "", "", err
	}
	var found []string
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "[") {
			break
		}
		if strings.HasPrefix(line, "args:") {
			args = line
		}
		if note, ok := strings.CutPrefix(line, "#"); ok {
			if path, ok := strings.CutPrefix(strings.TrimSpace(decoded(note)), "vmcrypt:"); ok {
				found = append(found, strings.TrimSpace(path))
			}
		}
	}
	if len(found) != 1 {
		return "", "", fmt.Errorf("%w: %s has %d", errNotes, conf, len(found))
	}
	if err := checkDescriptor(found[0]); err != nil {
		return "", "", fmt.Errorf("%w: %w", errNotes, err)
	}
	return found[0], args, nil
}

// decoded is a line of notes as it was before Proxmox VE wrote it: that has a colon as
// %3A, and so all that is not ASCII.
func decoded(line string) string {
	return percentEscape.ReplaceAllStringFunc(line, func(escape string) string {
		b, _ := strconv.ParseUint(escape[1:], 16, 8) // the pattern fits
		return string([]byte{byte(b)})
	})
}

var percentEscape = regexp.MustCompile(`%[0-9A-Fa-f]{2}`)

func proxmoxArgsCommand() *cli.Command {
	return command(cli.Command{
		Name:        "proxmox-args",
		Usage:       "print the args line by which a VM of Proxmox VE uses its encrypted disks",
		ArgsUsage:   "TARGET",
		Description: "For /etc/pve/qemu-server/VMID.conf, or \"qm set VMID --args\" without the beginning.",
		Flags:       agentFlags(),
		Action:      proxmoxArgs,
	})
}

func proxmoxArgs(c *cli.Context) error {
	args, err := nArgs(c, 1, 1)
	if err != nil {
		return err
	}
	vm, err := servedVM(c, args[0])
	if err != nil {
		return err
	}
	line := "args:"
	for i, d := range vm.Disks {
		line += qemuArgs(d, firstBootIndex+i)
	}
	if c.Bool("json") {
		return writeJSON(c.App.Writer, map[string]string{"args": strings.TrimPrefix(line, "args: ")})
	}
	_, err = fmt.Fprintln(c.App.Writer, line)
	return err
}

// firstBootIndex has a VM boot from its encrypted disks first: Proxmox VE counts its own
// from 100.
const firstBootIndex = 10

// qemuArgs are those for a disk, each a word for Perl's Text::ParseWords, as for a shell.
func qemuArgs(d libvirtxml.Disk, bootIndex int) string {
	name := "vmcrypt-" + strings.ReplaceAll(d.Node, ":", "-")
	value := func(text string) string { return strings.ReplaceAll(text, ",", ",,") }
	blockdev := fmt.Sprintf("driver=nbd,node-name=%s,server.type=unix,server.path=%s,export=%s,discard=unmap,reconnect-delay=%d",
		name, value(d.Socket), value(d.Node), reconnectSeconds)
	device := fmt.Sprintf("virtio-blk-pci,id=%s-device,drive=%s,bootindex=%d", name, name, bootIndex)
	return fmt.Sprintf(" -blockdev %s -device %s", shellWord(blockdev), shellWord(device))
}
