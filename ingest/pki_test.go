package ingest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// pki is a certificate authority for one test, with its files.
type pki struct {
	t      *testing.T
	dir    string
	ca     *x509.Certificate
	caKey  *ecdsa.PrivateKey
	serial int64
}

func newPKI(t *testing.T) *pki {
	t.Helper()
	p := &pki{t: t, dir: t.TempDir()}
	p.ca = &x509.Certificate{Subject: pkix.Name{CommonName: "test authority"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, key := p.issue(p.ca)
	p.caKey = key
	p.ca, _ = x509.ParseCertificate(der)
	p.writePair("ca", der, key)
	der, key = p.issue(&x509.Certificate{
		Subject: pkix.Name{CommonName: "broker.test"}, DNSNames: []string{"broker.test"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
	p.writePair("server", der, key)
	p.client("client-1")
	return p
}

// client writes a new client certificate.
func (p *pki) client(name string) {
	p.t.Helper()
	der, key := p.issue(&x509.Certificate{Subject: pkix.Name{CommonName: name}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	p.writePair("client", der, key)
}

func (p *pki) issue(template *x509.Certificate) ([]byte, *ecdsa.PrivateKey) {
	p.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		p.t.Fatal(err)
	}
	p.serial++
	template.SerialNumber = big.NewInt(p.serial)
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	signer := p.caKey
	if signer == nil {
		signer = key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, p.ca, &key.PublicKey, signer)
	if err != nil {
		p.t.Fatal(err)
	}
	return der, key
}

func (p *pki) writePair(name string, der []byte, key *ecdsa.PrivateKey) {
	p.t.Helper()
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		p.t.Fatal(err)
	}
	p.write(name+".pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	p.write(name+".key", pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER}))
}

func (p *pki) path(name string) string { return filepath.Join(p.dir, name) }

func (p *pki) write(name string, content []byte) {
	p.t.Helper()
	if err := os.WriteFile(p.path(name), content, 0o600); err != nil {
		p.t.Fatal(err)
	}
}
