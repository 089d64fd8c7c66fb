package main

import (
	"context"

	"github.com/urfave/cli/v2"

	"github.com/vmcrypt/vmcrypt/agent"
)

func decryptCommand() *cli.Command {
	return command(cli.Command{
		Name:      "decrypt",
		Usage:     "write a plain copy of an encrypted VM or disk image",
		ArgsUsage: "TARGET --output PATH",
		Description: "PATH is a new folder for a .vmx and a new file for a disk image. Nothing is written unless\n" +
			"the keys of all disks are had and fit.",
		Flags:  outputFlags(),
		Action: decrypt,
	})
}

func decrypt(c *cli.Context) error {
	t, err := convertTarget(c)
	if err != nil {
		return err
	}
	e, err := newEnvironment(c)
	if err != nil {
		return err
	}
	opts := agent.DecryptOptions{Output: c.String("output"), Disks: c.StringSlice("disk")}
	result, err := watch(c, e, func(ctx context.Context, h *agent.Host) (*agent.Status, error) {
		return h.Decrypt(ctx, t, opts)
	})
	if err != nil {
		return err
	}
	return showResult(c, "decrypt", result)
}
