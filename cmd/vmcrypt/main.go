// Command vmcrypt encrypts the disks of virtual machines on KVM hosts under keys
// that a KMIP key manager holds.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/vmcrypt/vmcrypt/agent"
	"github.com/vmcrypt/vmcrypt/internal/logging"
)

// version is set by the build.
var version = "development"

func main() {
	// No core dump and no debugger of the same user gets at keys.
	_ = unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0) // it never fails with these arguments
	signal.Ignore(syscall.SIGPIPE)                   // it would end the process before it has cleaned up
	slog.SetDefault(slog.New(logging.Handler(os.Stderr)))
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	context.AfterFunc(ctx, stop) // who asks twice means it
	os.Exit(run(ctx, os.Args))
}

// run carries out a command line and returns its exit code.
func run(ctx context.Context, args []string) int {
	app := newApp()
	out := &checkedWriter{w: os.Stdout}
	app.Writer = out
	args, err := reorder(app, args)
	if err == nil {
		err = app.RunContext(ctx, args)
	}
	if err == nil {
		err = out.err
	}
	if err == nil {
		return exitDone
	}
	if errors.Is(err, syscall.EPIPE) && !errors.Is(err, agent.ErrUnfinished) {
		return exitFailure // who reads no more needs no message
	}
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		err = interrupted(err)
	}
	report(err, wantsJSON(args))
	return exitCode(err)
}

// interrupted says what an interrupted command left.
func interrupted(err error) error {
	u, f := (*agent.Unfinished)(nil), failure{}
	if !errors.As(err, &u) {
		return errInterrupted
	}
	u.Err = errStopped
	_ = errors.As(err, &f) // it is, of a command
	f.error = u
	return f
}

func newApp() *cli.App {
	return &cli.App{
		Name:    "vmcrypt",
		Usage:   "encrypt the disks of virtual machines, with the keys in a KMIP key manager",
		Version: version,
		Description: "A TARGET is a VM's descriptor (.vmx) or a disk image. Flags work before and after it.\n" +
			"The configuration is config.yaml below $VMCRYPT_HOME, else /etc/vmcrypt for root and\n" +
			"~/.config/vmcrypt for others.\n\n" + exitCodeHelp,
		Commands: []*cli.Command{
			initCommand(), encryptCommand(), decryptCommand(), rekeyCommand(), statusCommand(), verifyCommand(), preflightCommand(),
			lsCommand(), catCommand(), serveCommand(), agentCommand(), unlockCommand(), lockCommand(), listCommand(),
			libvirtHookCommand(), libvirtXMLCommand(), proxmoxHookCommand(), proxmoxArgsCommand(),
			benchCommand(), kmsCommand(), auditCommand(), diskServerCommand(), manualCommand(),
		},
		HideHelpCommand:        true,
		UseShortOptionHandling: false,
		Action:                 unknownCommand,
		OnUsageError:           onUsageError,
		ExitErrHandler:         func(*cli.Context, error) {},
		ErrWriter:              os.Stderr,
	}
}

// unknownCommand runs where no command was named, or one that there isn't.
func unknownCommand(c *cli.Context) error {
	if c.NArg() == 0 {
		return cli.ShowAppHelp(c)
	}
	return usageError{fmt.Errorf("unknown command %q; see \"vmcrypt --help\"", c.Args().First())}
}

func onUsageError(c *cli.Context, err error, _ bool) error {
	return usageError{fmt.Errorf("%w; see \"%s --help\"", err, c.Command.HelpName)}
}
