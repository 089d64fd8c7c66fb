package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/urfave/cli/v2"

	"github.com/vmcrypt/vmcrypt/agent"
)

func preflightCommand() *cli.Command {
	return command(cli.Command{
		Name:  "preflight",
		Usage: "show which VMs of this host could not be unlocked if it rebooted now, and why",
		Description: "Looks at all VMs in the datastores of the configuration, has the key managers give their keys, and\n" +
			"tries each. Nothing is changed, and what runs goes on.",
		Action: preflight,
	})
}

func preflight(c *cli.Context) error {
	if _, err := nArgs(c, 0, 0); err != nil {
		return err
	}
	e, err := newEnvironment(c)
	if err != nil {
		return err
	}
	if len(e.config.Datastores) == 0 {
		return hinted{
			errors.New("the configuration names no datastores, in which the VMs of this host lie"),
			"\"vmcrypt verify TARGET\" proves that the keys of one can be had",
		}
	}
	p, err := e.host().Preflight(c.Context)
	if err != nil {
		return err
	}
	if c.Bool("json") {
		if err := writeJSON(c.App.Writer, p); err != nil {
			return err
		}
		return p.Err()
	}
	printPreflight(c.App.Writer, p)
	return p.Err()
}

func printPreflight(w io.Writer, p *agent.Preflight) {
	for _, vm := range p.VMs {
		state := "could be unlocked"
		if !vm.Unlocks {
			state = "could not be unlocked"
		}
		fmt.Fprintf(w, "%s  %s  %s\n", plainText(vm.Name), state, plainText(vm.Descriptor))
		for _, problem := range vm.Problems {
			fmt.Fprintf(w, "    %s\n", plainText(problem))
		}
		for _, warning := range vm.Warnings {
			fmt.Fprintf(w, "    warning: %s\n", plainText(warning))
		}
	}
	for _, d := range p.Datastores {
		fmt.Fprintf(w, "not read to its end: %s: %s\n", plainText(d.Path), plainText(d.Problem))
	}
	printWarnings(w, p.Links)
	printWarnings(w, p.Circles)
}

func printWarnings(w io.Writer, warnings []string) {
	for _, warning := range warnings {
		fmt.Fprintf(w, "warning: %s\n", plainText(warning))
	}
}
