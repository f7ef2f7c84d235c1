package main

import (
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
