package main

import (
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// receivedAt is the only part of a mapped row that differs from run to run; times and ids of rows
// without an event time hold it too.
var (
	receivedAt = regexp.MustCompile(`"received_at":"[^"]+"`)
	deliveryID = regexp.MustCompile(`"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}"`)
)

func TestMap(t *testing.T) {
	payload := filepath.Join(t.TempDir(), "payload.json")
	if err := os.WriteFile(payload, []byte(`{"ts":"2026-01-02T03:04:05Z","t":20.5,"big":9223372036854775807}`), 0o600); err != nil {
		t.Fatal(err)
	}
	routes := []string{
		"BRIDGE_ROUTES=telemetry,raw,events",
		"BRIDGE_ROUTE_TELEMETRY_TOPIC=devices/{device_id}/telemetry", "BRIDGE_ROUTE_TELEMETRY_TIME=$.ts", "BRIDGE_ROUTE_TELEMETRY_TABLE=history.telemetry",
		"BRIDGE_ROUTE_TELEMETRY_COLUMNS=t:float8=$.t, big:int8=$.big, site:text=user.site, kind:text=content_type, q:int2=qos", "BRIDGE_ROUTE_TELEMETRY_PAYLOAD=drop",
		"BRIDGE_ROUTE_RAW_TOPIC=devices/+/raw", "BRIDGE_ROUTE_RAW_FORMAT=raw", "BRIDGE_ROUTE_RAW_DEVICE=topic[2]",
		"BRIDGE_ROUTE_EVENTS_TOPIC=devices/+/raw devices/+/events", "BRIDGE_ROUTE_EVENTS_EACH=$.list", "BRIDGE_ROUTE_EVENTS_COLUMNS=n:int4=@.n",
		"BRIDGE_ROUTE_EVENTS_PAYLOAD=drop", "BRIDGE_ROUTE_EVENTS_DEVICE='fixed'",
	}
	for _, c := range []struct {
		name   string
		args   string
		stdin  string
		code   int
		stdout string
		stderr string
	}{
		{
			"a row", "--topic devices/a/telemetry --payload " + payload + " --user-property site=north --content-type application/json --qos 2", "", 0,
			`{"route":"telemetry","table":"history.telemetry","row":{"device_id":"a","time":"2026-01-02T03:04:05.000000Z","message_id":"019b7ca9-8c88-877f-a128-12921e06ab36","received_at":"NOW","topic":"devices/a/telemetry","t":20.5,"big":9223372036854775807,"site":"north","kind":"application/json","q":2}}` + "\n", "",
		},
		{
			"several rows of one route", "--topic devices/a/events --payload -", `{"list":[{"n":1},{"n":2}]}`, 0,
			`{"route":"events","table":"events","row":{"device_id":"fixed","time":"NOW","message_id":"ID","received_at":"NOW","topic":"devices/a/events","n":1}}` + "\n" +
				`{"route":"events","table":"events","row":{"device_id":"fixed","time":"NOW","message_id":"ID","received_at":"NOW","topic":"devices/a/events","n":2}}` + "\n", "",
		},
		{
			"one route takes it, the other rejects it", "--topic devices/a/raw --payload -", "\xff<&>", 1,
			`{"route":"raw","table":"raw","row":{"device_id":"a","time":"NOW","message_id":"ID","received_at":"NOW","topic":"devices/a/raw","payload_bytes":"\\xff3c263e"}}` + "\n",
			"bridge: route events: dead letter with reason invalid_",
		},
		{"rejected", "--topic devices/a/telemetry --payload -", `{"ts":"yesterday"}`, 1, "", "bridge: route telemetry: dead letter with reason invalid_time: "},
		{"empty", "--topic devices/a/telemetry", "", 0, "", "bridge: route telemetry: skipped: empty\n"},
		{"retained", "--topic devices/a/telemetry --retain --payload -", "{}", 0, "", "bridge: route telemetry: skipped: retained\n"},
		{"no route", "--topic other", "", 1, "", "bridge: no route matches topic other: dead letter with reason no_route\n"},
		{"no such file", "--topic devices/a/raw --payload /nowhere/x", "", 1, "", "bridge: read the payload: open /nowhere/x: no such file"},
	} {
		t.Run(c.name, func(t *testing.T) {
			environment(t, routes...)
			code, stdout, stderr := bridge(t, c.stdin, append([]string{"map"}, strings.Fields(c.args)...)...)
			got := receivedAt.ReplaceAllString(stdout, `"received_at":"NOW"`)
			if strings.Contains(c.stdout, `"time":"NOW"`) {
				got = regexp.MustCompile(`"time":"[^"]+"`).ReplaceAllString(got, `"time":"NOW"`)
				got = deliveryID.ReplaceAllString(got, `"ID"`)
			}
			if code != c.code || got != c.stdout || !strings.HasPrefix(stderr, c.stderr) || c.stderr == "" && stderr != "" {
				t.Errorf("exit %d, want %d\nstdout: %s\nwant:   %s\nstderr: %s\nwant:   %s", code, c.code, got, c.stdout, stderr, c.stderr)
			}
		})
	}
	t.Run("wrong configuration", func(t *testing.T) {
		environment(t, "BRIDGE_MQTT_QOS=7")
		code, _, stderr := bridge(t, "", "map", "--topic", "a")
		if code != exitUsage || !strings.HasPrefix(stderr, "BRIDGE_MQTT_QOS:") {
			t.Errorf("exit %d, stderr %s", code, stderr)
		}
	})
}

// TestMapIgnoresInput: who pipes a payload in and does not say so is told, and nobody is waited for.
func TestMapIgnoresInput(t *testing.T) {
	environment(t)
	full, empty := filepath.Join(t.TempDir(), "full"), filepath.Join(t.TempDir(), "empty")
	if err := errors.Join(os.WriteFile(full, []byte("{}"), 0o600), os.WriteFile(empty, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	open := func(path string) *os.File {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = f.Close() })
		return f
	}
	pipe := func(text string) *os.File {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _, _ = r.Close(), w.Close() })
		if _, err := w.WriteString(text); err != nil {
			t.Fatal(err)
		}
		return r
	}
	for name, c := range map[string]struct {
		stdin *os.File
		args  string
		told  bool
	}{
		"a pipe":                  {pipe("{}"), "", true},
		"a pipe that is read":     {pipe("{}"), "--payload " + full, false},
		"a pipe that stays empty": {pipe(""), "", false},
		"a file":                  {open(full), "", true},
		"an empty file":           {open(empty), "", false},
		"no input":                {open(os.DevNull), "", false},
	} {
		var out, err strings.Builder
		code := realMain(t.Context(), append([]string{"map", "--topic", "a"}, strings.Fields(c.args)...), streams{c.stdin, &out, &err})
		if told := strings.HasPrefix(err.String(), "bridge: the payload is empty and standard input is not read: --payload - takes it from there\n"); code != exitOK || told != c.told {
			t.Errorf("%s: exit %d, told %t, want %t: %s", name, code, told, c.told, err.String())
		}
	}
}
