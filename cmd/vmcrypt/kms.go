package main

import "github.com/urfave/cli/v2"

func kmsCommand() *cli.Command {
	return &cli.Command{
		Name:  "kms",
		Usage: "the key manager that ships with vmcrypt, and the health of all",
		Subcommands: []*cli.Command{
			kmsServeCommand(), kmsStatusCommand(), kmsBackupCommand(), kmsRestoreCommand(),
			kmsTrustCommand(), kmsClientCommand(), kmsAuditCommand(), kmsRotateCommand(),
			kmsCreateKeyCommand(), kmsListKeysCommand(), kmsRevokeKeyCommand(), kmsDestroyKeyCommand(),
		},
		HideHelpCommand: true,
		OnUsageError:    onUsageError,
		Action:          unknownSubcommand,
	}
}

func unknownSubcommand(c *cli.Context) error {
	if c.NArg() == 0 {
		return cli.ShowSubcommandHelp(c)
	}
	return unknownCommand(c)
}
