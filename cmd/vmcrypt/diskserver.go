package main

import (
	"github.com/urfave/cli/v2"

	"github.com/vmcrypt/vmcrypt/agent/diskserver"
)

// diskServerCommand is for the agent only, which hands it files and keys.
func diskServerCommand() *cli.Command {
	return command(cli.Command{
		Name:   "disk-server",
		Usage:  "serve the disks of a VM; the agent starts this",
		Hidden: true,
		Action: func(c *cli.Context) error {
			if _, err := nArgs(c, 0, 0); err != nil {
				return err
			}
			return diskserver.Run(c.Context, version)
		},
	})
}
