package main

import (
	"fmt"
	"net"

	"github.com/urfave/cli/v2"

	"github.com/vmcrypt/vmcrypt/internal/config"
	"github.com/vmcrypt/vmcrypt/kms"
)

func initCommand() *cli.Command {
	return command(cli.Command{
		Name:  "init",
		Usage: "make a key manager for this host, and a configuration that uses it",
		Description: "Makes the key manager's root key, store and certificates, a client certificate and\n" +
			"config.yaml. Overwrites nothing. Losing the key manager is losing the disks: back it up\n" +
			"with \"vmcrypt kms backup\".",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "address", Value: "127.0.0.1:5696", Usage: "`HOST:PORT` that \"vmcrypt kms serve\" will listen on"},
			rootKeyFlag(string(kms.RootKeyFile)),
			rootPassphraseFlag(),
		},
		Action: initialise,
	})
}

func initialise(c *cli.Context) error {
	if _, err := nArgs(c, 0, 0); err != nil {
		return err
	}
	address := c.String("address")
	if _, _, err := net.SplitHostPort(address); err != nil {
		return usageError{fmt.Errorf("--address %q is no HOST:PORT: %w", address, err)}
	}
	home, file, err := keeping(c)
	if err != nil {
		return err
	}
	if err := home.Init(config.Template(address)); err != nil {
		return err
	}
	if c.Bool("json") {
		return writeJSON(c.App.Writer, map[string]string{"config": file, "keyManager": home.Dir, "rootKey": string(home.RootKey)})
	}
	fmt.Fprintf(c.App.Writer, "made the key manager %s and its configuration %s\n", home.Dir, file)
	fmt.Fprintln(c.App.Writer, backupDue)
	return warnOfBareRootKey(c, home)
}
