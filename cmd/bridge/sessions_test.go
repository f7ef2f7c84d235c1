package main

import (
	"context"
	"fmt"
	"strings"
	"testing"
)

func TestSessionsList(t *testing.T) {
	url := prepared(t)
	if code, stdout, stderr := bridge(t, "", "sessions", "list"); code != exitOK || stdout != "" || !strings.Contains(stderr, "no sessions") {
		t.Errorf("exit %d, %s%s", code, stdout, stderr)
	}
	query(t, url, `insert into bridge.replicas (id, share_name, host, heartbeat_at) values ('one', 'bridge', 'north', now() + interval '1 hour'), ('two', 'bridge', 'south', now() - interval '2 minutes')`)
	query(t, url, `insert into bridge.sessions (share_name, index, client_id, owner, epoch, acquired_at, retired_at) values
		('bridge', 0, 'bridge-0', 'one', 3, '2026-01-01T00:00:00Z', null), ('bridge', 1, 'bridge-1', 'two', 2, '2026-01-02T00:00:00Z', null), ('bridge', 2, 'bridge-2', null, 1, '2026-01-02T00:00:00Z', now())`)
	code, stdout, stderr := bridge(t, "", "sessions", "list")
	lines := strings.Split(stdout, "\n")
	if code != exitOK || stderr != "" || len(lines) != 5 || strings.Join(strings.Fields(lines[0]), " ") != "SHARE INDEX CLIENT ID STATE HOST EPOCH SINCE HEARTBEAT" ||
		!strings.HasPrefix(strings.Join(strings.Fields(lines[1]), " "), "bridge 0 bridge-0 held north 3 2026-01-01T00:00:00Z -") ||
		!strings.HasPrefix(strings.Join(strings.Fields(lines[2]), " "), "bridge 1 bridge-1 orphaned south 2 2026-01-02T00:00:00Z 2m") ||
		strings.Join(strings.Fields(lines[3]), " ") != "bridge 2 bridge-2 retired - 1 - -" {
		t.Errorf("exit %d\n%s%s", code, stdout, stderr)
	}
	_, stdout, _ = bridge(t, "", "sessions", "list", "--json")
	lines = strings.Split(stdout, "\n")
	if len(lines) != 4 || !strings.HasPrefix(lines[1], `{"share":"bridge","index":1,"client_id":"bridge-1","state":"orphaned","owner":"two","host":"south","epoch":2,"since":"2026-01-02T00:00:00.000000Z","heartbeat_age_s":12`) ||
		lines[2] != `{"share":"bridge","index":2,"client_id":"bridge-2","state":"retired","owner":null,"host":null,"epoch":1,"since":null,"heartbeat_age_s":null}` {
		t.Errorf("%s", stdout)
	}
}

// TestSessionsDrain drains a session of a running bridge, and puts it back.
func TestSessionsDrain(t *testing.T) {
	b, url := startBroker(t), database(t)
	environment(t, append(telemetry, "BRIDGE_MQTT_URLS="+b.url, "BRIDGE_DATABASE_URL="+url, "BRIDGE_MQTT_SESSIONS=2")...)
	r := start(t)
	r.awaitReady()
	inUse := func(owned, inUse int, drained string) func() (bool, string) {
		return func() (bool, string) {
			report := r.health()
			subscribed := 0
			for _, s := range report.Broker {
				if s.State == "subscribed" && len(s.Subscriptions) > 0 {
					subscribed++
				}
			}
			return subscribed == owned && report.Share.InUse == inUse && fmt.Sprint(report.Share.Drained) == drained && report.Share.Name == "bridge", fmt.Sprintf("%+v", report)
		}
	}
	eventually(t, "both sessions work", inUse(2, 2, "[]"))
	code, stdout, stderr := bridge(t, "", "sessions", "drain", "1")
	if code != exitOK || stderr != "" || !strings.HasPrefix(stdout, "bridge-1: ") || !strings.Contains(stdout, "bridge-1: drained after ") {
		t.Errorf("exit %d, %s%s", code, stdout, stderr)
	}
	if _, known := b.server.Clients.Get("bridge-1"); known {
		t.Error("the broker still knows the session")
	}
	eventually(t, "one session works", inUse(1, 1, "[1]"))
	if code, stdout, _ := bridge(t, "", "sessions", "list"); code != exitOK || !strings.Contains(stdout, "bridge-1   drained") {
		t.Errorf("exit %d, %s", code, stdout)
	}
	if code, stdout, _ := bridge(t, "", "sessions", "drain", "1"); code != exitOK || stdout != "bridge-1: drained already; --undo puts it back into use\n" {
		t.Errorf("again: exit %d, %s", code, stdout)
	}
	if code, _, stderr := bridge(t, "", "sessions", "drain", "0"); code != exitFailure || !strings.Contains(stderr, "the last session in use") || !strings.Contains(stderr, "--force") {
		t.Errorf("the last one: exit %d, %s", code, stderr)
	}
	if code, _, stderr := bridge(t, "", "sessions", "drain", "7"); code != exitFailure || !strings.Contains(stderr, "session 7 of share bridge: no such session: the indices of the share are 0, 1") {
		t.Errorf("out of range: exit %d, %s", code, stderr)
	}
	if code, stdout, _ := bridge(t, "", "sessions", "drain", "--undo", "1"); code != exitOK || stdout != "bridge-1: in use again; it was drained\n" {
		t.Errorf("undo: exit %d, %s", code, stdout)
	}
	eventually(t, "both sessions work again", inUse(2, 2, "[]"))
	if code, stdout, _ := bridge(t, "", "sessions", "drain", "--undo", "1"); code != exitOK || stdout != "bridge-1: in use already, held\n" {
		t.Errorf("undo twice: exit %d, %s", code, stdout)
	}
	if code := r.end(); code != exitOK {
		t.Errorf("exit code %d", code)
	}
	if code, _, stderr := bridge(t, "", "sessions", "drain", "1"); code != exitFailure || !strings.Contains(stderr, "no bridge of this share is running") {
		t.Errorf("nobody runs: exit %d, %s", code, stderr)
	}
}

// TestSessionsDrainDoesNotGetThere: whoever waits is told what stands, when the time is over and when
// interrupted.
func TestSessionsDrainDoesNotGetThere(t *testing.T) {
	url := prepared(t)
	query(t, url, `insert into bridge.replicas (id, share_name, host) values ('one', 'bridge', 'north')`)
	query(t, url, `insert into bridge.sessions (share_name, index, client_id, owner, epoch, acquired_at) values ('bridge', 0, 'bridge-0', 'one', 3, now()), ('bridge', 1, 'bridge-1', 'one', 3, now())`)
	code, stdout, stderr := bridge(t, "", "sessions", "drain", "1", "--timeout", "300ms")
	if code != exitFailure || stdout != "bridge-1: asked north to give it up\n" ||
		!strings.Contains(stderr, "session 1 of share bridge: not drained within 300ms (asked north to give it up); the request stands") || !strings.Contains(stderr, "bridge sessions drain --undo 1 takes it back") {
		t.Errorf("exit %d, %s%s", code, stdout, stderr)
	}
	query(t, url, `update bridge.sessions set owner = null where index = 1`)
	ctx, interrupt := context.WithCancel(t.Context())
	out, errs := &output{}, &output{}
	exit := make(chan int)
	go func() {
		exit <- realMain(ctx, []string{"sessions", "drain", "1"}, streams{strings.NewReader(""), out, errs})
	}()
	said := func(words string) {
		t.Helper()
		eventually(t, words, func() (bool, string) { return strings.Contains(out.String(), words), out.String() })
	}
	said("bridge-1: free, waiting for a replica to drain it")
	query(t, url, `update bridge.sessions set owner = 'one', epoch = 4, acquired_at = now() where index = 1`)
	said("bridge-1: being drained by north")
	interrupt()
	if code := <-exit; code != exitFailure || !strings.Contains(errs.String(), "interrupted (being drained by north); the request stands") {
		t.Errorf("exit %d, %s", code, errs)
	}
	query(t, url, `update bridge.sessions set owner = null, retired_at = now() where index = 1`)
	if code, stdout, _ := bridge(t, "", "sessions", "list", "--json"); code != exitOK || !strings.Contains(stdout, `"state":"drained"`) {
		t.Errorf("exit %d, %s", code, stdout)
	}
}
