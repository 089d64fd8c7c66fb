package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/vmcrypt/vmcrypt/agent"
	"github.com/vmcrypt/vmcrypt/agent/daemon"
	"github.com/vmcrypt/vmcrypt/internal/libvirtxml"
)

func libvirtXMLCommand() *cli.Command {
	return command(cli.Command{
		Name:      "libvirt-xml",
		Usage:     "print what a libvirt domain needs to use a VM's encrypted disks",
		ArgsUsage: "TARGET",
		Description: "Without --domain, prints the element for the domain's metadata and its disks; with --disk, only these\n" +
			"disks, for \"virsh attach-device\". With --domain, prints the domain's XML with them in it; all else stays\n" +
			"as it was:\n" +
			"  virsh dumpxml --inactive --security-info web01 | vmcrypt libvirt-xml web01.vmx --domain - | virsh define /dev/stdin",
		Flags: append(agentFlags(),
			&cli.StringFlag{Name: "domain", TakesFile: true, Usage: "change the XML in `FILE` (-: standard input)"},
			&cli.StringSliceFlag{Name: "disk", Usage: "only the disk at `NODE`; can be repeated"},
			&cli.StringSliceFlag{Name: "target", Usage: "take or add the domain's disk with this device: `NODE=DEVICE`; can be repeated"},
			&cli.BoolFlag{Name: "remove", Usage: "lead the domain back to the files of disks that were decrypted"},
			&cli.StringFlag{Name: "libvirt", Usage: "write for this `VERSION` of libvirt (default: what \"virsh --version\" says)"},
		),
		Action: libvirtXML,
	})
}

func libvirtXML(c *cli.Context) error {
	args, err := nArgs(c, 1, 1)
	if err != nil {
		return err
	}
	vm, err := servedVM(c, args[0])
	if err != nil {
		return err
	}
	text, err := domainXML(c, vm)
	if err != nil {
		return err
	}
	if c.Bool("json") {
		return writeJSON(c.App.Writer, map[string]string{"xml": text})
	}
	_, err = io.WriteString(c.App.Writer, text)
	return err
}

func domainXML(c *cli.Context, vm libvirtxml.VM) (string, error) {
	if c.String("domain") == "" {
		if c.Bool("remove") {
			return "", usageError{errors.New("--remove is for a domain: name it with --domain")}
		}
		if len(c.StringSlice("disk")) > 0 { // for "virsh attach-device"
			return libvirtxml.DisksOf(vm, reconnectDelay(c))
		}
		return libvirtxml.Fragments(vm, reconnectDelay(c))
	}
	domain, err := readDomain(c.String("domain"))
	if err != nil {
		return "", err
	}
	if c.Bool("remove") {
		err = domain.Detach(vm)
	} else {
		err = domain.Attach(vm, reconnectDelay(c))
	}
	return domain.String(), err
}

func readDomain(file string) (*libvirtxml.Domain, error) {
	if file == "-" {
		return libvirtxml.Read(os.Stdin)
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return libvirtxml.Read(f)
}

// servedVM describes the VM of a target as a guest needs it: with its encrypted disks
// or, where a domain is to do without vmcrypt, with those that are plain again.
func servedVM(c *cli.Context, target string) (libvirtxml.VM, error) {
	t, err := openServed(target)
	if err != nil {
		return libvirtxml.VM{}, err
	}
	socket, err := clientSocket(c)
	if err != nil {
		return libvirtxml.VM{}, err
	}
	devices, err := targetDevices(c, t)
	if err != nil {
		return libvirtxml.VM{}, err
	}
	vm := libvirtxml.VM{Descriptor: t.Descriptor}
	for _, d := range t.Disks {
		if chosen(c, d.Node) && (d.Record != nil || c.Bool("remove")) {
			vm.Disks = append(vm.Disks, servedDisk(d, daemon.SocketPath(socket, t.Descriptor, d.Node), devices[d.Node]))
		}
		if chosen(c, d.Node) && d.Record != nil && c.Bool("remove") {
			return vm, fmt.Errorf("disk %s of %s is still encrypted: decrypt it first", d.Node, t.Path)
		}
	}
	if len(vm.Disks) == 0 {
		return vm, fmt.Errorf("%w: %s has no encrypted disk there", agent.ErrState, t.Path)
	}
	return vm, nil
}

// openServed opens a target whose descriptor the hooks take, too.
func openServed(target string) (*agent.Target, error) {
	path, err := filepath.Abs(target)
	if err != nil {
		return nil, err
	}
	t, err := agent.Open(path, "")
	if err != nil {
		return nil, err
	}
	return t, checkDescriptor(t.Descriptor)
}

// chosen tells whether a disk is one of those that the command line names, if any.
func chosen(c *cli.Context, node string) bool {
	nodes := c.StringSlice("disk")
	return len(nodes) == 0 || slices.Contains(nodes, node)
}

func servedDisk(d agent.Disk, socket, target string) libvirtxml.Disk {
	info, err := os.Stat(d.Path) // it may be somewhere else by now
	return libvirtxml.Disk{
		Node: d.Node, Socket: socket, File: d.Path, Format: string(d.Format), Target: target,
		Block: err == nil && info.Mode().Type() == os.ModeDevice,
	}
}

// targetDevices reads the flags that say which device of the domain a disk is.
func targetDevices(c *cli.Context, t *agent.Target) (map[string]string, error) {
	devices := map[string]string{}
	for _, flag := range c.StringSlice("target") {
		node, device, ok := strings.Cut(flag, "=")
		if !ok || device == "" || !slices.ContainsFunc(t.Disks, func(d agent.Disk) bool { return d.Node == node }) {
			return nil, usageError{fmt.Errorf("--target is NODE=DEVICE, with the node of one of the VM's disks: %q is not", flag)}
		}
		devices[node] = device
	}
	return devices, nil
}

// reconnectSeconds is how long QEMU waits for a disk server that is started again,
// which may have to wait for a key manager.
const reconnectSeconds = 300

// reconnectDelay is 0 where libvirt does not know it.
func reconnectDelay(c *cli.Context) int {
	version := c.String("libvirt")
	if version == "" {
		out, _ := exec.CommandContext(c.Context, "virsh", "--version").Output() // there may be no libvirt here
		version = strings.TrimSpace(string(out))
	}
	if knowsReconnect(version) {
		return reconnectSeconds
	}
	return 0
}

// knowsReconnect: libvirt 9.0 does not know it for NBD, and 9.4 does.
func knowsReconnect(version string) bool {
	parts := append(strings.Split(version, "."), "0")
	major, err := strconv.Atoi(parts[0])
	minor, _ := strconv.Atoi(parts[1])
	return err == nil && (major > 9 || major == 9 && minor >= 4)
}
