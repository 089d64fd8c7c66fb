package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"

	"github.com/urfave/cli/v2"

	"github.com/vmcrypt/vmcrypt/internal/audit"
	"github.com/vmcrypt/vmcrypt/internal/config"
)

func auditCommand() *cli.Command {
	return &cli.Command{
		Name:            "audit",
		Usage:           "the agent's log of who unlocked what",
		Subcommands:     []*cli.Command{auditVerifyCommand()},
		HideHelpCommand: true,
		OnUsageError:    onUsageError,
		Action:          unknownSubcommand,
	}
}

const auditVerifyUsage = "check that no entry of the audit log was changed or removed"

func auditVerifyCommand() *cli.Command {
	return command(cli.Command{
		Name:      "verify",
		Usage:     auditVerifyUsage,
		ArgsUsage: "[DIR]",
		Description: "DIR is the folder with the log, by default that of this host's agent. The entries are a chain:\n" +
			"each holds the hash of the one before. Nothing but the log says how far it went: whoever can write\n" +
			"DIR can cut off its end, or make another log. So note the hash of the last entry elsewhere; it\n" +
			"proves all entries up to it. Exit code 5 says that the log is not as it was written.",
		Action: auditVerify,
	})
}

func auditVerify(c *cli.Context) error {
	dir, err := auditDir(c)
	if err != nil {
		return err
	}
	r, err := audit.Verify(c.Context, dir, audit.Head{})
	if errors.Is(err, fs.ErrNotExist) || err == nil && r.Files == 0 {
		return fmt.Errorf("there is no audit log in %s: the agent begins one when it first runs", dir)
	}
	if err != nil {
		return err
	}
	return writeAudit(c, r)
}

// auditDir is the folder that was named, or else the agent's.
func auditDir(c *cli.Context) (string, error) {
	args, err := nArgs(c, 0, 1)
	if err != nil {
		return "", err
	}
	if len(args) > 0 {
		return args[0], nil
	}
	p, err := config.Locate(c.String("config"))
	return filepath.Join(p.State, "agent"), err
}

// writeAudit writes what a check of an audit log found, and fails if that is not
// as it was written.
func writeAudit(c *cli.Context, r *audit.Report) error {
	if !c.Bool("json") {
		printAudit(c.App.Writer, r)
		return r.Err()
	}
	if err := writeJSON(c.App.Writer, r); err != nil {
		return err
	}
	return r.Err()
}

func printAudit(w io.Writer, r *audit.Report) {
	if r.Entries == 0 {
		fmt.Fprintln(w, "the audit log is empty")
	} else {
		fmt.Fprintf(w, "%d entries, from %d to %d; hash of the last: %s\n", r.Entries, r.First, r.Last, r.Hash)
	}
	if r.First > 1 {
		fmt.Fprintf(w, "entries 1 to %d are not there: their files have been moved\n", r.First-1)
	}
	for _, p := range r.Problems {
		fmt.Fprintf(w, "%s line %d: %s\n", p.File, p.Line, p.Message)
	}
}
