package kms

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"strings"
	"time"
)

// How long certificates are valid. Nobody renews them, and a home must still
// open its disks after years: what protects them is the key files' mode.
const (
	caYears   = 30
	leafYears = 20
)

// clientName is the name of the client that Init makes.
const clientName = "vmcrypt"

// identity is a certificate with its key.
type identity struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// issueCertificates makes a certificate authority and, under it, the
// certificates of the server and of its first client, which it also returns.
func issueCertificates() (contents, *x509.Certificate, error) {
	ca, err := issue(caTemplate(), nil)
	if err != nil {
		return nil, nil, err
	}
	server, err := issue(serverTemplate(), ca)
	if err != nil {
		return nil, nil, err
	}
	client, err := issue(leafTemplate(clientName, x509.ExtKeyUsageClientAuth), ca)
	if err != nil {
		return nil, nil, err
	}
	files := contents{}
	for name, id := range map[string]*identity{"kms/ca": ca, "kms/server": server, "config/client": client} {
		files[name+".pem"] = id.certPEM()
		if files[name+".key"], err = id.keyPEM(); err != nil {
			return nil, nil, err
		}
	}
	files["config/ca.pem"] = ca.certPEM()
	return files, client.cert, nil
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
	if ca == nil {
		ca = &identity{cert: t, key: key}
	}
	cert, err := ca.sign(t, &key.PublicKey)
	return &identity{cert: cert, key: key}, err
}

// sign makes a certificate for a public key. It ends with the authority's at
// the latest.
func (id *identity) sign(t *x509.Certificate, key any) (_ *x509.Certificate, err error) {
	if t.SerialNumber, err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127)); err != nil {
		return nil, err
	}
	if t.NotAfter.After(id.cert.NotAfter) {
		t.NotAfter = id.cert.NotAfter
	}
	der, err := x509.CreateCertificate(rand.Reader, t, id.cert, key, id.key)
	if err != nil {
		return nil, fmt.Errorf("certificate of %s: %w", t.Subject.CommonName, err)
	}
	return x509.ParseCertificate(der)
}

// authority reads the home's certificate authority, whose key must be in Dir
// only while certificates are issued.
func (h Home) authority() (*identity, error) {
	pair, err := tls.LoadX509KeyPair(h.path("ca.pem"), h.path("ca.key"))
	if err != nil {
		return nil, fmt.Errorf("certificate authority in %s: %w", h.Dir, err)
	}
	key, ok := pair.PrivateKey.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("%s: not a key that signs", h.path("ca.key"))
	}
	return &identity{cert: pair.Leaf, key: key}, nil
}

// publicKey gives the key that a certificate signing request (PKCS #10, PEM) is
// for. Nothing else is taken from it. The request proves that whoever made it
// has the private key.
func publicKey(csr []byte) (any, error) {
	block, _ := pem.Decode(csr)
	if block == nil || !strings.HasSuffix(block.Type, "CERTIFICATE REQUEST") {
		return nil, errors.New("no certificate signing request in PEM")
	}
	request, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, err
	}
	if err := checkKey(request.PublicKey); err != nil {
		return nil, err
	}
	return request.PublicKey, request.CheckSignature()
}

// checkKey takes RSA of 2048 to 8192 bits, Ed25519 and the NIST curves from
// P-256 on.
func checkKey(key any) error {
	switch k := key.(type) {
	case *rsa.PublicKey:
		if n := k.N.BitLen(); n < 2048 || n > 8192 {
			return fmt.Errorf("an RSA key of %d bits; it must have 2048 to 8192", n)
		}
	case *ecdsa.PublicKey:
		if k.Curve.Params().BitSize < 256 {
			return fmt.Errorf("a key on %s; P-256 is the least", k.Curve.Params().Name)
		}
	case ed25519.PublicKey:
	default:
		return fmt.Errorf("a key of type %T", key)
	}
	return nil
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
