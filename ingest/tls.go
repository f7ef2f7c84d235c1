package ingest

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"sync"

	"go.uber.org/zap"
)

// tlsFiles reads the TLS files anew for every connection attempt, so that rotated certificates are
// used from the next connection on. A file that cannot be used is replaced by its last good reading,
// with a warning: half a rotation must not cut the bridge off.
type tlsFiles struct {
	caFile, certFile, keyFile, serverName string
	log                                   *zap.Logger

	mu   sync.Mutex
	pool *x509.CertPool   // last good
	cert *tls.Certificate // last good
}

// config returns the configuration for a connection to host.
func (f *tlsFiles) config(host string) (*tls.Config, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	cfg := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: host}
	if f.serverName != "" {
		cfg.ServerName = f.serverName
	}
	if f.caFile != "" {
		pool, err := readPool(f.caFile)
		if err == nil {
			f.pool = pool
		} else if f.pool == nil {
			return nil, err
		} else {
			f.log.Warn("ca file cannot be used, the last good one stays in use", zap.String("file", f.caFile), zap.Error(err))
		}
		cfg.RootCAs = f.pool
	}
	if f.certFile != "" {
		cert, err := tls.LoadX509KeyPair(f.certFile, f.keyFile)
		if err == nil {
			f.cert = &cert
		} else if f.cert == nil {
			return nil, fmt.Errorf("read client certificate: %w", err)
		} else {
			f.log.Warn("client certificate cannot be used, the last good one stays in use", zap.String("file", f.certFile), zap.Error(err))
		}
		cfg.Certificates = []tls.Certificate{*f.cert}
	}
	return cfg, nil
}

func readPool(file string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(file) //nolint:gosec // the operator names the file
	if err != nil {
		return nil, fmt.Errorf("read ca file: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("read ca file %s: %w", file, errors.New("no certificate in it"))
	}
	return pool, nil
}
