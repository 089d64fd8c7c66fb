package main

import (
	"bufio"
	"cmp"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/term"

	"github.com/vmcrypt/vmcrypt/internal/config"
	"github.com/vmcrypt/vmcrypt/kek"
)

// trustCA has authorities vouch for the key managers, whose pins are taken away.
func (t *trusting) trustCA() (*trustReport, error) {
	from := t.c.String("ca")
	text, err := readPEM(from)
	if err != nil {
		return nil, err
	}
	certs, err := authorities(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", from, err)
	}
	path, settings := t.file("ca", "-ca.pem")
	if err := put(path, text, 0o644, settings == nil); err != nil {
		return nil, err
	}
	unpinned := t.kms.Pin != ""
	changed := len(settings) > 0
	settings = append(settings, config.Setting{Key: "pin"})
	for _, s := range t.kms.Servers {
		unpinned = unpinned || s.Pin != ""
		settings = append(settings, config.Setting{Server: s.Address, Key: "pin"})
	}
	report := t.reportOf(t.showStatus(changed || unpinned), certs...)
	if unpinned {
		report.Next = "the pins are gone, since these authorities vouch for the key managers now; " + report.Next
	}
	report.Wrote = append(report.Wrote, path)
	return report, config.Set(t.paths.File, t.alias, settings...)
}

// authorities reads the certificates in a PEM file, of which there must be one at least.
func authorities(text []byte) (certs []*x509.Certificate, err error) {
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("a %s is in it, where only certificates belong", block.Type)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		certs = append(certs, cert)
	}
	if len(certs) == 0 {
		return nil, errors.New("no certificate in PEM")
	}
	return certs, nil
}

// pin shows the certificates of the key managers and pins those that are confirmed. One that
// does not answer keeps none of the others from being pinned, and is not trusted alone if no
// authorities vouch for it.
func (t *trusting) pin() (*trustReport, error) {
	expected, err := t.fingerprints()
	if err != nil {
		return nil, err
	}
	dial, err := t.dialer(t.alias)
	if err != nil {
		return nil, err
	}
	report := t.reportOf(t.showStatus(true))
	var settings []config.Setting
	var faults []error
	for _, s := range t.kms.Servers {
		cert, err := kek.Shown(t.c.Context, s, dial)
		if err == nil {
			err = t.confirm(s, cert, expected)
		}
		if err != nil {
			faults = append(faults, err)
			continue
		}
		report.Certificates = append(report.Certificates, describe(s.Address, cert))
		settings = append(settings, config.Setting{Server: s.Address, Key: "pin", Value: kek.Fingerprint(cert)})
	}
	if len(settings) == 0 {
		return nil, errors.Join(faults...)
	}
	if len(faults) == 0 {
		settings = append(settings, config.Setting{Key: "pin"}) // each has its own now
	} else if t.kms.CA == "" && t.kms.Pin == "" {
		report.Next = fmt.Sprintf("those that have no pin are not trusted: \"vmcrypt kms trust %s\" pins them, too; %s", shellWord(t.alias), report.Next)
	}
	faults = append(faults, config.Set(t.paths.File, t.alias, settings...))
	return report, errors.Join(faults...)
}

// fingerprints are those that were named, in one spelling.
func (t *trusting) fingerprints() (all []string, err error) {
	for _, text := range t.c.StringSlice("fingerprint") {
		f, err := kek.ParseFingerprint(text)
		if err != nil {
			return nil, usageError{err}
		}
		all = append(all, f)
	}
	return all, nil
}

// confirm finds out whether a certificate is that of the key manager: by the fingerprints
// that were named, or by asking, unless it is pinned already.
func (t *trusting) confirm(s kek.Server, cert *x509.Certificate, expected []string) error {
	shown := kek.Fingerprint(cert)
	if pinned, err := kek.ParseFingerprint(cmp.Or(s.Pin, t.kms.Pin)); err == nil && pinned == shown {
		return nil
	}
	if len(expected) > 0 {
		if slices.Contains(expected, shown) {
			return nil
		}
		return fmt.Errorf("key manager %s shows %s, which was not named: nothing is pinned for it", s.Address, shown)
	}
	fmt.Fprintf(os.Stderr, "key manager %s shows\n", plainText(s.Address))
	describe(s.Address, cert).print(os.Stderr)
	if !term.IsTerminal(int(os.Stdin.Fd())) {
		return usageError{fmt.Errorf("key manager %s: there is no terminal to confirm its certificate at: have its administrator tell the fingerprint, and name it with --fingerprint", s.Address)}
	}
	yes, err := ask(t.c.Context, "Is this the fingerprint that the key manager's administrator tells? [yes/no] ")
	if err == nil && !yes {
		err = fmt.Errorf("key manager %s: its certificate was not confirmed", s.Address)
	}
	return err
}

// ask asks a question at the terminal. Only "yes" is yes.
func ask(ctx context.Context, question string) (bool, error) {
	fmt.Fprint(os.Stderr, question)
	read := make(chan string, 1)
	go func() {
		line, _ := bufio.NewReader(os.Stdin).ReadString('\n') // what can't be read is no yes
		read <- line
	}()
	select {
	case line := <-read:
		return strings.TrimSpace(line) == "yes", nil
	case <-ctx.Done():
		return false, ctx.Err()
	}
}
