package store

import (
	"context"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/mqttpg/bridge/mapping"
)

func tablesOf(t *testing.T, configs ...mapping.RouteConfig) (*Tables, func(sql string, args ...any)) {
	t.Helper()
	_, pool := newDatabase(t)
	return NewTables(pool, impatient(t), compile(t, configs...)), func(sql string, args ...any) {
		t.Helper()
		execute(t, pool, sql, args...)
	}
}

func ensure(t *testing.T, tables *Tables) {
	t.Helper()
	if err := tables.Ensure(context.Background()); err != nil {
		t.Fatal(err)
	}
}

func TestEnsureMakesTheTable(t *testing.T) {
	t.Parallel()
	config := telemetry
	config.Table, config.Partition = "iot.readings", "day"
	tables, _ := tablesOf(t, config)
	ensure(t, tables)
	ensure(t, tables) // nothing is left to do
	if f, w := tables.Failing(), tables.Warnings(); len(f) != 0 || len(w) != 0 {
		t.Errorf("failing %v, warnings %v", f, w)
	}
	got := list[string](t, tables.pool, `select column_name || ' ' || udt_name || ' ' || is_nullable from information_schema.columns
		where table_schema = 'iot' and table_name = 'readings' order by ordinal_position`)
	want := []string{
		"device_id text NO", "time timestamptz NO", "message_id uuid NO", "received_at timestamptz NO", "topic text NO",
		"temperature float8 YES", "status text YES", "payload jsonb YES", "payload_bytes bytea YES",
	}
	if !slices.Equal(got, want) {
		t.Errorf("columns %q, want %q", got, want)
	}
	if key := value[string](t, tables.pool, `select pg_get_indexdef('iot.readings_pkey'::regclass)`); !strings.HasSuffix(key, `(device_id, "time", message_id)`) {
		t.Errorf("key %s", key)
	}
	if n := value[int](t, tables.pool, `select count(*)::int from pg_inherits where inhparent = 'iot.readings'::regclass`); n != 6 {
		t.Errorf("%d partitions, want the default one and five days", n)
	}
}

func TestEnsureExtendsAndVerifies(t *testing.T) {
	t.Parallel()
	const own = `create table telemetry (device_id varchar(100), "time" timestamptz, message_id uuid, received_at timestamptz, topic text, payload jsonb`
	tests := []struct {
		name, sql string
		failing   string
		warning   string
		refused   bool
	}{
		{"columns are added", own + `, primary key (device_id, "time", message_id))`, "", "", false},
		{"key in another order", own + `); create unique index on telemetry (message_id, "time", device_id)`, "", "", false},
		{"domain over the type", `create domain heat as float8; ` + own + `, temperature heat, primary key (device_id, "time", message_id))`, "", "", false},
		{"no key", own + `)`, "", "no unique index on exactly (device_id, time, message_id)", false},
		{"wider key", own + `, primary key (device_id, "time", message_id, topic))`, "", "no unique index", true},
		{"partial index", own + `); create unique index on telemetry (device_id, "time", message_id) where topic <> ''`, "", "no unique index", true},
		{"deferrable key", own + `, primary key (device_id, "time", message_id) deferrable)`, "", "no unique index", true},
		{"somebody else's column", own + `, site text not null, primary key (device_id, "time", message_id))`, "", "column site must not be null", false},
		{"another type", own + `, temperature int4)`, "table telemetry: column temperature is integer, the route writes float8", "", false},
		{"no time", `create table telemetry (device_id text)`, "has no column time", "", false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			_, pool := newDatabase(t)
			execute(t, pool, test.sql)
			l := newLine(t, pool, impatient(t), nil, telemetry)
			ensure(t, l.tables)
			if failing := l.tables.Failing()["telemetry"]; (failing == "") != (test.failing == "") || !strings.Contains(failing, test.failing) {
				t.Errorf("failing because %q, want %q", failing, test.failing)
			}
			warnings := strings.Join(l.tables.Warnings()["telemetry"], "\n")
			if (warnings == "") != (test.warning == "") || !strings.Contains(warnings, test.warning) {
				t.Errorf("warnings %q, want %q", warnings, test.warning)
			}
			if test.failing != "" || strings.Contains(test.sql, "site") {
				return
			}
			l.send("devices/a/telemetry", reading(1, 1))
			l.send("devices/a/telemetry", reading(1, 1))
			l.flush()
			rows := value[uint64](t, pool, `select count(*) from telemetry`)
			if test.warning == "" {
				l.want("telemetry", 2, 1, 1, 0)
			} else if test.refused {
				l.want("telemetry", 2, 1, 0, 0) // another unique key than ours refuses: a dead letter, not a duplicate
			} else {
				l.want("telemetry", 2, 2, 0, 0)
			}
			if rows != l.counts("telemetry").Written {
				t.Errorf("%d rows, but written %d", rows, l.counts("telemetry").Written)
			}
		})
	}
}

// TestEachWithoutAKey: every row is inserted, and no key is asked for.
func TestEachWithoutAKey(t *testing.T) {
	t.Parallel()
	_, pool := newDatabase(t)
	l := newLine(t, pool, impatient(t), nil, each)
	ensure(t, l.tables)
	execute(t, pool, `alter table points drop constraint points_pkey`)
	l.tables = NewTables(pool, impatient(t), l.routes)
	l.renew(impatient(t), nil)
	for range 2 {
		l.send("points/a", `{"p":[{"t":1800000000,"v":1},{"t":1800000001,"v":2}]}`)
	}
	l.flush()
	l.want("points", 2, 2, 0, 0)
	if n := value[int](t, pool, `select count(*)::int from points`); n != 4 {
		t.Errorf("%d rows, want 4", n)
	}
}

// TestReplicasStartTogether races on an empty database.
func TestReplicasStartTogether(t *testing.T) {
	t.Parallel()
	url, _ := newDatabase(t)
	config := telemetry
	config.Partition = "day"
	var group sync.WaitGroup
	for range 6 {
		cfg := impatient(t)
		cfg.lineLock = patience
		tables := NewTables(newPool(t, url), cfg, compile(t, config, each))
		group.Go(func() {
			if err := tables.Ensure(context.Background()); err != nil {
				t.Error(err)
			}
			if f := tables.Failing(); len(f) != 0 {
				t.Errorf("failing %v", f)
			}
		})
	}
	group.Wait()
}

func TestEnsureReportsADatabaseThatIsDown(t *testing.T) {
	t.Parallel()
	tables := NewTables(newPool(t, "postgres://127.0.0.1:1/none"), impatient(t), compile(t, telemetry))
	if err := tables.Ensure(context.Background()); err == nil {
		t.Error("no error")
	}
	if f := tables.Failing(); len(f) != 0 {
		t.Errorf("the route was blamed: %v", f)
	}
}

func TestLongNames(t *testing.T) {
	t.Parallel()
	fits, tooLong := telemetry, healthy
	fits.Partition, tooLong.Partition = "day", "day"
	tables, _ := tablesOf(t, fits, tooLong)
	tables.routes.All()[0].Table.Name = strings.Repeat("a", maxPartitionedName) // longer than mapping lets pass
	tables.routes.All()[1].Table.Name = strings.Repeat("b", maxPartitionedName+1)
	ensure(t, tables)
	if f := tables.Failing(); len(f) != 1 || !strings.Contains(f["healthy"], "too long") {
		t.Errorf("failing %v, want the longer name alone", f)
	}
}

func TestDDL(t *testing.T) {
	t.Parallel()
	config := telemetry
	config.Partition = "month"
	got := DDL(&compile(t, config).All()[0].Table)
	if len(got) != 2 || !strings.HasPrefix(got[0], "create table \"telemetry\" (\n    \"device_id\" text collate \"C\" not null,\n") ||
		!strings.HasSuffix(got[0], ",\n    primary key (\"device_id\", \"time\", \"message_id\")\n) partition by range (\"time\")") ||
		got[1] != `create table "telemetry_default" partition of "telemetry" default` {
		t.Errorf("statements\n%s", strings.Join(got, ";\n"))
	}
	if got := DDL(&compile(t, telemetry).All()[0].Table); len(got) != 1 {
		t.Errorf("statements of a table without partitions\n%s", strings.Join(got, ";\n"))
	}
}
