package main

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"slices"
	"time"

	"github.com/vmcrypt/vmcrypt/internal/config"
	"github.com/vmcrypt/vmcrypt/internal/durable"
	"github.com/vmcrypt/vmcrypt/internal/secret"
)

// selfSignedYears is how long a certificate is valid that nobody else signs.
const selfSignedYears = 10

// requestCertificate makes a key and a request for its certificate (PKCS #10).
func (t *trusting) requestCertificate() (*trustReport, error) {
	file := t.c.String("csr")
	next := fmt.Sprintf("have the key manager's CA sign %s; then %s", file, t.trustCommand("cert", "CERTIFICATE"))
	return t.offer(file, "CERTIFICATE REQUEST", next, func(name pkix.Name, key crypto.Signer) ([]byte, error) {
		return x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: name}, key)
	})
}

// signOwnCertificate makes a key and a certificate that it signs itself.
func (t *trusting) signOwnCertificate() (*trustReport, error) {
	file := t.c.String("self-signed")
	next := fmt.Sprintf("upload %s to the key manager as a client's certificate; then %s", file, t.trustCommand("cert", file))
	return t.offer(file, "CERTIFICATE", next, selfSigned)
}

func selfSigned(name pkix.Name, key crypto.Signer) ([]byte, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: serial, Subject: name,
		NotBefore: now.Add(-24 * time.Hour), // for clocks that are behind
		NotAfter:  now.AddDate(selfSignedYears, 0, 0),
		KeyUsage:  x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}
	return x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
}

// offer writes what encode makes of the key that is to come, for the key manager's
// administrator.
func (t *trusting) offer(file, kind, next string, encode func(pkix.Name, crypto.Signer) ([]byte, error)) (*trustReport, error) {
	name, err := t.hostName()
	if err != nil {
		return nil, err
	}
	key, err := t.pendingKey()
	if err != nil {
		return nil, err
	}
	der, err := encode(pkix.Name{CommonName: name}, key)
	if err != nil {
		return nil, err
	}
	if err := publish(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o644); err != nil {
		return nil, err
	}
	report := t.reportOf(next)
	report.Wrote = []string{t.pendingFile(), file}
	return report, nil
}

func (t *trusting) hostName() (string, error) {
	if name := t.c.String("name"); name != "" {
		return name, nil
	}
	return os.Hostname()
}

// pendingFile has the key whose certificate is to come.
func (t *trusting) pendingFile() string {
	path, _ := t.file("clientKey", ".key")
	return path + ".new"
}

// pendingKey is the key whose certificate is to come. There is only one, so that it does not
// matter which of several requests is signed in the end.
func (t *trusting) pendingKey() (crypto.Signer, error) {
	text, err := readPEM(t.pendingFile())
	if errors.Is(err, fs.ErrNotExist) {
		return t.newKey()
	}
	if err != nil {
		return nil, err
	}
	defer secret.Wipe(text)
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, fmt.Errorf("%s: no key in PEM; remove it to begin anew", t.pendingFile())
	}
	defer secret.Wipe(block.Bytes)
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	signer, ok := key.(crypto.Signer)
	if err != nil || !ok {
		return nil, fmt.Errorf("%s: not a key that signs; remove it to begin anew", t.pendingFile())
	}
	return signer, nil
}

func (t *trusting) newKey() (crypto.Signer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	defer secret.Wipe(der)
	text := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	defer secret.Wipe(text)
	return key, publish(t.pendingFile(), text, 0o600)
}

// publish writes a file that is not there yet.
func publish(path string, data []byte, perm fs.FileMode) error {
	p, err := durable.Create(path, perm)
	if err != nil {
		return err
	}
	defer p.Abort()
	if _, err := p.Write(data); err != nil {
		return err
	}
	return p.Publish()
}

// importCertificate puts a certificate and its key into place. If it is interrupted, it can
// be done again: the key that was made for the certificate goes last.
func (t *trusting) importCertificate() (*trustReport, error) {
	text, err := readPEM(t.c.String("cert"))
	if err != nil {
		return nil, err
	}
	defer secret.Wipe(text) // the key may be in it, too
	cert := certificatesIn(text)
	key, leaf, err := t.keyOf(cert)
	if err != nil {
		return nil, err
	}
	defer secret.Wipe(key)
	if time.Now().After(leaf.NotAfter) {
		return nil, fmt.Errorf("%s: the certificate expired on %s", t.c.String("cert"), leaf.NotAfter.UTC().Format(time.DateOnly))
	}
	wrote, changed, err := t.putPair(cert, key)
	if err != nil {
		return nil, err
	}
	if err := t.removePending(key); err != nil {
		return nil, err
	}
	report := t.reportOf(t.showStatus(changed), leaf)
	report.Wrote = wrote
	return report, nil
}

// removePending removes the key that was made for a certificate, if it is this one. Another
// one's certificate is still to come.
func (t *trusting) removePending(key []byte) error {
	pending, err := readPEM(t.pendingFile())
	defer secret.Wipe(pending)
	switch {
	case err == nil && bytes.Equal(pending, key):
		return os.Remove(t.pendingFile())
	case errors.Is(err, fs.ErrNotExist):
		return nil
	}
	return err
}

// keyOf finds the key of a certificate: in the file that is named, or else the one that was
// made for it, or the one that is used already.
func (t *trusting) keyOf(cert []byte) ([]byte, *x509.Certificate, error) {
	files := []string{t.pendingFile(), t.kms.ClientKey}
	if named := t.c.String("key"); named != "" {
		files = []string{named}
	}
	var faults []error
	for _, file := range files {
		key, err := readPEM(file)
		if err == nil {
			var pair tls.Certificate
			if pair, err = tls.X509KeyPair(cert, key); err == nil {
				return key, pair.Leaf, nil
			}
			secret.Wipe(key)
		}
		if file != "" && (!errors.Is(err, fs.ErrNotExist) || len(files) == 1) {
			faults = append(faults, fmt.Errorf("%s with the key in %s: %w", t.c.String("cert"), file, err))
		}
	}
	if len(faults) == 0 {
		faults = append(faults, fmt.Errorf("%s: there is no key for it here: name its file with --key", t.c.String("cert")))
	}
	return nil, nil, errors.Join(faults...)
}

// putPair writes a certificate and its key to where the configuration has them, and changes
// it if that is nowhere. If that fails, the former key is in its place again.
func (t *trusting) putPair(cert, key []byte) (wrote []string, changed bool, err error) {
	keyFile, keySetting := t.file("clientKey", ".key")
	certFile, certSetting := t.file("clientCert", ".pem")
	former, _ := readPEM(keyFile) // which need not be there
	defer secret.Wipe(former)
	if err := keepFromOthers(keyFile); err != nil {
		return nil, false, err
	}
	if certFile == keyFile {
		cert = slices.Concat(cert, key)
		defer secret.Wipe(cert)
	} else if err := put(keyFile, key, 0o600, keySetting == nil); err != nil {
		return nil, false, err
	}
	settings := append(keySetting, certSetting...)
	err = put(certFile, cert, 0o600, certSetting == nil)
	if err == nil {
		err = config.Set(t.paths.File, t.alias, settings...)
	}
	if err != nil && former != nil && certFile != keyFile {
		err = errors.Join(err, durable.WriteFile(keyFile, former, 0o600))
	}
	return []string{keyFile, certFile}, len(settings) > 0, err
}

// keepFromOthers has only the owner and the group of a file, if it is there, read what is
// going to replace it.
func keepFromOthers(path string) error {
	const others = 0o007
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && info.Mode()&others == 0 {
		return nil
	}
	if err != nil {
		return err
	}
	return os.Chmod(path, info.Mode()&^others)
}

// certificatesIn leaves out of PEM what is no certificate, such as a key.
func certificatesIn(text []byte) (certs []byte) {
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if block.Type == "CERTIFICATE" {
			certs = append(certs, pem.EncodeToMemory(&pem.Block{Type: block.Type, Bytes: block.Bytes})...)
		}
	}
	return certs
}
