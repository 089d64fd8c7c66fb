package main

import (
	"fmt"
	"os"

	"github.com/urfave/cli/v2"

	"github.com/vmcrypt/vmcrypt/internal/libvirtxml"
)

func libvirtHookCommand() *cli.Command {
	return command(cli.Command{
		Name:      "libvirt-hook",
		Usage:     "unlock a VM before libvirt starts it, and lock it afterwards; libvirt calls this",
		ArgsUsage: "DOMAIN OPERATION SUBOPERATION EXTRA",
		Description: "The arguments and the domain's XML on standard input are those of https://libvirt.org/hooks.html.\n" +
			"At \"prepare begin\" the disks are unlocked of which the metadata name the descriptor, and the domain\n" +
			"starts only if that works; at \"release end\" they are locked. Other domains and operations are ignored.",
		Flags:  agentFlags(),
		Action: libvirtHook,
	})
}

func libvirtHook(c *cli.Context) error {
	args, err := nArgs(c, 3, 4)
	if err != nil {
		return err
	}
	switch args[1] + " " + args[2] {
	case "prepare begin":
		descriptor, owner, xml, err := domainOfHook()
		if err != nil {
			return fmt.Errorf("%w: %w", errStart, err)
		}
		if descriptor != "" {
			return powerOn(c, descriptor, owner, xml)
		}
	case "release end":
		// What is wrong with it was said when it should have started.
		if descriptor, owner, _, err := domainOfHook(); err == nil && descriptor != "" {
			powerOff(c, descriptor, owner)
		}
	}
	return nil
}

// domainOfHook reads a domain: which VM it needs, "" for none, and for whom.
func domainOfHook() (descriptor, owner, xml string, err error) {
	domain, err := libvirtxml.Read(os.Stdin)
	if err != nil {
		return "", "", "", err
	}
	descriptor, err = domain.Descriptor()
	if err != nil || descriptor == "" {
		return "", "", "", err
	}
	if err := checkDescriptor(descriptor); err != nil {
		return "", "", "", fmt.Errorf("%w: %w", libvirtxml.ErrMetadata, err)
	}
	id, err := domain.UUID()
	return descriptor, "libvirt:" + id.String(), domain.String(), err
}
