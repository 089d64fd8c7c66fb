package main

import (
	"context"
	"fmt"

	"github.com/urfave/cli/v2"

	"github.com/vmcrypt/vmcrypt/agent"
	"github.com/vmcrypt/vmcrypt/blockcrypt"
	"github.com/vmcrypt/vmcrypt/image"
)

func encryptCommand() *cli.Command {
	return command(cli.Command{
		Name:      "encrypt",
		Usage:     "encrypt a VM or a disk image, in place or to a copy",
		ArgsUsage: "TARGET",
		Description: "Every disk gets a data key of its own, wrapped under a key of the key manager: a new one\n" +
			"for each run, unless --kek names one.\n\n" +
			"Without --output the disks are encrypted where they lie. Interrupted, the same command goes on\n" +
			"where it stopped, and --abort goes back. With --output an encrypted copy is written: PATH is a\n" +
			"new folder for a .vmx and a new file for a disk image, whose descriptor comes beside it as\n" +
			"PATH.vmx.",
		Flags: append(append(convertFlags(), keyFlags()...),
			&cli.IntFlag{Name: "sector-size", Value: 512, Usage: "`BYTES` of a crypto sector: 512 or 4096"},
			&cli.StringFlag{Name: "holes", Value: string(blockcrypt.Preserve),
				Usage: "`POLICY` for holes: preserve keeps a thin disk thin, fill writes ciphertext everywhere"}),
		Action: encrypt,
	})
}

// convertFlags are those of the commands that convert a target in place or to a
// copy.
func convertFlags() []cli.Flag {
	return append(append(targetFlags(), diskFlag(),
		&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "leave the target as it is, and write to the new `PATH`", TakesFile: true}),
		inPlaceFlags()...)
}

func diskFlag() cli.Flag {
	return &cli.StringSliceFlag{Name: "disk", Usage: "only the disk at `NODE`, such as scsi0:0; may be repeated"}
}

// keyFlags are those of the commands that wrap new data keys.
func keyFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "kms", Usage: "encrypt under a key of `ALIAS` (default: defaultAlias of the configuration)"},
		&cli.StringFlag{Name: "kek", Usage: "encrypt under the existing key `ID`"},
	}
}

func targetFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "format", Usage: "`FORMAT` of a disk image: raw or vmdk (default: by its name)"},
	}
}

func encrypt(c *cli.Context) error {
	opts, err := encryptOptions(c)
	if err != nil {
		return err
	}
	t, e, err := toConvert(c)
	if err != nil {
		return err
	}
	if opts.Alias, err = e.aliasFor(c, t); err != nil {
		return err
	}
	warnOfIgnored(c, t, agent.StateEncrypting)
	result, err := watch(c, e, func(ctx context.Context, h *agent.Host) (*agent.Status, error) {
		return h.Encrypt(ctx, t, opts)
	})
	if err != nil {
		return err
	}
	remindOfBackup(c, e, opts.Alias)
	return showResult(c, "encrypt", result)
}

func encryptOptions(c *cli.Context) (agent.EncryptOptions, error) {
	o := agent.EncryptOptions{
		Output:     c.String("output"),
		Disks:      c.StringSlice("disk"),
		KEKID:      c.String("kek"),
		SectorSize: c.Int("sector-size"),
		Holes:      blockcrypt.HolePolicy(c.String("holes")),
	}
	if o.SectorSize != 512 && o.SectorSize != 4096 {
		return o, usageError{fmt.Errorf("--sector-size is 512 or 4096, not %d", o.SectorSize)}
	}
	if o.Holes != blockcrypt.Preserve && o.Holes != blockcrypt.Fill {
		return o, usageError{fmt.Errorf("--holes is preserve or fill, not %q", string(o.Holes))}
	}
	var err error
	o.InPlace, err = inPlace(c)
	return o, err
}

// toConvert opens the target, and what it takes to convert it.
func toConvert(c *cli.Context) (*agent.Target, *environment, error) {
	t, err := oneTarget(c)
	if err != nil {
		return nil, nil, err
	}
	e, err := newEnvironment(c)
	return t, e, err
}

// oneTarget opens the one target that the command line names.
func oneTarget(c *cli.Context) (*agent.Target, error) {
	args, err := nArgs(c, 1, 1)
	if err != nil {
		return nil, err
	}
	return openTarget(c, args[0])
}

func openTarget(c *cli.Context, path string) (*agent.Target, error) {
	format := image.Format(c.String("format"))
	switch format {
	case "", image.Raw, image.VMDK:
		return agent.Open(path, format)
	}
	return nil, usageError{fmt.Errorf("--format is raw or vmdk, not %q", string(format))}
}
