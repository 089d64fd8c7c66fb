package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net"

	"github.com/urfave/cli/v2"

	"github.com/vmcrypt/vmcrypt/internal/config"
	"github.com/vmcrypt/vmcrypt/internal/systemd"
)

func kmsServeCommand() *cli.Command {
	return command(cli.Command{
		Name:        "serve",
		Usage:       "serve the local key manager by KMIP over TLS",
		Description: "Runs until it gets SIGINT or SIGTERM.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "listen", Usage: "listen at `HOST:PORT` (default: the address that the configuration has for the alias local)"},
			rootPassphraseFlag(),
		},
		Action: kmsServe,
	})
}

func kmsServe(c *cli.Context) error {
	if _, err := nArgs(c, 0, 0); err != nil {
		return err
	}
	e, err := newEnvironment(c)
	if err != nil {
		return configurationError{err}
	}
	address := c.String("listen")
	if address == "" {
		local, ok := e.config.Alias(config.LocalAlias)
		if !ok {
			return configurationError{usageError{fmt.Errorf("the configuration has no alias %q: name an address with --listen", config.LocalAlias)}}
		}
		address = local.Servers[0].Address
	}
	if err := warnOfBareRootKey(c, e.home); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	e.home.Metrics, e.home.Release = e.config.KMS.Metrics, version
	return e.home.Serve(c.Context, address, func(at net.Addr) {
		systemd.Ready(c.Context, e.home.Alive)
		if c.Bool("json") {
			_ = writeJSON(c.App.Writer, map[string]string{"type": "listening", "address": at.String()})
			return
		}
		fmt.Fprintf(c.App.Writer, "key manager listening at %s\n", at)
	})
}
