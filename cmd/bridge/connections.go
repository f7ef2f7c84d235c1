package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math"
	"net"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// reporter takes one mistake of the configuration.
type reporter func(variable, value, reason string)

// validateBrokerLogin checks the user name and the password and fills in cfg.username and
// cfg.password.
func (cfg *config) validateBrokerLogin(report reporter) {
	m := &cfg.MQTT
	cfg.username = secret("BRIDGE_MQTT_USERNAME", m.Username, m.UsernameFile, report)
	password := secret("BRIDGE_MQTT_PASSWORD", m.Password, m.PasswordFile, report)
	switch path := m.PasswordFile.value; {
	case path != "":
		cfg.password = func() (string, error) { return readSecret(path) }
	case password != "":
		cfg.password = func() (string, error) { return password, nil }
	}
	for _, u := range m.URLs.value {
		if u.User != nil && cfg.username != "" {
			report("BRIDGE_MQTT_URLS", "", "expected no user name in a URL, since BRIDGE_MQTT_USERNAME is set as well")
		}
	}
}

// secret returns the value of a variable that may instead be held by a file.
func secret(variable string, value, file text, report reporter) string {
	if file.value == "" {
		return value.text // a secret may begin or end with a space
	}
	if value.text != "" {
		report(variable+"_FILE", "", "expected only one of "+variable+" and "+variable+"_FILE")
		return ""
	}
	s, err := readSecret(file.value)
	switch {
	case errors.Is(err, errEmptySecret):
		report(variable+"_FILE", file.text, "expected a file that holds the secret: it is empty")
	case err != nil:
		report(variable+"_FILE", file.text, "expected a readable file: "+cause(err))
	}
	return s
}

// errEmptySecret is a file that was named and holds nothing: somebody meant a secret to be in it, and
// without one the next best login would be tried.
var errEmptySecret = errors.New("the file is empty")

// readSecret reads a file that holds a secret; the line break that editors leave at its end is not
// part of it.
func readSecret(path string) (string, error) {
	b, err := os.ReadFile(path) //nolint:gosec // the operator names the file
	if err != nil {
		return "", err // names the operation and the file
	}
	if len(bytes.TrimSpace(b)) == 0 {
		return "", fmt.Errorf("read %s: %w", path, errEmptySecret)
	}
	return strings.TrimRight(string(b), "\r\n"), nil
}

// validateTLS looks into the files once, so that a wrong path is found now and not at the first
// connection. Package ingest reads them again for every connection.
func (cfg *config) validateTLS(report reporter) {
	m := &cfg.MQTT
	if path := m.CAFile.value; path != "" {
		if pem, err := os.ReadFile(path); err != nil { //nolint:gosec // the operator names the file
			report("BRIDGE_MQTT_CA_FILE", m.CAFile.text, "expected a readable file: "+cause(err))
		} else if !x509.NewCertPool().AppendCertsFromPEM(pem) {
			report("BRIDGE_MQTT_CA_FILE", m.CAFile.text, "expected certificates in PEM form")
		}
	}
	readable := func(variable string, file text) bool {
		if file.value == "" {
			return false
		}
		f, err := os.Open(file.value)
		if err != nil {
			report(variable, file.text, "expected a readable file: "+cause(err))
			return false
		}
		_ = f.Close() // nothing was written
		return true
	}
	certificate, key := m.CertFile, m.KeyFile
	hasCertificate, hasKey := readable("BRIDGE_MQTT_CERT_FILE", certificate), readable("BRIDGE_MQTT_KEY_FILE", key)
	switch {
	case certificate.value != "" && key.value == "":
		report("BRIDGE_MQTT_KEY_FILE", "", "expected the key of BRIDGE_MQTT_CERT_FILE")
	case certificate.value == "" && key.value != "":
		report("BRIDGE_MQTT_CERT_FILE", "", "expected the certificate of BRIDGE_MQTT_KEY_FILE")
	case hasCertificate && hasKey:
		if _, err := tls.LoadX509KeyPair(certificate.value, key.value); err != nil {
			report("BRIDGE_MQTT_CERT_FILE", certificate.text, "expected a certificate and, in BRIDGE_MQTT_KEY_FILE, its key in PEM form: "+cause(err))
		}
	}
	usesTLS := false
	for _, u := range m.URLs.value {
		usesTLS = usesTLS || slices.Contains([]string{"mqtts", "wss", "ssl", "tls"}, strings.ToLower(u.Scheme))
	}
	if files := m.CAFile.value + m.CertFile.value + m.ServerName.value; files != "" && !usesTLS && m.URLs.mistake == "" {
		cfg.warnings = append(cfg.warnings, "TLS is configured, but no URL of BRIDGE_MQTT_URLS uses it (mqtts or wss)")
	}
}

// databaseConnectTimeout bounds one connection attempt where neither the connection string nor
// PGCONNECT_TIMEOUT says otherwise, so that a host that swallows packets is noticed.
const databaseConnectTimeout = 10 * time.Second

// validateDatabase checks the connection string and fills in cfg.pool.
func (cfg *config) validateDatabase(report reporter) {
	d := &cfg.Database
	variable := "BRIDGE_DATABASE_URL"
	dsn := secret(variable, d.URL, d.URLFile, report)
	if d.URLFile.value != "" {
		variable += "_FILE"
	}
	pool, err := pgxpool.ParseConfig(dsn)
	if err != nil {
		if dsn == "" {
			variable = "PG*"
		}
		report(variable, "", "expected a connection string such as postgres://user:password@host:5432/database"+dsnFault(dsn, err))
		return
	}
	// Unnamed statements, so that the pool works behind a pooler in transaction mode.
	pool.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeExec
	if pool.ConnConfig.ConnectTimeout == 0 {
		pool.ConnConfig.ConnectTimeout = databaseConnectTimeout
	}
	if pool.ConnConfig.RuntimeParams["application_name"] == "" {
		pool.ConnConfig.RuntimeParams["application_name"] = "bridge"
	}
	if !strings.Contains(dsn, "pool_max_conns") {
		// A writer for each session that may be owned, and leases, maintenance, monitor and one spare.
		pool.MaxConns = max(pool.MaxConns, int32(cfg.MQTT.Sessions.value)+4)
	}
	if path := d.URLFile.value; path != "" {
		pool.BeforeConnect = func(_ context.Context, c *pgx.ConnConfig) error { return rotate(c, path) }
	}
	cfg.pool = pool
}

// rotate takes user and password from the file, which may have changed since the start.
func rotate(c *pgx.ConnConfig, path string) error {
	dsn, err := readSecret(path)
	if err != nil {
		return err
	}
	fresh, err := pgconn.ParseConfig(dsn)
	if err != nil {
		return fmt.Errorf("parse the connection string in %s%s", path, dsnFault(dsn, err))
	}
	c.User, c.Password = fresh.User, fresh.Password
	return nil
}

// dsnFault says what is wrong with a connection string, as far as that can be told without telling
// the password: a URL that cannot be taken apart may hold it anywhere, and so may every other
// message that quotes a part of the string.
func dsnFault(dsn string, err error) string {
	if strings.Contains(dsn, "://") {
		if _, parseErr := url.Parse(dsn); parseErr != nil {
			return "; are special characters in the password percent-encoded?"
		}
	}
	if parse := (*pgconn.ParseConfigError)(nil); errors.As(err, &parse) && errors.Unwrap(parse) != nil {
		reason := errors.Unwrap(parse).Error()
		if !strings.ContainsAny(reason, "\"'`") { // quotes nothing
			return ": " + reason
		}
	}
	return ""
}

// cause is the innermost error: messages name file and variable already.
func cause(err error) string {
	if pathError := (*os.PathError)(nil); errors.As(err, &pathError) {
		return pathError.Err.Error()
	}
	return err.Error()
}

// validAddress says whether addr is host:port with a port number; the host may be empty.
func validAddress(addr string) bool {
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return false
	}
	n, err := strconv.Atoi(port)
	return err == nil && n >= 0 && n <= math.MaxUint16
}

// printable says whether s is what MQTT calls well-formed text, without control characters
// [MQTT-1.5.4-1] [MQTT-1.5.4-2].
func printable(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, unicode.IsControl)
}
