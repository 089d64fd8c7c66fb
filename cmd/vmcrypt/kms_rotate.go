package main

import (
	"fmt"

	"github.com/urfave/cli/v2"
)

func kmsRotateCommand() *cli.Command {
	return command(cli.Command{
		Name:  "rotate-root",
		Usage: "give the local key manager a new root key",
		Description: "Seals every key anew under a new root key, while the key manager serves or not. The new root\n" +
			"key is kept as the old one was, under the same passphrase, unless --root-key says otherwise:\n" +
			"that is how a bare root key gets sealed, and how a passphrase is changed.",
		Flags: []cli.Flag{
			rootKeyFlag(""),
			rootPassphraseFlag(),
			&cli.StringFlag{Name: newRootPassphraseFile, TakesFile: true, Usage: "take the passphrase for the new root key from the first line of `FILE` (default: that of --" + rootPassphraseFile + ", or ask for it)"},
		},
		Action: kmsRotate,
	})
}

func kmsRotate(c *cli.Context) error {
	if _, err := nArgs(c, 0, 0); err != nil {
		return err
	}
	home, _, err := keeping(c)
	if err != nil {
		return err
	}
	if err := requireHome(home); err != nil {
		return err
	}
	if err := home.RotateRoot(c.Context); err != nil {
		return err
	}
	form, err := home.RootKeyForm()
	if err != nil {
		return err
	}
	if c.Bool("json") {
		return writeJSON(c.App.Writer, map[string]string{"keyManager": home.Dir, "rootKey": string(form)})
	}
	_, err = fmt.Fprintf(c.App.Writer, "the key manager %s has a new root key (%s); older backups still open with what they hold\n", home.Dir, form)
	return err
}
