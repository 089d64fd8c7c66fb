package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/google/uuid"
	"github.com/urfave/cli/v2"

	"github.com/vmcrypt/vmcrypt/agent"
	"github.com/vmcrypt/vmcrypt/kek"
)

func kmsCreateKeyCommand() *cli.Command {
	return command(cli.Command{
		Name:  "create-key",
		Usage: "have the key managers make a key, to be named with --kek",
		Flags: []cli.Flag{aliasFlag()},
		Action: func(c *cli.Context) error {
			if _, err := nArgs(c, 0, 0); err != nil {
				return err
			}
			return withKeys(c, createKey)
		},
	})
}

func kmsListKeysCommand() *cli.Command {
	return command(cli.Command{
		Name:  "list-keys",
		Usage: "show the keys that the key managers have, and which VMs need them",
		Description: "The VMs are those in the datastores of this host's configuration. A key that vmcrypt made and none\n" +
			"of them needs is an orphan, unless another host's do.",
		Flags: []cli.Flag{aliasFlag()},
		Action: func(c *cli.Context) error {
			if _, err := nArgs(c, 0, 0); err != nil {
				return err
			}
			return withKeys(c, listKeys)
		},
	})
}

func kmsRevokeKeyCommand() *cli.Command {
	return command(cli.Command{
		Name:        "revoke-key",
		Usage:       "have nothing more encrypted under a key",
		ArgsUsage:   "ID",
		Description: "What is encrypted under it can still be unlocked, until the key is destroyed.",
		Flags: []cli.Flag{aliasFlag(),
			&cli.BoolFlag{Name: "compromised", Usage: "others may know the key"}},
		Action: func(c *cli.Context) error {
			if _, err := nArgs(c, 1, 1); err != nil {
				return err
			}
			return withKeys(c, revokeKey)
		},
	})
}

func kmsDestroyKeyCommand() *cli.Command {
	return command(cli.Command{
		Name:      "destroy-key",
		Usage:     "delete a key for ever, and with it all that is encrypted under it",
		ArgsUsage: "ID",
		Description: "Refuses a key that a VM in the datastores of this host's configuration needs. Nobody else is asked:\n" +
			"--yes says that no other host's does. Where no datastores are configured, one is empty, or not all in\n" +
			"them can be read, it refuses, too, unless --unchecked says that nothing there needs the key. The key\n" +
			"has to be revoked first.",
		Flags: []cli.Flag{aliasFlag(),
			&cli.BoolFlag{Name: "yes", Usage: "no disk anywhere needs the key"},
			&cli.BoolFlag{Name: "unchecked", Usage: "no VM that could not be looked at needs the key"}},
		Action: func(c *cli.Context) error {
			if _, err := nArgs(c, 1, 1); err != nil {
				return err
			}
			return withKeys(c, destroyKey)
		},
	})
}

func aliasFlag() cli.Flag {
	return &cli.StringFlag{Name: "kms", Usage: "the key managers of `ALIAS` (default: defaultAlias of the configuration)"}
}

// keyWork is what the commands for keys work with.
type keyWork struct {
	*cli.Context
	env     *environment
	alias   string
	cluster *kek.Cluster
}

func withKeys(c *cli.Context, do func(*keyWork) error) error {
	e, err := newEnvironment(c)
	if err != nil {
		return err
	}
	w := &keyWork{Context: c, env: e}
	if w.alias, err = e.alias(c); err != nil {
		return err
	}
	if w.cluster, err = e.cluster(w.alias); err != nil {
		return err
	}
	return do(w)
}

// keyResult is the JSON of commands that change one key.
type keyResult struct {
	Alias string `json:"alias"`
	ID    string `json:"id"`
}

// tell says what was done to a key.
func (w *keyWork) tell(id, done string) error {
	if w.Bool("json") {
		return writeJSON(w.App.Writer, keyResult{w.alias, id})
	}
	_, err := fmt.Fprintf(w.App.Writer, "%s key %s at %q\n", done, plainText(id), w.alias)
	return err
}

func createKey(w *keyWork) error {
	key, err := w.cluster.Create(w.Context.Context)
	if err != nil {
		return err
	}
	key.Destroy()
	if !w.Bool("json") {
		remindOfBackup(w.Context, w.env, w.alias)
	}
	return w.tell(key.ID, "created")
}

// keyList is the JSON of "kms list-keys".
type keyList struct {
	Alias  string      `json:"alias"`
	Keys   []listedKey `json:"keys"`
	Unread []string    `json:"unread"` // descriptors and datastores that can't be read, and links that are not followed: there, any key may be needed
}

type listedKey struct {
	ID      string     `json:"id"`
	Name    string     `json:"name"`
	State   string     `json:"state"` // as kek.State has it, or stateMissing
	Created *time.Time `json:"created"`
	VMs     []string   `json:"vms"`    // the descriptors of those that need it
	Orphan  bool       `json:"orphan"` // vmcrypt made it, and none does
}

// stateMissing is that of a key that VMs need and the key manager does not tell of.
const stateMissing = "missing"

func listKeys(w *keyWork) error {
	keys, err := w.cluster.List(w.Context.Context)
	if err != nil {
		return err
	}
	uses, err := w.env.host().KeyUses(w.Context.Context)
	if err != nil {
		return err
	}
	list := listOf(w.alias, keys, uses)
	if w.Bool("json") {
		return writeJSON(w.App.Writer, list)
	}
	return list.print(w.Context)
}

func listOf(alias string, keys []kek.KeyInfo, uses *agent.KeyUses) *keyList {
	list := &keyList{Alias: alias, Keys: []listedKey{}, Unread: append([]string{}, uses.Unknown...)}
	needed := map[string][]string{}
	for id, vms := range uses.VMs[alias] {
		needed[id] = slices.Sorted(slices.Values(vms))
	}
	for _, key := range keys {
		listed := listedKey{ID: key.ID, Name: key.Name, State: string(key.State), VMs: append([]string{}, needed[key.ID]...)}
		if !key.Created.IsZero() {
			listed.Created = &key.Created
		}
		listed.Orphan = len(listed.VMs) == 0 && strings.HasPrefix(key.Name, "vmcrypt-kek-")
		list.Keys = append(list.Keys, listed)
		delete(needed, key.ID)
	}
	for _, id := range slices.Sorted(maps.Keys(needed)) {
		list.Keys = append(list.Keys, listedKey{ID: id, State: stateMissing, VMs: needed[id]})
	}
	return list
}

func (l *keyList) print(c *cli.Context) error {
	w := tabwriter.NewWriter(c.App.Writer, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "KEY\tSTATE\tCREATED\tNEEDED BY")
	for _, key := range l.Keys {
		created, by := "", strings.Join(key.VMs, ", ")
		if key.Created != nil {
			created = key.Created.Local().Format(time.DateTime)
		}
		if key.Orphan {
			by = "no VM in the datastores of this host"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", plainText(key.ID), key.State, created, plainText(by))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, problem := range l.Unread {
		fmt.Fprintf(c.App.Writer, "may need any of them: %s\n", plainText(problem))
	}
	return nil
}

func revokeKey(w *keyWork) error {
	id := w.Args().First()
	if err := w.cluster.Revoke(w.Context.Context, id, w.Bool("compromised")); err != nil {
		return w.unknown(err)
	}
	return w.tell(id, "revoked")
}

// errNeeded is the error for a key without which VMs were lost.
var errNeeded = errors.New("the key is needed")

func destroyKey(w *keyWork) error {
	id := w.Args().First()
	// Its state comes first: while its uses are looked for, one that is active gets new ones.
	state, err := w.cluster.KeyState(w.Context.Context, id)
	if err != nil && !errors.Is(err, kek.ErrDestroyed) {
		return err
	}
	if err := w.checkUnneeded(w.Context.Context, id); err != nil {
		return err
	}
	if state == kek.Active {
		return fmt.Errorf("destroy key %q: %w", id, kek.ErrInUse)
	}
	if !w.Bool("yes") {
		return usageError{fmt.Errorf("destroying key %s loses all that is encrypted under it, on any host: if nothing is, add --yes", id)}
	}
	if err := w.cluster.Destroy(w.Context.Context, id); err != nil {
		return w.unknown(err)
	}
	return w.tell(id, "destroyed")
}

// unknown says where to look for the keys that there are, if err is that one is not there.
func (w *keyWork) unknown(err error) error {
	if errors.Is(err, kek.ErrNotFound) {
		return hinted{err, "\"vmcrypt kms list-keys --kms " + shellWord(w.alias) + "\" shows the keys"}
	}
	return err
}

// checkUnneeded refuses a key that a VM needs, or may need, since it can't be read or
// nobody knows where VMs are.
func (w *keyWork) checkUnneeded(ctx context.Context, id string) error {
	uses, err := w.env.host().KeyUses(ctx)
	if err != nil {
		return err
	}
	var vms []string
	for alias, keys := range uses.VMs {
		unique := uuid.Validate(id) == nil // no two are alike, whoever makes them
		if len(keys[id]) > 0 && (unique || w.env.mayBeSame(ctx, alias, w.alias)) {
			vms = append(vms, keys[id]...)
		}
	}
	slices.Sort(vms)
	if len(vms) > 0 {
		return fmt.Errorf("%w: %s is that of %s", errNeeded, id, strings.Join(slices.Compact(vms), ", "))
	}
	if w.Bool("unchecked") {
		return nil
	}
	return w.checkAllSeen(id, uses)
}

// checkAllSeen refuses a key if there may be VMs that nobody has looked at.
func (w *keyWork) checkAllSeen(id string, uses *agent.KeyUses) error {
	const otherwise = ", or, if none needs the key, add --unchecked"
	switch {
	case len(w.env.config.Datastores) == 0:
		return hinted{
			fmt.Errorf("%w perhaps: the configuration names no datastores, so that nobody can tell which VMs use %s", errNeeded, id),
			"name the folders of this host's VMs as datastores in " + w.env.paths.File + otherwise,
		}
	case len(uses.Unknown) > 0:
		return hinted{
			fmt.Errorf("%w perhaps, since not all VMs were looked at: %s", errNeeded, strings.Join(uses.Unknown, "; ")),
			"see to these" + otherwise,
		}
	}
	return nil
}

// mayBeSame tells whether two aliases may lead to the same keys: an administrator may
// rename one, while descriptors go on naming it as it was, or call its servers otherwise.
func (e *environment) mayBeSame(ctx context.Context, a, b string) bool {
	first, known := e.config.Alias(a)
	second := e.config.Aliases[b]
	return a == b || !known || slices.ContainsFunc(first.Servers, func(s kek.Server) bool {
		return slices.ContainsFunc(second.Servers, func(o kek.Server) bool { return mayBeSameServer(ctx, s.Address, o.Address) })
	})
}

// mayBeSameServer tells whether two addresses may be of one server. One whose host can't be
// looked up may be any.
func mayBeSameServer(ctx context.Context, a, b string) bool {
	hostA, portA, errA := net.SplitHostPort(a)
	hostB, portB, errB := net.SplitHostPort(b)
	switch {
	case strings.EqualFold(a, b):
		return true
	case errA != nil || errB != nil || portA != portB:
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	atA, errA := net.DefaultResolver.LookupHost(ctx, hostA)
	atB, errB := net.DefaultResolver.LookupHost(ctx, hostB)
	return errA != nil || errB != nil || slices.ContainsFunc(atA, func(ip string) bool { return slices.Contains(atB, ip) })
}

// lookupTimeout is how long it may take to look two hosts up.
const lookupTimeout = 10 * time.Second
