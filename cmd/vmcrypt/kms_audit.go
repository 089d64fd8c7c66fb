package main

import (
	"fmt"
	"io"

	"github.com/urfave/cli/v2"

	"github.com/vmcrypt/vmcrypt/kms"
)

func kmsAuditCommand() *cli.Command {
	return &cli.Command{
		Name:            "audit",
		Usage:           "the local key manager's log of who did what",
		Subcommands:     []*cli.Command{auditVerifyCommand()},
		HideHelpCommand: true,
		OnUsageError:    onUsageError,
		Action:          unknownKMSCommand,
	}
}

func auditVerifyCommand() *cli.Command {
	return command(cli.Command{
		Name:  "verify",
		Usage: "check that no entry of the audit log was changed or removed",
		Description: "The entries are a chain: each holds the hash of the one before. The hash of the last one, noted\n" +
			"elsewhere, proves all entries up to it. Exit code 5 says that the log is not as it was written.",
		Action: auditVerify,
	})
}

func auditVerify(c *cli.Context) error {
	_, home, err := clientArgs(c, 0)
	if err != nil {
		return err
	}
	r, err := home.VerifyAudit(c.Context)
	if err != nil {
		return err
	}
	if c.Bool("json") {
		err = writeJSON(c.App.Writer, r)
	} else {
		printAudit(c.App.Writer, r)
	}
	if err != nil {
		return err
	}
	return r.Err()
}

func printAudit(w io.Writer, r *kms.AuditReport) {
	if r.Entries == 0 {
		fmt.Fprintln(w, "the audit log is empty")
		return
	}
	fmt.Fprintf(w, "%d entries, from %d to %d; hash of the last: %s\n", r.Entries, r.First, r.Last, r.Hash)
	if r.First > 1 {
		fmt.Fprintf(w, "entries 1 to %d are not there: their files have been moved\n", r.First-1)
	}
	for _, p := range r.Problems {
		fmt.Fprintf(w, "%s line %d: %s\n", p.File, p.Line, p.Message)
	}
}
