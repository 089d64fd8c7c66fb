package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
)

// command completes a subcommand with what all of them share.
func command(c cli.Command) *cli.Command {
	c.Flags = append(c.Flags, sharedFlags()...)
	c.OnUsageError = onUsageError
	c.HideHelpCommand = true
	if action := c.Action; action != nil {
		c.Action = func(c *cli.Context) error { return withFlags(c, action(c)) }
	}
	return &c
}

func sharedFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "config", Usage: "read the configuration from `FILE`", TakesFile: true},
		&cli.BoolFlag{Name: "json", Usage: "write JSON for programs"},
	}
}

// nArgs returns the arguments of a command, if there are between least and most
// of them.
func nArgs(c *cli.Context, least, most int) ([]string, error) {
	n := c.NArg()
	if n < least || n > most {
		return nil, usageError{fmt.Errorf("%s takes %s; see \"%s --help\"",
			c.Command.HelpName, cmp.Or(c.Command.ArgsUsage, "no arguments"), c.Command.HelpName)}
	}
	if slices.Contains(c.Args().Slice(), "") {
		return nil, usageError{fmt.Errorf("%s: an argument is empty", c.Command.HelpName)}
	}
	return c.Args().Slice(), nil
}

// reorder moves the flags of a command line before its other arguments, since the
// library takes them only there. What follows "--" stays as it is.
func reorder(app *cli.App, args []string) ([]string, error) {
	if len(args) == 0 {
		return args, nil
	}
	r := reordering{commands: app.Commands}
	for rest := args[1:]; len(rest) > 0; {
		var err error
		if rest, err = r.take(rest); err != nil {
			return args, err
		}
	}
	out := append([]string{args[0]}, r.path...)
	out = append(out, r.flags...)
	if len(r.operands) > 0 {
		out = append(append(out, "--"), r.operands...)
	}
	return out, nil
}

type reordering struct {
	commands []*cli.Command // that the next word may name
	command  *cli.Command   // named so far
	path     []string       // the names of the commands
	flags    []string
	operands []string
}

// take sorts in the first of the words, and the value that belongs to it, and
// returns the others.
func (r *reordering) take(words []string) ([]string, error) {
	word, rest := words[0], words[1:]
	switch {
	case word == "--":
		r.operands = append(r.operands, rest...)
		return nil, nil
	case len(word) > 1 && word[0] == '-':
		r.flags = append(r.flags, word)
		if r.flag(word) == nil || isSwitch(r.flag(word)) || strings.Contains(word, "=") {
			break
		}
		if len(rest) == 0 || r.isFlag(rest[0]) {
			return nil, usageError{fmt.Errorf("the flag %s needs a value", word)}
		}
		r.flags = append(r.flags, rest[0])
		return rest[1:], nil
	case len(r.operands) == 0 && r.descend(word):
		r.path = append(r.path, word)
	default:
		r.operands = append(r.operands, word)
	}
	return rest, nil
}

func (r *reordering) descend(word string) bool {
	i := slices.IndexFunc(r.commands, func(c *cli.Command) bool { return c.HasName(word) })
	if i < 0 {
		return false
	}
	r.command, r.commands = r.commands[i], r.commands[i].Subcommands
	return true
}

// flag is the flag that a word is, nil if it is none. Before the command's name
// there are only the flags that all commands share.
func (r *reordering) flag(word string) cli.Flag {
	if !strings.HasPrefix(word, "-") {
		return nil
	}
	flags := sharedFlags()
	if r.command != nil {
		flags = append(flags, r.command.Flags...)
	}
	name, _, _ := strings.Cut(strings.TrimLeft(word, "-"), "=")
	for _, f := range flags {
		if slices.Contains(f.Names(), name) {
			return f
		}
	}
	return nil
}

func (r *reordering) isFlag(word string) bool { return word == "--" || r.flag(word) != nil }

// isSwitch tells a flag that takes no value.
func isSwitch(f cli.Flag) bool {
	_, ok := f.(*cli.BoolFlag)
	return ok
}

func wantsJSON(args []string) bool {
	return slices.Contains(args, "--json") || slices.Contains(args, "-json") || slices.Contains(args, "--json=true")
}
