package store

import (
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/mqttpg/bridge/mapping"
)

// noteWays has the database note with which command rows were written, one entry per statement that was
// committed.
const noteWays = `create table ways (n serial, way text);
	create function note_way() returns trigger language plpgsql security definer as $$ begin
		insert into ways (way) values (lower(split_part(ltrim(current_query()), ' ', 1))); return null; end $$;
	create trigger note_way after insert on telemetry for each statement execute function note_way()`

func newCopyLine(t *testing.T, route mapping.RouteConfig, prepare string) *line {
	t.Helper()
	_, pool := newDatabase(t)
	l := newLine(t, pool, impatient(t), nil, route)
	if err := l.tables.Ensure(context.Background()); err != nil {
		t.Fatal(err)
	}
	execute(t, pool, noteWays)
	if prepare != "" {
		execute(t, pool, prepare)
		l.tables = NewTables(pool, impatient(t), l.routes)
	}
	l.renew(impatient(t), nil)
	return l
}

func (l *line) wantWays(want ...string) {
	l.t.Helper()
	if got := list[string](l.t, l.pool, `select way from ways order by n`); !slices.Equal(got, want) {
		l.t.Errorf("written by %q, want %q", got, want)
	}
}

// commitBatches has each list of payloads committed as a batch of one and the same writer.
func (l *line) commitBatches(batches ...[]string) {
	l.t.Helper()
	for _, batch := range batches {
		insertions := l.writer.insertions
		l.renew(impatient(l.t), nil)
		l.writer.insertions = insertions // what the writer has learnt
		for _, payload := range batch {
			l.send("devices/a/telemetry", payload)
		}
		l.flush()
	}
}

// TestCopyFirst: rows go by COPY. A batch with a key that is there is inserted, and so are those behind it
// until enough of them met no duplicate.
func TestCopyFirst(t *testing.T) {
	t.Parallel()
	l := newCopyLine(t, telemetry, "")
	n := func(seconds ...int) (batch []string) {
		for _, s := range seconds {
			batch = append(batch, reading(s, 1))
		}
		return batch
	}
	l.commitBatches(
		n(1, 2), // copy
		n(3),    // copy
		n(2, 4), // a duplicate: insert
		n(5),    // insert, the first without
		n(6, 7), // copy
		n(8, 8), // twice the same: insert at once
		n(9),    // copy
	)
	l.wantWays("copy", "copy", "insert", "insert", "copy", "insert", "copy")
	l.want("telemetry", 11, 9, 2, 0)
	l.wantInOrder(11)
}

// TestCountsOfTheSecondTry: what another route's refused COPY has rolled back does not count, when the table takes none of
// it the second time.
func TestCountsOfTheSecondTry(t *testing.T) {
	t.Parallel()
	_, pool := newDatabase(t)
	l := newLine(t, pool, impatient(t), nil,
		mapping.RouteConfig{Name: "points", Topic: "points/{device_id}", Each: "$.p", Time: "@.t", Columns: "v:int4=@.v", Partition: "none"}, telemetry)
	if err := l.tables.Ensure(context.Background()); err != nil {
		t.Fatal(err)
	}
	// Two rows and no more: it stands for another replica that commits them between the two tries.
	execute(t, pool, `create sequence tries;
		create function twice() returns trigger language plpgsql as $$ begin if nextval('tries') > 2 then return null; end if; return new; end $$;
		create trigger twice before insert on points for each row execute function twice()`)
	l.tables = NewTables(pool, impatient(t), l.routes)
	l.commitBatches([]string{reading(1, 1)})
	l.renew(impatient(t), nil)
	l.send("points/a", `{"p":[{"t":1,"v":1},{"t":2,"v":2}]}`)
	l.send("devices/a/telemetry", reading(1, 1))
	l.flush()
	if n := value[int](t, pool, `select count(*)::int from points`); n != 0 {
		t.Fatalf("%d rows in the table", n)
	}
	if c := l.counts("points"); c.Written != 0 || c.Rows != 0 {
		t.Errorf("counted %+v of a table that is empty", c)
	}
}

// TestManyRefusedCopies: many routes meet the same messages a second time. The batch is not sent again for
// each of them.
func TestManyRefusedCopies(t *testing.T) {
	t.Parallel()
	_, pool := newDatabase(t)
	var routes []mapping.RouteConfig
	for i := range 20 {
		route := telemetry
		route.Name = fmt.Sprintf("r%02d", i)
		routes = append(routes, route)
	}
	l := newLine(t, pool, impatient(t), nil, routes...)
	if err := l.tables.Ensure(context.Background()); err != nil {
		t.Fatal(err)
	}
	execute(t, pool, `create sequence tries;
		create function try() returns trigger language plpgsql as $$ begin perform nextval('tries'); return null; end $$;
		create trigger try before insert on r00 for each statement execute function try()`)
	l.commitBatches([]string{reading(1, 1)}, []string{reading(1, 1), reading(2, 1)})
	if n := value[int64](t, pool, `select last_value from tries`); n > 4 {
		t.Errorf("%d attempts at two batches", n)
	}
	for _, route := range routes {
		l.want(route.Name, 3, 2, 1, 0)
	}
}

// TestCopyIsNotForAllTables: a table for which COPY is not the same as an insert has its rows inserted.
func TestCopyIsNotForAllTables(t *testing.T) {
	t.Parallel()
	partitioned := telemetry
	partitioned.Partition = "day"
	tests := []struct {
		name    string
		route   mapping.RouteConfig
		prepare string
		way     string
		check   string // a query that is to be true then
	}{
		{"partitioned", partitioned, ``, "copy", `select count(*) = 3 from telemetry`},
		{
			"rule", telemetry, `alter table telemetry drop constraint telemetry_pkey; create table log (d text); create rule also as on insert to telemetry do also insert into log values (new.device_id)`,
			"insert", `select count(*) = 3 from log`,
		},
		{
			"generated column", telemetry, `alter table telemetry add twice float8 generated always as (2 * temperature) stored`,
			"copy", `select sum(twice) = 2 * sum(temperature) from telemetry`,
		},
		{
			"column with a default, an identity and a trigger", telemetry,
			`alter table telemetry add d int default 7, add i bigint generated always as identity, add w text not null;
			 create function fill() returns trigger language plpgsql as $$ begin new.w := 'x'; return new; end $$;
			 create trigger fill before insert on telemetry for each row execute function fill()`,
			"copy", `select count(distinct i) = 3 and min(d) = 7 and min(w) = 'x' from telemetry`,
		},
		{"no unique index", telemetry, `alter table telemetry drop constraint telemetry_pkey`, "copy", `select count(*) = 3 from telemetry`},
		{
			"foreign partition", partitioned,
			`create foreign data wrapper none; create server none foreign data wrapper none;
			 alter table telemetry drop constraint telemetry_pkey; -- a foreign table has no indexes
			 create foreign table elsewhere partition of telemetry for values from ('1999-01-01') to ('1999-01-02') server none`,
			"insert", `select count(*) = 3 from telemetry where "time" > '2000-01-01'`,
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			l := newCopyLine(t, test.route, test.prepare)
			for i := range 3 {
				l.send("devices/a/telemetry", reading(i, float64(i)))
			}
			l.flush()
			l.want("telemetry", 3, 3, 0, 0)
			l.wantWays(test.way)
			if !value[bool](t, l.pool, test.check) {
				t.Errorf("%s: not so", test.check)
			}
		})
	}
}

// TestCopyOfIdentity: a column that the database numbers itself is not overwritten by COPY; the route fails
// as it does with an insert.
func TestCopyOfIdentity(t *testing.T) {
	t.Parallel()
	route := telemetry
	route.Columns = "n:int8=$.temperature"
	l := newCopyLine(t, route, `alter table telemetry alter n set not null; alter table telemetry alter n add generated always as identity`)
	l.send("devices/a/telemetry", reading(1, 1))
	l.flush()
	if n := l.counts("telemetry").DeadLettered[ReasonTableUnusable]; n != 1 {
		t.Errorf("%d parked, want 1", n)
	}
}

// TestRowSecurity: COPY is refused where row level security holds, in the catalog and in life.
func TestRowSecurity(t *testing.T) {
	t.Parallel()
	for _, late := range []bool{false, true} {
		t.Run(fmt.Sprintf("late %t", late), func(t *testing.T) {
			t.Parallel()
			url, owner := newDatabase(t)
			l := newLine(t, owner, impatient(t), nil, telemetry)
			if err := l.tables.Ensure(context.Background()); err != nil {
				t.Fatal(err)
			}
			role, pool := newRole(t, url, owner)
			execute(t, owner, noteWays+`; grant usage on schema bridge to `+role+`; grant select, insert, update, delete on all tables in schema bridge, public to `+role)
			protect := func() {
				execute(t, owner, `create policy good on telemetry with check (device_id <> 'bad'); create policy seen on telemetry for select using (true);
					alter table telemetry enable row level security`)
			}
			if !late {
				protect()
			}
			l = newLine(t, pool, impatient(t), nil, telemetry)
			if late {
				l.send("devices/a/telemetry", reading(0, 1))
				l.flush()
				l.renew(impatient(t), nil)
				protect()
			}
			for i := range 2 {
				l.send("devices/a/telemetry", reading(1+i, 1))
			}
			l.flush()
			want := []string{"insert"}
			if late {
				want = []string{"copy", "insert"}
			}
			l.pool = owner
			l.wantWays(want...)
			l.pool = pool
			l.renew(impatient(t), nil)
			l.send("devices/bad/telemetry", reading(4, 1))
			l.send("devices/a/telemetry", reading(5, 1))
			l.flush()
			if c := l.counts("telemetry"); c.Written != c.Received-1 || len(c.DeadLettered) != 1 {
				t.Errorf("%+v, want one dead letter", c)
			}
		})
	}
}

// TestCopiesDoNotDeadlock: two writers bring the same new keys of several partitions at the same time.
func TestCopiesDoNotDeadlock(t *testing.T) {
	t.Parallel()
	_, pool := newDatabase(t)
	route := telemetry
	route.Partition = "day"
	cfg := impatient(t)
	cfg.lineLock = 10 * time.Second
	first := newLine(t, pool, cfg, nil, route)
	if err := first.tables.Ensure(context.Background()); err != nil {
		t.Fatal(err)
	}
	second := newLine(t, pool, cfg, nil, route)
	const messages = 6000
	today := time.Now().UTC().Truncate(24 * time.Hour)
	for i := range messages {
		// Both in another order, by devices that come in every day.
		for k, l := range []*line{first, second} {
			n := (i*7 + k*i*12) % messages
			at := today.Add(time.Duration(n%3-1)*24*time.Hour + time.Duration(n)*time.Second)
			l.send(fmt.Sprintf("devices/%d/telemetry", n%11), fmt.Sprintf(`{"ts":%d,"temperature":1}`, at.UnixMilli()))
		}
	}
	waits := []func() error{first.run(context.Background()), second.run(context.Background())}
	for i, l := range []*line{first, second} {
		if err := l.drain(); err != nil {
			t.Fatal(err)
		}
		if err := waits[i](); err != nil {
			t.Fatal(err)
		}
	}
	a, b := first.counts("telemetry"), second.counts("telemetry")
	rows := value[int64](t, pool, `select count(*) from telemetry`)
	if a.Written+b.Written != uint64(rows) || a.Written+a.Duplicate != messages || b.Written+b.Duplicate != messages {
		t.Errorf("%d rows of %+v and %+v", rows, a, b)
	}
	if n := value[int64](t, pool, `select deadlocks from pg_stat_database where datname = current_database()`); n != 0 {
		t.Errorf("%d deadlocks", n)
	}
}

// TestOrderOfRows: by day, device, time and id; without the time where it is not in the key.
func TestOrderOfRows(t *testing.T) {
	t.Parallel()
	const day = microsecondsPerDay
	rows := []mapping.Row{
		{DeviceID: "b", Time: 5},
		{DeviceID: "a", Time: day},
		{DeviceID: "a", Time: 7, MessageID: [16]byte{2}},
		{DeviceID: "a", Time: 7, MessageID: [16]byte{1}},
		{DeviceID: "a", Time: -1},
		{DeviceID: "abcdefgh2", Time: 0},
		{DeviceID: "abcdefgh1", Time: 1},
		{DeviceID: "a", Time: 7, MessageID: [16]byte{1}}, // again
	}
	for i := range rows {
		rows[i].Fields = binary.BigEndian.AppendUint32(nil, uint32(i))
	}
	for _, test := range []struct {
		timeless bool
		want     []int32
	}{{false, []int32{4, 3, 7, 2, 6, 5, 0, 1}}, {true, []int32{1, 4, 3, 7, 2, 6, 5, 0}}} {
		var units []unit
		for i := range rows {
			units = append(units, unit{entry: i, rows: rows[i : i+1]})
		}
		var got []int32
		refs := gather(nil, units)
		if twice := (order{timeless: test.timeless}).sort(refs); !twice {
			t.Errorf("timeless %t: the key that stands twice was overlooked", test.timeless)
		}
		for _, ref := range refs {
			got = append(got, ref.unit)
		}
		if !slices.Equal(got, test.want) {
			t.Errorf("timeless %t: %v, want %v", test.timeless, got, test.want)
		}
	}
}

// TestOrderOfAnyRows compares the order with that of a sort by the keys alone, for devices with much and little in
// common.
func TestOrderOfAnyRows(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(1, 2))
	for _, devices := range [][]string{
		{"d"},
		{"", "\x00", "a", "a\x00", "ab"},
		{"device-1", "device-10", "device-2", "device-"},
		{"plant/north/machine-0001", "plant/north/machine-0002", "plant/north/machine-0002-spare", "plant/south/machine-0001"},
		{"abcdefghijklmno1", "abcdefghijklmno2", "b"},
	} {
		for range 200 {
			rows := make([]mapping.Row, random.IntN(40))
			var units []unit
			for i := range rows {
				rows[i] = mapping.Row{
					DeviceID: devices[random.IntN(len(devices))], Time: (random.Int64N(3)-1)*microsecondsPerDay + random.Int64N(4),
					MessageID: [16]byte{byte(random.IntN(3))},
				}
				units = append(units, unit{entry: i, rows: rows[i : i+1]})
			}
			for _, timeless := range []bool{false, true} {
				refs, o := gather(nil, units), order{timeless: timeless}
				want := slices.Clone(refs)
				slices.SortStableFunc(want, func(a, b rowRef) int {
					if a.day != b.day && !timeless {
						return cmp.Compare(a.day, b.day)
					}
					return o.compareKeys(a.row, b.row)
				})
				wantTwice := false
				for i := 1; i < len(want); i++ {
					wantTwice = wantTwice || o.compareKeys(want[i-1].row, want[i].row) == 0
				}
				twice := o.sort(refs)
				if twice != wantTwice {
					t.Fatalf("timeless %t, %v: twice %t, want %t", timeless, rows, twice, wantTwice)
				}
				for i := range want {
					if refs[i].unit != want[i].unit {
						t.Fatalf("timeless %t, %v: unit %d at %d, want %d", timeless, rows, refs[i].unit, i, want[i].unit)
					}
				}
			}
		}
	}
}

// TestOrderTogether: the rows of routes into one table are put in order together when the batch is sorted out.
func TestOrderTogether(t *testing.T) {
	t.Parallel()
	routes := compile(t,
		mapping.RouteConfig{Name: "a", Topic: "a/{device_id}", Table: "one", Time: "$.ts"},
		mapping.RouteConfig{Name: "b", Topic: "b/{device_id}", Table: "one", Time: "$.ts"},
		mapping.RouteConfig{Name: "c", Topic: "c/{device_id}", Table: "other", Time: "$.ts"},
	)
	var entries []Entry
	for i, topic := range []string{"b/2", "c/1", "a/3", "b/1", "a/1", "a/2", "b/3"} {
		m := &mapping.Message{Topic: topic, Payload: fmt.Appendf(nil, `{"ts":%d}`, 1_700_000_000_000+i), QoS: 1, Seed: uint64(i)}
		entries = append(entries, Entry{Message: m, Outcomes: routes.Map(m, nil)})
	}
	var last *batch
	for range 2 { // the second time in the memory of the first
		last = newBatch(slices.Clone(entries), nil, last)
		got := ""
		for i := range last.groups {
			g := &last.groups[i]
			got += fmt.Sprintf("%s of %d:", g.route.Name, g.together)
			for _, ref := range append(g.rows, g.joint...) {
				got += fmt.Sprintf(" %s@%d", ref.row.DeviceID, (ref.row.Time+postgresEpoch)/1000%100)
			}
			got += "; "
		}
		if want := "a of 2: 3@2 1@4 2@5 1@3 1@4 2@0 2@5 3@2 3@6; b of 0: 2@0 1@3 3@6; c of 0: 1@1; "; got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
}
