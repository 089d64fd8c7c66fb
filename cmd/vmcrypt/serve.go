package main

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/urfave/cli/v2"

	"github.com/vmcrypt/vmcrypt/agent"
	"github.com/vmcrypt/vmcrypt/internal/listen"
	"github.com/vmcrypt/vmcrypt/nbd"
)

func serveCommand() *cli.Command {
	return command(cli.Command{
		Name:      "serve",
		Usage:     "serve the plaintext of an encrypted disk to QEMU, over NBD",
		ArgsUsage: "TARGET",
		Description: "Prints the URI for QEMU and other clients once they can connect, and runs until it gets SIGINT\n" +
			"or SIGTERM. Only the user who runs it can use the socket. Nobody else can use the disk meanwhile,\n" +
			"or change it where it is served with --read-only.",
		Flags: append(targetFlags(),
			&cli.StringSliceFlag{Name: "disk", Usage: "serve the disk at `NODE`, such as scsi0:0, where there are several"},
			&cli.StringFlag{Name: "socket", TakesFile: true, Usage: "make the unix socket at `PATH`"},
			&cli.BoolFlag{Name: "read-only", Usage: "serve the disk for reading only"}),
		Action: serveDisk,
	})
}

func serveDisk(c *cli.Context) error {
	args, err := nArgs(c, 1, 1)
	if err != nil {
		return err
	}
	socket, err := socketPath(c)
	if err != nil {
		return err
	}
	v, err := openView(c, args[0])
	if err != nil {
		return err
	}
	nbd.SpareProcessor()
	opts := agent.ServeOptions{Disk: v.node, Socket: socket, ReadOnly: c.Bool("read-only")}
	return v.host.Serve(c.Context, v.target, opts, func(node, uri string) {
		if c.Bool("json") {
			_ = writeJSON(c.App.Writer, map[string]any{"type": "listening", "node": node, "uri": uri, "readOnly": opts.ReadOnly})
			return
		}
		fmt.Fprintf(c.App.Writer, "disk %s served at %s\n", node, uri)
	})
}

// socketPath is the value of --socket, from the root: clients may run elsewhere.
func socketPath(c *cli.Context) (string, error) {
	if c.String("socket") == "" {
		return "", usageError{errors.New("name the unix socket to serve on with --socket PATH")}
	}
	path, err := filepath.Abs(c.String("socket"))
	if err != nil {
		return "", err
	}
	if len(path) > listen.MaxPath {
		return "", usageError{fmt.Errorf("the path of the socket, %s, has %d bytes, and may have %d: choose a shorter one",
			path, len(path), listen.MaxPath)}
	}
	return path, nil
}
