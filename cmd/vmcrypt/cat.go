package main

import (
	"bufio"

	"github.com/urfave/cli/v2"

	"github.com/vmcrypt/vmcrypt/agent"
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
	node, err := oneNode(c)
	if err != nil {
		return err
	}
	t, err := openTarget(c, args[0])
	if err != nil {
		return err
	}
	e, err := browsingEnvironment(c, t)
	if err != nil {
		return err
	}
	w := bufio.NewWriterSize(c.App.Writer, 1<<20)
	if err := e.host().Cat(c.Context, t, node, args[1], w); err != nil {
		return err
	}
	return w.Flush()
}

// browsingEnvironment reads the configuration only where a key is needed: a plain
// disk can be looked at without one.
func browsingEnvironment(c *cli.Context, t *agent.Target) (*environment, error) {
	if t.Plain() {
		return &environment{}, nil
	}
	return newEnvironment(c)
}
