package main

import (
	"fmt"
	"net"
	"strconv"

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
			&cli.StringFlag{Name: "address", Value: "127.0.0.1:5696", Usage: "`HOST:PORT` of this host's loopback that \"vmcrypt kms serve\" will listen on"},
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
	if err := checkAddress(address); err != nil {
		return usageError{fmt.Errorf("--address %q: %w", address, err)}
	}
	home, file, err := keeping(c)
	if err != nil {
		return err
	}
	if err := home.Init(config.Template(address)); err != nil {
		return err
	}
	if c.Bool("json") {
		return writeJSON(c.App.Writer, map[string]string{
			"config": file, "keyManager": home.Dir, "rootKey": string(home.RootKey), "warning": backupDue})
	}
	fmt.Fprintf(c.App.Writer, "made the key manager %s and its configuration %s\n", home.Dir, file)
	fmt.Fprintln(c.App.Writer, backupDue)
	return warnOfBareRootKey(c, home)
}

// checkAddress takes only addresses on loopback, which the certificate made now is
// good for. Others are a matter of the configuration and of "kms serve --listen".
func checkAddress(address string) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return err
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return fmt.Errorf("%q is no port", port)
	}
	if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return fmt.Errorf("%q is no loopback address", host)
	}
	return nil
}
