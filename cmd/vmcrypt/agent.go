package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"

	"github.com/urfave/cli/v2"
	"golang.org/x/sync/semaphore"

	"github.com/vmcrypt/vmcrypt/agent"
	"github.com/vmcrypt/vmcrypt/agent/api"
	"github.com/vmcrypt/vmcrypt/agent/daemon"
	"github.com/vmcrypt/vmcrypt/agent/diskserver"
	"github.com/vmcrypt/vmcrypt/internal/config"
	"github.com/vmcrypt/vmcrypt/internal/listen"
	"github.com/vmcrypt/vmcrypt/internal/systemd"
)

func agentCommand() *cli.Command {
	return command(cli.Command{
		Name:  "agent",
		Usage: "run the host agent, which unlocks VMs when they are powered on",
		Description: "Runs until it gets SIGINT or SIGTERM. The disks that are unlocked then stay so: each VM's are served\n" +
			"by a process of their own, which the next agent finds again. The configuration says which folders\n" +
			"the agent may open VMs in (datastores), and who may use it.",
		Flags:  []cli.Flag{&cli.StringFlag{Name: "http", Usage: "have a status page for browsers at `ADDRESS`, such as 127.0.0.1:9180, or the path of a socket"}},
		Action: runAgent,
	})
}

func runAgent(c *cli.Context) error {
	if _, err := nArgs(c, 0, 0); err != nil {
		return err
	}
	e, err := newEnvironment(c)
	if err != nil {
		return configurationError{err}
	}
	defer e.clusters.Close()
	d, err := e.daemon()
	if err != nil {
		return configurationError{err}
	}
	if d.HTTP, err = e.statusPage(c); err != nil {
		return err
	}
	self := api.NewClient(d.Socket)
	return daemon.Run(c.Context, d, func() {
		systemd.Ready(c.Context, func(ctx context.Context) error {
			_, err := self.Agent(ctx)
			return err
		})
		if c.Bool("json") {
			_ = writeJSON(c.App.Writer, map[string]string{"type": "listening", "socket": d.Socket})
			return
		}
		fmt.Fprintf(c.App.Writer, "agent listening at %s\n", d.Socket)
	})
}

// daemon is the configuration of the agent.
func (e *environment) daemon() (daemon.Config, error) {
	cfg := e.config.Agent
	owner, err := socketUser(cfg.QEMUUser)
	if err != nil {
		return daemon.Config{}, fmt.Errorf("%s: agent: qemuUser: %w", e.paths.File, err)
	}
	if len(e.config.Datastores) == 0 {
		return daemon.Config{}, fmt.Errorf("%s: datastores: name the folders that the agent may open VMs in", e.paths.File)
	}
	program, err := os.Executable()
	if err != nil {
		return daemon.Config{}, err
	}
	host := e.host()
	host.Keys = new(agent.Keys)
	host.Turns = semaphore.NewWeighted(int64(unlocksPerCPU * runtime.GOMAXPROCS(0)))
	return daemon.Config{
		Release: version, Socket: e.agentSocket(), State: filepath.Join(e.paths.State, "agent"),
		Datastores: e.config.Datastores, Groups: daemon.Groups(cfg.Groups), SocketUser: owner, Host: host, Aliases: e.aliases(),
		Metrics:    cfg.Metrics,
		DiskServer: func() *exec.Cmd { return diskServer(program) },
		Explain:    func(err error) (int, string) { return exitCode(err), hint(err) },
	}, nil
}

// statusPage is where there is to be one, if anywhere.
func (e *environment) statusPage(c *cli.Context) (string, error) {
	if c.IsSet("http") {
		if err := listen.CheckLocal(c.String("http")); err != nil {
			return "", usageError{fmt.Errorf("--http: %w", err)}
		}
		return c.String("http"), nil
	}
	return e.config.Agent.HTTP, nil
}

func (e *environment) aliases() (all []daemon.Alias) {
	for _, name := range e.config.AliasNames() {
		a := daemon.Alias{Name: name}
		for _, s := range e.config.Aliases[name].Servers {
			a.Servers = append(a.Servers, s.Address)
		}
		all = append(all, a)
	}
	return all
}

// unlocksPerCPU is how many unlocks run at once: some wait for key managers.
const unlocksPerCPU = 4

// diskServer is a process of this program, whatever release replaces its file.
func diskServer(program string) *exec.Cmd {
	cmd := exec.Command(program, "disk-server") //nolint:noctx // it outlives the agent
	cmd.Dir, cmd.Stderr, cmd.Env = "/", os.Stderr, systemd.Environ()
	return cmd
}

func (e *environment) agentSocket() string {
	if e.config.Agent.Socket != "" {
		return e.config.Agent.Socket
	}
	return filepath.Join(e.paths.Run, "agent.sock")
}

// qemuUsers are the users that QEMU runs as: on Debian and Ubuntu, and elsewhere.
var qemuUsers = []string{"libvirt-qemu", "qemu"}

// socketUser finds the user that QEMU runs as; the own one if there is no other.
func socketUser(name string) (diskserver.User, error) {
	if name != "" {
		return lookUpUser(name)
	}
	if os.Geteuid() == 0 {
		for _, name := range qemuUsers {
			if u, err := lookUpUser(name); err == nil {
				return u, nil
			}
		}
	}
	return diskserver.User{UID: uint32(os.Geteuid()), GID: uint32(os.Getegid())}, nil
}

// lookUpUser finds a user by name or number; one without a name has the group of the
// same number.
func lookUpUser(name string) (diskserver.User, error) {
	uid, gid := name, name
	u, err := user.Lookup(name)
	if err != nil {
		u, err = user.LookupId(name)
	}
	if err == nil {
		uid, gid = u.Uid, u.Gid
	}
	uidNumber, err := strconv.ParseUint(uid, 10, 32)
	if err != nil {
		return diskserver.User{}, fmt.Errorf("there is no user %q", name)
	}
	gidNumber, err := strconv.ParseUint(gid, 10, 32)
	return diskserver.User{UID: uint32(uidNumber), GID: uint32(gidNumber)}, err
}

// agentClient is a client of the agent that the command line or the configuration
// leads to.
func agentClient(c *cli.Context) (*api.Client, error) {
	socket, err := clientSocket(c)
	if err != nil {
		return nil, err
	}
	return api.NewClient(socket), nil
}

// clientSocket is where the agent listens that a command asks. Who may use root's
// needs no configuration.
func clientSocket(c *cli.Context) (string, error) {
	if socket := c.String("socket"); socket != "" {
		return socket, nil
	}
	p, err := config.Locate(c.String("config"))
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(p.File); errors.Is(err, fs.ErrNotExist) && c.String("config") == "" && os.Getenv("VMCRYPT_HOME") == "" {
		return systemSocket, nil
	}
	cfg, err := config.Load(p.File)
	if err != nil {
		return "", err
	}
	return (&environment{config: cfg, paths: p}).agentSocket(), nil
}

// systemSocket is where root's agent listens.
const systemSocket = "/run/vmcrypt/agent.sock"

func agentFlags() []cli.Flag {
	return []cli.Flag{&cli.StringFlag{Name: "socket", TakesFile: true, Usage: "ask the agent that listens at `PATH` (default: what the configuration says)"}}
}
