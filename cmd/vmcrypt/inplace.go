package main

import (
	"errors"
	"fmt"
	"slices"
	"strconv"

	"github.com/urfave/cli/v2"

	"github.com/vmcrypt/vmcrypt/agent"
	"github.com/vmcrypt/vmcrypt/blockcrypt/conversion"
)

// inPlaceFlags are those of the commands that convert disks where they lie.
func inPlaceFlags() []cli.Flag {
	return []cli.Flag{
		&cli.BoolFlag{Name: "abort", Usage: "turn an unfinished conversion in place round"},
		&cli.IntFlag{Name: "zone", Value: conversion.DefaultZone,
			Usage: "convert at most `BYTES` at a time in place: a multiple of 4096; the journal takes twice as much space, and four times as much is in memory"},
	}
}

func inPlace(c *cli.Context) (agent.InPlace, error) {
	o := agent.InPlace{Abort: c.Bool("abort"), Zone: c.Int("zone")}
	if err := conversion.CheckZone(o.Zone); err != nil {
		return o, usageError{fmt.Errorf("--zone: %w", err)}
	}
	for _, flag := range []string{"abort", "zone"} {
		if c.IsSet(flag) && c.String("output") != "" {
			return o, usageError{fmt.Errorf("--%s is for conversion in place, without --output", flag)}
		}
	}
	return o, nil
}

// aliasFor is the alias to encrypt under. What was begun goes on under the one
// that it has.
func (e *environment) aliasFor(c *cli.Context, t *agent.Target) (string, error) {
	alias, err := e.alias(c)
	if err != nil && t.Unfinished() {
		return "", nil
	}
	return alias, err
}

// warnOfIgnored tells of flags that change nothing of what a command goes on with:
// who asks for "--holes fill" must not believe to have got it.
func warnOfIgnored(c *cli.Context, t *agent.Target, state string) {
	if c.String("output") != "" {
		return
	}
	chosen := c.StringSlice("disk")
	for _, d := range t.Disks {
		named := len(chosen) == 0 || slices.Contains(chosen, d.Node)
		if !named || d.Record == nil || d.Record.State != state {
			continue
		}
		to := d.Record.Recipients[0]
		for _, kept := range [][2]string{
			{"holes", d.Record.Holes}, {"sector-size", strconv.Itoa(d.Record.SectorSize)}, {"kms", to.Alias}, {"kek", to.KEKID},
		} {
			if given := c.String(kept[0]); c.IsSet(kept[0]) && given != kept[1] {
				warn(c, fmt.Sprintf("--%s %s changes nothing of what was begun: disk %s goes on with %s", kept[0], given, d.Node, kept[1]))
			}
		}
	}
}

// errStopped is why a conversion in place ended when somebody interrupted it.
var errStopped = errors.New("interrupted")

// finishCommand is the command that finishes a conversion.
func finishCommand(u *agent.Unfinished) string {
	command := map[string]string{
		agent.StateEncrypting: "vmcrypt encrypt", agent.StateDecrypting: "vmcrypt decrypt", agent.StateRekeying: "vmcrypt rekey --deep",
	}[u.State] + " " + shellWord(u.Target)
	if u.Named {
		command += " --disk " + u.Node
	}
	return command
}

func unfinishedHint(u *agent.Unfinished, f failure) string {
	command := finishCommand(u) + f.same
	if f.abort && u.Err != nil { // which is not what was to be finished
		return fmt.Sprintf("to go on going back: %s --abort; to go forward again: %s", command, command)
	}
	return fmt.Sprintf("to finish it: %s; to undo it: %s --abort", command, command)
}
