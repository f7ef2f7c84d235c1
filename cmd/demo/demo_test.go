//go:build unix

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

func TestParseOptions(t *testing.T) {
	for _, c := range []struct {
		name    string
		args    []string
		seconds string
		want    time.Duration
		wrong   bool
	}{
		{"for ever by default", nil, "", 0, false},
		{"by the variable", nil, "20", 20 * time.Second, false},
		{"the flag wins", []string{"-seconds", "3"}, "20", 3 * time.Second, false},
		{"not a number", nil, "soon", 0, true},
		{"negative", []string{"-seconds=-1"}, "", 0, true},
		{"no interval", []string{"-every=0s"}, "", 0, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			o, err := parseOptions(c.args, func(string) string { return c.seconds })
			if (err != nil) != c.wrong || (err == nil && o.duration != c.want) {
				t.Errorf("%v, %v, want %v", o.duration, err, c.want)
			}
		})
	}
}

// Whatever the devices claim of their messages must be true of the bytes.
func TestDevicesMeanWhatTheySay(t *testing.T) {
	all := devices()
	if len(all) != 12 {
		t.Errorf("%d devices, want a dozen", len(all))
	}
	now := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	seen := map[string]map[fate]int{}
	malformed, zeroBytes, words := 0, 0, 0
	payloads := map[string]bool{}
	for _, d := range all {
		for n := range 60 {
			for _, p := range d.next(n, now.Add(time.Duration(n)*d.period)) {
				if seen[p.route] == nil {
					seen[p.route] = map[fate]int{}
				}
				seen[p.route][p.fate]++
				if (p.rows > 0) != (p.fate == written) {
					t.Errorf("%s: %d rows with fate %d", p.payload, p.rows, p.fate)
				}
				identity := p.topic + " " + string(p.payload)
				if p.route == "telemetry" && p.fate != deadLettered && payloads[identity] != (p.fate == duplicate) {
					t.Errorf("%s: a repetition that is not called one, or the reverse", identity)
				}
				payloads[identity] = true
				if p.fate != deadLettered {
					if p.route != "readings" && len(p.payload) > 0 && !json.Valid(p.payload) {
						t.Errorf("a good message is no JSON: %s", p.payload)
					}
					continue
				}
				switch {
				case bytes.ContainsRune(p.payload, 0) || bytes.Contains(p.payload, []byte(`\u0000`)):
					zeroBytes++
				case p.route == "telemetry" && !json.Valid(p.payload):
					malformed++
				default:
					words++
				}
			}
		}
	}
	for route, fates := range map[string][]fate{
		"telemetry": {written, duplicate, deadLettered},
		"readings":  {written, deadLettered},
		"status":    {written, skipped},
		"events":    {written, deadLettered, skipped},
	} {
		for _, f := range fates {
			if seen[route][f] == 0 {
				t.Errorf("route %s never sees fate %d", route, f)
			}
		}
	}
	if malformed == 0 || zeroBytes == 0 || words == 0 {
		t.Errorf("broken messages: %d malformed, %d with zero bytes, %d of a wrong type; want some of each", malformed, zeroBytes, words)
	}
}

func TestParseMetrics(t *testing.T) {
	const text = `# TYPE bridge_messages_received_total counter
bridge_messages_received_total{route="telemetry"} 10
bridge_messages_received_total{route="events"} 3
# TYPE bridge_messages_written_total counter
bridge_messages_written_total{route="telemetry"} 4
# TYPE bridge_messages_duplicate_total counter
bridge_messages_duplicate_total{route="telemetry"} 1
# TYPE bridge_messages_dead_lettered_total counter
bridge_messages_dead_lettered_total{route="telemetry",reason="invalid_value"} 2
bridge_messages_dead_lettered_total{route="telemetry",reason="invalid_payload"} 1
# TYPE bridge_messages_skipped_total counter
bridge_messages_skipped_total{route="events",reason="no_rows"} 3
# TYPE bridge_messages_in_flight gauge
bridge_messages_in_flight{route="telemetry"} 2
# TYPE bridge_mqtt_connected gauge
bridge_mqtt_connected{session="0"} 1
# TYPE bridge_mqtt_ping_rtt_seconds gauge
bridge_mqtt_ping_rtt_seconds{session="0"} 0.002
# TYPE bridge_database_up gauge
bridge_database_up 1
`
	var v view
	if err := parseMetrics(text, &v); err != nil {
		t.Fatal(err)
	}
	want := counts{received: 10, written: 4, duplicate: 1, deadLettered: 3, inFlight: 2}
	if v.counts["telemetry"] != want || !v.counts["telemetry"].lawHolds() {
		t.Errorf("telemetry %+v, want %+v", v.counts["telemetry"], want)
	}
	if want := (counts{received: 3, skipped: 3}); v.counts["events"] != want {
		t.Errorf("events %+v, want %+v", v.counts["events"], want)
	}
	if !v.connected || !v.database || v.rtt != 2*time.Millisecond {
		t.Errorf("connected %v, database %v, round trip %v", v.connected, v.database, v.rtt)
	}
	if parseMetrics("not metrics {", &v) == nil {
		t.Error("nonsense was taken for metrics")
	}
}

func balanced() (map[string]tally, map[string]counts, map[string]storage) {
	published, counted, stored := map[string]tally{}, map[string]counts{}, map[string]storage{}
	for _, route := range routeNames {
		published[route] = tally{published: 10, written: 6, duplicate: 1, deadLettered: 2, skipped: 1, rows: 9}
		counted[route] = counts{received: 10, written: 6, duplicate: 1, deadLettered: 2, skipped: 1}
		stored[route] = storage{rows: 9, deadLetters: 2}
	}
	return published, counted, stored
}

func TestCompareFindsEachMistake(t *testing.T) {
	if mistakes := compare(balanced()); len(mistakes) > 0 {
		t.Fatalf("mistakes where there are none: %q", mistakes)
	}
	for name, c := range map[string]struct {
		spoil func(c *counts, s *storage)
		want  string
	}{
		"a message that never arrived": {func(c *counts, _ *storage) { c.received-- }, "9 messages received, expected 10"},
		"a message received twice":     {func(c *counts, _ *storage) { c.received++; c.written++ }, "11 messages received"},
		"a duplicate written":          {func(c *counts, s *storage) { c.duplicate--; c.written++; s.rows++ }, "0 duplicates recognised, expected 1"},
		"a bad message written":        {func(c *counts, _ *storage) { c.deadLettered--; c.written++ }, "1 messages dead-lettered"},
		"a skipped message lost":       {func(c *counts, _ *storage) { c.skipped-- }, "is not the sum"},
		"a row too few":                {func(_ *counts, s *storage) { s.rows-- }, "8 rows in the table, expected 9"},
		"a dead letter too few":        {func(_ *counts, s *storage) { s.deadLetters-- }, "1 dead letters in the table"},
	} {
		t.Run(name, func(t *testing.T) {
			published, counted, stored := balanced()
			cc, s := counted["events"], stored["events"]
			c.spoil(&cc, &s)
			counted["events"], stored["events"] = cc, s
			if text := strings.Join(compare(published, counted, stored), "\n"); !strings.Contains(text, "events: ") || !strings.Contains(text, c.want) {
				t.Errorf("%q does not say %q", text, c.want)
			}
		})
	}
}

func TestSettled(t *testing.T) {
	published, counted, _ := balanced()
	if !settled(published, counted) {
		t.Error("balanced, but not settled")
	}
	c := counted["status"]
	c.inFlight = 1
	counted["status"] = c
	if settled(published, counted) {
		t.Error("settled with a message in flight")
	}
	delete(counted, "status")
	if settled(published, counted) {
		t.Error("settled with a route that received nothing")
	}
}

func TestReportsShowTheFigures(t *testing.T) {
	published, counted, stored := balanced()
	var out bytes.Buffer
	writeReport(&out, 75*time.Second, published, view{
		counts: counted, stored: stored, connected: true, rtt: 1200 * time.Microsecond, database: true,
		latest:  []latest{{"sensor-1", "21.5 °C", 1500 * time.Millisecond}},
		letters: []deadLetter{{"events", "invalid_each", strings.Repeat("long ", 100)}},
	})
	for _, want := range []string{"01:15", "broker up (ping 1.2 ms)", "database up", "telemetry", "21.5 °C", "1.5 s ago", "invalid_each", "…"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the report lacks %q:\n%s", want, out.String())
		}
	}
	out.Reset()
	writeReport(&out, 0, published, view{})
	if !strings.Contains(out.String(), "broker down, database down") {
		t.Errorf("an outage is not told:\n%s", out.String())
	}
	out.Reset()
	writeSummary(&out, published, counted, stored, nil)
	if !strings.Contains(out.String(), "All 40 published messages are accounted for: 36 rows, 8 dead letters") {
		t.Errorf("the summary:\n%s", out.String())
	}
	out.Reset()
	writeSummary(&out, published, counted, stored, []string{"events: something"})
	if text := out.String(); !strings.Contains(text, "events: something") || strings.Contains(text, "accounted for") {
		t.Errorf("the summary of a failure:\n%s", text)
	}
}

func TestShortKeepsCharactersWhole(t *testing.T) {
	if got := short("größe  der\nTür", 8); got != "größe d…" || !utf8.ValidString(got) {
		t.Errorf("%q", got)
	}
}

func TestWithSearchPath(t *testing.T) {
	for dsn, want := range map[string]string{
		"postgres://u@h/db":                    "postgres://u@h/db?options=-c%20search_path%3Ds",
		"postgres://u@h/db?options=-c%20a%3Db": "postgres://u@h/db?options=-c%20a%3Db%20-c%20search_path%3Ds",
		"host=h dbname=db":                     "host=h dbname=db options='-c search_path=s'",
	} {
		if got := withSearchPath(dsn, "s"); got != want {
			t.Errorf("%s: %s, want %s", dsn, got, want)
		}
	}
}

func TestIntroductionHidesPasswordsAndQuotes(t *testing.T) {
	var out bytes.Buffer
	introduce(&out, &bridge{url: "http://h", settings: []setting{
		{"BRIDGE_DATABASE_URL", "postgres://u:secret@h/db"}, {"BRIDGE_X", "it's"},
	}}, &database{psql: "psql somewhere"})
	text := out.String()
	for _, want := range []string{"psql somewhere", "http://h/health", `export BRIDGE_X='it'\''s'`, "postgres://u:xxxxx@h/db"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in:\n%s", want, text)
		}
	}
	if strings.Contains(text, "secret") {
		t.Error("the password is shown")
	}
	if got := withoutPassword(setting{"BRIDGE_DATABASE_URL", "host=h password=secret"}); strings.Contains(got, "secret") {
		t.Errorf("the password is shown: %s", got)
	}
}

func TestChildGetsOnlyItsOwnVariables(t *testing.T) {
	b := &bridge{settings: []setting{{"BRIDGE_A", "1"}}}
	got := b.environment([]string{"PATH=/bin", "BRIDGE_A=0", "BRIDGE_TYPO=2", "PGPASSWORD=x"})
	if want := []string{"PATH=/bin", "PGPASSWORD=x", "BRIDGE_A=1"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestCleanupRunsBackwardsOnce(t *testing.T) {
	var order []int
	c := &cleanup{}
	for i := range 3 {
		c.add(func() { order = append(order, i) })
	}
	c.run()
	c.run()
	if !slices.Equal(order, []int{2, 1, 0}) {
		t.Errorf("order %v", order)
	}
}

func TestInstallPackageForbidsTheCluster(t *testing.T) {
	for _, fails := range []bool{false, true} {
		dir := t.TempDir()
		folder := filepath.Join(dir, "etc", "createcluster.d")
		record := filepath.Join(dir, "record")
		script := "#!/bin/sh\necho \"$1 $(cat '" + folder + "'/*.conf) $DEBIAN_FRONTEND\" >> '" + record + "'\n"
		if fails {
			script += "echo 'E: no such package'; exit 100\n"
		}
		aptGet := filepath.Join(dir, "apt-get")
		if err := os.WriteFile(aptGet, []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
		err := installPackage(t.Context(), aptGet, folder)
		if fails != (err != nil) || fails && !strings.Contains(err.Error(), "no such package") {
			t.Errorf("fails=%v: %v", fails, err)
		}
		calls, err := os.ReadFile(record)
		if err != nil {
			t.Fatal(err)
		}
		want := "update create_main_cluster = false noninteractive\n"
		if !fails {
			want += "install create_main_cluster = false noninteractive\n"
		}
		if string(calls) != want {
			t.Errorf("apt-get was called as %q, want %q", calls, want)
		}
		if _, err := os.Stat(filepath.Dir(folder)); !os.IsNotExist(err) {
			t.Errorf("the setting's folders stay behind: %v", err)
		}
	}
}

func TestABridgeThatDiesIsAnError(t *testing.T) {
	script := filepath.Join(t.TempDir(), "bridge")
	if err := os.WriteFile(script, []byte("#!/bin/sh\necho 'no table for you' >&2\nexit 3\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	undo := &cleanup{}
	defer undo.run()
	_, err := startBridge(t.Context(), &bytes.Buffer{}, options{bridge: script}, undo, "mqtt://127.0.0.1:1", &database{})
	if err == nil || !strings.Contains(err.Error(), "ended by itself") || !strings.Contains(err.Error(), "no table for you") || !strings.Contains(err.Error(), "exit status 3") {
		t.Errorf("error %v", err)
	}
}

// The production binary must stay free of what only tests and the demonstration need.
func TestBridgeLinksNoBrokerAndNoServer(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "github.com/mqttpg/bridge/cmd/bridge").CombinedOutput()
	if err != nil {
		t.Fatalf("list the bridge's packages: %v\n%s", err, out)
	}
	packages := strings.Fields(string(out))
	if !slices.Contains(packages, "github.com/mqttpg/bridge/mapping") {
		t.Fatalf("this is not the bridge's list of packages:\n%s", out)
	}
	for _, p := range packages {
		for _, forbidden := range []string{"mochi-mqtt", "embedded-postgres", "testcontainers", "localpg", "toxiproxy", "lib/pq", "net/http/pprof", "testing"} {
			if strings.Contains(p, forbidden) {
				t.Errorf("the bridge links %s", p)
			}
		}
	}
}

// The whole demonstration, as `make demo DEMO_SECONDS=…` runs it.
func TestDemonstration(t *testing.T) {
	t.Setenv("BRIDGE_DATABASE_URL", "")
	t.Setenv("TMPDIR", t.TempDir())
	if err := os.Chmod(filepath.Dir(os.Getenv("TMPDIR")), 0o755); err != nil { // the server's account must pass
		t.Fatal(err)
	}
	var out bytes.Buffer
	undo := &cleanup{}
	err := realMain(t.Context(), &out, options{duration: 6 * time.Second, every: 2 * time.Second}, undo)
	undo.run()
	if err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	for _, want := range []string{"psql -h ", "/health", "export BRIDGE_ROUTE_TELEMETRY_TOPIC=", "sensor-1", "meter-1", "newest dead letters", "are accounted for"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in the output", want)
		}
	}
	left, err := os.ReadDir(os.Getenv("TMPDIR"))
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range left {
		if strings.HasPrefix(entry.Name(), "bridge-") {
			t.Errorf("left behind: %s", entry.Name())
		}
	}
	if t.Failed() {
		t.Log(out.String())
	}
}

// In somebody's database the demonstration keeps to a schema of its own, and takes it away.
func TestUseDatabaseLeavesNothing(t *testing.T) {
	ctx, server := context.Background(), &cleanup{}
	defer server.run()
	private, err := privateServer(ctx, server)
	if err != nil {
		t.Fatal(err)
	}
	undo := &cleanup{}
	db, err := useDatabase(ctx, private.url, undo)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := useDatabase(ctx, private.url, undo); err == nil || !strings.Contains(err.Error(), "drop schema bridge_demo") {
		t.Errorf("a second demonstration in the same database: %v", err)
	}
	schemas := func(dsn, sql string) string {
		observer, err := newObserver(ctx, "", &database{url: dsn})
		if err != nil {
			t.Fatal(err)
		}
		defer observer.close()
		var text string
		if err := observer.pool.QueryRow(ctx, sql).Scan(&text); err != nil {
			t.Fatal(err)
		}
		return text
	}
	if got := schemas(db.url, "select current_schema()::text"); got != demoSchema {
		t.Errorf("tables would go to schema %q", got)
	}
	undo.run()
	if got := schemas(private.url, "select count(*)::text from pg_namespace where nspname = 'bridge_demo'"); got != "0" {
		t.Errorf("%s schemas left", got)
	}
}

// TestExitCode: Ctrl-C ends the demonstration cleanly, also before everything has started.
func TestExitCode(t *testing.T) {
	undo := &cleanup{}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	interrupted := realMain(ctx, io.Discard, options{every: time.Second}, undo)
	undo.run()
	if !errors.Is(interrupted, errInterrupted) {
		t.Errorf("interrupted at the start: %v", interrupted)
	}
	for _, c := range []struct {
		err  error
		want int
	}{{nil, 0}, {interrupted, 0}, {errors.New("not every message is accounted for"), 1}} {
		if got := exitCode(c.err, io.Discard); got != c.want {
			t.Errorf("%v: exit code %d, want %d", c.err, got, c.want)
		}
	}
}
