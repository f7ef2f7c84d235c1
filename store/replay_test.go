package store

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/mqttpg/bridge/mapping"
)

// bare is a route for values without time or id: rows are told apart by their delivery alone.
var bare = mapping.RouteConfig{Name: "bare", Topic: "bare/{device_id}", Format: "text", Columns: "v:float8=payload", Key: "delivery"}

// bury writes a dead letter as the writer would and returns its id.
func bury(t *testing.T, pool *pgxpool.Pool, route, topic, payload string) [16]byte {
	t.Helper()
	l := deadLetter{route: route, reason: mapping.ReasonInvalidPayload, detail: "before", entry: &Entry{
		PacketID: uint16(databases.Add(1)), Message: &mapping.Message{
			Topic: topic, Payload: []byte(payload), QoS: 1, ContentType: "text/plain", CorrelationData: []byte("c"),
			UserProperties: []mapping.UserProperty{{Name: "unit", Value: "K"}}, ReceivedAt: received,
		},
	}}
	s, err := insertSomeDeadLetters("bridge", []deadLetter{l})
	if err != nil {
		t.Fatal(err)
	}
	conn, err := pool.Acquire(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	if _, err := run(context.Background(), conn.Conn().PgConn(), []*statement{s}); err != nil {
		t.Fatal(err)
	}
	return l.id()
}

var received = time.Date(2026, 11, 20, 1, 2, 3, 4000, time.UTC)

func replayAll(t *testing.T, pool *pgxpool.Pool, filter LetterFilter, configs ...mapping.RouteConfig) ReplayResult {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	result, err := ReplayDeadLetters(ctx, pool, impatient(t), compile(t, configs...), filter)
	if err != nil {
		t.Fatal(err)
	}
	return result
}

func wantReplay(t *testing.T, got, want ReplayResult) {
	t.Helper()
	if got.Replayed != want.Replayed || got.Skipped != want.Skipped || got.Rows != want.Rows || got.Known != want.Known ||
		got.Elsewhere != want.Elsewhere || !maps.Equal(got.Waiting, want.Waiting) {
		t.Errorf("replay %+v, want %+v", got, want)
	}
}

// letters shows every letter: topic, attempts, whether it was replayed, reason and detail.
func letters(t *testing.T, pool *pgxpool.Pool) []string {
	t.Helper()
	return list[string](t, pool, `select format('%s %s %s %s %s', topic, attempts, replayed_at is not null, reason, detail) from bridge.dead_letters order by topic, id`)
}

func wantLetters(t *testing.T, pool *pgxpool.Pool, want ...string) {
	t.Helper()
	got := letters(t, pool)
	if len(got) != len(want) {
		t.Fatalf("letters\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	for i := range got {
		if !strings.HasPrefix(got[i], want[i]) {
			t.Errorf("letter %s, want %s", got[i], want[i])
		}
	}
}

// TestReplay is what becomes of one letter, by what the configuration is now.
func TestReplay(t *testing.T) {
	t.Parallel()
	waiting := func(route string, reason mapping.Reason) map[WaitingLetters]int {
		return map[WaitingLetters]int{{route, reason}: 1}
	}
	everything := mapping.RouteConfig{Name: "everything", Topic: "#", Format: "raw", Partition: "none"}
	strict := mapping.RouteConfig{Name: "strict", Topic: "devices/#", Columns: "n:int4=$.n, must:int4=$.must", Time: "$.must", Partition: "none"}
	good := `{"ts":"2026-11-19T00:00:00Z","temperature":20.5}`
	tests := []struct {
		name           string
		route, topic   string
		payload        string
		configs        []mapping.RouteConfig
		before         string // SQL
		result         ReplayResult
		letter         string
		rows, expected string // a query and what it gives
	}{
		{
			name: "the route was mended", route: "telemetry", topic: "devices/a/telemetry", payload: good, configs: []mapping.RouteConfig{telemetry},
			result: ReplayResult{Replayed: 1, Rows: 1}, letter: "devices/a/telemetry 1 t invalid_payload before",
			rows:     `select format('%s %s %s', device_id, temperature, received_at at time zone 'UTC') from telemetry`,
			expected: "a 20.5 2026-11-20 01:02:03.000004",
		},
		{
			name: "properties come back", route: "p", topic: "p/a", payload: "x",
			configs: []mapping.RouteConfig{{
				Name: "p", Topic: "p/{device_id}", Format: "text", Partition: "none",
				Columns: "unit:text=user.unit, kind:text=content_type, c:bytea=correlation_data, q:int2=qos, at:timestamptz=received_at",
			}},
			result: ReplayResult{Replayed: 1, Rows: 1}, letter: "p/a 1 t",
			rows:     `select format('%s %s %s %s %s %s', unit, kind, convert_from(c, 'UTF8'), q, at = received_at, "time" = received_at) from p`,
			expected: "K text/plain c 1 t t",
		},
		{
			name: "only its own route", route: "telemetry", topic: "devices/a/telemetry", payload: good, configs: []mapping.RouteConfig{telemetry, everything},
			result: ReplayResult{Replayed: 1, Rows: 1}, letter: "devices/a/telemetry 1 t",
			rows: `select format('%s', to_regclass('everything') is null)`, expected: "t",
		},
		{
			name: "still broken", route: "telemetry", topic: "devices/a/telemetry", payload: `{"ts":"soon"}`, configs: []mapping.RouteConfig{telemetry},
			result: ReplayResult{Waiting: waiting("telemetry", mapping.ReasonInvalidTime)},
			letter: `devices/a/telemetry 1 f invalid_time TIME = $.ts: "soon" is no time`,
		},
		{
			name: "the route was removed", route: "telemetry", topic: "devices/a/telemetry", payload: good, configs: []mapping.RouteConfig{everything},
			result: ReplayResult{Waiting: waiting("telemetry", mapping.ReasonNoRoute)},
			letter: "devices/a/telemetry 1 f no_route route telemetry is not configured",
		},
		{
			name: "the route has another topic", route: "telemetry", topic: "old/a/telemetry", payload: good, configs: []mapping.RouteConfig{telemetry},
			result: ReplayResult{Waiting: waiting("telemetry", mapping.ReasonNoRoute)},
			letter: "old/a/telemetry 1 f no_route route telemetry does not match the topic",
		},
		{
			name: "no route and none now", route: "none", topic: "elsewhere", payload: good, configs: []mapping.RouteConfig{telemetry},
			result: ReplayResult{Waiting: waiting("none", mapping.ReasonNoRoute)}, letter: "elsewhere 1 f no_route no route matches the topic",
		},
		{
			name: "no route and two now", route: "none", topic: "devices/a/telemetry", payload: good, configs: []mapping.RouteConfig{telemetry, everything},
			result: ReplayResult{Replayed: 1, Rows: 2}, letter: "devices/a/telemetry 1 t",
			rows: `select format('%s %s', (select count(*) from telemetry), (select count(*) from everything))`, expected: "1 1",
		},
		{
			name: "no route and one of two rejects", route: "none", topic: "devices/a/telemetry", payload: good, configs: []mapping.RouteConfig{telemetry, strict},
			result: ReplayResult{Waiting: waiting("none", mapping.ReasonInvalidTime)}, letter: "devices/a/telemetry 1 f invalid_time route strict: TIME = $.must",
		},
		{
			name: "no route and the table of one of two refuses", route: "none", topic: "devices/a/telemetry", payload: good, configs: []mapping.RouteConfig{everything, telemetry},
			before: `create table telemetry (device_id text, "time" timestamptz, message_id uuid, received_at timestamptz, topic text,
				temperature float8 check (temperature < 10), status text, payload jsonb, payload_bytes bytea, primary key (device_id, "time", message_id))`,
			result: ReplayResult{Waiting: waiting("none", ReasonDatabase)}, letter: "devices/a/telemetry 1 f database SQLSTATE 23514",
			rows: `select format('%s %s', (select count(*) from telemetry), (select count(*) from everything))`, expected: "0 0",
		},
		{
			name: "the table is unusable", route: "telemetry", topic: "devices/a/telemetry", payload: good, configs: []mapping.RouteConfig{telemetry},
			before: `create sequence telemetry`, result: ReplayResult{Waiting: waiting("telemetry", ReasonTableUnusable)},
			letter: "devices/a/telemetry 1 f table_unusable prepare table telemetry of route telemetry: ",
		},
		{
			name: "the view takes no rows", route: "telemetry", topic: "devices/a/telemetry", payload: good, configs: []mapping.RouteConfig{telemetry},
			before: `create table real (device_id text, "time" timestamptz, message_id uuid, received_at timestamptz, topic text, temperature float8, status text, payload jsonb, payload_bytes bytea);
				create view telemetry as select * from real limit 1`,
			result: ReplayResult{Waiting: waiting("telemetry", ReasonTableUnusable)}, letter: "devices/a/telemetry 1 f table_unusable SQLSTATE 55000",
		},
		{
			name: "a deferred constraint refuses", route: "telemetry", topic: "devices/a/telemetry", payload: good, configs: []mapping.RouteConfig{telemetry},
			before: `create table devices (name text primary key);
				create table telemetry (device_id text references devices deferrable initially deferred, "time" timestamptz, message_id uuid, received_at timestamptz, topic text,
				temperature float8, status text, payload jsonb, payload_bytes bytea, primary key (device_id, "time", message_id))`,
			result: ReplayResult{Waiting: waiting("telemetry", ReasonDatabase)}, letter: "devices/a/telemetry 1 f database SQLSTATE 23503",
		},
		{
			name: "its route passes it over", route: "telemetry", topic: "devices/a/telemetry", payload: "", configs: []mapping.RouteConfig{telemetry},
			result: ReplayResult{Replayed: 1, Skipped: 1}, letter: "devices/a/telemetry 1 t",
		},
		{
			name: "somebody spoiled its properties", route: "telemetry", topic: "devices/a/telemetry", payload: good, configs: []mapping.RouteConfig{telemetry},
			before: `update bridge.dead_letters set properties = '[]'`,
			result: ReplayResult{Waiting: waiting("telemetry", mapping.ReasonInvalidPayload)}, letter: "devices/a/telemetry 1 f invalid_payload read properties",
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			_, pool := newDatabase(t)
			bury(t, pool, test.route, test.topic, test.payload)
			if test.before != "" {
				execute(t, pool, test.before)
			}
			wantReplay(t, replayAll(t, pool, LetterFilter{}, test.configs...), test.result)
			wantLetters(t, pool, test.letter)
			if test.rows != "" {
				if got := value[string](t, pool, test.rows); got != test.expected {
					t.Errorf("%s\n%s, want %s", test.rows, got, test.expected)
				}
			}
		})
	}
}

// TestReplayTwice: nothing is written a second time, not even when somebody takes the mark off, and
// for rows that only their delivery tells apart.
func TestReplayTwice(t *testing.T) {
	t.Parallel()
	for _, route := range []mapping.RouteConfig{
		bare,
		{Name: "bare", Topic: "bare/#", Format: "text", Key: "payload", Partition: "none"},
		{Name: "bare", Topic: "bare/#", Each: "$", Key: "delivery"},
		{Name: "bare", Topic: "bare/#", Format: "raw"},
	} {
		t.Run(cmpName(route), func(t *testing.T) {
			t.Parallel()
			_, pool := newDatabase(t)
			payloads, rows := []string{"1", "1", "2"}, 3
			if route.Each != "" {
				payloads, rows = []string{"[1,1]", "[1,1]"}, 4
			}
			if route.Key == "payload" {
				rows = 2
			}
			for _, payload := range payloads {
				bury(t, pool, "bare", "bare/a", payload) // equal ones are different readings
			}
			wantReplay(t, replayAll(t, pool, LetterFilter{}, route), ReplayResult{Replayed: len(payloads), Rows: rows, Known: rowsOf(payloads, route) - rows})
			wantReplay(t, replayAll(t, pool, LetterFilter{}, route), ReplayResult{})
			execute(t, pool, `update bridge.dead_letters set replayed_at = null`)
			wantReplay(t, replayAll(t, pool, LetterFilter{}, route), ReplayResult{Replayed: len(payloads), Known: rowsOf(payloads, route)})
			if n := value[int](t, pool, `select count(*)::int from bare where received_at = $1`, received); n != rows {
				t.Errorf("%d rows, want %d", n, rows)
			}
		})
	}
}

func cmpName(route mapping.RouteConfig) string {
	return strings.TrimSpace(route.Format + " " + route.Each + " " + route.Key)
}

func rowsOf(payloads []string, route mapping.RouteConfig) int {
	if route.Each != "" {
		return 2 * len(payloads)
	}
	return len(payloads)
}

// TestReplayFilters chooses letters by route, id and time.
func TestReplayFilters(t *testing.T) {
	t.Parallel()
	_, pool := newDatabase(t)
	one := bury(t, pool, "bare", "bare/a", "1")
	bury(t, pool, "bare", "bare/b", "2")
	bury(t, pool, "none", "bare/c", "3")
	none := replayAll(t, pool, LetterFilter{Since: received.Add(time.Second)}, bare)
	wantReplay(t, none, ReplayResult{})
	wantReplay(t, replayAll(t, pool, LetterFilter{ID: fmt.Sprintf("%x", one), Since: received}, bare), ReplayResult{Replayed: 1, Rows: 1})
	wantReplay(t, replayAll(t, pool, LetterFilter{Route: "none"}, bare), ReplayResult{Replayed: 1, Rows: 1})
	wantReplay(t, replayAll(t, pool, LetterFilter{Route: "bare"}, bare), ReplayResult{Replayed: 1, Rows: 1})
	bury(t, pool, "bare", "bare/d", "4")
	execute(t, pool, `update bridge.dead_letters set created_at = now() + interval '1 hour' where topic = 'bare/d'`)
	wantReplay(t, replayAll(t, pool, LetterFilter{}, bare), ReplayResult{}) // what comes after its beginning waits for the next
	wantLetters(t, pool, "bare/a 1 t", "bare/b 1 t", "bare/c 1 t", "bare/d 0 f")
}

// TestReplayIsolates lets the good letters of a transaction pass beside the bad ones.
func TestReplayIsolates(t *testing.T) {
	t.Parallel()
	_, pool := newDatabase(t)
	execute(t, pool, `create sequence gone`)
	replayAll(t, pool, LetterFilter{}, bare) // nothing waits: no table is made
	if value[bool](t, pool, `select to_regclass('bare') is not null`) {
		t.Error("a table was made for nothing")
	}
	if err := NewTables(pool, impatient(t), compile(t, bare)).Ensure(t.Context()); err != nil {
		t.Fatal(err)
	}
	execute(t, pool, `alter table bare add check (v < 1000)`)
	bad := 0
	for i := range 200 {
		switch {
		case i%67 == 5:
			bad++
			bury(t, pool, "bare", "bare/bad", "1000")
		case i%50 == 7:
			bury(t, pool, "gone", "gone/a", "{}")
		default:
			bury(t, pool, "bare", "bare/good", fmt.Sprint(i))
		}
	}
	got := replayAll(t, pool, LetterFilter{}, bare, mapping.RouteConfig{Name: "gone", Topic: "gone/#"})
	good := 200 - 4 - bad
	wantReplay(t, got, ReplayResult{Replayed: good, Rows: good, Waiting: map[WaitingLetters]int{{"bare", ReasonDatabase}: bad, {"gone", ReasonTableUnusable}: 4}})
	if n := value[int](t, pool, `select count(*)::int from bare`); n != good {
		t.Errorf("%d rows, want %d", n, good)
	}
	if n := value[int](t, pool, `select count(*)::int from bridge.dead_letters where attempts = 1 and (replayed_at is null) = (reason in ('database', 'table_unusable'))`); n != 200 {
		t.Errorf("%d of 200 letters tell what became of them", n)
	}
}

// TestReplayInSmallTransactions bounds them by messages, by payloads and by the rows they give.
func TestReplayInSmallTransactions(t *testing.T) {
	t.Parallel()
	points := mapping.RouteConfig{Name: "bare", Topic: "bare/#", Each: "$", Key: "delivery", Payload: "drop", Columns: "v:int4=@"}
	many := "[" + strings.Repeat("1,", 99) + "1]"
	for _, test := range []struct {
		name                  string
		messages, bytes, most int
		payload               string
		route                 mapping.RouteConfig
	}{
		{"messages", 3, 1 << 20, 3, "1", bare},
		{"payloads", 100, 2500, 2, strings.Repeat(" ", 999) + "1", mapping.RouteConfig{Name: "bare", Topic: "bare/#", Payload: "drop"}},
		{"rows", 100, 5000, 1, many, points},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			_, pool := newDatabase(t)
			for range 10 {
				bury(t, pool, "bare", "bare/a", test.payload)
			}
			cfg := impatient(t)
			cfg.MaxMessages, cfg.MaxBytes = test.messages, test.bytes
			result, err := ReplayDeadLetters(t.Context(), pool, cfg, compile(t, test.route), LetterFilter{})
			if err != nil || result.Replayed != 10 {
				t.Fatalf("%+v, %v", result, err)
			}
			if most := value[int](t, pool, `select max(n)::int from (select count(*) n from bridge.dead_letters group by replayed_at) x`); most > test.most {
				t.Errorf("%d letters in one transaction, want at most %d", most, test.most)
			}
		})
	}
}

// TestReplayInterrupted: what was committed stays, the rest waits untouched, and the next replay
// completes it.
func TestReplayInterrupted(t *testing.T) {
	t.Parallel()
	_, pool := newDatabase(t)
	if err := NewTables(pool, impatient(t), compile(t, bare)).Ensure(t.Context()); err != nil {
		t.Fatal(err)
	}
	const letters = 40
	for i := range letters {
		bury(t, pool, "bare", "bare/a", fmt.Sprint(i))
	}
	cfg := impatient(t)
	cfg.MaxMessages, cfg.lockTimeout = 10, time.Minute
	// The insert of 25 waits for this lock, in the third transaction.
	execute(t, pool, `create function wait() returns trigger language plpgsql as $$ begin
		if new.v = 25 then perform pg_advisory_xact_lock(25); end if; return new; end $$;
		create trigger wait before insert on bare for each row execute function wait()`)
	holder, err := pool.Begin(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = holder.Rollback(context.Background()) }()
	if _, err := holder.Exec(context.Background(), `select pg_advisory_xact_lock(25)`); err != nil {
		t.Fatal(err)
	}
	stop := errors.New("stop")
	ctx, cancel := context.WithCancelCause(context.Background())
	ended := make(chan error, 1)
	var result ReplayResult
	go func() {
		var err error
		result, err = ReplayDeadLetters(ctx, pool, cfg, compile(t, bare), LetterFilter{})
		ended <- err
	}()
	eventually(t, "the replay is in the middle", func() bool {
		return value[int](t, pool, `select count(*)::int from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'`) > 0
	})
	cancel(stop)
	if err := <-ended; !errors.Is(err, stop) {
		t.Fatalf("replay: %v, want the cause", err)
	}
	replayed := value[int](t, pool, `select count(*)::int from bridge.dead_letters where replayed_at is not null and attempts = 1`)
	waiting := value[int](t, pool, `select count(*)::int from bridge.dead_letters where replayed_at is null and attempts = 0`)
	if replayed+waiting != letters || result.Replayed != replayed || replayed >= letters {
		t.Errorf("%d replayed and %d untouched of %d, the result says %+v", replayed, waiting, letters, result)
	}
	if err := holder.Rollback(context.Background()); err != nil {
		t.Fatal(err)
	}
	wantReplay(t, replayAll(t, pool, LetterFilter{}, bare), ReplayResult{Replayed: waiting, Rows: waiting})
	if n := value[int](t, pool, `select count(*)::int from bare`); n != letters {
		t.Errorf("%d rows, want %d", n, letters)
	}
}

// TestReplaySurvivesItsConnection: the server ends the connection in the middle; the transaction is
// tried again.
func TestReplaySurvivesItsConnection(t *testing.T) {
	t.Parallel()
	url, pool := newDatabase(t)
	execute(t, pool, `create sequence calls; create table bare (device_id text, "time" timestamptz, message_id uuid, received_at timestamptz, topic text,
		v float8, payload_bytes bytea);
		create function die() returns trigger language plpgsql security definer as $$ begin
			if nextval('calls') = 3 then perform pg_terminate_backend(pg_backend_pid()); end if; return new; end $$;
		create trigger die before insert on bare for each row execute function die()`)
	for i := range 5 {
		bury(t, pool, "bare", "bare/a", fmt.Sprint(i))
	}
	wantReplay(t, replayAll(t, newPool(t, url), LetterFilter{}, mapping.RouteConfig{
		Name: "bare", Topic: "bare/{device_id}", Format: "text", Columns: "v:float8=payload", Key: "delivery", Payload: "drop", Partition: "none",
	}), ReplayResult{Replayed: 5, Rows: 5})
	// The table has no key: only the transaction keeps rows from coming twice.
	if n := value[int](t, pool, `select count(*)::int from bare`); n != 5 {
		t.Errorf("%d rows, want 5", n)
	}
}

// TestTwoReplaysAtOnce: together they replay every letter once, and try every bad one once, also where
// the table has no key that would hide a second row.
func TestTwoReplaysAtOnce(t *testing.T) {
	t.Parallel()
	_, pool := newDatabase(t)
	execute(t, pool, `create table bare (device_id text, "time" timestamptz, message_id uuid, received_at timestamptz, topic text, v float8, payload text)`)
	const good, bad = 600, 40
	for i := range good {
		bury(t, pool, "bare", fmt.Sprintf("bare/%d", i%7), fmt.Sprint(i))
		if i < bad {
			bury(t, pool, "bare", "bare/x", "bad")
		}
	}
	cfg := impatient(t)
	cfg.MaxMessages, cfg.lockTimeout = 20, time.Minute
	route := bare
	route.Partition, route.Payload = "none", "drop"
	routes := compile(t, route)
	results, errs := make([]ReplayResult, 3), make([]error, 3)
	var all sync.WaitGroup
	for i := range results {
		all.Go(func() {
			results[i], errs[i] = ReplayDeadLetters(context.Background(), pool, cfg, routes, LetterFilter{})
		})
	}
	all.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	sum := ReplayResult{}
	for _, r := range results {
		sum.Replayed += r.Replayed
		sum.Rows += r.Rows
		if r.StillWaiting() != bad {
			t.Errorf("%+v: every replay knows of the %d letters that wait", r, bad)
		}
	}
	if sum.Replayed != good || sum.Rows != good {
		t.Errorf("%d letters replayed, %d rows, want %d", sum.Replayed, sum.Rows, good)
	}
	if n := value[int](t, pool, `select count(*)::int from bare`); n != good {
		t.Errorf("%d rows, want %d", n, good)
	}
	if n := value[int](t, pool, `select count(*)::int from bridge.dead_letters where replayed_at is not null and attempts <> 1`); n != 0 {
		t.Errorf("%d letters were written more than once", n)
	}
	// A replay that comes to a broken letter when another is through with it tries it again.
	if n := value[int](t, pool, `select count(*)::int from bridge.dead_letters where replayed_at is null and attempts not between 1 and 3`); n != 0 {
		t.Errorf("%d broken letters were not tried, or more often than there are replays", n)
	}
}

// TestReplayWaitsForAnother that died with letters locked, and takes them then.
func TestReplayWaitsForAnother(t *testing.T) {
	t.Parallel()
	_, pool := newDatabase(t)
	for i := range 3 {
		bury(t, pool, "bare", "bare/a", fmt.Sprint(i))
	}
	other, err := pool.Begin(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Rollback(context.Background()) }()
	if _, err := other.Exec(context.Background(), `select from bridge.dead_letters where payload <> '1' for update`); err != nil {
		t.Fatal(err)
	}
	cfg := impatient(t)
	cfg.lockTimeout = time.Minute
	ended := make(chan ReplayResult, 1)
	go func() {
		result, err := ReplayDeadLetters(context.Background(), pool, cfg, compile(t, bare), LetterFilter{})
		if err != nil {
			t.Error(err)
		}
		ended <- result
	}()
	eventually(t, "the replay waits for the locked letters", func() bool {
		return value[int](t, pool, `select count(*)::int from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'`) > 0
	})
	if n := value[int](t, pool, `select count(*)::int from bare`); n != 1 {
		t.Errorf("%d rows while two letters are locked, want 1", n)
	}
	if err := other.Rollback(context.Background()); err != nil {
		t.Fatal(err)
	}
	wantReplay(t, <-ended, ReplayResult{Replayed: 3, Rows: 3})
}

// TestReplayBesideTheWriter writes the same keys from both sides at once.
func TestReplayBesideTheWriter(t *testing.T) {
	t.Parallel()
	_, pool := newDatabase(t)
	const keys = 300
	l := newLine(t, pool, impatient(t), nil, telemetry)
	for i := range keys {
		l.send(fmt.Sprintf("devices/%d/telemetry", i), reading(1, 1))
		bury(t, pool, "telemetry", fmt.Sprintf("devices/%d/telemetry", keys-1-i), reading(1, 1))
	}
	wait := l.run(context.Background())
	result := replayAll(t, pool, LetterFilter{}, telemetry)
	if err := errors.Join(l.drain(), wait()); err != nil {
		t.Fatal(err)
	}
	if result.Replayed != keys || result.Rows+result.Known != keys {
		t.Errorf("replay %+v", result)
	}
	if n := value[int](t, pool, `select count(*)::int from telemetry`); n != keys {
		t.Errorf("%d rows, want %d", n, keys)
	}
	if n := int(l.counts("telemetry").Written) + result.Rows; n != keys {
		t.Errorf("%d rows counted, want %d", n, keys)
	}
}

// TestReplayWithOneConnection: tables are looked at while the transaction has no connection.
func TestReplayWithOneConnection(t *testing.T) {
	t.Parallel()
	url, pool := newDatabase(t)
	bury(t, pool, "bare", "bare/a", "1")
	single, err := openPool(url, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer single.Close()
	wantReplay(t, replayAll(t, single, LetterFilter{}, bare), ReplayResult{Replayed: 1, Rows: 1})
}

func TestReplayWithoutTheTable(t *testing.T) {
	t.Parallel()
	_, pool := newDatabase(t)
	execute(t, pool, `drop table bridge.dead_letters`)
	_, err := ReplayDeadLetters(t.Context(), pool, impatient(t), compile(t, bare), LetterFilter{})
	if err == nil || !strings.Contains(err.Error(), "run bridge migrate") {
		t.Errorf("%v, want the way out", err)
	}
	_, err = ReplayDeadLetters(t.Context(), newPool(t, "postgres://127.0.0.1:1/none?connect_timeout=1"), impatient(t), compile(t, bare), LetterFilter{})
	if err == nil {
		t.Error("no error without a database")
	}
}

// TestReplayedPages goes through more letters than are looked up at a time, some of which keep waiting.
func TestReplayedPages(t *testing.T) {
	t.Parallel()
	_, pool := newDatabase(t)
	execute(t, pool, `insert into bridge.dead_letters (id, route, topic, payload, qos, retain, received_at, reason)
		select gen_random_uuid(), 'bare', 'bare/a', case when i % 100 = 0 then 'x' else '1' end::bytea, 1, false, now(), 'database' from generate_series(1, $1) i`, 2*replayPage+500)
	got := replayAll(t, pool, LetterFilter{}, bare)
	wantReplay(t, got, ReplayResult{Replayed: 2475, Rows: 2475, Waiting: map[WaitingLetters]int{{"bare", mapping.ReasonInvalidValue}: 25}})
	tries := list[int](t, pool, `select distinct attempts::int from bridge.dead_letters`)
	if !slices.Equal(tries, []int{1}) {
		t.Errorf("attempts %v, want 1 of all", tries)
	}
}
