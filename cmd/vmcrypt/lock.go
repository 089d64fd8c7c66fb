package main

import (
	"github.com/urfave/cli/v2"

	"github.com/vmcrypt/vmcrypt/agent/api"
)

func lockCommand() *cli.Command {
	return command(cli.Command{
		Name:      "lock",
		Usage:     "have the agent flush and close the disks of a VM, and wipe their keys",
		ArgsUsage: "TARGET|VM",
		Description: "VM is a VM's name or UUID. If the VM is locked already, nothing changes. While QEMU has its disks open, or may,\n" +
			"it is refused; --force takes them away, and the guest gets I/O errors.",
		Flags: append(agentFlags(),
			&cli.BoolFlag{Name: "force", Usage: "lock the disks even if they are in use"},
			&cli.StringFlag{Name: "owner", Usage: "lock it only if it was unlocked for `NAME`"},
		),
		Action: lock,
	})
}

func lock(c *cli.Context) error {
	return askAbout(c, func(client *api.Client, vm string) (*api.VM, error) {
		return client.Lock(c.Context, api.LockRequest{VM: vm, Force: c.Bool("force"), Owner: c.String("owner")})
	})
}
