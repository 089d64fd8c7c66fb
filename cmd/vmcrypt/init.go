package main

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/vmcrypt/vmcrypt/internal/config"
	"github.com/vmcrypt/vmcrypt/internal/systemd"
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
			&cli.StringSliceFlag{Name: "datastore", TakesFile: true, Usage: "let the agent open VMs in the folder `DIR` (default: none, but " + config.ImageFolder + " if it is there, in " + config.SystemFile + ")"},
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
	datastores, err := datastores(c, file)
	if err != nil {
		return err
	}
	if err := home.Init(config.Template(address, datastores...)); err != nil {
		return err
	}
	if c.Bool("json") {
		return writeJSON(c.App.Writer, map[string]string{
			"config": file, "keyManager": home.Dir, "rootKey": string(home.RootKey), "warning": backupDue})
	}
	fmt.Fprintf(c.App.Writer, "made the key manager %s and its configuration %s\n", home.Dir, file)
	fmt.Fprintln(c.App.Writer, backupDue)
	if file == config.SystemFile && systemd.Installed(services...) {
		if len(datastores) == 0 {
			fmt.Fprintf(c.App.Writer, "next: name the folders with your VMs in %s (datastores)\n", file)
		}
		fmt.Fprintf(c.App.Writer, "next: systemctl enable --now %s\n", strings.Join(services, " "))
	}
	return warnOfBareRootKey(c, home)
}

// services are the units that run what init made.
var services = []string{"vmcrypt-kms.service", "vmcrypt-agent.service"}

// datastores are the folders for the agent of a new configuration.
func datastores(c *cli.Context, file string) ([]string, error) {
	folders := c.StringSlice("datastore")
	if len(folders) == 0 && file == config.SystemFile {
		if info, err := os.Stat(config.ImageFolder); err == nil && info.IsDir() {
			folders = []string{config.ImageFolder}
		}
	}
	for i, folder := range folders {
		path, err := filepath.Abs(folder)
		if folder == "" || path == "/" {
			return nil, usageError{fmt.Errorf("--datastore %q: name a folder for VMs", folder)}
		}
		if err != nil {
			return nil, err
		}
		folders[i] = path
	}
	return folders, nil
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
