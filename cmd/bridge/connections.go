package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"math"
	"net"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/mqttpg/bridge/store"
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

// validateDatabase checks the connection string and fills in cfg.pool.
func (cfg *config) validateDatabase(report reporter) {
	d := &cfg.Database
	variable := "BRIDGE_DATABASE_URL"
	dsn := secret(variable, d.URL, d.URLFile, report)
	if d.URLFile.value != "" {
		variable += "_FILE"
	}
	pool, err := store.PoolConfig(dsn)
	if err != nil {
		if dsn == "" {
			variable = "PG*"
		}
		report(variable, "", "expected a connection string such as postgres://user:password@host:5432/database"+dsnFault(dsn, err))
		return
	}
	cfg.validatePool(pool, variable, strings.Contains(dsn, "pool_max_conns"), report)
	parameters := startupParameters(pool.ConnConfig.RuntimeParams)
	for _, name := range slices.Sorted(maps.Keys(parameters)) {
		value := parameters[name]
		if danger, fatal := dangerous(name, value); fatal {
			report(variable, name+"="+value, "expected a connection without it: "+danger)
		} else if danger != "" {
			cfg.warnings = append(cfg.warnings, fmt.Sprintf("%s sets %s=%s: %s", variable, name, value, danger))
		}
	}
	if path := d.URLFile.value; path != "" {
		pool.BeforeConnect = func(_ context.Context, c *pgx.ConnConfig) error { return rotate(c, path) }
	}
	cfg.pool = pool
}

// besideConns are one connection each for leases, maintenance, monitor and the replay of parked dead
// letters, so that none that waits for a lock keeps another from renewing the leases.
const besideConns = 4

// validatePool looks at the size of the pool, and chooses it where that was not asked for.
func (cfg *config) validatePool(pool *pgxpool.Config, variable string, asked bool, report reporter) {
	enough := cfg.MQTT.Sessions.value + besideConns // a writer for each session that may be owned
	switch size := int(pool.MaxConns); {
	case !asked:
		pool.MaxConns = int32(max(size, enough))
	case size < 1+besideConns:
		report(variable, fmt.Sprintf("pool_max_conns=%d", size),
			fmt.Sprintf("expected at least %d: one connection for a batch, and one each for leases, partitions, health and replay", 1+besideConns))
	case size < enough:
		cfg.warnings = append(cfg.warnings, fmt.Sprintf("%s sets pool_max_conns=%d: a process that holds all %d sessions of BRIDGE_MQTT_SESSIONS wants %d connections, "+
			"or batches and heartbeats wait for one another", variable, size, cfg.MQTT.Sessions.value, enough))
	}
}

// startupOption is one setting in the startup parameter options: -c name=value or --name=value.
var startupOption = regexp.MustCompile(`(?:^|\s)(?:-c\s*|--)([A-Za-z0-9_.-]+)=((?:\\.|[^\s\\])*)`)

// startupParameters are the settings that a connection begins with.
func startupParameters(params map[string]string) map[string]string {
	all := map[string]string{}
	for name, value := range params {
		all[strings.ToLower(name)] = value
	}
	for _, option := range startupOption.FindAllStringSubmatch(params["options"], -1) {
		all[strings.ToLower(strings.ReplaceAll(option[1], "-", "_"))] = strings.ReplaceAll(option[2], `\`, "")
	}
	return all
}

// dangerous says what a setting of the connection does to the bridge; empty: nothing worth a word.
// fatal: nothing can be written with it.
func dangerous(name, value string) (danger string, fatal bool) {
	value = strings.ToLower(strings.Trim(value, "' "))
	yes := value == "on" || value == "true" || value == "yes" || value == "1"
	none := strings.TrimRight(value, "a-z ") == "0" || value == "0" || value == "-1" || value == ""
	switch {
	case name == "default_transaction_read_only" && yes:
		return "nothing can be written", true
	case name == "client_encoding" && value != "utf8" && value != "utf-8" && value != "unicode" && value != "":
		return "text is sent as UTF-8", true
	case name == "statement_timeout" && !none, name == "transaction_timeout" && !none:
		return "batches have limits of their own, but migrations, new partitions and retention may never get done", false
	case name == "default_transaction_isolation" && value != "read committed" && value != "read uncommitted":
		return "replicas that write the same rows fail each other's batches, which are then repeated", false
	case name == "session_replication_role" && value != "origin":
		return "triggers and foreign keys of your tables are not applied", false
	}
	return "", false
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
