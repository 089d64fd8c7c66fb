package main

import "github.com/urfave/cli/v2"

func kmsAuditCommand() *cli.Command {
	return &cli.Command{
		Name:            "audit",
		Usage:           "the local key manager's log of who did what",
		Subcommands:     []*cli.Command{kmsAuditVerifyCommand()},
		HideHelpCommand: true,
		OnUsageError:    onUsageError,
		Action:          unknownSubcommand,
	}
}

func kmsAuditVerifyCommand() *cli.Command {
	return command(cli.Command{
		Name:  "verify",
		Usage: auditVerifyUsage,
		Description: "The entries are a chain: each holds the hash of the one before. The hash of the last one, noted\n" +
			"elsewhere, proves all entries up to it. Exit code 5 says that the log is not as it was written.",
		Action: kmsAuditVerify,
	})
}

func kmsAuditVerify(c *cli.Context) error {
	_, home, err := clientArgs(c, 0)
	if err != nil {
		return err
	}
	r, err := home.VerifyAudit(c.Context)
	if err != nil {
		return err
	}
	return writeAudit(c, r)
}
