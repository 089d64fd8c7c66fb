package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/vmcrypt/vmcrypt/kms"
)

func kmsClientCommand() *cli.Command {
	return &cli.Command{
		Name:  "client",
		Usage: "who may use the local key manager",
		Subcommands: []*cli.Command{
			clientAddCommand(), clientRevokeCommand(), clientListCommand(),
		},
		HideHelpCommand: true,
		OnUsageError:    onUsageError,
		Action:          unknownSubcommand,
	}
}

func clientAddCommand() *cli.Command {
	return command(cli.Command{
		Name:      "add",
		Usage:     "issue a client's certificate",
		ArgsUsage: "NAME",
		Description: "Writes NAME.pem, NAME-ca.pem and, unless there is a request to sign, NAME.key. A client sees only\n" +
			"the keys that were made under its NAME. With --replace, NAME gets another certificate for\n" +
			"the same keys, and the one it had works no more.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "csr", Usage: "sign the certificate signing request in `FILE` (PEM) instead of making a key", TakesFile: true},
			&cli.StringFlag{Name: "out", Value: ".", Usage: "write to the folder `DIR`", TakesFile: true},
			&cli.BoolFlag{Name: "replace", Usage: "give a client that there is another certificate, also after it was revoked"},
		},
		Action: clientAdd,
	})
}

// maxRequest bounds a certificate signing request, in bytes.
const maxRequest = 64 << 10

func clientAdd(c *cli.Context) error {
	args, home, err := clientArgs(c, 1)
	if err != nil {
		return err
	}
	n := kms.NewClient{Name: args[0], Dir: c.String("out"), Replace: c.Bool("replace")}
	if csr := c.String("csr"); csr != "" {
		if n.Request, err = readRequest(csr); err != nil {
			return err
		}
	}
	client, err := home.AddClient(c.Context, n)
	if err != nil {
		return err
	}
	cert := filepath.Join(n.Dir, n.Name+".pem")
	if c.Bool("json") {
		return writeJSON(c.App.Writer, struct {
			*kms.Client
			Certificate string `json:"certificate"`
		}{client, cert})
	}
	_, err = fmt.Fprintf(c.App.Writer, "wrote %s, valid until %s\n", cert, client.Until.Format(time.DateOnly))
	return err
}

func readRequest(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxRequest+1))
	if err == nil && len(text) > maxRequest {
		err = fmt.Errorf("%s: too long for a certificate signing request", path)
	}
	return text, err
}

func clientRevokeCommand() *cli.Command {
	return command(cli.Command{
		Name:      "revoke",
		Usage:     "end a client's access at once",
		ArgsUsage: "NAME",
		Description: "Open connections end, too. The keys that were made under NAME stay: \"kms client add --replace\"\n" +
			"gives access to them again.",
		Action: clientRevoke,
	})
}

func clientRevoke(c *cli.Context) error {
	args, home, err := clientArgs(c, 1)
	if err != nil {
		return err
	}
	if err := home.RevokeClient(c.Context, args[0]); err != nil {
		return err
	}
	if c.Bool("json") {
		return writeJSON(c.App.Writer, map[string]string{"name": args[0]})
	}
	_, err = fmt.Fprintf(c.App.Writer, "revoked %s\n", args[0])
	return err
}

func clientListCommand() *cli.Command {
	return command(cli.Command{
		Name:   "list",
		Usage:  "list the clients, revoked ones too",
		Action: clientList,
	})
}

func clientList(c *cli.Context) error {
	_, home, err := clientArgs(c, 0)
	if err != nil {
		return err
	}
	clients, err := home.Clients(c.Context)
	if err != nil {
		return err
	}
	if c.Bool("json") {
		return writeJSON(c.App.Writer, map[string]any{"clients": clients})
	}
	w := tabwriter.NewWriter(c.App.Writer, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "NAME\tSERIAL\tSINCE\tUNTIL\tREVOKED")
	for _, k := range clients {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", k.Name, orDash(k.Serial), day(&k.Since), day(&k.Until), day(k.Revoked))
	}
	return w.Flush()
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func day(t *time.Time) string {
	if t == nil || t.IsZero() {
		return "-"
	}
	return t.Format(time.DateOnly)
}

// clientArgs gives the arguments of a command, n of them, and the key manager
// that it is about.
func clientArgs(c *cli.Context, n int) ([]string, kms.Home, error) {
	args, err := nArgs(c, n, n)
	if err != nil {
		return nil, kms.Home{}, err
	}
	home, _, err := locate(c)
	if err != nil {
		return nil, home, err
	}
	return args, home, requireHome(home)
}
