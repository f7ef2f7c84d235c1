package store

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/mqttpg/bridge/mapping"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

// TestPoisonIsIsolated gives the table limits that the route knows nothing of and mixes messages
// that break them with good ones.
func TestPoisonIsIsolated(t *testing.T) {
	t.Parallel()
	_, pool := newDatabase(t)
	execute(t, pool, `create table telemetry (device_id text, "time" timestamptz, message_id uuid, received_at timestamptz, topic text,
		temperature float8 constraint plausible check (temperature < 100), status varchar(5), payload jsonb, primary key (device_id, "time", message_id));
		create function veto() returns trigger language plpgsql as $$ begin
			if new.status = 'veto' then raise exception 'not this one'; end if; return new; end $$;
		create trigger veto before insert on telemetry for each row execute function veto()`)
	l := newLine(t, pool, impatient(t), nil, telemetry)
	poison := map[int]string{
		3:  `{"ts":1800000000,"temperature":100}`,
		7:  `{"ts":1800000000,"status":"too long"}`,
		8:  `{"ts":1800000000,"status":"veto"}`,
		39: `{"ts":1800000000,"temperature":1e300}`,
	}
	for i := range 40 {
		if payload, bad := poison[i]; bad {
			l.send("devices/bad/telemetry", payload)
		} else {
			l.send("devices/good/telemetry", reading(i, 1))
		}
	}
	l.send("devices/good/telemetry", "rejected by the mapping")
	l.flush()
	l.wantInOrder(41)
	l.want("telemetry", 41, 36, 0, 0)
	c := l.counts("telemetry")
	if c.DeadLettered[ReasonDatabase] != 4 || c.DeadLettered[mapping.ReasonInvalidPayload] != 1 {
		t.Errorf("dead-lettered %v, want 4 by the database and 1 by the mapping", c.DeadLettered)
	}
	if n := value[int](t, pool, `select count(*)::int from telemetry where device_id = 'good'`); n != 36 {
		t.Errorf("%d good rows, want 36", n)
	}
	got := list[string](t, pool, `select convert_from(payload, 'UTF8') || ' | ' || detail from bridge.dead_letters where reason = 'database' order by 1`)
	want := []string{
		`{"ts":1800000000,"status":"too long"} | SQLSTATE 22001: value too long for type character varying(5)`,
		`{"ts":1800000000,"status":"veto"} | SQLSTATE P0001: not this one`,
		`{"ts":1800000000,"temperature":100} | SQLSTATE 23514: new row for relation "telemetry" violates check constraint "plausible", constraint plausible`,
		`{"ts":1800000000,"temperature":1e300} | SQLSTATE 23514: new row for relation "telemetry" violates check constraint "plausible", constraint plausible`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("dead letters %s\nwant %s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if s := l.writer.Status(); s.LastError != "" {
		t.Errorf("isolation counted as a retry: %q", s.LastError)
	}
}

// TestPoisonOfOneRouteLeavesTheOther: a message of two routes is dead-lettered for one alone.
func TestPoisonOfOneRouteLeavesTheOther(t *testing.T) {
	t.Parallel()
	_, pool := newDatabase(t)
	l := newLine(t, pool, impatient(t), nil, telemetry, mapping.RouteConfig{Name: "everything", Topic: "#", Format: "raw", Partition: "none"})
	if err := l.tables.Ensure(t.Context()); err != nil {
		t.Fatal(err)
	}
	execute(t, pool, `alter table telemetry add check (temperature < 100)`)
	l.send("devices/a/telemetry", reading(1, 100))
	l.send("devices/a/telemetry", reading(2, 1))
	l.flush()
	l.want("telemetry", 2, 1, 0, 0)
	l.want("everything", 2, 2, 0, 0)
}

// TestEachIsAtomic: one bad row takes all rows of its message with it, and no other message.
func TestEachIsAtomic(t *testing.T) {
	t.Parallel()
	_, pool := newDatabase(t)
	l := newLine(t, pool, impatient(t), nil, each)
	if err := l.tables.Ensure(t.Context()); err != nil {
		t.Fatal(err)
	}
	execute(t, pool, `alter table points add constraint small check (v < 10)`)
	l.send("points/a", `{"p":[{"t":1800000000,"v":1},{"t":1800000001,"v":2}]}`)
	l.send("points/b", `{"p":[{"t":1800000000,"v":1},{"t":1800000001,"v":20}]}`)
	l.send("points/c", `{"p":[{"t":1800000000,"v":3}]}`)
	l.send("points/a", `{"p":[{"t":1800000000,"v":1},{"t":1800000001,"v":2}]}`)
	l.flush()
	l.want("points", 4, 2, 1, 0)
	if got, want := list[string](t, pool, `select device_id || v from points order by 1`), []string{"a1", "a2", "c3"}; !slices.Equal(got, want) {
		t.Errorf("rows %q, want %q", got, want)
	}
	if n := value[int](t, pool, `select count(*)::int from bridge.dead_letters where topic = 'points/b'`); n != 1 {
		t.Errorf("%d dead letters, want 1", n)
	}
}

// TestDeferredConstraint speaks up at the commit, when no statement is to blame.
func TestDeferredConstraint(t *testing.T) {
	t.Parallel()
	_, pool := newDatabase(t)
	l := newLine(t, pool, impatient(t), nil, telemetry)
	if err := l.tables.Ensure(t.Context()); err != nil {
		t.Fatal(err)
	}
	execute(t, pool, `create table states (name text primary key); insert into states values ('ok');
		alter table telemetry add constraint known foreign key (status) references states deferrable initially deferred`)
	l.send("devices/a/telemetry", reading(1, 1))
	l.send("devices/a/telemetry", `{"ts":1800000000,"status":"odd"}`)
	l.flush()
	l.want("telemetry", 2, 1, 0, 0)
	detail := value[string](t, pool, `select detail from bridge.dead_letters`)
	if !strings.HasPrefix(detail, "SQLSTATE 23503") || !strings.HasSuffix(detail, "constraint known") {
		t.Errorf("detail %q", detail)
	}
}

// TestProgramLimits: a key that fits no index page (54000).
func TestProgramLimits(t *testing.T) {
	t.Parallel()
	_, pool := newDatabase(t)
	route := &mapping.Route{Name: "crafted", Number: 1, Table: mapping.Table{Name: "crafted", KeyColumns: []string{"device_id", "time", "message_id"}, Partition: mapping.PartitionNone, Columns: []mapping.Column{
		{Name: "device_id", Type: "text", OID: 25, NotNull: true},
		{Name: "time", Type: "timestamptz", OID: 1184, NotNull: true},
		{Name: "message_id", Type: "uuid", OID: 2950, NotNull: true},
	}}}
	l := newLine(t, pool, impatient(t), nil, telemetry)
	l.counters = NewCounters([]*mapping.Route{l.routes.All()[0], route})
	l.renew(impatient(t), nil)
	for i, device := range []string{"good", incompressible(65_536), "better"} {
		row := mapping.Row{DeviceID: device, Time: int64(i), MessageID: [16]byte{byte(i)}}
		row.Fields = appendField(row.Fields, []byte(device))
		row.Fields = appendField(row.Fields, []byte{0, 0, 0, 0, 0, 0, 0, byte(i)})
		row.Fields = appendField(row.Fields, row.MessageID[:])
		m := &mapping.Message{Topic: "t", Payload: []byte(device), Seed: uint64(i)}
		l.writer.Enqueue(Entry{Message: m, Outcomes: []mapping.Outcome{{Route: route, Rows: []mapping.Row{row}}}, PacketID: uint16(i)})
	}
	l.flush()
	l.want("crafted", 3, 2, 0, 0)
	detail := value[string](t, pool, `select detail from bridge.dead_letters where length(payload) = 65536`)
	if !strings.HasPrefix(detail, "SQLSTATE 54000") {
		t.Errorf("detail %q", detail)
	}
}

func appendField(fields, v []byte) []byte {
	fields = append(fields, byte(len(v)>>24), byte(len(v)>>16), byte(len(v)>>8), byte(len(v)))
	return append(fields, v...)
}

// incompressible text: the index would hold a compressed one.
func incompressible(n int) string {
	var b strings.Builder
	for x := uint64(88172645463325252); b.Len() < n; {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		fmt.Fprintf(&b, "%016x", x)
	}
	return b.String()[:n]
}

func TestDatabaseDetail(t *testing.T) {
	t.Parallel()
	long := &pgconn.PgError{Code: "22000", Message: strings.Repeat("ü", 400) + "\x00\xff"}
	detail := databaseDetail(fmt.Errorf("insert: %w", long))
	if len(detail) > mapping.MaxDetail || !utf8.ValidString(detail) || !strings.HasSuffix(detail, "…") {
		t.Errorf("detail of %d bytes %q", len(detail), detail)
	}
	full := &pgconn.PgError{Code: "23502", Message: "null value", ColumnName: "v", ConstraintName: "c", Detail: "Failing row contains (secret)."}
	if got, want := databaseDetail(full), "SQLSTATE 23502: null value, column v, constraint c"; got != want {
		t.Errorf("detail %q, want %q", got, want)
	}
	if got := databaseDetail(fmt.Errorf("plain\x00")); got != "plain\uFFFD" {
		t.Errorf("detail %q", got)
	}
}

// TestRowTooLargeForAStatement: it can never be sent, so it must not hold up the line.
func TestRowTooLargeForAStatement(t *testing.T) {
	t.Parallel()
	_, pool := newDatabase(t)
	l := newLine(t, pool, impatient(t), nil, telemetry)
	route := l.routes.ByName("telemetry")
	huge := []mapping.Row{{Fields: make([]byte, maxRow+1)}}
	m := &mapping.Message{Topic: "devices/a/telemetry", Payload: []byte("much"), Seed: 1}
	l.writer.Enqueue(Entry{Message: m, Outcomes: []mapping.Outcome{{Route: route, Rows: huge}}, PacketID: 1})
	l.send("devices/a/telemetry", reading(1, 1))
	l.flush()
	l.want("telemetry", 2, 1, 0, 0)
	wantLetters(t, pool, "devices/a/telemetry 0 f database the row has 768 MiB, a statement carries at most 768 MiB")
}

// TestServerGivesUpOverARow: no memory for one row, whenever it is tried.
func TestServerGivesUpOverARow(t *testing.T) {
	t.Parallel()
	for _, code := range []string{"53200", "XX000"} {
		t.Run(code, func(t *testing.T) {
			t.Parallel()
			_, pool := newDatabase(t)
			l := newLine(t, pool, impatient(t), nil, telemetry, healthy)
			if err := l.tables.Ensure(t.Context()); err != nil {
				t.Fatal(err)
			}
			execute(t, pool, `create function exhaust() returns trigger language plpgsql as $$ begin
					if new.device_id = 'huge' then raise 'out of memory' using errcode = '`+code+`'; end if; return new; end $$;
				create trigger exhaust before insert on telemetry for each row execute function exhaust()`)
			for i := range 5 {
				l.send("devices/a/telemetry", reading(i, 1))
			}
			l.send("devices/huge/telemetry", reading(1, 1))
			l.send("healthy/a", `{"ts":1}`)
			l.flush()
			l.want("telemetry", 6, 5, 0, 0)
			l.want("healthy", 1, 1, 0, 0)
			wantLetters(t, pool, "devices/huge/telemetry 0 f database SQLSTATE "+code)
			if n := retries(l) + testutil.ToFloat64(l.metrics.retries.WithLabelValues("53")); n != stubbornAttempts {
				t.Errorf("%g attempts were lost, want %d: it may have been for the moment", n, stubbornAttempts)
			}
		})
	}
}

// TestLetterThatNoServerBears: a payload that cannot be kept whole does not hold up the line for ever, and
// what is left of it is not taken for a reading.
func TestLetterThatNoServerBears(t *testing.T) {
	t.Parallel()
	for _, reason := range []string{"parked", "refused"} {
		t.Run(reason, func(t *testing.T) {
			t.Parallel()
			_, pool := newDatabase(t)
			raw := mapping.RouteConfig{Name: "raw", Topic: "raw/{device_id}", Format: "raw", Partition: "none"}
			l := newLine(t, pool, impatient(t), nil, raw)
			if err := l.tables.Ensure(t.Context()); err != nil {
				t.Fatal(err)
			}
			execute(t, pool, `create function exhaust() returns trigger language plpgsql as $$ begin
					if octet_length(new.payload) > 1048576 then raise 'out of memory' using errcode = '53200'; end if; return new; end $$;
				create trigger exhaust before insert on bridge.dead_letters for each row execute function exhaust()`)
			spoil, mend := `alter table raw rename to elsewhere; create sequence raw`, `drop sequence raw; alter table elsewhere rename to raw`
			if reason == "refused" {
				spoil, mend = `alter table raw add constraint never check (false)`, `alter table raw drop constraint never`
			}
			execute(t, pool, spoil)
			l.send("raw/a", strings.Repeat("x", keptPayload+1))
			l.send("raw/b", "y")
			l.flush()
			got := letters(t, pool)
			if len(got) != 2 || !strings.HasPrefix(got[0], "raw/a 0 f too_large the server did not take the payload, of its 1048577 bytes 1048576 are kept; ") {
				t.Fatalf("letters %q", got)
			}
			if n := value[int](t, pool, `select octet_length(payload) from bridge.dead_letters where topic = 'raw/a'`); n != keptPayload {
				t.Errorf("%d bytes kept, want %d", n, keptPayload)
			}
			execute(t, pool, mend)
			l.maintain()
			if reason == "parked" {
				eventually(t, "the other one is replayed", func() bool { return value[int](t, pool, `select count(*)::int from raw`) == 1 })
			}
			replayAll(t, pool, LetterFilter{}, raw)
			if rows := list[string](t, pool, `select topic from raw`); len(rows) != 1 || rows[0] != "raw/b" {
				t.Errorf("rows of %q, want raw/b alone", rows)
			}
		})
	}
}
