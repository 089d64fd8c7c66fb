package main

import (
	"fmt"
	"io"

	"github.com/urfave/cli/v2"

	"github.com/vmcrypt/vmcrypt/agent"
)

func verifyCommand() *cli.Command {
	return command(cli.Command{
		Name:      "verify",
		Usage:     "prove that the key managers have the keys of disks",
		ArgsUsage: "TARGET...",
		Description: "Has every key manager give every key that unwraps a data key of the disks, and tries it. The exit\n" +
			"code is 0 only if each of them has each key. Nothing is changed.",
		Flags: append(targetFlags(),
			&cli.StringSliceFlag{Name: "disk", Usage: "only the disk at `NODE`; may be repeated"}),
		Action: verify,
	})
}

func verify(c *cli.Context) error {
	args, err := nArgs(c, 1, maxTargets)
	if err != nil {
		return err
	}
	var targets []*agent.Target
	for _, path := range args {
		t, err := openTarget(c, path)
		if err != nil {
			return err
		}
		targets = append(targets, t)
	}
	e, err := newEnvironment(c)
	if err != nil {
		return err
	}
	v, err := e.host().Verify(c.Context, targets, c.StringSlice("disk"))
	if err != nil {
		return err
	}
	if c.Bool("json") {
		if err := writeJSON(c.App.Writer, v); err != nil {
			return err
		}
		return v.Err()
	}
	for _, d := range v.Disks {
		printVerification(c.App.Writer, d)
	}
	return v.Err()
}

// maxTargets is no limit that anybody meets: each is opened.
const maxTargets = 100_000

func printVerification(w io.Writer, d agent.DiskVerification) {
	fmt.Fprintf(w, "%s  %s\n", d.Node, plainText(d.Target))
	for _, r := range d.Recipients {
		what := "does not unwrap its key"
		if r.Unwraps {
			what = "unwraps its key"
		}
		if r.Previous {
			what += " of before the rekey"
		}
		fmt.Fprintf(w, "    KEK %s at %q: %s\n", r.KEKID, r.Alias, what)
		if r.Problem != "" {
			fmt.Fprintf(w, "        %s\n", plainText(r.Problem))
		}
		for _, s := range r.Servers {
			fmt.Fprintf(w, "        %s\n", checkText(s.Address, string(s.Result), s.Detail))
		}
	}
}

func checkText(address, result, detail string) string {
	if detail == "" {
		return address + "  " + result
	}
	return fmt.Sprintf("%s  %s: %s", address, result, plainText(detail))
}
