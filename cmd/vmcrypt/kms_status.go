package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/vmcrypt/vmcrypt/agent"
	"github.com/vmcrypt/vmcrypt/kek"
)

func kmsStatusCommand() *cli.Command {
	return command(cli.Command{
		Name:      "status",
		Usage:     "ask every configured key manager how it is, and show the age of the last backup",
		ArgsUsage: "[ALIAS]",
		Action:    kmsStatus,
	})
}

// kmsReport is the JSON of "kms status".
type kmsReport struct {
	Aliases []aliasReport `json:"aliases"`
	Backup  *backupReport `json:"backup,omitempty"` // of the local key manager
	// Warnings tell of VMs that run key managers and need these to be unlocked.
	Warnings []string `json:"warnings"`
}

type aliasReport struct {
	Alias   string         `json:"alias"`
	Canary  string         `json:"canary"` // the ID of the key that they were tried with; "" if there is none
	Servers []serverReport `json:"servers"`
	// ClientExpires is when the certificate ends that the servers know this host by.
	ClientExpires *time.Time `json:"clientExpires,omitempty"`
}

type serverReport struct {
	Address   string  `json:"address"`
	State     string  `json:"state"`
	Version   string  `json:"version"` // KMIP
	TLS       string  `json:"tls"`     // as in "TLS 1.3"
	Vendor    string  `json:"vendor"`  // as the server calls it; "" if it does not say
	LatencyMs float64 `json:"latencyMs"`
	Error     string  `json:"error"`
	// Expires is until when the server can prove who it is by its certificate.
	Expires *time.Time `json:"expires,omitempty"`
	// Canary is how it gave the key that it was tried with; empty if it was not tried.
	Canary       kek.KeyResult `json:"canary,omitempty"`
	CanaryDetail string        `json:"canaryDetail,omitempty"`
}

type backupReport struct {
	Last *time.Time `json:"last"` // null if there never was one
	Due  bool       `json:"due"`  // keys were made since
	// Error says why the two are not known.
	Error string `json:"error,omitempty"`
}

func kmsStatus(c *cli.Context) error {
	args, err := nArgs(c, 0, 1)
	if err != nil {
		return err
	}
	e, err := newEnvironment(c)
	if err != nil {
		return err
	}
	if len(args) == 0 {
		args = e.config.AliasNames()
	}
	report, err := e.kmsReport(c.Context, args)
	if err != nil {
		return err
	}
	if c.Bool("json") {
		err = writeJSON(c.App.Writer, report)
	} else {
		printKMSReport(c.App.Writer, report)
	}
	if err != nil {
		return err
	}
	return report.verdict()
}

func (e *environment) kmsReport(ctx context.Context, aliases []string) (*kmsReport, error) {
	r := &kmsReport{Aliases: []aliasReport{}, Warnings: []string{}}
	for _, alias := range aliases {
		a, err := e.aliasReport(ctx, alias)
		if err != nil {
			return nil, err
		}
		r.Aliases = append(r.Aliases, a)
	}
	r.Backup = e.backupReport(ctx)
	circles, err := e.host().Circles(ctx)
	r.Warnings = append(r.Warnings, circles...)
	return r, err
}

// aliasReport asks the servers of an alias. One whose certificates can't be read
// does not keep the others from being asked.
func (e *environment) aliasReport(ctx context.Context, alias string) (aliasReport, error) {
	a := aliasReport{Alias: alias, Servers: []serverReport{}}
	cluster, err := e.cluster(alias)
	if errors.Is(err, agent.ErrAlias) {
		return a, err
	}
	if err != nil {
		for _, s := range e.config.Aliases[alias].Servers {
			a.Servers = append(a.Servers, serverReport{Address: s.Address, State: "misconfigured", Error: err.Error()})
		}
		return a, nil
	}
	a.ClientExpires = utc(cluster.Expires())
	found := cluster.Status(ctx)
	for _, s := range found {
		a.Servers = append(a.Servers, serverOf(s))
	}
	return a, a.try(ctx, cluster, found)
}

// try fetches a key from each server: that one answers does not prove that keys can be
// had. The error is that ctx has ended.
func (a *aliasReport) try(ctx context.Context, cluster *kek.Cluster, found []kek.ServerStatus) error {
	id, checks, _ := cluster.Canary(ctx, found...) // the error is what the checks tell, or that there is no key yet
	a.Canary = id
	for i, k := range checks {
		a.Servers[i].Canary, a.Servers[i].CanaryDetail = k.Result, k.Detail
	}
	return ctx.Err()
}

func serverOf(s kek.ServerStatus) serverReport {
	r := serverReport{Address: s.Address, State: string(s.State), Version: s.Version, TLS: s.TLS, Vendor: s.Vendor,
		LatencyMs: float64(s.Latency.Microseconds()) / 1000, Expires: utc(s.Expires)}
	if s.Err != nil {
		r.Error = s.Err.Error()
	}
	return r
}

func utc(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}

// expiryNote warns of a certificate that ends soon; else it is empty.
func expiryNote(whose string, ends *time.Time) string {
	if ends == nil {
		return ""
	}
	on := ends.Format(time.DateOnly)
	switch left := time.Until(*ends); {
	case left >= kek.ExpirySoon:
		return ""
	case left < 0:
		return fmt.Sprintf("%s expired on %s", whose, on)
	default:
		return fmt.Sprintf("%s expires on %s, in %d days", whose, on, int(left.Hours()/24))
	}
}

func (e *environment) backupReport(ctx context.Context) *backupReport {
	if !e.home.Exists() {
		return nil
	}
	last, ok, err := e.home.LastBackup()
	if err != nil {
		return &backupReport{Error: err.Error()}
	}
	b := &backupReport{}
	if ok {
		b.Last = &last
	}
	if b.Due, err = e.home.BackupDue(ctx); err != nil {
		b.Error = err.Error()
	}
	return b
}

func printKMSReport(w io.Writer, r *kmsReport) {
	for _, a := range r.Aliases {
		fmt.Fprintln(w, a.Alias)
		for _, s := range a.Servers {
			if s.Error != "" {
				fmt.Fprintf(w, "    %s  %s: %s\n", s.Address, s.State, plainText(s.Error))
				continue
			}
			fmt.Fprintf(w, "    %s  %s, %s%s, KMIP %s, %.1f ms%s%s\n", s.Address, s.State, s.vendorText(), s.TLS, s.Version,
				s.LatencyMs, s.canaryText(a.Canary), expiryNote(", its certificate", s.Expires))
		}
		if note := expiryNote("this host's certificate", a.ClientExpires); note != "" {
			fmt.Fprintf(w, "    %s\n", note)
		}
	}
	if b := r.Backup; b != nil {
		fmt.Fprintf(w, "last backup of the local key manager: %s\n", b.text())
	}
	printWarnings(w, r.Warnings)
}

func (s serverReport) vendorText() string {
	if s.Vendor == "" {
		return ""
	}
	return plainText(s.Vendor) + ", "
}

func (s serverReport) canaryText(id string) string {
	switch s.Canary {
	case "":
		return ""
	case kek.KeyOK:
		return ", gives keys"
	}
	if id == "" {
		return fmt.Sprintf(", but tells of no keys: %s: %s", s.Canary, plainText(s.CanaryDetail))
	}
	return fmt.Sprintf(", but key %s is %s: %s", plainText(id), s.Canary, plainText(s.CanaryDetail))
}

func (b *backupReport) text() string {
	switch {
	case b.Error != "":
		return "unknown: " + b.Error
	case b.Last == nil:
		return "none; " + backupDue
	case b.Due:
		return fmt.Sprintf("%s ago; %s", age(*b.Last), backupDue)
	}
	return age(*b.Last) + " ago"
}

// age is the time since t, in the unit that a person would use.
func age(t time.Time) string {
	d := time.Since(t)
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%d s", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%d min", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h", int(d.Hours()))
	}
	return fmt.Sprintf("%d days", int(d.Hours()/24))
}

// verdict fails if an alias has no server that answers, or none that gives keys.
func (r *kmsReport) verdict() error {
	for _, a := range r.Aliases {
		if !a.answers() {
			return hinted{fmt.Errorf("alias %q: %w", a.Alias, kek.ErrUnavailable), "what is wrong with each stands beside its address"}
		}
		if a.isTried() && !slices.ContainsFunc(a.Servers, func(s serverReport) bool { return s.Canary == kek.KeyOK }) {
			return fmt.Errorf("alias %q: %w: %s", a.Alias, kek.ErrCanary, cmp.Or(a.Canary, "they tell of none"))
		}
	}
	return nil
}

func (a aliasReport) isTried() bool {
	return slices.ContainsFunc(a.Servers, func(s serverReport) bool { return s.Canary != "" })
}

func (a aliasReport) answers() bool {
	for _, s := range a.Servers {
		if s.Error == "" {
			return true
		}
	}
	return false
}
