package kek

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vmcrypt/vmcrypt/internal/kmipwire"
)

// ExpirySoon is how long before its end a certificate is something to look at.
const ExpirySoon = 60 * 24 * time.Hour

// trust is how vmcrypt and the key managers of an alias prove who they are. Its files are
// read again when they have changed.
type trust struct {
	alias  string
	config Config

	mu      sync.Mutex
	read    *certificates  // those in force
	version [3]os.FileInfo // of the files when they were read last, or could not be; nil for one that is missing
}

// certificates are what the files of a configuration hold. They never change.
type certificates struct {
	client tls.Certificate
	roots  *x509.CertPool // nil where no authority is named: those that are pinned count alone
}

// openTrust reads the certificates of config and checks its pins.
func openTrust(alias string, config Config) (*trust, error) {
	t := &trust{alias: alias, config: config}
	if err := t.checkPins(); err != nil {
		return nil, err
	}
	t.version = t.versions()
	var err error
	t.read, err = t.load()
	return t, err
}

func (t *trust) checkPins() error {
	if t.config.Pin != "" && t.config.CA != "" {
		return errors.New("name either pin or ca, not both")
	}
	for _, s := range t.config.Servers {
		if pin := t.pinOf(s); pin != "" {
			if _, err := ParseFingerprint(pin); err != nil {
				return fmt.Errorf("pin of %s: %w", s.Address, err)
			}
		}
	}
	return nil
}

// pinOf is the pin of a server as it is configured, "" if authorities vouch for it.
func (t *trust) pinOf(s Server) string {
	if s.Pin != "" {
		return s.Pin
	}
	return t.config.Pin
}

// current gives the certificates in force: another pointer where files have changed since.
// Files that make no sense, perhaps because they are just being replaced, leave the former
// ones in force.
func (t *trust) current() *certificates {
	t.mu.Lock()
	defer t.mu.Unlock()
	version := t.versions()
	if slices.EqualFunc(version[:], t.version[:], sameVersion) {
		return t.read
	}
	t.version = version
	read, err := t.load()
	log := slog.With("alias", t.alias)
	if err != nil {
		log.Error("certificates have changed, but the former ones stay in force", "error", err)
		return t.read
	}
	log.Info("certificates read again")
	t.read = read
	return read
}

func (t *trust) versions() (v [3]os.FileInfo) {
	for i, path := range []string{t.config.ClientCert, t.config.ClientKey, t.config.CA} {
		v[i], _ = os.Stat(path)
	}
	return v
}

// sameVersion tells whether a file is still the same, and was not written to.
func sameVersion(a, b os.FileInfo) bool {
	if a == nil || b == nil {
		return a == b
	}
	return os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())
}

func (t *trust) load() (*certificates, error) {
	if err := t.checkNamed(); err != nil {
		return nil, err
	}
	c := &certificates{}
	if err := c.loadClient(t.config); err != nil {
		return nil, err
	}
	if t.config.CA == "" {
		return c, nil
	}
	return c, c.loadCA(t.config)
}

// checkNamed tells whether there is a certificate for each side, and else how to get one.
func (t *trust) checkNamed() error {
	switch {
	case t.config.ClientCert == "" || t.config.ClientKey == "":
		return errors.New("no clientCert and clientKey are named, by which the key managers would know this host: " +
			trustCommand(t.alias+" --csr FILE") + " makes a key, and a request to be signed")
	case t.config.CA == "" && !slices.ContainsFunc(t.config.Servers, func(s Server) bool { return t.pinOf(s) != "" }):
		return errors.New("no ca is named that vouches for the key managers, and no certificate of theirs is pinned: " +
			trustCommand(t.alias+" --ca FILE") + " does the one, and without --ca the other")
	}
	return nil
}

func (c *certificates) loadClient(config Config) error {
	certPEM, err := readPEM("clientCert", config.ClientCert)
	if err != nil {
		return err
	}
	keyPEM, err := readPEM("clientKey", config.ClientKey)
	if err != nil {
		return err
	}
	c.client, err = tls.X509KeyPair(certPEM, keyPEM)
	clear(keyPEM)
	if err != nil {
		return fmt.Errorf("clientCert %s, clientKey %s: %w", config.ClientCert, config.ClientKey, err)
	}
	return nil
}

func (c *certificates) loadCA(config Config) error {
	pem, err := readPEM("ca", config.CA)
	if err != nil {
		return err
	}
	c.roots = x509.NewCertPool()
	if !c.roots.AppendCertsFromPEM(pem) {
		return fmt.Errorf("ca %s: no PEM certificate in it", config.CA)
	}
	return nil
}

// readPEM reads the file that the configuration key names.
func readPEM(key, path string) ([]byte, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	return data, nil
}

// expires tells until when the client's certificate is valid.
func (t *trust) expires() time.Time { return t.current().client.Leaf.NotAfter }

// tls is the configuration for one connection to a server, with the certificates that are
// in force. No session is kept to be resumed, so that each connection proves anew who
// both sides are.
//
// vmcrypt shows its certificate to every server that asks, whatever authorities the server
// says it knows: if that is not enough, the server's refusal tells more than "no
// certificate" would.
func (t *trust) tls(now *certificates, s Server) *tls.Config {
	config := kmipwire.TLSConfig()
	config.ServerName = s.name()
	config.RootCAs = now.roots
	config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		return &now.client, nil
	}
	if pin := t.pinOf(s); pin != "" || now.roots == nil {
		config.InsecureSkipVerify = true
		config.VerifyConnection = func(c tls.ConnectionState) error { return checkPin(pin, c.PeerCertificates) }
	}
	return config
}

// name is what the server's certificate must be for, a name or an IP address.
func (s Server) name() string {
	if s.ServerName != "" {
		return s.ServerName
	}
	host, _, _ := net.SplitHostPort(s.Address) // Open has checked it
	return host
}

// errUnpinned: some servers of an alias without authorities are pinned, and this is not.
var errUnpinned = errors.New("its certificate is not pinned, and no ca is named that could vouch for it")

// checkPin tells whether a server has shown the one certificate that it may, and that this
// is still valid. Names and authorities don't matter. Without a pin it may show none. The
// error is of the type that package tls has for it.
func checkPin(pin string, shown []*x509.Certificate) error {
	leaf, now := shown[0], time.Now()
	want, err := ParseFingerprint(pin)
	switch {
	case pin == "":
		err = errUnpinned
	case err != nil:
	case Fingerprint(leaf) != want:
		err = &pinError{shown: Fingerprint(leaf), pinned: want}
	case now.After(leaf.NotAfter), now.Before(leaf.NotBefore):
		err = x509.CertificateInvalidError{Cert: leaf, Reason: x509.Expired}
	default:
		return nil
	}
	return &tls.CertificateVerificationError{UnverifiedCertificates: shown, Err: err}
}

// pinError is a certificate that is not the pinned one. Both are fingerprints.
type pinError struct{ shown, pinned string }

func (e *pinError) Error() string {
	return fmt.Sprintf("its certificate is not the pinned one any more: it is %s, pinned is %s", e.shown, e.pinned)
}

// untrusted says in what way a key manager's certificate fails to prove who it is.
type untrusted struct {
	text string
	err  error
}

func (u *untrusted) Error() string { return u.text }
func (u *untrusted) Unwrap() error { return u.err }

// judge says what is wrong with the certificate of a server of alias, and what to do.
func judge(alias string, err *tls.CertificateVerificationError) (_ *untrusted, advice string) {
	var (
		changed *pinError
		invalid x509.CertificateInvalidError
		host    x509.HostnameError
		unknown x509.UnknownAuthorityError
	)
	u := &untrusted{text: err.Error(), err: err}
	switch {
	case errors.As(err, &changed):
		u.text = changed.Error()
		return u, "check that the key manager's administrator has renewed it, since somebody else may answer there; then " + trustCommand(alias) + " pins the new one"
	case errors.Is(err, errUnpinned):
		u.text = errUnpinned.Error()
		return u, trustCommand(alias) + " shows it, and pins it when you have confirmed it"
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return u.outOfTime(invalid.Cert)
	case errors.As(err, &invalid) && invalid.Reason == x509.IncompatibleUsage:
		u.text = "its certificate is not for servers: its extended key usages lack serverAuth"
		return u, "have the key manager's administrator have one made that is"
	case errors.As(err, &host) && names(host.Certificate) == "":
		u.text = fmt.Sprintf("its certificate has no subjectAltName, so it is not for %s", host.Host)
		return u, "have it made for this name; or " + trustCommand(alias) + " pins it as it is"
	case errors.As(err, &host):
		u.text = fmt.Sprintf("its certificate is for %s, not for %s", names(host.Certificate), host.Host)
		return u, "make address or serverName one of these names, or have its certificate made for the other"
	case errors.As(err, &unknown):
		u.text = fmt.Sprintf("its certificate was issued by %q, whom ca does not vouch for", err.UnverifiedCertificates[0].Issuer)
		return u, "check that it is the right key manager; then " + trustCommand(alias+" --ca FILE") + " names another authority, and without --ca it pins this certificate"
	}
	return u, "have the key manager's certificate put right"
}

func trustCommand(args string) string { return "\"vmcrypt kms trust " + args + "\"" }

// outOfTime is about the certificate of a server, or of an authority.
func (u *untrusted) outOfTime(cert *x509.Certificate) (*untrusted, string) {
	whose := "its certificate"
	if cert.IsCA {
		whose = fmt.Sprintf("the certificate of the authority %q", cert.Subject)
	}
	if now := time.Now(); now.Before(cert.NotBefore) {
		u.text = fmt.Sprintf("%s is not valid before %s", whose, cert.NotBefore.UTC().Format(time.DateTime))
		return u, "compare the clocks of both sides"
	}
	u.text = fmt.Sprintf("%s expired on %s", whose, cert.NotAfter.UTC().Format(time.DateOnly))
	return u, "have the key manager's administrator renew it"
}

// names are the hosts that a certificate is for, "" if there are none.
func names(cert *x509.Certificate) string {
	all := append([]string(nil), cert.DNSNames...)
	for _, ip := range cert.IPAddresses {
		all = append(all, ip.String())
	}
	return strings.Join(all, ", ")
}

// clientAdvice says what to do about a client certificate that a server refuses with a TLS
// alert (RFC 8446, section 6.2).
func (t *trust) clientAdvice(alert string) string {
	anew := "have another issued: " + trustCommand(t.alias+" --csr FILE")
	ends := t.expires()
	switch {
	case time.Now().After(ends):
		return "clientCert expired on " + ends.UTC().Format(time.DateOnly) + ": " + anew
	case alert == "tls: revoked certificate":
		return "the key manager has revoked clientCert: " + anew
	case alert == "tls: bad certificate":
		return "the key manager has revoked clientCert or does not know it: have it accept it there, or " + anew
	case alert == "tls: expired certificate":
		return "by the key manager's clock clientCert is not valid: compare the clocks of both sides"
	case alert == "tls: unknown certificate authority":
		return "the key manager does not know who issued clientCert: have it accept it there, or " + anew
	}
	return "have the key manager accept clientCert, or configure the one it accepts"
}

const (
	fingerprintPrefix = "sha256:"
	fingerprintSize   = 2 * sha256.Size // hex digits
)

// Fingerprint is how a certificate is pinned: "sha256:" and the SHA-256 of its DER form in
// lower-case hex.
func Fingerprint(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.Raw)
	return fingerprintPrefix + hex.EncodeToString(sum[:])
}

// fingerprintLabels stand before the digits.
var fingerprintLabels = regexp.MustCompile(`^(sha-?256:|sha256 fingerprint=)`)

// ParseFingerprint reads what Fingerprint gives, and what other programs show: in upper
// case, with colons, blanks or dashes between the bytes, without the prefix, or as
// "openssl x509 -fingerprint" prints it.
func ParseFingerprint(text string) (string, error) {
	digits := fingerprintLabels.ReplaceAllString(strings.ToLower(strings.TrimSpace(text)), "")
	digits = strings.NewReplacer(":", "", " ", "", "-", "").Replace(digits)
	if _, err := hex.DecodeString(digits); err != nil || len(digits) != fingerprintSize {
		return "", fmt.Errorf("%.100q is no fingerprint: want %s and %d hex digits", text, fingerprintPrefix, fingerprintSize)
	}
	return fingerprintPrefix + digits, nil
}

var errSeen = errors.New("the certificate was seen")

// Shown connects to a key manager and returns the certificate that it shows, whether or not
// it proves anything. It gives up after 10 s, with an error that wraps ErrUnavailable. A nil
// dial means TCP.
func Shown(ctx context.Context, s Server, dial DialFunc) (*x509.Certificate, error) {
	ctx, cancel := context.WithTimeout(ctx, kmipwire.DefaultTimeouts.Handshake)
	defer cancel()
	if dial == nil {
		dial = tcp(defaultConnectTimeout)
	}
	raw, err := dial(ctx, s.Address)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrUnavailable, s.Address, &transportError{err})
	}
	defer raw.Close()
	var leaf *x509.Certificate
	config := kmipwire.TLSConfig()
	config.ServerName = s.name()
	config.InsecureSkipVerify = true // a person is to judge it; nothing is sent
	config.VerifyConnection = func(c tls.ConnectionState) error {
		leaf = c.PeerCertificates[0]
		return errSeen
	}
	if err := tls.Client(raw, config).HandshakeContext(ctx); !errors.Is(err, errSeen) {
		return nil, fmt.Errorf("%w: %s: TLS handshake: %w", ErrUnavailable, s.Address, &transportError{err})
	}
	return leaf, nil
}
