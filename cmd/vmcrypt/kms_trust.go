package main

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/urfave/cli/v2"

	"github.com/vmcrypt/vmcrypt/agent"
	"github.com/vmcrypt/vmcrypt/internal/config"
	"github.com/vmcrypt/vmcrypt/internal/durable"
	"github.com/vmcrypt/vmcrypt/kek"
)

func kmsTrustCommand() *cli.Command {
	return command(cli.Command{
		Name:      "trust",
		Usage:     "have an alias's key managers and this host know each other",
		ArgsUsage: "ALIAS",
		Description: "Without --csr, --self-signed, --cert and --ca, shows the certificates of the key managers and pins\n" +
			"each that you confirm. The alias with its servers must stand in the configuration, which is\n" +
			"changed as needed. A key that --csr or --self-signed makes is used once --cert has brought its\n" +
			"certificate, so that what works until then goes on working.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "csr", Usage: "make a key, and write a request to `FILE` that the key manager's CA is to sign", TakesFile: true},
			&cli.StringFlag{Name: "self-signed", Usage: "make a key, and write a certificate to `FILE` that is to be uploaded to the key manager", TakesFile: true},
			&cli.StringFlag{Name: "name", Usage: "`NAME` of this host in the request or certificate (default: the host's)"},
			&cli.StringFlag{Name: "cert", Usage: "use the client certificate in `FILE` (PEM) from now on", TakesFile: true},
			&cli.StringFlag{Name: "key", Usage: "with its key in `FILE` (default: the key that was made for it)", TakesFile: true},
			&cli.StringFlag{Name: "ca", Usage: "trust key managers that the authorities in `FILE` (PEM) vouch for", TakesFile: true},
			&cli.StringSliceFlag{Name: "fingerprint", Usage: "pin the certificates with this `SHA256`, without asking"},
		},
		Action: kmsTrust,
	})
}

// trustSteps are what the command can do, by the flag that asks for it; and, without any
// of these, to pin.
var trustSteps = []trustStepOf{
	{"csr", []string{"name"}, (*trusting).requestCertificate},
	{"self-signed", []string{"name"}, (*trusting).signOwnCertificate},
	{"cert", []string{"key"}, (*trusting).importCertificate},
	{"ca", nil, (*trusting).trustCA},
	{"", []string{"fingerprint"}, (*trusting).pin},
}

type trustStepOf struct {
	flag string
	with []string // the flags that go with it
	do   func(*trusting) (*trustReport, error)
}

// trusting is an alias whose trust is being set up.
type trusting struct {
	*environment
	c     *cli.Context
	alias string
	kms   kek.Config
}

// trustReport is the JSON of "kms trust".
type trustReport struct {
	Alias        string              `json:"alias"`
	Wrote        []string            `json:"wrote"` // paths
	Certificates []certificateReport `json:"certificates"`
	Next         string              `json:"next"`
}

type certificateReport struct {
	Server      string    `json:"server,omitempty"` // that showed it
	Subject     string    `json:"subject"`
	Issuer      string    `json:"issuer"`
	Names       []string  `json:"names"`
	From        time.Time `json:"from"`
	Until       time.Time `json:"until"`
	Fingerprint string    `json:"fingerprint"`
}

func kmsTrust(c *cli.Context) error {
	args, err := nArgs(c, 1, 1)
	if err != nil {
		return err
	}
	step, err := trustStep(c)
	if err != nil {
		return err
	}
	e, err := newEnvironment(c)
	if err != nil {
		return err
	}
	t := &trusting{environment: e, c: c, alias: args[0]}
	kms, ok := e.config.Alias(t.alias)
	if !ok {
		return hinted{fmt.Errorf("%w %q", agent.ErrAlias, t.alias), "add it with its servers to " + e.paths.File + " first"}
	}
	t.kms = kms
	report, stepErr := step(t)
	if report != nil {
		err = report.write(c)
	}
	return errors.Join(stepErr, err)
}

// trustStep is the one step that the flags ask for.
func trustStep(c *cli.Context) (func(*trusting) (*trustReport, error), error) {
	last := len(trustSteps) - 1
	i := slices.IndexFunc(trustSteps[:last], func(s trustStepOf) bool { return c.IsSet(s.flag) })
	if i < 0 {
		i = last
	}
	step := trustSteps[i]
	for _, flag := range c.LocalFlagNames() {
		shared := flag == "config" || flag == "json"
		if !shared && flag != step.flag && !slices.Contains(step.with, flag) {
			return nil, usageError{fmt.Errorf("--%s does not go with what else is asked for; see \"%s --help\"", flag, c.Command.HelpName)}
		}
	}
	return step.do, nil
}

func (r *trustReport) write(c *cli.Context) error {
	if c.Bool("json") {
		return writeJSON(c.App.Writer, r)
	}
	for _, path := range r.Wrote {
		fmt.Fprintf(c.App.Writer, "wrote %s\n", path)
	}
	for _, cert := range r.Certificates {
		if cert.Server != "" {
			fmt.Fprintf(c.App.Writer, "%s is pinned to %s\n", plainText(cert.Server), cert.Fingerprint)
			continue
		}
		cert.print(c.App.Writer)
	}
	_, err := fmt.Fprintf(c.App.Writer, "next: %s\n", r.Next)
	return err
}

// reportOf is a report with what all have in common.
func (t *trusting) reportOf(next string, certs ...*x509.Certificate) *trustReport {
	r := &trustReport{Alias: t.alias, Wrote: []string{}, Certificates: []certificateReport{}, Next: next}
	for _, cert := range certs {
		r.Certificates = append(r.Certificates, describe("", cert))
	}
	return r
}

func describe(server string, cert *x509.Certificate) certificateReport {
	r := certificateReport{
		Server: server, Subject: cert.Subject.String(), Issuer: cert.Issuer.String(), Names: append([]string{}, cert.DNSNames...),
		From: cert.NotBefore.UTC(), Until: cert.NotAfter.UTC(), Fingerprint: kek.Fingerprint(cert),
	}
	for _, ip := range cert.IPAddresses {
		r.Names = append(r.Names, ip.String())
	}
	return r
}

func (r certificateReport) print(w io.Writer) {
	fmt.Fprintf(w, "    subject      %s\n    issuer       %s\n", plainText(r.Subject), plainText(r.Issuer))
	if len(r.Names) > 0 {
		fmt.Fprintf(w, "    for          %s\n", plainText(strings.Join(r.Names, ", ")))
	}
	fmt.Fprintf(w, "    valid        %s to %s\n    fingerprint  %s\n",
		r.From.Format(time.DateOnly), r.Until.Format(time.DateOnly), r.Fingerprint)
}

// trustCommand is a command line for this alias.
func (t *trusting) trustCommand(flag, file string) string {
	return fmt.Sprintf("\"vmcrypt kms trust %s --%s %s\"", shellWord(t.alias), flag, shellWord(file))
}

// showStatus is what to do when trust has changed. Changed files are taken up by
// themselves, a changed configuration is not.
func (t *trusting) showStatus(configured bool) string {
	next := fmt.Sprintf("\"vmcrypt kms status %s\" shows how the key managers answer", shellWord(t.alias))
	if configured {
		next += "; an agent that runs has to be restarted, as the configuration has changed"
	}
	return next
}

// file is a file of the alias: the one that is configured, unless another alias has it too,
// or one beside the configuration. The setting makes it the configured one; it is nil if it
// is that already.
func (t *trusting) file(key, suffix string) (path string, setting []config.Setting) {
	if path = paths(t.kms)[key]; path != "" && !t.isShared(path) {
		return path, nil
	}
	name := fileName(t.alias) + suffix
	return filepath.Join(filepath.Dir(t.paths.File), name), []config.Setting{{Key: key, Value: name}}
}

func paths(k kek.Config) map[string]string {
	return map[string]string{"clientCert": k.ClientCert, "clientKey": k.ClientKey, "ca": k.CA}
}

func (t *trusting) isShared(path string) bool {
	for name, k := range t.config.Aliases {
		if name != t.alias && slices.Contains([]string{k.ClientCert, k.ClientKey, k.CA}, path) {
			return true
		}
	}
	return false
}

// fileName is an alias as a name of a file.
func fileName(alias string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsLetter(r) || unicode.IsDigit(r) || r == '-' {
			return r
		}
		return '_'
	}, alias)
}

// put writes a file of the alias. One that is not configured may be somebody else's, and is
// replaced only by the same.
func put(path string, data []byte, perm fs.FileMode, configured bool) error {
	if !configured {
		there, err := os.ReadFile(path)
		defer clear(there)
		if err == nil && !bytes.Equal(there, data) {
			return fmt.Errorf("%s: %w", path, fs.ErrExist)
		}
	}
	return durable.WriteFile(path, data, perm)
}

// maxPEM bounds what is read of certificates and keys, in bytes.
const maxPEM = 1 << 20

func readPEM(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxPEM+1))
	if err == nil && len(text) > maxPEM {
		err = fmt.Errorf("%s: longer than %d bytes", path, maxPEM)
	}
	return text, err
}
