package main

import (
	"fmt"

	"github.com/urfave/cli/v2"

	"github.com/vmcrypt/vmcrypt/kms"
)

// backupDue is the one line that says so.
const backupDue = "a backup is due: without one, losing the key manager is losing the disks; run \"vmcrypt kms backup FILE\""

func kmsBackupCommand() *cli.Command {
	return command(cli.Command{
		Name:      "backup",
		Usage:     "write all that the local key manager holds to a file, under a passphrase",
		ArgsUsage: "FILE",
		Description: "Works while the key manager serves. FILE must not exist; it is read back and checked once it\n" +
			"is written. Keep it, and the passphrase, away from this host. It needs nothing else to be\n" +
			"restored: neither the root key's passphrase nor this host's systemd.",
		Flags:  append(passphraseFlags(), rootPassphraseFlag()),
		Action: kmsBackup,
	})
}

func kmsBackup(c *cli.Context) error {
	args, err := nArgs(c, 1, 1)
	if err != nil {
		return err
	}
	home, _, err := locate(c)
	if err != nil {
		return err
	}
	if err := requireHome(home); err != nil {
		return err
	}
	passphrase, err := newPassphrase(c)
	if err != nil {
		return err
	}
	defer passphrase.Destroy()
	if err := home.Backup(c.Context, args[0], passphrase); err != nil {
		return err
	}
	missing := home.Missing()
	if c.Bool("json") {
		return writeJSON(c.App.Writer, map[string]any{"file": args[0], "missing": missing})
	}
	for _, path := range missing {
		warn(c, path+" is not there, and so not in the backup")
	}
	_, err = fmt.Fprintf(c.App.Writer, "wrote and checked the backup %s\n", args[0])
	return err
}

// remindOfBackup says after an encryption that its key is in no backup yet. The
// encryption is done: nothing here makes it fail.
func remindOfBackup(c *cli.Context, e *environment, alias string) {
	local, err := e.isLocal(alias)
	if !local && err == nil {
		return
	}
	due := false
	if err == nil {
		due, err = e.home.BackupDue(c.Context)
	}
	switch {
	case err != nil:
		warn(c, fmt.Sprintf("cannot tell whether a backup is due: %v", err))
	case due:
		warn(c, backupDue)
	}
}

func kmsRestoreCommand() *cli.Command {
	return command(cli.Command{
		Name:      "restore",
		Usage:     "bring the local key manager back from a backup",
		ArgsUsage: "FILE",
		Description: "Restores the key manager, its certificates and the configuration, and only where none of them\n" +
			"are.",
		Flags:  append(passphraseFlags(), rootKeyFlag(string(kms.RootKeyFile)), rootPassphraseFlag()),
		Action: kmsRestore,
	})
}

func kmsRestore(c *cli.Context) error {
	args, err := nArgs(c, 1, 1)
	if err != nil {
		return err
	}
	home, file, err := keeping(c)
	if err != nil {
		return err
	}
	passphrase, err := askPassphrase(c)
	if err != nil {
		return err
	}
	defer passphrase.Destroy()
	if err := home.Restore(args[0], passphrase); err != nil {
		return err
	}
	if c.Bool("json") {
		return writeJSON(c.App.Writer, map[string]string{"config": file, "keyManager": home.Dir, "rootKey": string(home.RootKey)})
	}
	fmt.Fprintf(c.App.Writer, "restored the key manager %s and its configuration %s\n", home.Dir, file)
	return warnOfBareRootKey(c, home)
}
