package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/vmcrypt/vmcrypt/agent/api"
)

func unlockCommand() *cli.Command {
	return command(cli.Command{
		Name:      "unlock",
		Usage:     "have the agent serve the disks of a VM",
		ArgsUsage: "TARGET|VM",
		Description: "VM is a VM's name or UUID. All encrypted disks are unlocked, or none. Prints the URIs for QEMU.\n" +
			"If the VM is unlocked already, nothing changes.",
		Flags: append(agentFlags(),
			&cli.BoolFlag{Name: "read-only", Usage: "serve the disks for reading only"},
			&cli.StringFlag{Name: "owner", Usage: "unlock it for `NAME`, \"systemd:web01.service\" for instance: while it is, nobody else can"},
		),
		Action: unlock,
	})
}

func unlock(c *cli.Context) error {
	return askAbout(c, func(client *api.Client, vm string) (*api.VM, error) {
		return client.Unlock(c.Context, api.UnlockRequest{VM: vm, ReadOnly: c.Bool("read-only"), Owner: c.String("owner")})
	})
}

// askAbout has the agent do something with the VM of the command line, and prints what
// has become of it.
func askAbout(c *cli.Context, ask func(client *api.Client, vm string) (*api.VM, error)) error {
	args, err := nArgs(c, 1, 1)
	if err != nil {
		return err
	}
	vm, err := pathOrName(args[0])
	if err != nil {
		return err
	}
	client, err := agentClient(c)
	if err != nil {
		return err
	}
	result, err := ask(client, vm)
	if err != nil {
		return err
	}
	if c.Bool("json") {
		return writeJSON(c.App.Writer, result)
	}
	printVM(c, result)
	return nil
}

// pathOrName is what the agent understands: a path from the root, or else a name. What
// looks like a path, or exists, is one; but the folder of a VM often has its name.
func pathOrName(arg string) (string, error) {
	info, err := os.Lstat(arg)
	isFile := err == nil && !info.IsDir()
	if isFile || strings.Contains(arg, "/") || strings.EqualFold(filepath.Ext(arg), ".vmx") {
		return filepath.Abs(arg)
	}
	return arg, nil
}

func printVM(c *cli.Context, vm *api.VM) {
	fmt.Fprintf(c.App.Writer, "%s %s\n", plainText(vm.Name), vm.State)
	for _, d := range vm.Disks {
		if d.URI != "" {
			fmt.Fprintf(c.App.Writer, "  %s  %s\n", d.Node, d.URI)
		}
	}
}
