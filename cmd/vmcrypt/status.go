package main

import (
	"fmt"
	"io"

	"github.com/urfave/cli/v2"

	"github.com/vmcrypt/vmcrypt/agent"
)

func statusCommand() *cli.Command {
	return command(cli.Command{
		Name:        "status",
		Usage:       "show which disks are encrypted, how, and under which keys",
		ArgsUsage:   "TARGET",
		Description: "Reads the descriptor only; no key manager is asked.",
		Flags: append(targetFlags(),
			&cli.StringSliceFlag{Name: "disk", Usage: "only the disk at `NODE`; may be repeated"}),
		Action: status,
	})
}

func status(c *cli.Context) error {
	t, err := oneTarget(c)
	if err != nil {
		return err
	}
	s, err := t.Status(c.StringSlice("disk"))
	if err != nil {
		return err
	}
	if c.Bool("json") {
		return writeJSON(c.App.Writer, s)
	}
	for _, d := range s.Disks {
		printDisk(c.App.Writer, d)
	}
	return nil
}

func printDisk(w io.Writer, d agent.DiskStatus) {
	fmt.Fprintf(w, "%s  %s  %s (%s, %s)\n", d.Node, d.State, plainText(d.File), d.Format, bytesText(d.SizeBytes))
	if d.State == agent.StatePlain {
		return
	}
	fmt.Fprintf(w, "    disk %s, %s, %d-byte sectors, holes: %s\n", d.DiskUUID, d.Cipher, d.SectorSize, d.Holes)
	if d.Conversion != nil {
		fmt.Fprintf(w, "    %s\n", conversionText(d))
	}
	for _, r := range d.Recipients {
		fmt.Fprintf(w, "    opened by KEK %s at %q\n", r.KEKID, r.Alias)
	}
	for _, r := range d.Previous {
		fmt.Fprintf(w, "    until it is done, needs KEK %s at %q too\n", r.KEKID, r.Alias)
	}
}

// conversionText says how far an unfinished conversion has come.
func conversionText(d agent.DiskStatus) string {
	at := d.Conversion
	if at.PositionBytes == nil {
		return at.Phase + ", journal " + at.Journal
	}
	percent := float64(*at.PositionBytes) * 100 / float64(max(d.SizeBytes, 1))
	text := fmt.Sprintf("%s, done up to %s (%.1f %%)", at.Phase, bytesText(*at.PositionBytes), percent)
	if at.Direction == agent.DirectionBackward {
		text += ", going back"
	}
	return text
}
