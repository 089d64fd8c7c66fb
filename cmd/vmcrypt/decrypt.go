package main

import (
	"context"

	"github.com/urfave/cli/v2"

	"github.com/vmcrypt/vmcrypt/agent"
)

func decryptCommand() *cli.Command {
	return command(cli.Command{
		Name:      "decrypt",
		Usage:     "decrypt an encrypted VM or disk image, in place or to a copy",
		ArgsUsage: "TARGET",
		Description: "Nothing is written unless the keys of all disks are had and fit.\n\n" +
			"Without --output the disks are decrypted where they lie. Interrupted, the same command goes on\n" +
			"where it stopped, and --abort goes back. With --output a plain copy is written: PATH is a new\n" +
			"folder for a .vmx and a new file for a disk image.",
		Flags:  convertFlags(),
		Action: decrypt,
	})
}

func decrypt(c *cli.Context) error {
	where, err := inPlace(c)
	if err != nil {
		return err
	}
	t, e, err := toConvert(c)
	if err != nil {
		return err
	}
	opts := agent.DecryptOptions{Output: c.String("output"), InPlace: where, Disks: c.StringSlice("disk")}
	result, err := watch(c, e, func(ctx context.Context, h *agent.Host) (*agent.Status, error) {
		return h.Decrypt(ctx, t, opts)
	})
	if err != nil {
		return err
	}
	return showResult(c, "decrypt", result)
}
