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
	"github.com/mqttpg/bridge/mapping"
)

func reading(second int, temperature float64) string {
	return fmt.Sprintf(`{"ts":"2026-11-23T12:00:%02dZ","temperature":%g,"status":"ok"}`, second, temperature)
}

func TestBatchIsWritten(t *testing.T) {
	t.Parallel()
	_, pool := newDatabase(t)
	l := newLine(t, pool, impatient(t), nil, telemetry)
	l.send("devices/b/telemetry", reading(2, 20.5))
	l.send("devices/a/telemetry", reading(1, 19.5))
	l.send("devices/a/telemetry", `{"ts":"2026-11-23T12:00:03Z"}`)
	l.flush()
	got := list[string](t, pool, `select device_id || ' ' || to_char("time" at time zone 'UTC', 'SS') || ' ' || coalesce(temperature::text, 'null') || ' ' || topic from telemetry order by 1`)
	want := []string{"a 01 19.5 devices/a/telemetry", "a 03 null devices/a/telemetry", "b 02 20.5 devices/b/telemetry"}
	if !slices.Equal(got, want) {
		t.Errorf("rows %q, want %q", got, want)
	}
	l.wantInOrder(3)
	l.want("telemetry", 3, 3, 0, 0)
	if s := l.writer.Status(); s.LastCommit.IsZero() || s.InFlight != 0 || s.InFlightBytes != 0 || s.OldestUnacknowledged != 0 {
		t.Errorf("status %+v after all is settled", s)
	}
}

func TestDuplicates(t *testing.T) {
	t.Parallel()
	_, pool := newDatabase(t)
	l := newLine(t, pool, impatient(t), nil, telemetry)
	l.send("devices/a/telemetry", reading(1, 1))
	l.send("devices/a/telemetry", reading(1, 1)) // the same message twice in one batch
	l.send("devices/a/telemetry", reading(2, 1))
	l.flush()
	l.want("telemetry", 3, 2, 1, 0)
	l.renew(impatient(t), nil)
	l.send("devices/a/telemetry", reading(2, 1)) // and once more in the next
	l.send("devices/a/telemetry", reading(3, 1))
	l.flush()
	l.want("telemetry", 5, 3, 2, 0)
	if n := value[int](t, pool, `select count(*)::int from telemetry`); n != 3 {
		t.Errorf("%d rows, want 3", n)
	}
	l.wantInOrder(5)
}

func TestReadingsWithoutIdentityAreAllKept(t *testing.T) {
	t.Parallel()
	_, pool := newDatabase(t)
	l := newLine(t, pool, impatient(t), nil, mapping.RouteConfig{Name: "raw", Topic: "r/#", Format: "text", Columns: "v:text=payload"})
	for range 5 {
		l.send("r/x", "21")
	}
	l.flush()
	l.want("raw", 5, 5, 0, 0)
	if n := value[int](t, pool, `select count(*)::int from raw`); n != 5 {
		t.Errorf("%d rows, want 5", n)
	}
}

var each = mapping.RouteConfig{
	Name: "points", Topic: "points/{device_id}", Each: "$.p", Time: "@.t", Columns: "v:int4=@.v", Partition: "none",
}

func TestEachCountsMessagesExactly(t *testing.T) {
	t.Parallel()
	_, pool := newDatabase(t)
	l := newLine(t, pool, impatient(t), nil, each)
	two := `{"p":[{"t":1800000000,"v":1},{"t":1800000001,"v":2}]}`
	l.send("points/a", two)
	l.send("points/a", two)        // a duplicate within the batch
	l.send("points/b", two)        // other rows: another device
	l.send("points/a", `{"p":[]}`) // no rows at all
	l.flush()
	l.want("points", 4, 2, 1, 0)
	if n := l.counts("points").Skipped[mapping.SkipNoRows]; n != 1 {
		t.Errorf("skipped %d, want 1", n)
	}
	l.renew(impatient(t), nil)
	l.send("points/a", two) // all its rows are there
	l.send("points/c", two) // none
	execute(t, pool, `delete from points where device_id = 'b' and v = 2`)
	l.send("points/b", two) // one of two: the message is written
	l.flush()
	l.want("points", 7, 4, 2, 0)
	if n := value[int](t, pool, `select count(*)::int from points`); n != 6 {
		t.Errorf("%d rows, want 6", n)
	}
	l.renew(impatient(t), nil)
	l.send("points/d", two) // everything is new: the database names no keys
	l.flush()
	l.want("points", 8, 5, 2, 0)
}

// TestArrayColumns goes the way of values lists: arrays of arrays cannot be unnested.
func TestArrayColumns(t *testing.T) {
	t.Parallel()
	_, pool := newDatabase(t)
	l := newLine(t, pool, impatient(t), nil,
		mapping.RouteConfig{Name: "arr", Topic: "arr/{device_id}", Each: "$.p", Time: "@.t", Columns: "tags:text[]=@.tags, n:numeric(6,2)=@.n", Partition: "none"})
	l.send("arr/a", `{"p":[{"t":1800000000,"tags":["x","y"],"n":1.23},{"t":1800000001,"tags":[]}]}`)
	l.send("arr/a", `{"p":[{"t":1800000000,"tags":["x","y"],"n":1.23},{"t":1800000001,"tags":[]}]}`)
	l.flush()
	l.want("arr", 2, 1, 1, 0)
	got := list[string](t, pool, `select tags::text || coalesce(n::text, '-') from arr order by "time"`)
	if want := []string{"{x,y}1.23", "{}-"}; !slices.Equal(got, want) {
		t.Errorf("rows %q, want %q", got, want)
	}
}

// TestValuesAreCutBelowTheParameterLimit needs more parameters than one statement may have.
func TestValuesAreCutBelowTheParameterLimit(t *testing.T) {
	t.Parallel()
	_, pool := newDatabase(t)
	l := newLine(t, pool, impatient(t), nil,
		mapping.RouteConfig{Name: "arr", Topic: "arr/{device_id}", Each: "$", Time: "@[0]", Columns: "v:int4[]=@", Payload: "drop", Partition: "none"})
	var b strings.Builder
	const rows = 12_000
	for i := range rows {
		fmt.Fprintf(&b, ",[%d]", 1_800_000_000+i)
	}
	l.send("arr/a", "["+b.String()[1:]+"]")
	l.flush()
	l.want("arr", 1, 1, 0, 0)
	if n := value[int](t, pool, `select count(*)::int from arr`); n != rows {
		t.Errorf("%d rows, want %d", n, rows)
	}
}

func TestOneMessageForTwoRoutes(t *testing.T) {
	t.Parallel()
	_, pool := newDatabase(t)
	all := mapping.RouteConfig{Name: "everything", Topic: "#", Format: "raw", Partition: "none"}
	l := newLine(t, pool, impatient(t), nil, telemetry, all)
	l.send("devices/a/telemetry", reading(1, 1))
	l.send("other", "x")
	l.flush()
	l.want("telemetry", 1, 1, 0, 0)
	l.want("everything", 2, 2, 0, 0)
	l.wantInOrder(2)
}

func TestRejectionsAndUnroutedMessagesBecomeDeadLetters(t *testing.T) {
	t.Parallel()
	_, pool := newDatabase(t)
	l := newLine(t, pool, impatient(t), nil, telemetry)
	l.send("devices/a/telemetry", reading(1, 1))
	l.next++
	l.sendMessage(&mapping.Message{
		Topic: "devices/a/telemetry", Payload: []byte("{\x00\xff"), QoS: 2, Retain: false, ContentType: "application/json",
		CorrelationData: []byte{0, 1}, UserProperties: []mapping.UserProperty{{Name: "b", Value: "1"}, {Name: "a", Value: "2"}, {Name: "b", Value: "3\x00\xff"}},
		ReceivedAt: time.Date(2026, 11, 23, 1, 2, 3, 4000, time.UTC), Seed: 77,
	})
	l.send("elsewhere", "")
	l.flush()
	l.want("telemetry", 2, 1, 0, 0)
	if n := l.counts("telemetry").DeadLettered[mapping.ReasonInvalidUTF8]; n != 1 {
		t.Errorf("%d dead letters of the route, want 1", n)
	}
	if n := l.counts("none").DeadLettered[mapping.ReasonNoRoute]; n != 1 {
		t.Errorf("%d dead letters without a route, want 1", n)
	}
	l.wantInOrder(3)

	var topic, reason, detail, properties string
	var payload []byte
	var qos int
	var retain bool
	var received time.Time
	err := pool.QueryRow(context.Background(), `select topic, reason, detail, properties::text, payload, qos, retain, received_at from bridge.dead_letters where route = 'telemetry'`).
		Scan(&topic, &reason, &detail, &properties, &payload, &qos, &retain, &received)
	if err != nil {
		t.Fatal(err)
	}
	if topic != "devices/a/telemetry" || reason != "invalid_utf8" || detail == "" || qos != 2 || retain || string(payload) != "{\x00\xff" {
		t.Errorf("dead letter %q %q %q %d %t %q", topic, reason, detail, qos, retain, payload)
	}
	if !received.Equal(time.Date(2026, 11, 23, 1, 2, 3, 4000, time.UTC)) {
		t.Errorf("received at %v", received)
	}
	if want := `{"content_type": "application/json", "user_properties": [["b", "1"], ["a", "2"], ["b", "3��"]], "correlation_data": "AAE="}`; properties != want {
		t.Errorf("properties %s, want %s", properties, want)
	}
	if n := value[int](t, pool, `select count(*)::int from bridge.dead_letters where substr(id::text, 15, 1) = '7' and substr(id::text, 20, 1) in ('8', '9', 'a', 'b')`); n != 2 {
		t.Errorf("%d of two ids are UUIDv7", n)
	}
	if n := value[int](t, pool, `select count(*)::int from bridge.dead_letters where route = 'none' and topic = 'elsewhere' and payload = '' and reason = 'no_route'`); n != 1 {
		t.Errorf("%d letters without a route, want 1", n)
	}
}

// TestFenceStopsTheWriter takes the session away while messages wait.
func TestFenceStopsTheWriter(t *testing.T) {
	t.Parallel()
	_, pool := newDatabase(t)
	execute(t, pool, `insert into bridge.sessions (share_name, index, client_id, owner, epoch) values ('s', 3, 's-3', 'me', 7)`)
	lease := &Lease{Index: 3, ClientID: "s-3", Epoch: 7, ShareName: "s"}
	l := newLine(t, pool, impatient(t), lease, telemetry)
	l.send("devices/a/telemetry", reading(1, 1))
	l.flush()
	l.want("telemetry", 1, 1, 0, 0)

	execute(t, pool, `update bridge.sessions set owner = 'you', epoch = 8`)
	l.renew(impatient(t), lease)
	l.send("devices/a/telemetry", reading(2, 1))
	l.send("devices/a/telemetry", "broken")
	wait := l.run(context.Background())
	if err := wait(); !errors.Is(err, ErrFenced) {
		t.Fatalf("run: %v, want ErrFenced", err)
	}
	l.send("devices/a/telemetry", reading(3, 1)) // after the end
	l.wantInOrder(1)
	l.want("telemetry", 4, 1, 0, 0)
	if n := l.counts("telemetry").Skipped[SkipAbandoned]; n != 3 {
		t.Errorf("abandoned %d, want 3", n)
	}
	if n := value[int](t, pool, `select (select count(*) from telemetry) + (select count(*) from bridge.dead_letters)`); n != 1 {
		t.Errorf("%d rows and dead letters, want the first row alone", n)
	}
	if err := l.drain(); !errors.Is(err, errNotDrained) {
		t.Errorf("drain: %v, want errNotDrained", err)
	}
}

// TestBatchesAreBounded looks at the sizes that settle reports.
func TestBatchesAreBounded(t *testing.T) {
	t.Parallel()
	_, pool := newDatabase(t)
	cfg := impatient(t)
	cfg.MaxMessages, cfg.MaxBytes = 4, 2000
	l := newLine(t, pool, cfg, nil, telemetry)
	for i := range 6 {
		l.send("devices/a/telemetry", reading(i, 1))
	}
	l.send("devices/a/telemetry", `{"ts":1800000000,"status":"`+strings.Repeat("x", 5000)+`"}`) // more than MaxBytes: goes alone
	l.send("devices/a/telemetry", reading(9, 1))
	l.flush()
	l.wantInOrder(8)
	if want := []int{4, 2, 1, 1}; !slices.Equal(l.batches, want) {
		t.Errorf("batches %v, want %v", l.batches, want)
	}
}

// TestLinger lets the loop find the batch by itself, without Drain.
func TestLinger(t *testing.T) {
	t.Parallel()
	_, pool := newDatabase(t)
	cfg := impatient(t)
	cfg.Linger = 50 * time.Millisecond
	l := newLine(t, pool, cfg, nil, telemetry)
	ctx, cancel := context.WithCancelCause(context.Background())
	wait := l.run(ctx)
	for i := range 3 {
		l.send("devices/a/telemetry", reading(i, 1))
	}
	eventually(t, "three messages settle", func() bool { return len(l.order()) == 3 })
	l.send("devices/a/telemetry", reading(4, 1))
	eventually(t, "a fourth settles", func() bool { return len(l.order()) == 4 })
	stop := errors.New("stop")
	cancel(stop)
	if err := wait(); !errors.Is(err, stop) {
		t.Errorf("run: %v, want the cause", err)
	}
	l.wantInOrder(4)
}

func TestDrainGivesUpWithItsContext(t *testing.T) {
	t.Parallel()
	_, pool := newDatabase(t)
	l := newLine(t, pool, impatient(t), nil, telemetry)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := l.writer.Drain(ctx); !errors.Is(err, context.Canceled) { // Run has never started
		t.Errorf("drain: %v, want context.Canceled", err)
	}
}

// TestHardStopAcknowledgesNothing ends Run while the table is locked.
func TestHardStopAcknowledgesNothing(t *testing.T) {
	t.Parallel()
	_, pool := newDatabase(t)
	cfg := impatient(t)
	cfg.lineLock, cfg.ParkAfter = time.Minute, time.Hour
	l := newLine(t, pool, cfg, nil, telemetry)
	if err := l.tables.Ensure(context.Background()); err != nil {
		t.Fatal(err)
	}
	tx, err := pool.Begin(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.Background()) }()
	if _, err := tx.Exec(context.Background(), `lock table telemetry`); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	wait := l.run(ctx)
	l.send("devices/a/telemetry", reading(1, 1))
	eventually(t, "the insert waits for the lock", func() bool {
		return value[int](t, pool, `select count(*)::int from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'`) > 0
	})
	l.send("devices/a/telemetry", reading(2, 1))
	if s := l.writer.Status(); s.InFlight != 2 || s.InFlightBytes == 0 || s.OldestUnacknowledged == 0 {
		t.Errorf("status %+v with two messages in flight", s)
	}
	cancel()
	if err := wait(); !errors.Is(err, context.Canceled) {
		t.Errorf("run: %v, want context.Canceled", err)
	}
	l.wantInOrder(0)
	l.want("telemetry", 2, 0, 0, 0)
	if n := l.counts("telemetry").Skipped[SkipAbandoned]; n != 2 {
		t.Errorf("abandoned %d, want 2", n)
	}
}

// TestTwoWritersInOppositeOrder would deadlock if rows were not sorted by key: both write the same
// keys, one forwards, one backwards, many times over.
func TestTwoWritersInOppositeOrder(t *testing.T) {
	t.Parallel()
	_, pool := newDatabase(t)
	const keys, rounds = 60, 20
	deadlocks := value[int](t, pool, `select deadlocks::int from pg_stat_database where datname = current_database()`)
	for round := range rounds {
		forwards := newLine(t, pool, impatient(t), nil, telemetry)
		backwards := newLine(t, pool, impatient(t), nil, telemetry)
		for i := range keys {
			forwards.send(fmt.Sprintf("devices/%d-%d/telemetry", round, i), reading(1, 1))
			backwards.send(fmt.Sprintf("devices/%d-%d/telemetry", round, keys-1-i), reading(1, 1))
		}
		first, second := forwards.run(context.Background()), backwards.run(context.Background())
		if err := errors.Join(forwards.drain(), backwards.drain(), first(), second()); err != nil {
			t.Fatal(err)
		}
		f, b := forwards.counts("telemetry"), backwards.counts("telemetry")
		if f.Written+b.Written != keys || f.Duplicate+b.Duplicate != keys {
			t.Errorf("written %d+%d, duplicate %d+%d, want %d each", f.Written, b.Written, f.Duplicate, b.Duplicate, keys)
		}
		if f, b := forwards.writer.Status().LastError, backwards.writer.Status().LastError; f != "" || b != "" {
			t.Errorf("an attempt failed: %q %q", f, b)
		}
	}
	if n := value[int](t, pool, `select deadlocks::int from pg_stat_database where datname = current_database()`); n != deadlocks {
		t.Errorf("%d deadlocks", n-deadlocks)
	}
}

// TestAmbiguousCommit repeats a batch that was committed although the answer was lost.
func TestAmbiguousCommit(t *testing.T) {
	t.Parallel()
	_, pool := newDatabase(t)
	l := newLine(t, pool, impatient(t), nil, telemetry)
	l.send("devices/a/telemetry", reading(1, 1))
	l.send("devices/a/telemetry", "broken")
	b := newBatch(l.writer.queue, nil, nil)
	for range 2 {
		if _, err := l.writer.attempt(context.Background(), b); err != nil {
			t.Fatal(err)
		}
	}
	if n := value[int](t, pool, `select count(*)::int from telemetry`); n != 1 {
		t.Errorf("%d rows, want 1", n)
	}
	if n := value[int](t, pool, `select count(*)::int from bridge.dead_letters`); n != 1 {
		t.Errorf("%d dead letters, want 1", n)
	}
}

func TestTransactionSettings(t *testing.T) {
	t.Parallel()
	_, pool := newDatabase(t)
	execute(t, pool, `alter database `+pgx.Identifier{value[string](t, pool, `select current_database()`)}.Sanitize()+` set synchronous_commit = off`)
	pool.Reset()
	execute(t, pool, `create table seen (sync text, lock text, keepalive text)`)
	l := newLine(t, pool, impatient(t), nil, telemetry)
	if err := l.tables.Ensure(context.Background()); err != nil {
		t.Fatal(err)
	}
	execute(t, pool, `create function note() returns trigger language plpgsql as $$ begin
		insert into seen values (current_setting('synchronous_commit'), current_setting('lock_timeout')); return new; end $$;
		create trigger note before insert on telemetry for each row execute function note()`)
	l.send("devices/a/telemetry", reading(1, 1))
	l.flush()
	if got := value[string](t, pool, `select sync || ' ' || lock from seen`); got != "local 300ms" {
		t.Errorf("inside the transaction: %q, want local 300ms", got)
	}
}
