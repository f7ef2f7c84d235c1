package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog" //nolint:depguard // the embedded broker takes no other logger
	"net"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	mochi "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/hooks/auth"
	"github.com/mochi-mqtt/server/v2/listeners"
	"github.com/mqttpg/bridge/health"
)

// patience is how long a test waits for what must happen.
const patience = 90 * time.Second

// eventually waits until look is satisfied.
func eventually(t *testing.T, what string, look func() (done bool, state string)) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		done, state := look()
		if done {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain until %s: %s", what, state)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// output collects what a running command prints.
type output struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// running is a bridge that runs in this process.
type running struct {
	t    *testing.T
	stop context.CancelFunc // as the first signal
	exit chan int
	log  *output
	url  string
}

// start runs the service with the environment of the test, which must say BRIDGE_HTTP_ADDR.
func start(t *testing.T) *running {
	t.Helper()
	return startAs(t, func(ctx context.Context, std streams) int { return realMain(ctx, nil, std) })
}

// startWith is start with a service that is changed before it runs.
func startWith(t *testing.T, change func(*service)) *running {
	t.Helper()
	return startAs(t, func(ctx context.Context, std streams) int {
		cfg, err := loadConfig()
		if err == nil {
			var s *service
			if s, err = newService(ctx, cfg, newLogger(cfg.Log, std.err)); err == nil {
				change(s)
				err = s.run(ctx)
			}
		}
		if err != nil {
			_, _ = fmt.Fprintln(std.err, err)
			return exitFailure
		}
		return exitOK
	})
}

func startAs(t *testing.T, program func(context.Context, streams) int) *running {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{t: t, stop: cancel, exit: make(chan int, 1), log: &output{}}
	go func() { r.exit <- program(ctx, streams{strings.NewReader(""), r.log, r.log}) }()
	t.Cleanup(func() {
		cancel()
		if t.Failed() {
			t.Logf("the bridge said:\n%s", r.log)
		}
	})
	address := regexp.MustCompile(`"http server listens","address":"([^"]+)"`)
	eventually(t, "the http server listens", func() (bool, string) {
		found := address.FindStringSubmatch(r.log.String())
		if found != nil {
			r.url = "http://" + found[1]
		}
		return found != nil, r.log.String()
	})
	return r
}

// get asks for a path.
func (r *running) get(path string) (code int, body string) {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 5 * time.Second}
	response, err := client.Get(r.url + path)
	if err != nil {
		return 0, err.Error()
	}
	defer func() { _ = response.Body.Close() }()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return 0, err.Error()
	}
	return response.StatusCode, string(text)
}

func (r *running) awaitReady() {
	r.t.Helper()
	eventually(r.t, "the bridge is ready", func() (bool, string) {
		code, body := r.get("/readyz")
		return code == http.StatusOK, body
	})
}

func (r *running) health() health.Report {
	r.t.Helper()
	code, body := r.get("/health")
	var report health.Report
	if err := json.Unmarshal([]byte(body), &report); code != http.StatusOK || err != nil {
		r.t.Fatalf("/health: %d %s: %v", code, body, err)
	}
	return report
}

// end stops the bridge and returns its exit code.
func (r *running) end() int {
	r.t.Helper()
	r.stop()
	select {
	case code := <-r.exit:
		return code
	case <-time.After(patience):
		r.t.Fatal("the bridge does not end")
		return -1
	}
}

// broker is an embedded MQTT broker.
type broker struct {
	server *mochi.Server
	url    string
}

func startBroker(t *testing.T) *broker {
	t.Helper()
	b := &broker{server: mochi.New(&mochi.Options{InlineClient: true, Logger: slog.New(slog.DiscardHandler)})}
	tcp := listeners.NewTCP(listeners.Config{ID: "tcp", Address: "127.0.0.1:0"})
	for _, err := range []error{b.server.AddHook(new(auth.AllowHook), nil), b.server.AddListener(tcp), b.server.Serve()} {
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { _ = b.server.Close() })
	b.url = "mqtt://" + tcp.Address()
	return b
}

func (b *broker) publish(t *testing.T, topic, payload string, qos byte) {
	t.Helper()
	if err := b.server.Publish(topic, []byte(payload), false, qos); err != nil {
		t.Fatal(err)
	}
}

// database makes an empty database and returns its URL.
func database(t *testing.T) string {
	t.Helper()
	return databaseNamed(t, t.Name())
}

// databaseNamed makes an empty database for a test that needs several.
func databaseNamed(t *testing.T, name string) string {
	t.Helper()
	name = strings.ToLower(regexp.MustCompile(`\W`).ReplaceAllString(name, "_"))
	if err := server.CreateDatabase(context.Background(), name); err != nil {
		t.Fatal(err)
	}
	return server.URL(name)
}

// query returns the rows of a query as text, one line each.
func query(t *testing.T, url, sql string, args ...any) string {
	t.Helper()
	ctx := context.Background()
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(ctx) }()
	rows, err := conn.Query(ctx, sql, args...)
	if err != nil {
		t.Fatal(err)
	}
	lines, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (string, error) {
		values, err := row.Values()
		return strings.Trim(fmt.Sprint(values), "[]"), err
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(lines, "\n")
}

var telemetry = []string{
	"BRIDGE_HTTP_ADDR=127.0.0.1:0",
	"BRIDGE_ROUTES=telemetry",
	"BRIDGE_ROUTE_TELEMETRY_TOPIC=devices/{device_id}/telemetry",
	"BRIDGE_ROUTE_TELEMETRY_TIME=$.ts",
	"BRIDGE_ROUTE_TELEMETRY_COLUMNS=n:int4=$.n",
}

// TestRunWithNothingToConnectTo: the service is alive and says what it lacks, and ends cleanly.
func TestRunWithNothingToConnectTo(t *testing.T) {
	environment(t, append(telemetry, "BRIDGE_MQTT_URLS=mqtt://user:hunter2@127.0.0.1:1", "BRIDGE_DATABASE_URL=postgres://u:hunter2@127.0.0.1:1/d")...)
	r := start(t)
	if code, body := r.get("/livez"); code != http.StatusOK {
		t.Errorf("/livez: %d %s", code, body)
	}
	eventually(t, "/readyz tells why the database does not answer", func() (bool, string) {
		code, body := r.get("/readyz")
		return code == http.StatusServiceUnavailable && strings.Contains(body, "database: ") && strings.Contains(body, "connect"), body
	})
	eventually(t, "the health document tells that it is down", func() (bool, string) { // the monitor has asked as well
		report := r.health()
		return report.Status == health.Down && report.Process.State == health.Starting && report.Database.State == "down", fmt.Sprintf("%+v", report)
	})
	if _, body := r.get("/metrics"); !strings.Contains(body, "bridge_database_up 0") || !strings.Contains(body, "bridge_build_info{") {
		t.Errorf("metrics: %s", body)
	}
	if code := r.end(); code != exitOK {
		t.Errorf("exit code %d", code)
	}
	if text := r.log.String(); strings.Contains(text, "hunter2") || !strings.Contains(text, "bridge has stopped") {
		t.Errorf("the log: %s", text)
	}
	for line := range strings.Lines(r.log.String()) {
		if !json.Valid([]byte(line)) {
			t.Errorf("no JSON: %s", line)
		}
	}
}

func TestRunListenAddressInUse(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	environment(t, "BRIDGE_HTTP_ADDR="+l.Addr().String(), "BRIDGE_LOG_FORMAT=console")
	code, _, stderr := bridge(t, "")
	if code != exitFailure || !strings.Contains(stderr, "bridge: listen on BRIDGE_HTTP_ADDR: ") {
		t.Errorf("exit %d: %s", code, stderr)
	}
}

func TestDatabaseNotNamed(t *testing.T) {
	environment(t, "PGHOST=127.0.0.1", "PGPORT=1")
	code, _, stderr := bridge(t, "", "sessions", "list")
	if code != exitFailure || !strings.HasPrefix(stderr, "bridge: connect to the database (BRIDGE_DATABASE_URL is not set): ") {
		t.Errorf("exit %d: %s", code, stderr)
	}
	t.Setenv("BRIDGE_DATABASE_URL", "postgres://u@127.0.0.1:1/d")
	if _, _, stderr := bridge(t, "", "sessions", "list"); !strings.HasPrefix(stderr, "bridge: connect to the database: ") {
		t.Error(stderr)
	}
}

// TestRun follows messages of every kind to the database, and an orderly end.
func TestRun(t *testing.T) {
	b, url := startBroker(t), database(t)
	environment(t, append(telemetry, "BRIDGE_MQTT_URLS="+b.url, "BRIDGE_DATABASE_URL="+url)...)
	r := start(t)
	r.awaitReady()
	for qos := range byte(3) {
		b.publish(t, "devices/a/telemetry", fmt.Sprintf(`{"ts":"2026-01-01T00:00:0%dZ","n":%d}`, qos, qos), qos)
	}
	b.publish(t, "devices/a/telemetry", `{"ts":"2026-01-01T00:00:01Z","n":1}`, 1) // a publisher's repetition
	b.publish(t, "devices/a/telemetry", `{"ts":"2026-01-01T00:00:09Z","n":"many"}`, 1)
	b.publish(t, "devices/a/telemetry", "", 1)
	want := health.Route{Received: 6, Written: 3, Duplicate: 1, DeadLettered: 1, Skipped: 1}
	eventually(t, "every message has its outcome", func() (bool, string) {
		got := r.health().Routes["telemetry"]
		return got == want, fmt.Sprintf("%+v", got)
	})
	report := r.health()
	s := report.Broker[0]
	if report.Status != health.OK || report.Process.State != health.Running || s.State != "subscribed" || s.ClientID != "bridge-0" ||
		s.URL != b.url || s.InFlight != 0 || s.RTTMS == nil || s.KeepAliveEffectiveS != 15 || len(s.Subscriptions) != 1 ||
		report.Database.LastCommit.IsZero() || report.Database.MigrationVersion == 0 || report.Process.Memory.InFlightBytes != 0 {
		t.Errorf("health: %+v", report)
	}
	if code, body := r.get("/livez?verbose"); code != http.StatusOK || !strings.Contains(body, "[+] loop writer bridge-0: ok") {
		t.Errorf("/livez?verbose: %d %s", code, body)
	}
	if code := r.end(); code != exitOK {
		t.Errorf("exit code %d", code)
	}
	if got := query(t, url, `select device_id, n from telemetry order by time`); got != "a 0\na 1\na 2" {
		t.Errorf("rows:\n%s", got)
	}
	if got := query(t, url, `select route, reason from bridge.dead_letters`); got != "telemetry invalid_value" {
		t.Errorf("dead letters:\n%s", got)
	}
	if got := query(t, url, `select count(*) from bridge.sessions where owner is not null`); got != "0" {
		t.Errorf("%s sessions are still owned", got)
	}
	if client, ok := b.server.Clients.Get("bridge-0"); !ok || client.State.Inflight.Len() != 0 {
		t.Errorf("the broker still waits for acknowledgements (session kept: %t)", ok)
	}
}

// TestStopWithoutDatabase: what cannot be committed in time is not acknowledged, the exit code tells
// so, and the next start writes it.
func TestStopWithoutDatabase(t *testing.T) {
	b := startBroker(t)
	own, err := localpgStart(t)
	if err != nil {
		t.Fatal(err)
	}
	settings := slices.Concat(telemetry, []string{"BRIDGE_MQTT_URLS=" + b.url, "BRIDGE_DATABASE_URL=" + own.URL("postgres"), "BRIDGE_SHUTDOWN_TIMEOUT=1s"})
	environment(t, settings...)
	r := start(t)
	r.awaitReady()
	if err := own.Pause(); err != nil {
		t.Fatal(err)
	}
	b.publish(t, "devices/a/telemetry", `{"ts":"2026-01-01T00:00:00Z","n":1}`, 1)
	eventually(t, "the message waits", func() (bool, string) {
		got := r.health().Broker[0].InFlight
		return got == 1, fmt.Sprint(got)
	})
	code := r.end()
	if err := own.Resume(); err != nil {
		t.Fatal(err)
	}
	if said := r.log.String(); code != exitFailure || !strings.Contains(said, "\nbridge: ") {
		t.Errorf("exit code %d", code)
	}

	environment(t, append(settings, "BRIDGE_SHUTDOWN_TIMEOUT=25s")...) // the second run has a database, and its time
	r = start(t)
	r.awaitReady()
	eventually(t, "the message is written", func() (bool, string) {
		got := query(t, own.URL("postgres"), `select n from telemetry`)
		return got == "1", got
	})
	if code := r.end(); code != exitOK {
		t.Errorf("exit code of the second run: %d", code)
	}
}

// TestSecondSignal: the first signal drains, which takes long without a database; the second does not
// wait for that.
func TestSecondSignal(t *testing.T) {
	b := startBroker(t)
	own, err := localpgStart(t)
	if err != nil {
		t.Fatal(err)
	}
	environment(t, slices.Concat(telemetry, []string{"BRIDGE_MQTT_URLS=" + b.url, "BRIDGE_DATABASE_URL=" + own.URL("postgres"), asProgram + "=yes"})...)
	said := &output{}
	process := exec.Command(os.Args[0])
	process.Stdout, process.Stderr = said, said
	if err := process.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = process.Process.Kill() })
	await := func(text string) {
		eventually(t, "the bridge says "+text, func() (bool, string) { return strings.Contains(said.String(), text), said.String() })
	}
	await(`"message":"subscribed"`)
	if err := own.Pause(); err != nil {
		t.Fatal(err)
	}
	b.publish(t, "devices/a/telemetry", `{"ts":"2026-01-01T00:00:00Z","n":1}`, 1)
	if err := process.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	await(`"message":"shutting down: sessions are drained"`)
	if err := process.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	exit := (*exec.ExitError)(nil)
	if err := process.Wait(); !errors.As(err, &exit) || exit.ExitCode() != exitFailure {
		t.Errorf("the bridge ended with %v, want exit code %d", err, exitFailure)
	}
	await("second signal, leaving at once")
}

// TestLeaseLost: a session that another process has taken is cut, and taken again when it is free.
func TestLeaseLost(t *testing.T) {
	b, url := startBroker(t), database(t)
	environment(t, append(telemetry, "BRIDGE_MQTT_URLS="+b.url, "BRIDGE_DATABASE_URL="+url)...)
	r := start(t)
	r.awaitReady()
	query(t, url, `insert into bridge.replicas (id, share_name, host, heartbeat_at) values ('other', 'bridge', 'elsewhere', now() + interval '1 hour')`)
	query(t, url, `update bridge.sessions set owner = 'other', epoch = epoch + 1`)
	eventually(t, "the bridge is a hot standby", func() (bool, string) {
		code, body := r.get("/readyz")
		return code == http.StatusOK && strings.Contains(body, "hot standby"), body
	})
	query(t, url, `delete from bridge.replicas where id = 'other'`)
	query(t, url, `update bridge.sessions set owner = null`)
	eventually(t, "the bridge has the session again", func() (bool, string) {
		report := r.health()
		return len(report.Broker) == 1 && report.Broker[0].State == "subscribed", fmt.Sprintf("%+v", report.Broker)
	})
	if code := r.end(); code != exitOK {
		t.Errorf("exit code %d: a lost lease is no unclean end", code)
	}
}

// TestMigrateOff: with BRIDGE_MIGRATE=off somebody else migrates, and the service waits for it.
func TestMigrateOff(t *testing.T) {
	b, url := startBroker(t), database(t)
	environment(t, append(telemetry, "BRIDGE_MQTT_URLS="+b.url, "BRIDGE_DATABASE_URL="+url, "BRIDGE_MIGRATE=off")...)
	r := start(t)
	eventually(t, "/readyz tells that migrations are pending", func() (bool, string) {
		_, body := r.get("/readyz")
		return strings.Contains(body, "migrations: not done yet: migration 1 is pending"), body
	})
	if code, stdout, stderr := bridge(t, "", "migrate", "status"); code != exitOK || !strings.HasPrefix(stdout, "1  pending  001_") {
		t.Errorf("migrate status: %d %s %s", code, stdout, stderr)
	}
	if code, stdout, stderr := bridge(t, "", "migrate"); code != exitOK || !strings.Contains(stdout, "applying 1 001_") || !strings.Contains(stdout, "up to date") {
		t.Errorf("migrate: %d %s %s", code, stdout, stderr)
	}
	if code, stdout, stderr := bridge(t, "", "migrate"); code != exitOK || stdout != "schema bridge: 0 applied, up to date\n" {
		t.Errorf("migrate again: %d %s %s", code, stdout, stderr)
	}
	if code, stdout, _ := bridge(t, "", "migrate", "status"); code != exitOK || !strings.HasPrefix(stdout, "1  applied  001_") {
		t.Errorf("migrate status: %d %s", code, stdout)
	}
	r.awaitReady()
	if code := r.end(); code != exitOK {
		t.Errorf("exit code %d", code)
	}
}
