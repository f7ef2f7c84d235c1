package store

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mqttpg/bridge/mapping"
)

func TestSpans(t *testing.T) {
	t.Parallel()
	day := func(s string) time.Time {
		at, err := time.Parse(time.DateOnly, s)
		if err != nil {
			t.Fatal(err)
		}
		return at
	}
	before, after := time.Date(2026, 12, 31, 23, 59, 59, 999, time.UTC), time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)
	zone := time.FixedZone("", 10*3600)
	tests := []struct {
		width    mapping.Partition
		now      time.Time
		n        int
		from, to string
		suffix   string
	}{
		{mapping.PartitionDay, before, 0, "2026-12-31", "2027-01-01", "_p20261231"},
		{mapping.PartitionDay, after, 0, "2027-01-01", "2027-01-02", "_p20270101"},
		{mapping.PartitionDay, after, -1, "2026-12-31", "2027-01-01", "_p20261231"},
		{mapping.PartitionDay, time.Date(2027, 1, 1, 9, 0, 0, 0, zone), 0, "2026-12-31", "2027-01-01", "_p20261231"},
		{mapping.PartitionWeek, before, 0, "2026-12-28", "2027-01-04", "_p2026w53"},
		{mapping.PartitionWeek, after, 1, "2027-01-04", "2027-01-11", "_p2027w01"},
		{mapping.PartitionWeek, day("2026-11-22"), 0, "2026-11-16", "2026-11-23", "_p2026w47"}, // a Sunday
		{mapping.PartitionWeek, day("2026-11-23"), 0, "2026-11-23", "2026-11-30", "_p2026w48"}, // a Monday
		{mapping.PartitionMonth, before, 1, "2027-01-01", "2027-02-01", "_p202701"},
		{mapping.PartitionMonth, day("2026-03-31"), -1, "2026-02-01", "2026-03-01", "_p202602"},
	}
	for _, test := range tests {
		s := spanAt(test.width, test.now, test.n)
		if !s.from.Equal(day(test.from)) || !s.to.Equal(day(test.to)) || s.suffix(test.width) != test.suffix {
			t.Errorf("%s %v %+d: %v to %v %s, want %s to %s %s", test.width, test.now, test.n, s.from, s.to, s.suffix(test.width), test.from, test.to, test.suffix)
		}
		if !ourSuffix.MatchString(test.suffix) {
			t.Errorf("%s is not recognised as ours", test.suffix)
		}
	}
}

// partitionNames lists the partitions of a table with the number of their rows.
func partitionNames(t *testing.T, tables *Tables, table string) []string {
	t.Helper()
	return list[string](t, tables.pool, `select inhrelid::regclass::text from pg_inherits where inhparent = $1::text::regclass order by 1`, table)
}

func TestDefaultRowsAreMoved(t *testing.T) {
	t.Parallel()
	for _, width := range []string{"day", "week", "month"} {
		t.Run(width, func(t *testing.T) {
			t.Parallel()
			config := telemetry
			config.Partition = width
			tables, execute := tablesOf(t, config)
			ensure(t, tables)
			all := partitionNames(t, tables, "telemetry")
			if len(all) != 6 {
				t.Fatalf("partitions %q, want six", all)
			}
			// Without the present one its rows go to the default partition, as they would after a
			// long standstill; with a generated column they cannot simply be copied.
			execute(`alter table telemetry add column double float8 generated always as (temperature * 2) stored`)
			execute(`do $$ declare p regclass; begin
				for p in select inhrelid::regclass from pg_inherits where inhparent = 'telemetry'::regclass and inhrelid::regclass::text <> 'telemetry_default'
				loop execute 'drop table ' || p; end loop; end $$`)
			execute(`insert into telemetry (device_id, "time", message_id, received_at, topic, temperature)
				select 'a', date_trunc('second', now()) + i * interval '1 second', gen_random_uuid(), now(), 't', 21 from generate_series(1, 10) i`)
			execute(`insert into telemetry (device_id, "time", message_id, received_at, topic) values ('old', '1999-01-01', gen_random_uuid(), now(), 't')`)
			ensureAgain := NewTables(tables.pool, impatient(t), compile(t, config))
			ensure(t, ensureAgain)
			if w := ensureAgain.Warnings(); len(w) != 0 {
				t.Errorf("warnings %q", w)
			}
			if got := partitionNames(t, tables, "telemetry"); !slices.Equal(got, all) {
				t.Errorf("partitions %q, want %q", got, all)
			}
			if n := value[int](t, tables.pool, `select count(*)::int from telemetry_default`); n != 1 {
				t.Errorf("%d rows in the default partition, want the old one alone", n)
			}
			if n := value[int](t, tables.pool, `select count(*)::int from telemetry where double = 42`); n != 10 {
				t.Errorf("%d rows moved, want 10", n)
			}
		})
	}
}

// TestOtherPartitionsAreLeftAlone: days that a former configuration made, and partitions of people.
func TestOtherPartitionsAreLeftAlone(t *testing.T) {
	t.Parallel()
	config := telemetry
	config.Partition = "day"
	tables, execute := tablesOf(t, config)
	ensure(t, tables)
	execute(`create table telemetry_y1990 partition of telemetry for values from ('1990-01-01 00:00+00') to ('1991-01-01 00:00+00')`)
	execute(`create table telemetry_p19910101 partition of telemetry for values from ('1991-01-01 00:00+00') to ('1991-01-02 00:00+00')`)
	before := partitionNames(t, tables, "telemetry")
	config.Partition, config.Retention = "month", "30d"
	changed := NewTables(tables.pool, impatient(t), compile(t, config))
	if err := changed.maintain(context.Background()); err != nil {
		t.Fatal(err)
	}
	after := partitionNames(t, tables, "telemetry")
	for _, name := range before {
		if slices.Contains(after, name) != (name != "telemetry_p19910101") {
			t.Errorf("partitions %q before, %q after: only telemetry_p19910101 was to go", before, after)
		}
	}
}

func TestRetention(t *testing.T) {
	t.Parallel()
	config, plain := telemetry, healthy
	config.Partition, config.Retention = "day", "10d"
	keeper := mapping.RouteConfig{Name: "keeper", Topic: "keeper", Table: "kept", Format: "raw", Partition: "none"}
	forgetter := mapping.RouteConfig{Name: "forgetter", Topic: "forgetter", Table: "kept", Format: "raw", Partition: "none"}
	tables, execute := tablesOf(t, config, plain, keeper, forgetter)
	// The configuration asks for partitions with retention; tables made by people may have none.
	tables.routes.All()[1].Table.Retention = 240 * time.Hour
	tables.routes.All()[3].Table.Retention = 24 * time.Hour
	ensure(t, tables)
	execute(`do $$ declare d date; begin
		for d in select current_date - i from generate_series(5, 15) i loop
			execute format('create table telemetry_p%s partition of telemetry for values from (%L) to (%L)', to_char(d, 'YYYYMMDD'), d::text || ' 00:00+00', (d + 1)::text || ' 00:00+00');
		end loop; end $$`)
	execute(`create table telemetry_p20010101 (like telemetry)`) // ours by its name, but not attached
	for _, table := range []string{"telemetry", "healthy", "kept"} {
		execute(`insert into ` + table + ` (device_id, "time", message_id, received_at, topic)
			select 'a', now() - i * interval '1 day', gen_random_uuid(), now(), 't' from generate_series(0, 100) i`)
	}
	for range 2 {
		if err := tables.maintain(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	if n := value[int](t, tables.pool, `select count(*)::int from telemetry where "time" < now() - interval '11 days'`); n != 0 {
		t.Errorf("%d rows are older than retention and one partition", n)
	}
	for table, want := range map[string]int{"telemetry where \"time\" > now() - interval '10 days'": 10, "healthy": 10, "kept": 101, "telemetry_p20010101": 0} {
		if n := value[int](t, tables.pool, `select count(*)::int from `+table); n != want {
			t.Errorf("%d rows in %s, want %d", n, table, want)
		}
	}
}

// TestRetentionOfATableWithTwoNames: what one route lets go another one keeps, if they name the table alike or not.
func TestRetentionOfATableWithTwoNames(t *testing.T) {
	t.Parallel()
	keeper, forgetter := telemetry, telemetry
	keeper.Name, keeper.Topic, keeper.Table, keeper.Partition = "keeper", "keeper/{device_id}", "telemetry", "day"
	forgetter.Name, forgetter.Topic, forgetter.Table, forgetter.Partition, forgetter.Retention = "forgetter", "forgetter/{device_id}", "public.telemetry", "day", "36h"
	for name, configs := range map[string][]mapping.RouteConfig{"the keeper first": {keeper, forgetter}, "the keeper last": {forgetter, keeper}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tables, execute := tablesOf(t, configs...)
			ensure(t, tables)
			execute(`insert into telemetry (device_id, "time", message_id, received_at, topic)
				select 'a', now() - i * interval '1 day', gen_random_uuid(), now(), 't' from generate_series(0, 99) i`)
			if err := tables.maintain(context.Background()); err != nil {
				t.Fatal(err)
			}
			if n := value[int](t, tables.pool, `select count(*)::int from telemetry`); n != 100 {
				t.Errorf("%d rows of 100 are left, though a route keeps them for ever", n)
			}
			warnings := tables.Warnings()
			if len(warnings) != 1 || len(warnings[configs[1].Name]) != 1 || !strings.Contains(warnings[configs[1].Name][0], "is the same table as TABLE") {
				t.Errorf("warnings %q", warnings)
			}
		})
	}
	// With the same retention it goes on.
	keeper.Retention = "36h"
	tables, execute := tablesOf(t, keeper, forgetter)
	ensure(t, tables)
	execute(`insert into telemetry (device_id, "time", message_id, received_at, topic)
		select 'a', now() - i * interval '1 day', gen_random_uuid(), now(), 't' from generate_series(0, 99) i`)
	if err := tables.maintain(context.Background()); err != nil {
		t.Fatal(err)
	}
	if n := value[int](t, tables.pool, `select count(*)::int from telemetry where "time" < now() - interval '36 hours'`); n > 1 {
		t.Errorf("%d rows are older than both retain", n)
	}
}

// TestRetentionKeepsWhatIsYoung in tables of people that are not partitioned by time: what stands behind them has rows
// of the same ctid.
func TestRetentionKeepsWhatIsYoung(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ name, table, part string }{
		{"partitions by list", `create table telemetry (like shape) partition by list (device_id)`, `create table telemetry_%[1]s partition of telemetry for values in ('%[1]s')`},
		{"heirs", `create table telemetry (like shape)`, `create table telemetry_%[1]s () inherits (telemetry)`},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			config := telemetry
			config.Partition = "none"
			tables, execute := tablesOf(t, config)
			tables.routes.All()[0].Table.Retention = 240 * time.Hour
			ensure(t, tables)
			execute(`alter table telemetry rename to shape`)
			execute(test.table)
			for device, age := range map[string]string{"old": "20 days", "young": "1 day"} {
				execute(fmt.Sprintf(test.part, device))
				execute(`insert into telemetry_`+device+` (device_id, "time", message_id, received_at, topic)
					select $1, now() - $2::text::interval, gen_random_uuid(), now(), 't' from generate_series(1, 50)`, device, age)
			}
			if err := tables.maintain(context.Background()); err != nil {
				t.Fatal(err)
			}
			if got := list[string](t, tables.pool, `select device_id || ' ' || count(*) from telemetry group by device_id`); !slices.Equal(got, []string{"young 50"}) {
				t.Errorf("left are %q, want the 50 that are young", got)
			}
		})
	}
}

// TestPartitionsInEveryDateStyle: what the catalog says of bounds is read in one.
func TestPartitionsInEveryDateStyle(t *testing.T) {
	t.Parallel()
	config := telemetry
	config.Partition, config.Retention = "day", "10d"
	tables, execute := tablesOf(t, config)
	execute(`do $$ begin execute format('alter database %I set datestyle = ''German, DMY''', current_database()); end $$`)
	tables.pool.Reset()
	ensure(t, tables)
	execute(`create table telemetry_p20010101 partition of telemetry for values from ('2001-01-01 00:00+00') to ('2001-01-02 00:00+00')`)
	for range 2 {
		if err := tables.maintain(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	if got := partitionNames(t, tables, "telemetry"); len(got) != 6 || slices.Contains(got, "telemetry_p20010101") {
		t.Errorf("partitions %q, want those around now and the default", got)
	}
}

// TestMaintenanceRenewsPlans: the line need not look at a table again because it was maintained, and writes as the table
// is now.
func TestMaintenanceRenewsPlans(t *testing.T) {
	t.Parallel()
	tables, execute := tablesOf(t, telemetry)
	ensure(t, tables)
	route := tables.routes.All()[0]
	execute(`create function pass() returns trigger language plpgsql as 'begin return new; end'`)
	execute(`create trigger pass before insert on telemetry for each row execute function pass()`)
	if err := tables.maintain(context.Background()); err != nil {
		t.Fatal(err)
	}
	if p, _, _ := tables.known(route); p == nil || !p.drops {
		t.Errorf("plan %+v, want one that knows of the trigger", p)
	}
	execute(`alter table telemetry drop column status`)
	if err := tables.maintain(context.Background()); err != nil {
		t.Fatal(err)
	}
	if p, _, _ := tables.known(route); p != nil {
		t.Errorf("the table lacks a column, and is not looked at again")
	}
}

func TestMaintainEndsWithItsContext(t *testing.T) {
	t.Parallel()
	config := telemetry
	config.Partition = "day"
	tables, _ := tablesOf(t, config)
	ensure(t, tables)
	dropped := spanAt(mapping.PartitionDay, time.Now(), 2).suffix(mapping.PartitionDay)
	execute(t, tables.pool, `drop table telemetry`+dropped)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { tables.Maintain(ctx); close(ended) }()
	eventually(t, "the missing partition is made", func() bool {
		return slices.ContainsFunc(partitionNames(t, tables, "telemetry"), func(name string) bool { return strings.HasSuffix(name, dropped) })
	})
	cancel()
	<-ended
}

// TestPartitionsWithoutPrivilege: the default partition serves meanwhile, and the operator is told.
func TestPartitionsWithoutPrivilege(t *testing.T) {
	t.Parallel()
	url, pool := newDatabase(t)
	config := telemetry
	config.Partition = "day"
	execute(t, pool, strings.Join(DDL(&compile(t, config).All()[0].Table), ";")+`; revoke create on schema public from public`)
	role, restricted := newRole(t, url, pool)
	execute(t, pool, `grant usage on schema bridge to `+role+`; grant insert, select on all tables in schema bridge, public to `+role)
	l := newLine(t, restricted, impatient(t), nil, config)
	ensure(t, l.tables)
	if w := l.tables.Warnings()["telemetry"]; len(w) != 1 || !strings.Contains(w[0], "partitions are not made") {
		t.Errorf("warnings %q", w)
	}
	l.send("devices/a/telemetry", reading(1, 1))
	l.flush()
	l.want("telemetry", 1, 1, 0, 0)
}

// TestRetentionWithoutPrivilege: the operator is told as soon as something is too old, and that all is well again.
func TestRetentionWithoutPrivilege(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ partition, on string }{
		{"none", "all tables in schema public"},
		{"day", "all tables in schema public"},
		{"day", "telemetry"}, // and not on its partitions
	} {
		partition := test.partition
		t.Run(partition+" "+test.on, func(t *testing.T) {
			t.Parallel()
			url, pool := newDatabase(t)
			config := telemetry
			config.Partition = partition
			ensure(t, NewTables(pool, impatient(t), compile(t, config)))
			role, restricted := newRole(t, url, pool)
			execute(t, pool, `grant usage on schema bridge to `+role+`; grant insert, select on all tables in schema bridge to `+role+`; grant insert, select on `+test.on+` to `+role)
			tables := NewTables(restricted, impatient(t), compile(t, config))
			tables.routes.All()[0].Table.Retention = 240 * time.Hour
			ensure(t, tables)
			warning := func() bool {
				return slices.ContainsFunc(tables.Warnings()["telemetry"], func(w string) bool {
					return strings.Contains(w, "rows older than RETENTION are not removed") && strings.Contains(w, "permission denied")
				})
			}
			maintain := func(want bool) {
				t.Helper()
				if err := tables.maintain(context.Background()); (err != nil) != want {
					t.Errorf("error %v", err)
				}
				if warning() != want {
					t.Errorf("warnings %q", tables.Warnings())
				}
			}
			maintain(false)
			execute(t, pool, `insert into telemetry (device_id, "time", message_id, received_at, topic) values ('a', now() - interval '11 days', gen_random_uuid(), now(), 't')`)
			maintain(true)
			execute(t, pool, `alter table telemetry rename to hidden`) // the table is gone, and the warning with it
			maintain(false)
			execute(t, pool, `alter table hidden rename to telemetry`)
			maintain(true)
			execute(t, pool, `grant delete on `+test.on+` to `+role)
			maintain(false)
			if n := value[int](t, pool, `select count(*)::int from telemetry`); n != 0 {
				t.Errorf("%d rows left", n)
			}
		})
	}
}
