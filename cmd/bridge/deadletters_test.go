package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mqttpg/bridge/mapping"
	"github.com/mqttpg/bridge/store"
)

// letterID is the id of the nth letter of a test.
func letterID(n int) string { return fmt.Sprintf("019e0f3a-2c4e-7b1d-9a65-%012d", n) }

// prepared makes a migrated database with dead letters and sets the environment up for it.
func prepared(t *testing.T) string {
	t.Helper()
	url := database(t)
	environment(t, slices.Concat(telemetry, []string{"BRIDGE_DATABASE_URL=" + url})...)
	if code, _, stderr := bridge(t, "", "migrate"); code != exitOK {
		t.Fatal(stderr)
	}
	for n, letter := range [][3]string{
		{"telemetry", "devices/a/telemetry", `{"ts":"2026-01-01T00:00:00Z","n":1}`},
		{"telemetry", "devices/b/telemetry", `{"ts":"soon","n":2}`},
		{"none", "elsewhere\x1b[2J", "\x00\xff"},
		{"telemetry", "devices/c/telemetry", `{"ts":"2026-01-01T00:00:02Z","n":3}`},
	} {
		query(t, url, `insert into bridge.dead_letters (id, route, topic, payload, qos, retain, received_at, reason, detail, properties)
			values ($1, $2, $3, $4, 1, false, $5, 'invalid_value', $6, '{"content_type": "text/plain", "correlation_data": "AP8=", "user_properties": [["unit", "K"]]}')`,
			letterID(n+1), letter[0], letter[1], []byte(letter[2]), time.Date(2026, 1, n+1, 0, 0, 0, 0, time.UTC), "detail "+fmt.Sprint(n+1))
	}
	return url
}

func TestDeadLettersList(t *testing.T) {
	prepared(t)
	for _, c := range []struct {
		args string
		want string // numbers of the letters, the newest first
		note string // on stderr
	}{
		{"", "4 3 2 1", ""},
		{"--route telemetry", "4 2 1", ""},
		{"--limit 2", "4 3", "bridge: the newest 2; --limit 0 prints all\n"},
		{"--limit 0", "4 3 2 1", ""},
		{"--since 2026-01-03T00:00:00Z", "4 3", ""},
		{"--since 1h", "", "bridge: no such dead letters\n"},
		{"--reason database", "", "bridge: no such dead letters\n"},
		{"--reason invalid_value --all", "4 3 2 1", ""},
	} {
		t.Run(c.args, func(t *testing.T) {
			args := append([]string{"deadletters", "list"}, strings.Fields(c.args)...)
			code, stdout, stderr := bridge(t, "", args...)
			var got []string
			for line := range strings.Lines(stdout) {
				if id, ok := strings.CutPrefix(line, letterID(0)[:35]); ok {
					got = append(got, id[:1])
				}
			}
			if code != exitOK || strings.Join(got, " ") != c.want || stderr != c.note {
				t.Errorf("exit %d\n%s%s", code, stdout, stderr)
			}
			code, stdout, _ = bridge(t, "", append(args, "--json")...)
			got = nil
			for line := range strings.Lines(stdout) {
				var l letterLine
				if err := json.Unmarshal([]byte(line), &l); err != nil {
					t.Fatalf("%s: %v", line, err)
				}
				got = append(got, l.ID[35:])
			}
			if code != exitOK || strings.Join(got, " ") != c.want {
				t.Errorf("exit %d\n%s", code, stdout)
			}
		})
	}
	_, stdout, _ := bridge(t, "", "deadletters", "list", "--all")
	want := "ID                                    RECEIVED              ROUTE      REASON         TRIES  BYTES  REPLAYED  TOPIC                DETAIL\n" +
		letterID(4) + "  2026-01-04T00:00:00Z  telemetry  invalid_value  0      35     -         devices/c/telemetry  detail 4\n" +
		letterID(3) + "  2026-01-03T00:00:00Z  none       invalid_value  0      2      -         elsewhere\\x1b[2J     detail 3\n"
	if !strings.HasPrefix(stdout, want) {
		t.Errorf("%s\nwant\n%s", stdout, want)
	}
}

// TestDeadLettersListIsLong prints more than it aligns at a time.
func TestDeadLettersListIsLong(t *testing.T) {
	url := prepared(t)
	query(t, url, `insert into bridge.dead_letters (id, route, topic, payload, qos, retain, received_at, reason)
		select gen_random_uuid(), 'telemetry', repeat('ü', 100), '', 1, false, now(), 'database' from generate_series(1, $1) i`, 2*tableLines)
	code, stdout, stderr := bridge(t, "", "deadletters", "list", "--limit", "0")
	if n := strings.Count(stdout, "\n"); code != exitOK || n != 2*tableLines+5 || strings.Count(stdout, "RECEIVED") != 1 || stderr != "" {
		t.Errorf("exit %d, %d lines, %s", code, n, stderr)
	}
	if !strings.Contains(stdout, "  "+strings.Repeat("ü", 59)+"…  \n") {
		t.Errorf("a long topic is not cut:\n%.500s", stdout)
	}
}

func TestDeadLettersShow(t *testing.T) {
	url := prepared(t)
	query(t, url, `update bridge.dead_letters set replayed_at = '2026-02-01T00:00:00Z', attempts = 2, created_at = received_at where id = $1`, letterID(3))
	want := `id:                ` + letterID(3) + `
route:             none
reason:            invalid_value
detail:            detail 3
topic:             elsewhere\x1b[2J
received at:       2026-01-03T00:00:00.000000Z
kept at:           2026-01-03T00:00:00.000000Z
replays tried:     2
replayed at:       2026-02-01T00:00:00.000000Z
QoS:               1
retain:            false
content type:      text/plain
correlation data:  00ff (hex)
user property:     unit=K
payload, 2 bytes, as hex:
00000000  00 ff                                             |..|
`
	for _, c := range []struct {
		args   []string
		code   int
		stdout string
		suffix bool // stdout is the end of what is printed
		stderr string
	}{
		{[]string{letterID(3)}, 0, want, false, ""},
		{[]string{letterID(3), "--payload"}, 0, "\x00\xff", false, ""},
		{[]string{"--payload", strings.ToUpper(letterID(3))}, 0, "\x00\xff", false, ""},
		{[]string{letterID(2)}, 0, "payload, 19 bytes:\n{\"ts\":\"soon\",\"n\":2}\n", true, ""},
		{[]string{letterID(9)}, 1, "", false, "bridge: dead letter " + letterID(9) + ": no such dead letter\n"},
	} {
		code, stdout, stderr := bridge(t, "", append([]string{"deadletters", "show"}, c.args...)...)
		if code != c.code || stdout != c.stdout && (!c.suffix || !strings.HasSuffix(stdout, c.stdout)) || stderr != c.stderr {
			t.Errorf("show %v: exit %d\n%s%s\nwant\n%s", c.args, code, stdout, stderr, c.stdout)
		}
	}
	query(t, url, `update bridge.dead_letters set properties = '{"truncated": true}', replayed_at = null`)
	if _, stdout, _ := bridge(t, "", "deadletters", "show", letterID(1)); !strings.Contains(stdout, "too large to be kept") || !strings.Contains(stdout, "not yet") {
		t.Errorf("%s", stdout)
	}
}

func TestDeadLettersReplay(t *testing.T) {
	url := prepared(t)
	replay := func(wantCode int, wantOut, wantErr string, args ...string) {
		t.Helper()
		code, stdout, stderr := bridge(t, "", append([]string{"deadletters", "replay"}, args...)...)
		if code != wantCode || stdout != wantOut || stderr != wantErr {
			t.Errorf("replay %v: exit %d\n%s%s\nwant %d\n%s%s", args, code, stdout, stderr, wantCode, wantOut, wantErr)
		}
	}
	replay(1, "", "bridge: dead letter "+letterID(9)+": no such dead letter\n", "--id", letterID(9))
	replay(0, "replayed: 1 dead letter, 1 row written\n", "", "--id", letterID(4))
	replay(0, "replayed: 0 dead letters, 0 rows written\n", "", "--id", letterID(4))
	replay(0, "replayed: 0 dead letters, 0 rows written\n", "", "--since", "7d")
	replay(1, "replayed: 1 dead letter, 1 row written\nstill waiting: 2 dead letters\n  none       no_route      1\n  telemetry  invalid_time  1\n",
		"bridge: 2 dead letters still waiting; bridge deadletters list tells why\n")
	if got := query(t, url, `select device_id, n from telemetry order by n`); got != "a 1\nc 3" {
		t.Errorf("rows\n%s", got)
	}
	// The operator mends the route.
	t.Setenv("BRIDGE_ROUTE_TELEMETRY_TIME", "received_at")
	query(t, url, `update bridge.dead_letters set replayed_at = null where id = $1`, letterID(4))
	query(t, url, `update bridge.dead_letters set payload = '' where id = $1`, letterID(1))
	query(t, url, `update bridge.dead_letters set replayed_at = null where id = $1`, letterID(1))
	replay(0, "replayed: 3 dead letters, 2 rows written, 1 passed over by routes\n", "", "--route", "telemetry")
	query(t, url, `update bridge.dead_letters set replayed_at = null where id = $1`, letterID(2))
	replay(0, "replayed: 1 dead letter, 0 rows written, 1 row already there\n", "", "--route", "telemetry")
	if got := query(t, url, `select attempts, replayed_at is null from bridge.dead_letters order by id`); got != "2 false\n3 false\n1 true\n2 false" {
		t.Errorf("letters\n%s", got)
	}
}

func TestDeadLettersPurge(t *testing.T) {
	url := prepared(t)
	query(t, url, `update bridge.dead_letters set replayed_at = now() where id = $1`, letterID(1))
	for _, c := range []struct{ args, want, left string }{
		{"--reason too_large --yes", "deleted: 0 dead letters\n", "4"},
		{"--reason invalid_value --route none", "would delete: 1 dead letter, of which 1 were never replayed; --yes deletes them\n", "4"},
		{"--route telemetry", "would delete: 3 dead letters, of which 2 were never replayed; --yes deletes them\n", "4"},
		{"--replayed", "would delete: 1 dead letter, of which 0 were never replayed; --yes deletes them\n", "4"},
		{"--replayed --yes", "deleted: 1 dead letter\n", "3"},
		{"--replayed --yes", "deleted: 0 dead letters\n", "3"},
		{"--id " + letterID(2) + " --yes", "deleted: 1 dead letter\n", "2"},
		{"--before 2026-01-03T00:00:00Z --yes", "deleted: 0 dead letters\n", "2"},
		{"--before 1d12h --route none --yes", "deleted: 1 dead letter\n", "1"},
		{"--before 0d --yes", "deleted: 1 dead letter\n", "0"},
	} {
		code, stdout, stderr := bridge(t, "", append([]string{"deadletters", "purge"}, strings.Fields(c.args)...)...)
		left := query(t, url, `select count(*) from bridge.dead_letters`)
		if code != exitOK || stdout != c.want || stderr != "" || left != c.left {
			t.Errorf("purge %s: exit %d, %s%s, %s left; want %s, %s left", c.args, code, stdout, stderr, left, c.want, c.left)
		}
	}
}

// TestDeadLettersOfNothing: a route or a reason that there is not is a slip of the pen, and to find no
// letters of it is no success.
func TestDeadLettersOfNothing(t *testing.T) {
	url := prepared(t)
	for _, command := range []string{"list", "replay", "purge", "purge --yes"} {
		for _, c := range []struct{ args, want string }{
			{"--route telemtry", `no route "telemtry" is configured, and no dead letter has that route; configured: telemetry`},
			{"--reason invalid", "expected one of invalid_payload, "},
		} {
			code, stdout, stderr := bridge(t, "", append([]string{"deadletters"}, strings.Fields(command+" "+c.args)...)...)
			if code != exitUsage || stdout != "" || !strings.Contains(stderr, c.want) {
				t.Errorf("%s %s: exit %d\n%s%s", command, c.args, code, stdout, stderr)
			}
		}
	}
	// The route of an older configuration has letters.
	query(t, url, `update bridge.dead_letters set route = 'former', reason = 'too_large', replayed_at = null where id = $1`, letterID(1))
	code, stdout, stderr := bridge(t, "", "deadletters", "replay", "--route", "former", "--reason", "too_large")
	if code != exitFailure || !strings.Contains(stdout, "still waiting: 1 dead letter\n  former  too_large  1\n") || !strings.Contains(stderr, "; bridge deadletters purge --reason too_large --yes deletes all such\n") {
		t.Errorf("exit %d\n%s%s", code, stdout, stderr)
	}
	if code, stdout, _ := bridge(t, "", "deadletters", "purge", "--reason", "too_large", "--yes"); code != exitOK || stdout != "deleted: 1 dead letter\n" {
		t.Errorf("exit %d\n%s", code, stdout)
	}
	if code, _, _ := bridge(t, "", "deadletters", "list", "--route", "former"); code != exitUsage {
		t.Errorf("exit %d", code)
	}
}

// TestLetterReasons holds the list against the declarations.
func TestLetterReasons(t *testing.T) {
	declared := regexp.MustCompile(`(?m)^\tReason\w+ +(?:mapping\.)?Reason += "(\w+)"`)
	var all []mapping.Reason
	for _, name := range []string{"../../mapping/outcome.go", "../../store/entry.go"} {
		source, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, found := range declared.FindAllSubmatch(source, -1) {
			all = append(all, mapping.Reason(found[1]))
		}
	}
	if got := slices.Sorted(slices.Values(store.LetterReasons())); !slices.Equal(got, slices.Sorted(slices.Values(all))) {
		t.Errorf("listed %v, declared %v", got, all)
	}
}

// TestDeadLettersOfTheService follows a letter from the broker to the table, beside the running bridge.
func TestDeadLettersOfTheService(t *testing.T) {
	b, url := startBroker(t), database(t)
	environment(t, append(telemetry, "BRIDGE_MQTT_URLS="+b.url, "BRIDGE_DATABASE_URL="+url)...)
	r := start(t)
	r.awaitReady()
	b.publish(t, "devices/a/telemetry", `{"ts":"2026-01-01T00:00:00Z","n":"7"}`, 1)
	b.publish(t, "devices/a/telemetry", `{"ts":"2026-01-01T00:00:01Z","n":"many"}`, 1)
	eventually(t, "a dead letter is there", func() (bool, string) {
		got := query(t, url, `select reason from bridge.dead_letters`)
		return strings.HasSuffix(got, "invalid_value"), got
	})
	t.Setenv("BRIDGE_ROUTE_TELEMETRY_COLUMNS", "n:text=$.n")
	if code, stdout, stderr := bridge(t, "", "deadletters", "replay"); code != exitFailure || !strings.Contains(stdout, "table_unusable") {
		t.Errorf("a column of another type: exit %d, %s%s", code, stdout, stderr)
	}
	t.Setenv("BRIDGE_ROUTE_TELEMETRY_COLUMNS", "s:text=$.n")
	if code, stdout, stderr := bridge(t, "", "deadletters", "replay"); code != exitOK {
		t.Errorf("exit %d, %s%s", code, stdout, stderr)
	}
	if got := query(t, url, `select count(*) from telemetry where s = 'many'`); got != "1" {
		t.Errorf("%s rows", got)
	}
	if code := r.end(); code != exitOK {
		t.Errorf("exit code %d", code)
	}
}

// TestDatabaseCommandsFail says why, once, without a database and without migrations.
func TestDatabaseCommandsFail(t *testing.T) {
	environment(t)
	url := database(t)
	for _, command := range []string{
		"deadletters list", "deadletters show " + letterID(1), "deadletters replay", "deadletters replay --id " + letterID(1),
		"deadletters purge --replayed", "deadletters purge --replayed --yes", "sessions list", "sessions drain 0", "sessions drain --undo 0",
	} {
		for _, c := range []struct {
			url, want string
			code      int
		}{
			{url, "schema bridge is not prepared, run bridge migrate", exitFailure},
			{"postgres://u:hunter2@127.0.0.1:1/d", "connect", exitFailure},
			{"nonsense", "BRIDGE_DATABASE_URL", exitUsage},
		} {
			t.Setenv("BRIDGE_DATABASE_URL", c.url)
			code, _, stderr := bridge(t, "", strings.Fields(command)...)
			if code != c.code || !strings.Contains(stderr, c.want) || strings.Count(stderr, "\n") != 1 || strings.Contains(stderr, "hunter2") {
				t.Errorf("%s: exit %d\n%s", command, code, stderr)
			}
		}
	}
}

func TestParseMoment(t *testing.T) {
	now := time.Date(2026, 5, 8, 12, 0, 0, 0, time.UTC)
	for text, want := range map[string]string{
		"2026-05-01T12:00:00Z":      "2026-05-01T12:00:00Z",
		"2026-05-01T14:00:00+02:00": "2026-05-01T12:00:00Z",
		"24h":                       "2026-05-07T12:00:00Z",
		"7d":                        "2026-05-01T12:00:00Z",
		"1d1h30m":                   "2026-05-07T10:30:00Z",
		"0s":                        "2026-05-08T12:00:00Z",
		"":                          "", "7": "", "-1h": "", "-7d": "", "d": "", "1d-1h": "", "1h1d": "", "7days": "", "99999d": "", "2026-05-01": "",
	} {
		got, err := parseMoment(text, now)
		if want == "" {
			if err == nil {
				t.Errorf("%q: %v, want an error", text, got)
			}
			continue
		}
		if err != nil || stamp(got) != want {
			t.Errorf("%q: %v %v, want %s", text, got, err, want)
		}
	}
}

func TestOutsideTextOnATerminal(t *testing.T) {
	for text, want := range map[string]string{
		"plain ü": "plain ü", `a "b"`: `a "b"`, "a\tb\nc": `a\tb\nc`, "\x1b]0;x\a": `\x1b]0;x\a`, "\"\x00": `"\x00`, "\xff": `\xff`,
	} {
		if got := oneLine(text); got != want {
			t.Errorf("%q becomes %q, want %q", text, got, want)
		}
	}
	for payload, want := range map[string]bool{"": true, "a\n\tb": true, "a\rb": false, "\x1b[2J": false, "\xff": false, "\u009b": false} {
		if got := isText([]byte(payload)); got != want {
			t.Errorf("%q: %v", payload, got)
		}
	}
}

// TestReplayIsInterrupted: the signal ends the command with a failure.
func TestReplayIsInterrupted(t *testing.T) {
	url := prepared(t)
	ctx, stop := context.WithCancel(context.Background())
	stop()
	said := &output{}
	if code := realMain(ctx, []string{"deadletters", "replay"}, streams{strings.NewReader(""), said, said}); code != exitFailure {
		t.Errorf("exit %d: %s", code, said)
	}
	if got := query(t, url, `select count(*) from bridge.dead_letters where attempts > 0`); got != "0" {
		t.Errorf("%s letters were touched", got)
	}
}
