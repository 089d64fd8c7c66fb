package main

import (
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/urfave/cli/v2"

	"github.com/vmcrypt/vmcrypt/agent"
	"github.com/vmcrypt/vmcrypt/browse"
	"github.com/vmcrypt/vmcrypt/internal/config"
)

func lsCommand() *cli.Command {
	return command(cli.Command{
		Name:      "ls",
		Usage:     "list the partitions or a folder of a disk, encrypted or not",
		ArgsUsage: "TARGET [PATH]",
		Description: "PATH is N:/path in partition N, or /path on a disk with a single filesystem. Without it the\n" +
			"partitions are listed, or the root folder where the whole disk is one filesystem. Reads FAT,\n" +
			"ext4 and ISO 9660. Nothing of the plaintext is written to disk.",
		Flags:  browseFlags(),
		Action: ls,
	})
}

func browseFlags() []cli.Flag {
	return append(targetFlags(),
		&cli.StringSliceFlag{Name: "disk", Usage: "look at the disk at `NODE`, such as scsi0:0, where there are several"})
}

// view is a disk that is looked at.
type view struct {
	host   *agent.Host
	target *agent.Target
	node   string // empty for the only disk
}

// openView opens the target of a command that looks at one disk. It reads the
// configuration only where a key is needed: a plain disk can be looked at without
// one.
func openView(c *cli.Context, path string) (*view, error) {
	node, err := oneNode(c)
	if err != nil {
		return nil, err
	}
	t, err := openTarget(c, path)
	if err != nil {
		return nil, err
	}
	e := &environment{config: &config.Config{}}
	if !t.Plain() {
		if e, err = newEnvironment(c); err != nil {
			return nil, err
		}
	}
	return &view{e.host(), t, node}, nil
}

// oneNode is the value of --disk for a command that looks at one disk.
func oneNode(c *cli.Context) (string, error) {
	switch nodes := c.StringSlice("disk"); len(nodes) {
	case 0:
		return "", nil
	case 1:
		return nodes[0], nil
	}
	return "", usageError{fmt.Errorf("%s takes one disk: name one --disk", c.Command.HelpName)}
}

func ls(c *cli.Context) error {
	args, err := nArgs(c, 1, 2)
	if err != nil {
		return err
	}
	path := ""
	if len(args) == 2 {
		path = args[1]
	}
	v, err := openView(c, args[0])
	if err != nil {
		return err
	}
	listing, err := v.host.List(c.Context, v.target, v.node, path)
	if err != nil {
		return err
	}
	if c.Bool("json") {
		return writeJSON(c.App.Writer, listing)
	}
	return printListing(c.App.Writer, listing)
}

func printListing(w io.Writer, l *browse.Listing) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, p := range l.Partitions {
		fmt.Fprintf(tw, "%d\t%s\t%s\t%s\t%s\n", p.Number, bytesText(p.Size), p.Type, p.Filesystem, browse.Printable(p.Name))
	}
	for _, e := range l.Entries {
		fmt.Fprintf(tw, "%s\t%d\t%s\t%s\n", e.Type, e.Size, e.ModTime.UTC().Format("2006-01-02 15:04"), browse.Printable(e.Name))
	}
	return tw.Flush()
}
