package kms

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"time"

	"github.com/vmcrypt/vmcrypt/internal/kmipwire"
)

// How long certificates are valid. Nobody renews them, and a home must still
// open its disks after years: what protects them is the key files' mode.
const (
	caYears   = 30
	leafYears = 20
)

// clientName is the common name in the client's certificate, by which the
// server knows who made a key.
const clientName = "vmcrypt"

// identity is a certificate with its key.
type identity struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// issueCertificates makes a certificate authority and, under it, the
// certificates of the server and of its one client.
func issueCertificates() (contents, error) {
	ca, err := issue(caTemplate(), nil)
	if err != nil {
		return nil, err
	}
	server, err := issue(serverTemplate(), ca)
	if err != nil {
		return nil, err
	}
	client, err := issue(leafTemplate(clientName, x509.ExtKeyUsageClientAuth), ca)
	if err != nil {
		return nil, err
	}
	files := contents{}
	for name, id := range map[string]*identity{"kms/ca": ca, "kms/server": server, "config/client": client} {
		files[name+".pem"] = id.certPEM()
		if files[name+".key"], err = id.keyPEM(); err != nil {
			return nil, err
		}
	}
	files["config/ca.pem"] = ca.certPEM()
	return files, nil
}

func template(name string, years int) *x509.Certificate {
	now := time.Now()
	return &x509.Certificate{
		Subject:               pkix.Name{CommonName: name},
		NotBefore:             now.Add(-24 * time.Hour), // for clocks that are behind
		NotAfter:              now.AddDate(years, 0, 0),
		BasicConstraintsValid: true,
	}
}

func caTemplate() *x509.Certificate {
	t := template("vmcrypt key manager CA", caYears)
	t.IsCA = true
	t.MaxPathLenZero = true
	t.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	return t
}

func leafTemplate(name string, use x509.ExtKeyUsage) *x509.Certificate {
	t := template(name, leafYears)
	t.KeyUsage = x509.KeyUsageDigitalSignature
	t.ExtKeyUsage = []x509.ExtKeyUsage{use}
	return t
}

// serverTemplate is valid for this host's name and for its loopback addresses,
// where the local client looks for the server.
func serverTemplate() *x509.Certificate {
	t := leafTemplate("vmcrypt key manager", x509.ExtKeyUsageServerAuth)
	t.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}
	t.DNSNames = []string{"localhost"}
	if name, err := os.Hostname(); err == nil && name != "" && name != "localhost" {
		t.DNSNames = append(t.DNSNames, name)
	}
	return t
}

// issue makes a key and a certificate for it, signed by ca or by itself.
func issue(t *x509.Certificate, ca *identity) (*identity, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	if t.SerialNumber, err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127)); err != nil {
		return nil, err
	}
	parent := &identity{cert: t, key: key}
	if ca != nil {
		parent = ca
	}
	der, err := x509.CreateCertificate(rand.Reader, t, parent.cert, &key.PublicKey, parent.key)
	if err != nil {
		return nil, fmt.Errorf("certificate of %s: %w", t.Subject.CommonName, err)
	}
	cert, err := x509.ParseCertificate(der)
	return &identity{cert: cert, key: key}, err
}

func (id *identity) certPEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: id.cert.Raw})
}

func (id *identity) keyPEM() ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(id.key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// serverTLS requires clients to show a certificate of the home's CA.
func (h Home) serverTLS() (*tls.Config, error) {
	cert, err := tls.LoadX509KeyPair(h.path("server.pem"), h.path("server.key"))
	if err != nil {
		return nil, fmt.Errorf("certificate of the key manager in %s: %w", h.Dir, err)
	}
	ca, err := readSmall(h.path("ca.pem"))
	if err != nil {
		return nil, err
	}
	c := kmipwire.TLSConfig()
	c.Certificates = []tls.Certificate{cert}
	c.ClientAuth = tls.RequireAndVerifyClientCert
	c.ClientCAs = x509.NewCertPool()
	c.SessionTicketsDisabled = true // every connection proves its certificate
	if !c.ClientCAs.AppendCertsFromPEM(ca) {
		return nil, fmt.Errorf("%s: no certificate in it", h.path("ca.pem"))
	}
	return c, nil
}
