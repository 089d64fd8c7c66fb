package main

import (
	"context"
	"errors"

	"github.com/urfave/cli/v2"

	"github.com/vmcrypt/vmcrypt/agent"
)

func rekeyCommand() *cli.Command {
	return command(cli.Command{
		Name:      "rekey",
		Usage:     "give encrypted disks new data keys and rewrite them in place",
		ArgsUsage: "TARGET --deep",
		Description: "With --deep every disk gets a new data key, under a new key of the key manager unless --kek\n" +
			"names one, and every sector is rewritten. Interrupted, the same command goes on where it\n" +
			"stopped, and --abort goes back.",
		Flags: append(append(append(targetFlags(), diskFlag()),
			&cli.BoolFlag{Name: "deep", Usage: "new data keys: every sector is rewritten"}),
			append(keyFlags(), inPlaceFlags()...)...),
		Action: rekey,
	})
}

func rekey(c *cli.Context) error {
	if !c.Bool("deep") {
		return usageError{errors.New("rekey: only --deep is there yet, which gives new data keys; a new key for the same data keys is to come")}
	}
	where, err := inPlace(c)
	if err != nil {
		return err
	}
	t, e, err := toConvert(c)
	if err != nil {
		return err
	}
	opts := agent.RekeyOptions{InPlace: where, Disks: c.StringSlice("disk"), KEKID: c.String("kek")}
	if opts.Alias, err = e.aliasFor(c, t); err != nil {
		return err
	}
	warnOfIgnored(c, t, agent.StateRekeying)
	result, err := watch(c, e, func(ctx context.Context, h *agent.Host) (*agent.Status, error) {
		return h.Rekey(ctx, t, opts)
	})
	if err != nil {
		return err
	}
	remindOfBackup(c, e, opts.Alias)
	return showResult(c, "rekey", result)
}
