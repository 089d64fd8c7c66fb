package main

import (
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/vmcrypt/vmcrypt/agent/api"
)

func listCommand() *cli.Command {
	return command(cli.Command{
		Name:        "list",
		Usage:       "show the VMs of this host that have encrypted disks",
		Description: "They are those in the datastores of the agent's configuration.",
		Flags:       agentFlags(),
		Action:      list,
	})
}

func list(c *cli.Context) error {
	if _, err := nArgs(c, 0, 0); err != nil {
		return err
	}
	client, err := agentClient(c)
	if err != nil {
		return err
	}
	result, err := client.List(c.Context)
	if err != nil {
		return err
	}
	if c.Bool("json") {
		return writeJSON(c.App.Writer, result)
	}
	return printList(c, result)
}

func printList(c *cli.Context, l *api.List) error {
	w := tabwriter.NewWriter(c.App.Writer, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "VM\tSTATE\tSINCE\tCONNECTIONS\tREAD\tWRITTEN\tDESCRIPTOR")
	for _, vm := range l.VMs {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", plainText(vm.Name), vm.State, traffic(vm), plainText(vm.Descriptor))
		if vm.Problem != "" {
			fmt.Fprintf(w, "\t\t\t\t\t\t%s\n", plainText(vm.Problem))
		}
	}
	return w.Flush()
}

// traffic is what there is to tell of a VM that is unlocked, in four columns.
func traffic(vm api.VM) string {
	if vm.Since == nil {
		return "\t\t\t"
	}
	connections, read, written := 0, uint64(0), uint64(0)
	for _, d := range vm.Disks {
		connections, read, written = connections+d.Connections, read+d.BytesRead, written+d.BytesWritten
	}
	return fmt.Sprintf("%s\t%d\t%s\t%s", vm.Since.Local().Format(time.DateTime), connections,
		bytesText(int64(read)), bytesText(int64(written)))
}
