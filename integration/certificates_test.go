//go:build unix

package integration

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

// certificates are those of a private authority, in PEM: a server on loopback and one client.
type certificates struct {
	authority      []byte
	server, client identity
}

// identity is a certificate with its key.
type identity struct{ certificate, key []byte }

func newCertificates(t *testing.T) certificates {
	t.Helper()
	from, until := time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour)
	authority := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "scenario authority"},
		NotBefore: from, NotAfter: until,
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	key := newKey(t)
	return certificates{
		authority: sign(t, authority, authority, key, key).certificate,
		server: sign(t, &x509.Certificate{
			SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "broker"},
			NotBefore: from, NotAfter: until,
			IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		}, authority, newKey(t), key),
		client: sign(t, &x509.Certificate{
			SerialNumber: big.NewInt(3), Subject: pkix.Name{CommonName: "bridge"},
			NotBefore: from, NotAfter: until,
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		}, authority, newKey(t), key),
	}
}

// environment writes the client's files and returns the variables that name them.
func (c certificates) environment(t *testing.T) map[string]string {
	t.Helper()
	dir, variables := t.TempDir(), map[string]string{}
	for variable, data := range map[string][]byte{
		"BRIDGE_MQTT_CA_FILE":   c.authority,
		"BRIDGE_MQTT_CERT_FILE": c.client.certificate,
		"BRIDGE_MQTT_KEY_FILE":  c.client.key,
	} {
		variables[variable] = filepath.Join(dir, variable+".pem")
		must(t, os.WriteFile(variables[variable], data, 0o600))
	}
	return variables
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	return key
}

func sign(t *testing.T, certificate, issuer *x509.Certificate, key, issuerKey *ecdsa.PrivateKey) identity {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, certificate, issuer, &key.PublicKey, issuerKey)
	must(t, err)
	keyDER, err := x509.MarshalECPrivateKey(key)
	must(t, err)
	return identity{
		certificate: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		key:         pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER}),
	}
}
