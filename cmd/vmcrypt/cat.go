package main

import (
	"bufio"

	"github.com/urfave/cli/v2"
)

func catCommand() *cli.Command {
	return command(cli.Command{
		Name:      "cat",
		Usage:     "write a file of a disk, encrypted or not, to standard output",
		ArgsUsage: "TARGET PATH",
		Description: "PATH is N:/path in partition N, or /path on a disk with a single filesystem. With --json the\n" +
			"content is still written as it is; only errors are JSON.",
		Flags:  browseFlags(),
		Action: cat,
	})
}

func cat(c *cli.Context) error {
	args, err := nArgs(c, 2, 2)
	if err != nil {
		return err
	}
	v, err := openView(c, args[0])
	if err != nil {
		return err
	}
	w := bufio.NewWriterSize(c.App.Writer, 1<<20)
	if err := v.host.Cat(c.Context, v.target, v.node, args[1], w); err != nil {
		return err
	}
	return w.Flush()
}
