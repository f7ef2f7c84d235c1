package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/mqttpg/bridge/store"
	"go.uber.org/zap"
)

// contract is every variable with its default, as the outside relies on them.
var contract = map[string]string{
	"BRIDGE_MQTT_URLS":              "mqtt://localhost:1883",
	"BRIDGE_MQTT_USERNAME":          "",
	"BRIDGE_MQTT_USERNAME_FILE":     "",
	"BRIDGE_MQTT_PASSWORD":          "",
	"BRIDGE_MQTT_PASSWORD_FILE":     "",
	"BRIDGE_MQTT_CA_FILE":           "",
	"BRIDGE_MQTT_CERT_FILE":         "",
	"BRIDGE_MQTT_KEY_FILE":          "",
	"BRIDGE_MQTT_SERVER_NAME":       "",
	"BRIDGE_MQTT_SHARE_NAME":        "bridge",
	"BRIDGE_MQTT_CLIENT_ID_PREFIX":  "",
	"BRIDGE_MQTT_MODE":              "shared",
	"BRIDGE_MQTT_SESSIONS":          "1",
	"BRIDGE_MQTT_QOS":               "1",
	"BRIDGE_MQTT_KEEPALIVE":         "15s",
	"BRIDGE_MQTT_SESSION_EXPIRY":    "24h",
	"BRIDGE_MQTT_RECEIVE_MAXIMUM":   "2000",
	"BRIDGE_MQTT_MAX_MESSAGE_BYTES": "16MiB",
	"BRIDGE_MQTT_COMMON_SESSIONS":   "off",
	"BRIDGE_MQTT_STATUS_TOPIC":      "",
	"BRIDGE_MQTT_WATCH":             "on",
	"BRIDGE_MQTT_TRIAL":             "on",
	"BRIDGE_BROKER_QUEUE_LIMIT":     "",
	"BRIDGE_DATABASE_URL":           "",
	"BRIDGE_DATABASE_URL_FILE":      "",
	"BRIDGE_SCHEMA":                 "bridge",
	"BRIDGE_MIGRATE":                "on",
	"BRIDGE_BATCH_MAX_MESSAGES":     "7500",
	"BRIDGE_BATCH_MAX_BYTES":        "8MiB",
	"BRIDGE_BATCH_LINGER":           "40ms",
	"BRIDGE_MAX_INFLIGHT_BYTES":     "256MiB",
	"BRIDGE_HTTP_ADDR":              ":8080",
	"BRIDGE_LOG_LEVEL":              "info",
	"BRIDGE_LOG_FORMAT":             "json",
	"BRIDGE_PARK_AFTER":             "5s",
	"BRIDGE_SHUTDOWN_TIMEOUT":       "25s",
	"BRIDGE_ROUTES":                 "",
}

// contractSuffixes are those of BRIDGE_ROUTE_<NAME>_<SUFFIX>.
var contractSuffixes = strings.Fields(`TOPIC FORMAT TABLE EACH DEVICE TIME TIME_FORMAT TIME_ZONE COLUMNS KEY PAYLOAD
	ON_EMPTY RETAINED LATEST PARTITION RETENTION PROTO_FILE PROTO_MESSAGE`)

func TestVariablesAreThoseOfTheContract(t *testing.T) {
	got := map[string]string{}
	for _, v := range variablesOf(prefix, &config{}) {
		got[v.name] = v.tags.Get("default")
		if v.tags.Get("desc") == "" {
			t.Errorf("%s has no description", v.name)
		}
		if v.tags.Get("envconfig") != "" {
			t.Errorf("%s has an envconfig tag: it would read the variable without the prefix too", v.name)
		}
	}
	for name, value := range contract {
		if have, ok := got[name]; !ok || have != value {
			t.Errorf("%s: default %q (there: %t), want %q", name, have, ok, value)
		}
		delete(got, name)
	}
	for name := range got {
		t.Errorf("%s is not in the contract", name)
	}
	var suffixes []string
	for _, v := range variablesOf("", &routeConfig{}) {
		suffixes = append(suffixes, v.name)
		if v.tags.Get("desc") == "" || v.tags.Get("type") == "" {
			t.Errorf("suffix %s lacks a description or a type", v.name)
		}
	}
	if !slices.Equal(slices.Sorted(slices.Values(suffixes)), slices.Sorted(slices.Values(contractSuffixes))) {
		t.Errorf("suffixes %v, want %v", suffixes, contractSuffixes)
	}
}

func TestHelpEnvCoversEveryVariable(t *testing.T) {
	environment(t)
	_, plain, _ := bridge(t, "", "help", "env")
	_, markdown, _ := bridge(t, "", "help", "env", "--markdown")
	names := slices.Sorted(func(yield func(string) bool) {
		for name := range contract {
			if !yield(name) {
				return
			}
		}
		for _, suffix := range contractSuffixes {
			if !yield("BRIDGE_ROUTE_<NAME>_" + suffix) {
				return
			}
		}
	})
	lines := map[string][]string{}
	for line := range strings.Lines(plain) {
		if !strings.HasPrefix(line, "BRIDGE_") {
			continue
		}
		var fields []string
		for part := range strings.SplitSeq(strings.TrimSpace(line), "  ") {
			if part = strings.TrimSpace(part); part != "" {
				fields = append(fields, part)
			}
		}
		lines[fields[0]] = fields
	}
	for _, name := range names {
		if fields := lines[name]; len(fields) != 4 {
			t.Errorf("help env: %s has %d columns, want name, type, default, meaning: %q", name, len(fields), fields)
		} else if want := contract[name]; want != "" && fields[2] != want {
			t.Errorf("help env: %s has default %q, want %q", name, fields[2], want)
		}
		if !strings.Contains(markdown, "| `"+name+"` |") {
			t.Errorf("help env --markdown lacks %s", name)
		}
	}
	if len(lines) != len(names) {
		t.Errorf("help env has %d variables, want %d", len(lines), len(names))
	}
}

func TestDefaults(t *testing.T) {
	environment(t)
	cfg, err := loadConfig()
	if err != nil {
		t.Fatal(err)
	}
	m := cfg.MQTT
	switch {
	case len(m.URLs.value) != 1 || m.URLs.value[0].String() != "mqtt://localhost:1883":
		t.Errorf("URLs %v", m.URLs.value)
	case m.Keepalive.value != 15*time.Second || m.SessionExpiry.value != 24*time.Hour:
		t.Errorf("keep alive %s, session expiry %s", m.Keepalive.value, m.SessionExpiry.value)
	case cfg.Batch.MaxMessages.value != 7500 || cfg.Batch.MaxBytes.value != 8<<20 || cfg.Batch.Linger.value != 40*time.Millisecond:
		t.Errorf("batch %+v", cfg.Batch)
	case cfg.MaxInflightBytes.value != 256<<20 || cfg.ShutdownTimeout.value != 25*time.Second || cfg.ParkAfter.value != 5*time.Second:
		t.Errorf("in-flight %d, shutdown %s, park after %s", cfg.MaxInflightBytes.value, cfg.ShutdownTimeout.value, cfg.ParkAfter.value)
	case cfg.password != nil || cfg.username != "":
		t.Error("a login that nobody configured")
	case cfg.clientIDPrefix() != "bridge":
		t.Errorf("client id prefix %q", cfg.clientIDPrefix())
	case len(cfg.routes.All()) != 1 || cfg.routes.All()[0].Name != "messages" || !slices.Equal(cfg.routes.Filters(), []string{"#"}):
		t.Errorf("routes %v", cfg.routes.Filters())
	}
	if name := cfg.pool.ConnConfig.RuntimeParams["application_name"]; name != "bridge" {
		t.Errorf("application name %q", name)
	}
	if cfg.pool.ConnConfig.ConnectTimeout != 10*time.Second {
		t.Errorf("connect timeout %s", cfg.pool.ConnConfig.ConnectTimeout)
	}
}

func TestSettingsAreTaken(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	password := write("password", "first\n")
	dsn := write("dsn", "postgres://one:alpha@db.example:6543/history?connect_timeout=3&pool_max_conns=9&application_name=mine\r\n")
	environment(t,
		"BRIDGE_MQTT_URLS=mqtts://a.example, WSS://b.example:9001/mqtt",
		"BRIDGE_MQTT_USERNAME_FILE="+write("username", "user"),
		"BRIDGE_MQTT_PASSWORD_FILE="+password,
		"BRIDGE_DATABASE_URL_FILE="+dsn,
		"BRIDGE_MQTT_CLIENT_ID_PREFIX=plant-7",
		"BRIDGE_MQTT_SESSIONS= 12 ",
		"BRIDGE_MQTT_KEEPALIVE=0",
		"BRIDGE_MAX_INFLIGHT_BYTES=1 GiB",
		"BRIDGE_BATCH_MAX_BYTES=4096B",
		"BRIDGE_ROUTES= one , two_2,",
		"BRIDGE_ROUTE_ONE_TOPIC=a/{device_id}/b", "BRIDGE_ROUTE_ONE_TIME=$.t", "BRIDGE_ROUTE_ONE_TIME_FORMAT=unix",
		"BRIDGE_ROUTE_TWO_2_TOPIC=c/#", "BRIDGE_ROUTE_TWO_2_TABLE=history.two",
		// What Kubernetes injects for Services named bridge, bridge-metrics and bridge-http.
		"BRIDGE_SERVICE_HOST=10.0.0.1", "BRIDGE_SERVICE_PORT=8080", "BRIDGE_SERVICE_PORT_HTTP=8080", "BRIDGE_PORT=tcp://10.0.0.1:8080",
		"BRIDGE_PORT_8080_TCP=tcp://10.0.0.1:8080", "BRIDGE_PORT_8080_TCP_ADDR=10.0.0.1", "BRIDGE_METRICS_SERVICE_HOST=10.0.0.2",
		"BRIDGE_METRICS_PORT_9090_TCP_PROTO=tcp", "BRIDGE_HTTP_PORT=tcp://10.0.0.3:80",
	)
	cfg, err := loadConfig()
	if err != nil {
		t.Fatal(err)
	}
	if cfg.username != "user" {
		t.Errorf("user name %q", cfg.username)
	}
	for _, want := range []string{"first", "second"} { // the file is read at each attempt
		write("password", want+"\n")
		if got, err := cfg.password(); err != nil || got != want {
			t.Errorf("password %q, %v; want %q", got, err, want)
		}
	}
	c := cfg.pool.ConnConfig
	if c.Host != "db.example" || c.Port != 6543 || c.ConnectTimeout != 3*time.Second || cfg.pool.MaxConns != 9 || c.RuntimeParams["application_name"] != "mine" {
		t.Errorf("pool %s:%d, timeout %s, at most %d", c.Host, c.Port, c.ConnectTimeout, cfg.pool.MaxConns)
	}
	write("dsn", "postgres://two:beta@db.example:6543/history")
	if err := cfg.pool.BeforeConnect(t.Context(), c); err != nil || c.User != "two" || c.Password != "beta" {
		t.Errorf("after rotation: user %q, %v", c.User, err)
	}
	for _, broken := range []string{"postgres://two:be/ta@db:x/y", "host=db port=be'ta"} {
		write("dsn", broken)
		if err := cfg.pool.BeforeConnect(t.Context(), c); err == nil || strings.Contains(err.Error(), "be") {
			t.Errorf("a broken file: %v", err)
		}
	}
	write("dsn", "\n")
	write("password", "")
	if err := cfg.pool.BeforeConnect(t.Context(), c); !errors.Is(err, errEmptySecret) {
		t.Errorf("an empty connection string: %v", err)
	}
	if _, err := cfg.password(); !errors.Is(err, errEmptySecret) {
		t.Errorf("an empty password file: %v", err)
	}
	if err := os.Remove(dsn); err != nil {
		t.Fatal(err)
	}
	if err := cfg.pool.BeforeConnect(t.Context(), c); err == nil {
		t.Error("a missing file is no error")
	}
	if n := cfg.MQTT.Sessions.value; n != 12 || cfg.MQTT.Keepalive.value != 0 || cfg.MaxInflightBytes.value != 1<<30 || cfg.Batch.MaxBytes.value != 4096 {
		t.Errorf("sessions %d, keep alive %s, sizes %d %d", n, cfg.MQTT.Keepalive.value, cfg.MaxInflightBytes.value, cfg.Batch.MaxBytes.value)
	}
	if got := strings.Join(cfg.routes.Filters(), " "); got != "a/+/b c/#" {
		t.Errorf("filters %s", got)
	}
	if table := cfg.routes.ByName("two_2").Table; table.Schema != "history" || table.Name != "two" {
		t.Errorf("table %+v", table)
	}
	if cfg.clientIDPrefix() != "plant-7" {
		t.Errorf("client id prefix %q", cfg.clientIDPrefix())
	}
	if len(cfg.warnings) == 0 || !strings.Contains(strings.Join(cfg.warnings, "\n"), "BRIDGE_MQTT_KEEPALIVE is 0") {
		t.Errorf("warnings %q", cfg.warnings)
	}
}

func TestPoolIsLargeEnoughForEverySession(t *testing.T) {
	environment(t, "BRIDGE_MQTT_SESSIONS=40")
	cfg, err := loadConfig()
	if err != nil {
		t.Fatal(err)
	}
	if cfg.pool.MaxConns < 44 {
		t.Errorf("%d connections for 40 writers", cfg.pool.MaxConns)
	}
}

// A session reads two batches ahead, no less than a broker may send, no more than the ledger recognises.
func TestMaxInFlight(t *testing.T) {
	for _, tt := range []struct {
		receiveMaximum, messages, key string
		want                          int
	}{
		{"2000", "1500", "$.id", 3000},
		{"4000", "1000", "$.id", 4001},
		{"20", "15", "delivery", 30},
		{"2000", "20000", "$.id", store.LedgerWindow},
		{"2000", "20000", "delivery", mostAhead},
		{"32767", "100", "$.id", store.LedgerWindow},
		{"32767", "100", "delivery", mostAhead},
	} {
		environment(t, "BRIDGE_MQTT_RECEIVE_MAXIMUM="+tt.receiveMaximum, "BRIDGE_BATCH_MAX_MESSAGES="+tt.messages, "BRIDGE_ROUTES=r", "BRIDGE_ROUTE_R_TOPIC=r", "BRIDGE_ROUTE_R_KEY="+tt.key)
		cfg, err := loadConfig()
		if err != nil {
			t.Fatal(err)
		}
		got := cfg.ingest(zap.NewNop())
		if want := tt.key == "delivery"; got.FewUnread != want {
			t.Errorf("key %s: few unread %t, want %t", tt.key, got.FewUnread, want)
		}
		if got := got.MaxInFlight; got != tt.want {
			t.Errorf("Receive Maximum %s, batches of %s, key %s: %d, want %d", tt.receiveMaximum, tt.messages, tt.key, got, tt.want)
		}
	}
}

// TestDatabaseFromPGVariables: without BRIDGE_DATABASE_URL the PG* variables count, as in psql.
func TestDatabaseFromPGVariables(t *testing.T) {
	environment(t, "PGHOST=pg.example", "PGUSER=u", "PGPASSWORD=hunter2", "PGDATABASE=d", "PGPORT=5433", "PGCONNECT_TIMEOUT=4")
	cfg, err := loadConfig()
	if err != nil {
		t.Fatal(err)
	}
	if got := cfg.databaseName(); got != "u@pg.example:5433/d" {
		t.Errorf("database %s", got)
	}
	if cfg.pool.ConnConfig.ConnectTimeout != 4*time.Second {
		t.Errorf("connect timeout %s", cfg.pool.ConnConfig.ConnectTimeout)
	}
}

// keyPair writes a self-signed certificate and its key.
func keyPair(t *testing.T) (certificate, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	certificate, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for path, block := range map[string]*pem.Block{certificate: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "EC PRIVATE KEY", Bytes: keyDER}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return certificate, key
}

func TestTLSFiles(t *testing.T) {
	certificate, key := keyPair(t)
	files := []string{"BRIDGE_MQTT_CA_FILE=" + certificate, "BRIDGE_MQTT_CERT_FILE=" + certificate, "BRIDGE_MQTT_KEY_FILE=" + key}
	environment(t, append(files, "BRIDGE_MQTT_URLS=mqtts://broker")...)
	cfg, err := loadConfig()
	if err != nil {
		t.Fatal(err)
	}
	if text := strings.Join(cfg.warnings, "\n"); strings.Contains(text, "TLS") {
		t.Errorf("warnings %s", text)
	}
	environment(t, append(files, "BRIDGE_MQTT_URLS=mqtt://broker")...)
	if cfg, err = loadConfig(); err != nil {
		t.Fatal(err)
	}
	if text := strings.Join(cfg.warnings, "\n"); !strings.Contains(text, "no URL of BRIDGE_MQTT_URLS uses it") {
		t.Errorf("warnings %s", text)
	}
}

// TestQuotedValues: an env file of Docker or kustomize keeps the quotes that a shell takes away. They are the one mistake
// that is told of the variable, and what follows from them is not told of others.
func TestQuotedValues(t *testing.T) {
	route := []string{"BRIDGE_ROUTES=a", "BRIDGE_ROUTE_A_TOPIC=a/{device_id}"}
	for _, c := range []struct {
		env  string   // the variable in quotes
		and  []string // others
		want string   // its value in the message; empty: the quotes are meant
	}{
		{env: `BRIDGE_MQTT_SHARE_NAME="bridge"`, want: ` "\"bridge\"":`},
		{env: `BRIDGE_MQTT_SESSIONS='2'`, want: ` "'2'":`},
		{env: `BRIDGE_MQTT_SESSIONS= '2' `, want: ` " '2' ":`},
		{env: `BRIDGE_MQTT_KEEPALIVE="15"`, want: ` "\"15\"":`},
		{env: `BRIDGE_MQTT_URLS="mqtt://u:hunter2@broker:1883"`, want: ` (hidden):`},
		{env: `BRIDGE_DATABASE_URL="postgres://u:hunter2@h/d"`, want: ` (hidden):`},
		{env: `BRIDGE_MQTT_PASSWORD='hunter2'`, and: []string{"BRIDGE_MQTT_USERNAME=u"}},
		{env: `BRIDGE_ROUTES="a,b"`, and: []string{"BRIDGE_ROUTE_B_TOPIC=b"}, want: ` "\"a,b\"":`},
		{env: `BRIDGE_ROUTE_A_TOPIC='a/#'`, want: ` "'a/#'":`},
		{env: `BRIDGE_ROUTE_A_TOPIC='a/{device}'`, and: []string{"BRIDGE_ROUTE_A_DEVICE={device}"}, want: ` "'a/{device}'":`},
		{env: `BRIDGE_ROUTE_A_TABLE="readings"`, want: ` "\"readings\"":`},
		{env: `BRIDGE_ROUTE_A_COLUMNS="t:float8=$.t"`, want: ` "\"t:float8=$.t\"":`},
		{env: `BRIDGE_ROUTE_A_EACH="$.list"`, and: []string{"BRIDGE_ROUTE_A_COLUMNS=v=@.v", "BRIDGE_ROUTE_A_PAYLOAD=drop"}, want: ` "\"$.list\"":`},
		{env: `BRIDGE_ROUTE_A_PARTITION='month'`, want: ` "'month'":`},
		{env: `BRIDGE_ROUTE_A_TIME='$.ts'`, want: ` "'$.ts'":`},
		{env: `BRIDGE_ROUTE_A_TIME="$.ts"`, want: ` "\"$.ts\"":`},
		{env: `BRIDGE_ROUTE_A_DEVICE="topic[2]"`, want: ` "\"topic[2]\"":`},
		{env: `BRIDGE_ROUTE_A_DEVICE='{device_id}'`, want: ` "'{device_id}'":`},
		{env: `BRIDGE_ROUTE_A_DEVICE='one'`},
		{env: `BRIDGE_ROUTE_A_KEY='$.a, $.b'`, want: ` "'$.a, $.b'":`},
		{env: `BRIDGE_ROUTE_A_KEY='delivery'`, want: ` "'delivery'":`},
		{env: `BRIDGE_ROUTE_A_KEY='x', 'y'`},
	} {
		environment(t, slices.Concat(route, c.and)...)
		name, value, _ := strings.Cut(c.env, "=")
		t.Setenv(name, value)
		want := ""
		if c.want != "" {
			want = name + ":" + c.want + " expected a value without quotes around it: outside of a shell they are a part of it"
		}
		got := ""
		if _, err := loadConfig(); err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("%s:\n%s\nwant\n%s", c.env, got, want)
		}
	}
}

// TestWrongConfigurations: every mistake is reported at once, one line each, with the variable's
// name, what is wrong, and no secret; and nothing else is reported.
func TestWrongConfigurations(t *testing.T) {
	certificate, key := keyPair(t)
	_, otherKey := keyPair(t)
	empty := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	route := func(entries ...string) []string {
		all := []string{"BRIDGE_ROUTES=a", "BRIDGE_ROUTE_A_TOPIC=a/{device_id}"}
		return append(all, entries...)
	}
	for _, c := range []struct {
		name string
		env  []string
		want []string // a line each: the variable, a colon, and a part of what follows
	}{
		{
			"durations",
			[]string{"BRIDGE_MQTT_KEEPALIVE=15 sec", "BRIDGE_MQTT_SESSION_EXPIRY=1d", "BRIDGE_BATCH_LINGER=-1s", "BRIDGE_SHUTDOWN_TIMEOUT=25"},
			[]string{
				`BRIDGE_MQTT_KEEPALIVE: "15 sec": expected a duration such as 15s`, "BRIDGE_MQTT_SESSION_EXPIRY: \"1d\"",
				`BRIDGE_BATCH_LINGER: "-1s": expected a duration that is not negative`, `BRIDGE_SHUTDOWN_TIMEOUT: "25"`,
			},
		},
		{"parked too late", []string{"BRIDGE_PARK_AFTER=2h"}, []string{`BRIDGE_PARK_AFTER: "2h": expected at most 1h`}},
		{
			"keep alive beyond the protocol",
			[]string{"BRIDGE_MQTT_KEEPALIVE=19h", "BRIDGE_MQTT_SESSION_EXPIRY=1193047h"},
			[]string{`BRIDGE_MQTT_KEEPALIVE: "19h": expected whole seconds, at most 65535s`, "BRIDGE_MQTT_SESSION_EXPIRY:"},
		},
		{"parts of a second", []string{"BRIDGE_MQTT_KEEPALIVE=1500ms"}, []string{`BRIDGE_MQTT_KEEPALIVE: "1500ms": expected whole seconds`}},
		{
			"numbers",
			[]string{"BRIDGE_MQTT_QOS=3", "BRIDGE_MQTT_RECEIVE_MAXIMUM=0", "BRIDGE_MQTT_SESSIONS=none", "BRIDGE_BATCH_MAX_MESSAGES=-4"},
			[]string{
				`BRIDGE_MQTT_QOS: "3": expected a number from 0 to 2`, `BRIDGE_MQTT_RECEIVE_MAXIMUM: "0": expected a number from 1 to 32767`,
				`BRIDGE_MQTT_SESSIONS: "none": expected a whole number`, "BRIDGE_BATCH_MAX_MESSAGES:",
			},
		},
		{"queue limit", []string{"BRIDGE_BROKER_QUEUE_LIMIT=-1", "BRIDGE_MQTT_WATCH=yes"}, []string{
			`BRIDGE_BROKER_QUEUE_LIMIT: "-1": expected a whole number from 0`, `BRIDGE_MQTT_WATCH: "yes": expected one of on, off`,
		}},
		{"receive maximum too great", []string{"BRIDGE_MQTT_RECEIVE_MAXIMUM=32768"}, []string{"BRIDGE_MQTT_RECEIVE_MAXIMUM:"}},
		{
			"sizes",
			[]string{"BRIDGE_MAX_INFLIGHT_BYTES=lots", "BRIDGE_BATCH_MAX_BYTES=8MB"},
			[]string{`BRIDGE_MAX_INFLIGHT_BYTES: "lots": expected a size`, `BRIDGE_BATCH_MAX_BYTES: "8MB": expected a size`},
		},
		{
			"sizes out of range",
			[]string{"BRIDGE_MAX_INFLIGHT_BYTES=12KiB", "BRIDGE_BATCH_MAX_BYTES=99999999999GiB"},
			[]string{`BRIDGE_MAX_INFLIGHT_BYTES: "12KiB": expected at least 1MiB`, "BRIDGE_BATCH_MAX_BYTES:"},
		},
		{"no bytes", []string{"BRIDGE_BATCH_MAX_BYTES=0"}, []string{"BRIDGE_BATCH_MAX_BYTES:"}},
		{
			"choices",
			[]string{"BRIDGE_MQTT_MODE=private", "BRIDGE_MIGRATE=yes", "BRIDGE_LOG_LEVEL=loud", "BRIDGE_LOG_FORMAT="},
			[]string{
				`BRIDGE_MQTT_MODE: "private": expected one of shared, exclusive`, `BRIDGE_MIGRATE: "yes": expected one of on, off`,
				`BRIDGE_LOG_LEVEL: "loud": expected one of debug, info, warn, error`, "BRIDGE_LOG_FORMAT: expected one of json, console",
			},
		},
		{"exclusive with several sessions", []string{"BRIDGE_MQTT_MODE=exclusive", "BRIDGE_MQTT_SESSIONS=2"}, []string{`BRIDGE_MQTT_SESSIONS: "2": expected 1 in exclusive mode`}},
		{"share name", []string{"BRIDGE_MQTT_SHARE_NAME=plant/7"}, []string{`BRIDGE_MQTT_SHARE_NAME: "plant/7": expected a name without /, + and #`}},
		{"no share name", []string{"BRIDGE_MQTT_SHARE_NAME="}, []string{"BRIDGE_MQTT_SHARE_NAME: expected"}},
		{
			"client ids and topics",
			[]string{"BRIDGE_MQTT_CLIENT_ID_PREFIX=a\tb", "BRIDGE_MQTT_STATUS_TOPIC=status/#"},
			[]string{"BRIDGE_MQTT_CLIENT_ID_PREFIX: \"a\\tb\"", `BRIDGE_MQTT_STATUS_TOPIC: "status/#"`},
		},
		{"broker URLs: scheme", []string{"BRIDGE_MQTT_URLS=mqtt://ok, amqp://user:hunter2@broker"}, []string{`BRIDGE_MQTT_URLS: (hidden): expected a URL with one of the schemes mqtt, mqtts, ws, wss, tcp, ssl, tls; number 2 has "amqp"`}},
		{"broker URLs: form", []string{"BRIDGE_MQTT_URLS=mqtt://user:hun/ter2@broker:99"}, []string{"BRIDGE_MQTT_URLS: (hidden): expected URLs such as mqtt://broker:1883; number 1 is none"}},
		{"broker URLs: host", []string{"BRIDGE_MQTT_URLS=localhost:1883"}, []string{"BRIDGE_MQTT_URLS: (hidden): expected URLs such as mqtt://broker:1883; number 1 is none"}},
		{"broker URLs: port", []string{"BRIDGE_MQTT_URLS=mqtt://broker:70000"}, []string{"BRIDGE_MQTT_URLS: (hidden): expected a port from 1 to 65535; URL number 1 has 70000"}},
		{
			"broker URLs: several",
			[]string{"BRIDGE_MQTT_URLS=,amqp://u:hunter2@a,mqtt://good,hunter2:1883,mqtt://c:0"},
			[]string{
				`BRIDGE_MQTT_URLS: (hidden): expected a URL with one of the schemes mqtt, mqtts, ws, wss, tcp, ssl, tls; number 1 has "amqp"`,
				"BRIDGE_MQTT_URLS: (hidden): expected URLs such as mqtt://broker:1883; number 3 is none",
				"BRIDGE_MQTT_URLS: (hidden): expected a port from 1 to 65535; URL number 4 has 0",
			},
		},
		{"broker URLs: none", []string{"BRIDGE_MQTT_URLS=,"}, []string{"BRIDGE_MQTT_URLS: (hidden): expected at least one URL"}},
		{"two user names", []string{"BRIDGE_MQTT_URLS=mqtt://user:hunter2@broker", "BRIDGE_MQTT_USERNAME=other"}, []string{"BRIDGE_MQTT_URLS: expected no user name in a URL"}},
		{
			"secrets twice",
			[]string{
				"BRIDGE_MQTT_PASSWORD=hunter2", "BRIDGE_MQTT_PASSWORD_FILE=" + empty, "BRIDGE_MQTT_USERNAME=u", "BRIDGE_MQTT_USERNAME_FILE=" + empty,
				"BRIDGE_DATABASE_URL=postgres://u:hunter2@h/d", "BRIDGE_DATABASE_URL_FILE=" + empty,
			},
			[]string{"BRIDGE_MQTT_USERNAME_FILE: expected only one of", "BRIDGE_MQTT_PASSWORD_FILE: expected only one of", "BRIDGE_DATABASE_URL_FILE: expected only one of"},
		},
		{
			"secret files empty",
			[]string{"BRIDGE_MQTT_USERNAME_FILE=" + empty, "BRIDGE_MQTT_PASSWORD_FILE=" + empty, "BRIDGE_DATABASE_URL_FILE=" + empty},
			[]string{
				`BRIDGE_MQTT_USERNAME_FILE: "` + empty + `": expected a file that holds the secret: it is empty`,
				`BRIDGE_MQTT_PASSWORD_FILE: "` + empty + `": expected a file that holds the secret: it is empty`,
				`BRIDGE_DATABASE_URL_FILE: "` + empty + `": expected a file that holds the secret: it is empty`,
			},
		},
		{
			"secret files missing",
			[]string{"BRIDGE_MQTT_PASSWORD_FILE=/nowhere/p", "BRIDGE_DATABASE_URL_FILE=/nowhere/d"},
			[]string{`BRIDGE_MQTT_PASSWORD_FILE: "/nowhere/p": expected a readable file: no such file or directory`, `BRIDGE_DATABASE_URL_FILE: "/nowhere/d"`},
		},
		{"database URL", []string{"BRIDGE_DATABASE_URL=postgres://u:hun#ter2/x@h:5432/d"}, []string{"BRIDGE_DATABASE_URL: expected a connection string such as postgres://"}},
		{"database port", []string{"BRIDGE_DATABASE_URL=host=db port=hunter2 password=hunter2"}, []string{"BRIDGE_DATABASE_URL: expected a connection string"}},
		{"PG variables", []string{"PGPORT=many"}, []string{"PG*: expected a connection string"}},
		{
			"CA file missing, no key",
			[]string{"BRIDGE_MQTT_URLS=mqtts://b", "BRIDGE_MQTT_CA_FILE=/nowhere/ca.pem", "BRIDGE_MQTT_CERT_FILE=" + certificate},
			[]string{`BRIDGE_MQTT_CA_FILE: "/nowhere/ca.pem": expected a readable file`, "BRIDGE_MQTT_KEY_FILE: expected the key of BRIDGE_MQTT_CERT_FILE"},
		},
		{
			"CA file empty, no certificate",
			[]string{"BRIDGE_MQTT_CA_FILE=" + empty, "BRIDGE_MQTT_KEY_FILE=" + key},
			[]string{"BRIDGE_MQTT_CA_FILE: \"" + empty + "\": expected certificates in PEM form", "BRIDGE_MQTT_CERT_FILE: expected the certificate of BRIDGE_MQTT_KEY_FILE"},
		},
		{"certificate is no PEM", []string{"BRIDGE_MQTT_CERT_FILE=" + empty, "BRIDGE_MQTT_KEY_FILE=" + key}, []string{"BRIDGE_MQTT_CERT_FILE: \"" + empty}},
		{"certificate and key are missing", []string{"BRIDGE_MQTT_CERT_FILE=/nowhere/c.pem", "BRIDGE_MQTT_KEY_FILE=/nowhere/k.pem"}, []string{`BRIDGE_MQTT_CERT_FILE: "/nowhere/c.pem": expected a readable file`, `BRIDGE_MQTT_KEY_FILE: "/nowhere/k.pem": expected a readable file`}},
		{"certificate is missing, and the key not named", []string{"BRIDGE_MQTT_CERT_FILE=/nowhere/c.pem"}, []string{`BRIDGE_MQTT_CERT_FILE: "/nowhere/c.pem": expected a readable file`, "BRIDGE_MQTT_KEY_FILE: expected the key"}},
		{"certificate and key do not belong together", []string{"BRIDGE_MQTT_CERT_FILE=" + certificate, "BRIDGE_MQTT_KEY_FILE=" + otherKey}, []string{"BRIDGE_MQTT_CERT_FILE: \"" + certificate + "\": expected a certificate and, in BRIDGE_MQTT_KEY_FILE, its key"}},
		{"key is missing", []string{"BRIDGE_MQTT_CERT_FILE=" + certificate, "BRIDGE_MQTT_KEY_FILE=/nowhere/key.pem"}, []string{`BRIDGE_MQTT_KEY_FILE: "/nowhere/key.pem"`}},
		{"schema", []string{"BRIDGE_SCHEMA=My-Schema"}, []string{`BRIDGE_SCHEMA: "My-Schema": expected lower-case letters`}},
		{"reserved schema", []string{"BRIDGE_SCHEMA=pg_bridge"}, []string{`BRIDGE_SCHEMA: "pg_bridge"`}},
		{"listen address", []string{"BRIDGE_HTTP_ADDR=8080"}, []string{`BRIDGE_HTTP_ADDR: "8080": expected host:port`}},
		{"listen port", []string{"BRIDGE_HTTP_ADDR=:http-alt"}, []string{`BRIDGE_HTTP_ADDR: ":http-alt"`}},
		{
			"typos",
			[]string{"BRIDGE_MQTT_PASWORD=hunter2", "BRIDGE_KEEPALIVE=15s", "BRIDGE_COMPLETELY_DIFFERENT=1"},
			[]string{
				"BRIDGE_MQTT_PASWORD: no such variable; did you mean BRIDGE_MQTT_PASSWORD?", "BRIDGE_KEEPALIVE: no such variable",
				"BRIDGE_COMPLETELY_DIFFERENT: no such variable",
			},
		},
		{"a port that Kubernetes did not inject", []string{"BRIDGE_HTTP_PORT=8080"}, []string{"BRIDGE_HTTP_PORT: no such variable"}},
		{"route names", []string{"BRIDGE_ROUTES=Telemetry"}, []string{`BRIDGE_ROUTES: "Telemetry": expected names of lower-case letters`}},
		{"route named twice", []string{"BRIDGE_ROUTES=a,b,a"}, []string{`BRIDGE_ROUTES: "a,b,a": expected each name once; "a" comes twice`, "BRIDGE_ROUTE_A_TOPIC: is required", "BRIDGE_ROUTE_B_TOPIC: is required"}},
		{
			"wrong names and good ones",
			[]string{
				"BRIDGE_ROUTES=temp erature,x,x,Hall-7,9", "BRIDGE_ROUTE_X_TOPIC=j/+,j2/+", "BRIDGE_ROUTE_TEMP_ERATURE_TOPIC=a", "BRIDGE_ROUTE_HALL_7_TOPIC=b",
			},
			[]string{
				`BRIDGE_ROUTES: "temp erature,x,x,Hall-7,9": expected names of lower-case letters, digits and _, beginning with a letter; "temp erature" is none; did you mean temp_erature?`,
				`BRIDGE_ROUTES: "temp erature,x,x,Hall-7,9": expected each name once; "x" comes twice`,
				`BRIDGE_ROUTES: "temp erature,x,x,Hall-7,9": expected names of lower-case letters, digits and _, beginning with a letter; "Hall-7" is none; did you mean hall_7?`,
				`BRIDGE_ROUTES: "temp erature,x,x,Hall-7,9": expected names of lower-case letters, digits and _, beginning with a letter; "9" is none`,
				`BRIDGE_ROUTE_X_TOPIC: "j/+,j2/+": a wildcard must fill its level`,
			},
		},
		{
			"route suffixes",
			route("BRIDGE_ROUTE_A_COLUMN=x=1", "BRIDGE_ROUTE_A_COL=x=1", "BRIDGE_ROUTE_A_TOPICS=x", "BRIDGE_ROUTE_A_FILTER=x", "BRIDGE_ROUTE_X_COLUMN=x=1", "BRIDGE_ROUTE_A_PAYLAOD=keep"),
			[]string{
				"BRIDGE_ROUTE_A_COLUMN: no such variable; did you mean BRIDGE_ROUTE_A_COLUMNS?", "BRIDGE_ROUTE_A_COL: no such variable; did you mean BRIDGE_ROUTE_A_COLUMNS?",
				"BRIDGE_ROUTE_A_TOPICS: no such variable; did you mean BRIDGE_ROUTE_A_TOPIC?", "BRIDGE_ROUTE_A_FILTER: no such variable; bridge help env lists",
				"BRIDGE_ROUTE_X_COLUMN: route x is not in BRIDGE_ROUTES, and a route has no COLUMN; did you mean COLUMNS?",
				"BRIDGE_ROUTE_A_PAYLAOD: no such variable; did you mean BRIDGE_ROUTE_A_PAYLOAD?",
			},
		},
		{"a colon forgotten", route("BRIDGE_ROUTE_A_COLUMNS=t float8 = $.t"), []string{`BRIDGE_ROUTE_A_COLUMNS: "t float8 = $.t": character 3: column t: expected a colon before the type: t:float8 = …`}},
		{
			"route that is not listed", route("BRIDGE_ROUTE_B_TOPIC=x", "BRIDGE_ROUTE_B_TIME_FORMAT=unix"),
			[]string{"BRIDGE_ROUTE_B_TOPIC: route b is not in BRIDGE_ROUTES; did you mean BRIDGE_ROUTE_A_TOPIC?", "BRIDGE_ROUTE_B_TIME_FORMAT: route b is not in BRIDGE_ROUTES"},
		},
		{
			"a typo beside another route", // of which nothing is meant, however near its name is
			[]string{
				"BRIDGE_ROUTES=a,b,a_b", "BRIDGE_ROUTE_A_TOPIC=a", "BRIDGE_ROUTE_B_TOPIC=b", "BRIDGE_ROUTE_A_B_TOPIC=c",
				"BRIDGE_ROUTE_B_A_TOPIC=x", "BRIDGE_ROUTE_B_EVENT_TIME=x", "BRIDGE_ROUTE_A_B_TIMEFORMAT=unix", "BRIDGE_ROUTE_B_A_B_TIME=x",
			},
			[]string{
				"BRIDGE_ROUTE_B_A_TOPIC: route b_a is not in BRIDGE_ROUTES; did you mean BRIDGE_ROUTE_B_TOPIC?",
				"BRIDGE_ROUTE_B_EVENT_TIME: route b_event is not in BRIDGE_ROUTES",
				"BRIDGE_ROUTE_A_B_TIMEFORMAT: no such variable; did you mean BRIDGE_ROUTE_A_B_TIME_FORMAT?",
				"BRIDGE_ROUTE_B_A_B_TIME: route b_a_b is not in BRIDGE_ROUTES; did you mean BRIDGE_ROUTE_B_TIME?",
			},
		},
		{"route suffix misspelt", route("BRIDGE_ROUTE_A_COLUMS=x=1"), []string{"BRIDGE_ROUTE_A_COLUMS: no such variable; did you mean BRIDGE_ROUTE_A_COLUMNS?"}},
		{"route without topic", []string{"BRIDGE_ROUTES=a,b", "BRIDGE_ROUTE_A_FORMAT=json"}, []string{"BRIDGE_ROUTE_A_TOPIC:", "BRIDGE_ROUTE_B_TOPIC:"}},
		{
			"routes that share a variable",
			[]string{"BRIDGE_ROUTES=a,a_time", "BRIDGE_ROUTE_A_TOPIC=x/#", "BRIDGE_ROUTE_A_TIME_TOPIC=y/#"},
			[]string{`BRIDGE_ROUTES: "a_time": expected another name: route a reads BRIDGE_ROUTE_A_TIME_FORMAT as well`},
		},
		{
			"route values", route("BRIDGE_ROUTE_A_FORMAT=xml", "BRIDGE_ROUTE_A_COLUMNS=x:float8=$.[", "BRIDGE_ROUTE_A_ON_EMPTY=perhaps", "BRIDGE_ROUTE_A_RETENTION=soon"),
			[]string{"BRIDGE_ROUTE_A_FORMAT:", "BRIDGE_ROUTE_A_COLUMNS:", "BRIDGE_ROUTE_A_ON_EMPTY:", "BRIDGE_ROUTE_A_RETENTION:"},
		},
		{
			"everything at once",
			[]string{"BRIDGE_MQTT_KEEPALIVE=x", "BRIDGE_SCHEMA=x y", "BRIDGE_ROUTES=a", "BRIDGE_UNKNOWN_THING=1", "BRIDGE_DATABASE_URL=://"},
			[]string{"BRIDGE_MQTT_KEEPALIVE:", "BRIDGE_SCHEMA:", "BRIDGE_ROUTE_A_TOPIC:", "BRIDGE_UNKNOWN_THING:", "BRIDGE_DATABASE_URL:"},
		},
		{
			"what no sensible work can follow from",
			[]string{
				"BRIDGE_SHUTDOWN_TIMEOUT=999ms",
				"BRIDGE_DATABASE_URL=postgres://u:unter2@h/d?pool_max_conns=3&default_transaction_read_only=on&client_encoding=latin1&options=-c%20default_transaction_read_only%3Dtrue",
			},
			[]string{
				`BRIDGE_SHUTDOWN_TIMEOUT: "999ms": expected at least 1s`, `BRIDGE_DATABASE_URL: "pool_max_conns=3": expected at least 5`,
				`BRIDGE_DATABASE_URL: "default_transaction_read_only=true": expected a connection without it: nothing can be written`,
				`BRIDGE_DATABASE_URL: "client_encoding=latin1": expected a connection without it`,
			},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			environment(t, c.env...)
			code, stdout, stderr := bridge(t, "", "check")
			if code != exitUsage || stdout != "" {
				t.Errorf("exit %d, stdout %q; want %d and nothing", code, stdout, exitUsage)
			}
			lines := strings.Split(strings.TrimSpace(stderr), "\n")
			for _, want := range c.want {
				i := slices.IndexFunc(lines, func(line string) bool { return strings.HasPrefix(line, want) })
				if i < 0 {
					t.Errorf("no line begins with %s", want)
					continue
				}
				lines = slices.Delete(lines, i, i+1)
			}
			if len(lines) > 0 {
				t.Errorf("beyond that: %s", strings.Join(lines, "\n"))
			}
			if strings.Contains(stderr, "unter2") || strings.Contains(stderr, "ter2/x") {
				t.Errorf("a secret is shown: %s", stderr)
			}
		})
	}
}

// TestSettingsThatAreSeldomMeant are warned of, each by the name of its variable, in the log and by check.
func TestSettingsThatAreSeldomMeant(t *testing.T) {
	route := []string{"BRIDGE_ROUTES=a,b", "BRIDGE_ROUTE_A_TOPIC=plant/+/bridge-2", "BRIDGE_ROUTE_B_TOPIC=b/#"}
	for _, c := range []struct {
		env  string
		want string // the one warning; empty: none
	}{
		{"", ""},
		{"BRIDGE_MQTT_SESSION_EXPIRY=0s", "BRIDGE_MQTT_SESSION_EXPIRY is 0: the broker forgets the session with every connection"},
		{"BRIDGE_MQTT_SESSION_EXPIRY=30s", "BRIDGE_MQTT_SESSION_EXPIRY is shorter than the keep alive or a minute"},
		{"BRIDGE_MQTT_SESSION_EXPIRY=60s", ""},
		{"BRIDGE_SHUTDOWN_TIMEOUT=1s", ""},
		{"BRIDGE_DATABASE_URL=postgres://h/d?pool_max_conns=6", "BRIDGE_DATABASE_URL sets pool_max_conns=6: a process that holds all 3 sessions of BRIDGE_MQTT_SESSIONS wants 7 connections"},
		{"BRIDGE_DATABASE_URL=postgres://h/d?pool_max_conns=7", ""},
		{"BRIDGE_DATABASE_URL=postgres://h/d?statement_timeout=5s", "BRIDGE_DATABASE_URL sets statement_timeout=5s: batches have limits of their own"},
		{"BRIDGE_DATABASE_URL=postgres://h/d?statement_timeout=0", ""},
		{"BRIDGE_DATABASE_URL=postgres://h/d?options=-c%20Statement_Timeout%3D10min%20-c%20geqo%3Doff", "BRIDGE_DATABASE_URL sets statement_timeout=10min"},
		{"BRIDGE_DATABASE_URL=postgres://h/d?options=--default-transaction-isolation%3Drepeatable%5C%20read", "BRIDGE_DATABASE_URL sets default_transaction_isolation=repeatable read: replicas"},
		{"BRIDGE_DATABASE_URL=postgres://h/d?default_transaction_isolation=read%20committed", ""},
		{"BRIDGE_DATABASE_URL=postgres://h/d?session_replication_role=replica", "BRIDGE_DATABASE_URL sets session_replication_role=replica: triggers"},
		{"BRIDGE_DATABASE_URL=postgres://h/d?default_transaction_read_only=off&client_encoding=UTF8&lock_timeout=3s", ""},
		{"BRIDGE_ROUTE_B_RETENTION=1h", "BRIDGE_ROUTE_B_RETENTION (1h) is shorter than a partition (day): a partition is dropped when all of it is older, so rows stay for up to a day longer"},
		{"BRIDGE_ROUTE_B_RETENTION=1d", ""},
		{"BRIDGE_MQTT_STATUS_TOPIC=plant/status", "BRIDGE_MQTT_STATUS_TOPIC: route a takes the bridge's own status for messages of devices: its filter matches plant/status/bridge-2"},
		{"BRIDGE_MQTT_STATUS_TOPIC=status", ""},
	} {
		environment(t, append(route, "BRIDGE_MQTT_SESSIONS=3")...)
		if name, value, ok := strings.Cut(c.env, "="); ok {
			t.Setenv(name, value)
		}
		cfg, err := loadConfig()
		if err != nil {
			t.Errorf("%s: %v", c.env, err)
			continue
		}
		if got := strings.Join(cfg.warnings, "\n"); !strings.HasPrefix(got, c.want) || c.want == "" && got != "" || strings.Contains(got, "\n") {
			t.Errorf("%s: warnings %q, want %q", c.env, got, c.want)
		}
	}
	if _, _, stderr := bridge(t, "", "check"); strings.Contains(stderr, "warning") {
		t.Errorf("check: %s", stderr)
	}
	t.Setenv("BRIDGE_ROUTE_B_RETENTION", "3h")
	if code, _, stderr := bridge(t, "", "check"); code != exitOK || !strings.Contains(stderr, "warning: BRIDGE_ROUTE_B_RETENTION (3h)") {
		t.Errorf("check: exit %d, %s", code, stderr)
	}
}

// TestRetainedNeedsPlainSubscriptions: brokers send no retained messages to shared subscriptions.
func TestRetainedNeedsPlainSubscriptions(t *testing.T) {
	for mode, warns := range map[string]bool{"shared": true, "exclusive": false} {
		environment(t, "BRIDGE_ROUTES=a,b", "BRIDGE_ROUTE_A_TOPIC=a", "BRIDGE_ROUTE_B_TOPIC=b", "BRIDGE_ROUTE_A_RETAINED=store", "BRIDGE_MQTT_MODE="+mode)
		cfg, err := loadConfig()
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(cfg.warnings, "\n"); strings.HasPrefix(got, "BRIDGE_ROUTE_A_RETAINED: store has no effect") != warns || strings.Contains(got, "ROUTE_B") || strings.HasSuffix(got, ".") {
			t.Errorf("%s: warnings %q", mode, got)
		}
	}
}

// TestQoS2IsAdvisedAgainst: it is served, and costs more than it gives.
func TestQoS2IsAdvisedAgainst(t *testing.T) {
	for _, qos := range []string{"0", "1", "2"} {
		environment(t, "BRIDGE_MQTT_QOS="+qos)
		cfg, err := loadConfig()
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(cfg.warnings, "\n"); strings.Contains(got, "BRIDGE_MQTT_QOS=2 takes two more packets") != (qos == "2") || strings.Contains(got, "written once") || strings.HasSuffix(got, ".") {
			t.Errorf("QoS %s: warnings %q", qos, got)
		}
	}
}

// TestSecretsStayHidden looks at what is logged about a configuration that is right.
func TestSecretsStayHidden(t *testing.T) {
	environment(t, "BRIDGE_MQTT_URLS=mqtt://user:hunter2@broker", "BRIDGE_MQTT_PASSWORD=hunter2", "BRIDGE_DATABASE_URL=postgres://u:hunter2@h:5432/d")
	cfg, err := loadConfig()
	if err != nil {
		t.Fatal(err)
	}
	all := cfg.effective()
	for name, value := range all {
		if strings.Contains(value, "hunter2") {
			t.Errorf("%s=%s", name, value)
		}
	}
	for name, want := range map[string]string{
		"BRIDGE_DATABASE_URL": "u@h:5432/d", "BRIDGE_MQTT_URLS": "mqtt://broker", "BRIDGE_MQTT_PASSWORD": hidden, "BRIDGE_SCHEMA": "bridge",
	} {
		if all[name] != want {
			t.Errorf("%s=%s, want %s", name, all[name], want)
		}
	}
}

func TestDistance(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"abc", "abc", 0}, {"", "abc", 3}, {"abc", "", 3}, {"kitten", "sitting", 3}, {"abc", "acb", 2}} {
		if got := distance(c.a, c.b); got != c.want {
			t.Errorf("distance(%q, %q) = %d, want %d", c.a, c.b, got, c.want)
		}
	}
}

func FuzzSize(f *testing.F) {
	for _, seed := range []string{"0", "1", "8MiB", "1 GiB", "-1", "9223372036854775807KiB", "KiB", "1e3"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if n, err := (sizeFormat{}).parse(text); err == nil && n < 0 {
			t.Errorf("%q is %d", text, n)
		}
	})
}

// FuzzDatabaseURLNeverShown: whatever is wrong with a connection string, its password is not told.
func FuzzDatabaseURLNeverShown(f *testing.F) {
	for _, seed := range []string{"postgres://u:%s@h/d", "postgres://u:%s@h:x/d", "host=h password=%s port=x", "postgres://u:%s/@h", "password=%s'", "postgres://h/d?password=%s&port=%s"} {
		f.Add(seed)
	}
	const password = "s3cr3tpassw0rd"
	f.Fuzz(func(t *testing.T, template string) {
		dsn := strings.ReplaceAll(template, "%s", password)
		if _, err := pgxpool.ParseConfig(dsn); err != nil {
			if shown := dsnFault(dsn, err); strings.Contains(shown, password) && strings.Contains(template, "%s") {
				t.Errorf("%q: %s", dsn, shown)
			}
		}
	})
}
