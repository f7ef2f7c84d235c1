package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/mqttpg/bridge/mapping"
)

func connection(t *testing.T, url string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(context.Background(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

func TestNoSuchSession(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		all  []SessionRecord
		want string
	}{
		{[]SessionRecord{{ShareName: "a"}, {ShareName: "b"}}, "no such session: the only index of the share is 0"},
		{[]SessionRecord{{ShareName: "a"}, {ShareName: "a", Index: 1}}, "no such session: the indices of the share are 0, 1"},
		{[]SessionRecord{{ShareName: "b"}, {ShareName: "c"}}, "no such share in this database, which has b, c; BRIDGE_MQTT_SHARE_NAME says which one is meant"},
		{nil, "no sessions: no bridge has run with this schema yet"},
	} {
		if _, _, err := pick(test.all, "a", 5); err == nil || err.Error() != test.want {
			t.Errorf("%v, want %s", err, test.want)
		}
	}
}

func TestDeadLettersAreFiltered(t *testing.T) {
	t.Parallel()
	url, pool := newDatabase(t)
	conn := connection(t, url)
	noon := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	ids := map[string]string{}
	for i, letter := range []struct{ name, route, reason, replayed string }{
		{"a", "x", "database", "null"}, {"b", "x", "invalid_time", "now()"}, {"c", "y", "database", "null"}, {"d", "none", "no_route", "null"},
	} {
		ids[letter.name] = value[string](t, pool, `insert into bridge.dead_letters (id, route, topic, payload, qos, retain, received_at, reason, replayed_at)
			values (gen_random_uuid(), $1, $2, 'p', 1, false, $3, $4, `+letter.replayed+`) returning id::text`, letter.route, letter.name, noon.Add(time.Duration(i)*time.Hour), letter.reason)
	}
	for _, test := range []struct {
		name   string
		filter LetterFilter
		limit  int
		want   string // topics, the newest first
		wait   int
	}{
		{"all", LetterFilter{}, 0, "dcba", 3},
		{"the newest", LetterFilter{}, 2, "dc", 3},
		{"waiting", LetterFilter{Waiting: true}, 0, "dca", 3},
		{"replayed", LetterFilter{Replayed: true}, 0, "b", 0},
		{"route", LetterFilter{Route: "x"}, 0, "ba", 1},
		{"reason", LetterFilter{Reason: "database"}, 0, "ca", 2},
		{"both", LetterFilter{Route: "x", Reason: "database"}, 0, "a", 1},
		{"since", LetterFilter{Since: noon.Add(time.Hour)}, 0, "dcb", 2},
		{"before", LetterFilter{Before: noon.Add(time.Hour)}, 0, "a", 1},
		{"id", LetterFilter{ID: ids["c"]}, 0, "c", 1},
		{"nothing", LetterFilter{Route: "' or true --"}, 0, "", 0},
	} {
		var got strings.Builder
		err := ListDeadLetters(t.Context(), conn, "bridge", test.filter, test.limit, func(l *DeadLetter) error {
			got.WriteString(l.Topic)
			if l.ID != ids[l.Topic] || l.Bytes != 1 || (l.ReplayedAt != nil) != (l.Topic == "b") {
				t.Errorf("%s: %+v", test.name, l)
			}
			return nil
		})
		if err != nil || got.String() != test.want {
			t.Errorf("%s: %q %v, want %q", test.name, got.String(), err, test.want)
		}
		all, waiting, err := CountDeadLetters(t.Context(), conn, "bridge", test.filter)
		if err != nil || test.limit == 0 && all != len(test.want) || waiting != test.wait {
			t.Errorf("%s: %d of which %d wait, %v; want %d", test.name, all, waiting, err, test.wait)
		}
	}
	stop := errors.New("stop")
	if err := ListDeadLetters(t.Context(), conn, "bridge", LetterFilter{}, 0, func(*DeadLetter) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("%v, want what the caller said", err)
	}
	if n, err := PurgeDeadLetters(t.Context(), conn, "bridge", LetterFilter{Route: "x", Replayed: true}); n != 1 || err != nil {
		t.Errorf("deleted %d, %v", n, err)
	}
	if left := list[string](t, pool, `select topic from bridge.dead_letters order by 1`); !slices.Equal(left, []string{"a", "c", "d"}) {
		t.Errorf("left %v", left)
	}
}

func TestReadDeadLetter(t *testing.T) {
	t.Parallel()
	url, pool := newDatabase(t)
	conn := connection(t, url)
	id := pgtype.UUID{Bytes: bury(t, pool, "bare", "bare/a", "\x00\xff"), Valid: true}.String()
	l, err := ReadDeadLetter(t.Context(), conn, "bridge", id)
	if err != nil {
		t.Fatal(err)
	}
	m := l.Message
	if l.ID != id || l.Reason != mapping.ReasonInvalidPayload || l.Truncated || l.ReplayedAt != nil || string(m.Payload) != "\x00\xff" || m.ContentType != "text/plain" ||
		string(m.CorrelationData) != "c" || len(m.UserProperties) != 1 || m.UserProperties[0].Value != "K" || !l.ReceivedAt.Equal(received) {
		t.Errorf("%+v %+v", l, m)
	}
	for _, properties := range []string{`{"correlation_data": "?"}`, `[]`} {
		execute(t, pool, `update bridge.dead_letters set properties = $1::text::jsonb`, properties)
		if _, err := ReadDeadLetter(t.Context(), conn, "bridge", id); err == nil || !strings.Contains(err.Error(), "properties of a dead letter") {
			t.Errorf("%s: %v", properties, err)
		}
	}
	if _, err := ReadDeadLetter(t.Context(), conn, "bridge", "00000000-0000-0000-0000-000000000000"); !errors.Is(err, ErrNoDeadLetter) {
		t.Errorf("%v, want ErrNoDeadLetter", err)
	}
}

func TestInspectWithoutMigrations(t *testing.T) {
	t.Parallel()
	url, pool := newDatabase(t)
	conn := connection(t, url)
	execute(t, pool, `drop schema bridge cascade`)
	_, errRead := ReadDeadLetter(t.Context(), conn, "bridge", "00000000-0000-0000-0000-000000000000")
	_, _, errCount := CountDeadLetters(t.Context(), conn, "bridge", LetterFilter{})
	_, errPurge := PurgeDeadLetters(t.Context(), conn, "bridge", LetterFilter{})
	_, errSessions := ListSessions(t.Context(), conn, "bridge")
	errList := ListDeadLetters(t.Context(), conn, "bridge", LetterFilter{}, 1, nil)
	for i, err := range []error{errRead, errCount, errPurge, errSessions, errList} {
		if err == nil || !strings.Contains(err.Error(), "schema bridge is not prepared, run bridge migrate") {
			t.Errorf("%d: %v", i, err)
		}
	}
}

func TestListSessions(t *testing.T) {
	t.Parallel()
	url, pool := newDatabase(t)
	conn := connection(t, url)
	execute(t, pool, `insert into bridge.replicas (id, share_name, host, heartbeat_at) values
			('live', 's', 'north', now()), ('dead', 's', 'south', now() - interval '1 minute');
		insert into bridge.sessions (share_name, index, client_id, owner, epoch, acquired_at) values
			('s', 0, 's-0', 'live', 3, now()), ('s', 1, 's-1', 'dead', 2, now()), ('s', 2, 's-2', null, 1, now()), ('s', 3, 's-3', 'unknown', 5, now()),
			('s', 4, 's-4', 'live', 1, now()), ('s', 5, 's-5', null, 0, null), ('t', 0, 't-0', null, 0, null);
		update bridge.sessions set retired_at = now() where index >= 4`)
	all, err := ListSessions(t.Context(), conn, "bridge")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, s := range all {
		got = append(got, fmt.Sprintf("%s %d %s %d %q %t", s.ClientID, s.Index, s.State, s.Epoch, s.Host, s.AcquiredAt != nil))
		if s.Host == "south" != (s.Heartbeat != nil && *s.Heartbeat > 30*time.Second) {
			t.Errorf("%s: heartbeat %v", s.ClientID, s.Heartbeat)
		}
	}
	want := []string{
		`s-0 0 held 3 "north" true`, `s-1 1 orphaned 2 "south" true`, `s-2 2 free 1 "" false`, `s-3 3 orphaned 5 "" true`,
		`s-4 4 retired 1 "north" true`, `s-5 5 retired 0 "" false`, `t-0 0 free 0 "" false`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("sessions\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
