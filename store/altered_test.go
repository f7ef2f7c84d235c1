package store

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/mqttpg/bridge/mapping"
)

// TestAlteredColumns alters columns under a running line in ways that PostgreSQL would cast to. Nothing is
// written while the type is another one; mended, the table holds what was sent.
func TestAlteredColumns(t *testing.T) {
	t.Parallel()
	arrays := mapping.RouteConfig{
		Name: "telemetry", Topic: "devices/{device_id}/telemetry", Time: "$.ts", Partition: "none",
		Columns: "temperature:float8=$.temperature, tags:text[]=$.tags",
	}
	partitioned := telemetry
	partitioned.Partition = "day"
	tests := []struct {
		name        string
		route       mapping.RouteConfig
		spoil, mend string
		reason      string
	}{
		{
			"integer", telemetry, `alter table telemetry alter temperature type int4 using null`,
			`alter table telemetry alter temperature type float8`, "column temperature is integer, the route writes float8",
		},
		{
			"integer in a partitioned table", partitioned, `alter table telemetry alter temperature type int4 using null`,
			`alter table telemetry alter temperature type float8`, "column temperature is integer, the route writes float8",
		},
		{
			"rows as values", arrays, `alter table telemetry alter temperature type int4 using null`,
			`alter table telemetry alter temperature type float8`, "column temperature is integer, the route writes float8",
		},
		{
			"another column of the name", telemetry, `alter table telemetry rename temperature to t; alter table telemetry add temperature numeric(10,0)`,
			`alter table telemetry drop temperature; alter table telemetry rename t to temperature`, "column temperature is numeric(10,0), the route writes float8",
		},
		{
			"another table of the name", telemetry,
			`alter table telemetry rename to well; create table telemetry (like well including all); alter table telemetry alter temperature type real`,
			`insert into well select * from telemetry; drop table telemetry; alter table well rename to telemetry`, "column temperature is real, the route writes float8",
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			_, pool := newDatabase(t)
			l := newLine(t, pool, impatient(t), nil, test.route, healthy)
			if err := l.tables.Ensure(context.Background()); err != nil {
				t.Fatal(err)
			}
			l.maintain()
			wait := l.run(t.Context())
			now := time.Now().UnixMilli()
			sent := 0
			send := func(n int) {
				for range n {
					l.send("devices/a/telemetry", fmt.Sprintf(`{"ts":%d,"temperature":%d.1,"tags":["a"]}`, now+int64(sent), sent))
					sent++
					time.Sleep(time.Millisecond) // batches of a few
				}
			}
			send(50)
			altered := make(chan error, 1)
			go func() {
				_, err := pool.Exec(context.Background(), "begin; "+test.spoil+"; commit")
				altered <- err
			}()
			send(200)
			if err := <-altered; err != nil {
				t.Fatal(err)
			}
			before := value[int](t, pool, `select count(temperature)::int from telemetry`)
			l.send("healthy/a", `{"ts":1}`)
			eventually(t, "it is noticed", func() bool { return strings.Contains(l.tables.Failing()["telemetry"], test.reason) })
			send(20)
			eventually(t, "the healthy route flows", func() bool { return l.counts("healthy").Written == 1 })
			eventually(t, "all is settled", func() bool { return len(l.order()) == sent+1 })
			if after := value[int](t, pool, `select count(temperature)::int from telemetry`); before != 0 || after != 0 {
				t.Errorf("%d, later %d values were cast", before, after)
			}
			execute(t, pool, "begin; "+test.mend+"; commit")
			eventually(t, "everything is in the table", func() bool {
				return len(l.tables.Failing()) == 0 && value[int](t, pool, `select count(*)::int from telemetry`) == sent
			})
			if n := value[int](t, pool, `select count(*)::int from telemetry where (temperature * 10)::int % 10 <> 1`); n != 0 {
				t.Errorf("%d values are not what was sent", n)
			}
			if err := l.drain(); err != nil {
				t.Error(err)
			}
			if err := wait(); err != nil {
				t.Error(err)
			}
			if c := l.counts("telemetry"); c.Written+c.DeadLettered[ReasonTableUnusable] != uint64(sent) {
				t.Errorf("%+v, want %d written or parked", c, sent)
			}
		})
	}
}

// TestAlteredBesideTheRoute: what becomes of columns that the route does not write costs the rows of one batch their COPY, and
// nothing fails.
func TestAlteredBesideTheRoute(t *testing.T) {
	t.Parallel()
	l := newCopyLine(t, telemetry, `alter table telemetry add column note text`)
	l.commitBatches([]string{reading(1, 1)})
	l.wantWays("copy")
	for i, alter := range []string{
		`alter table telemetry add column more int`, `alter table telemetry alter note type varchar(10)`,
		`alter table telemetry rename note to remark`, `alter table telemetry drop column remark`,
	} {
		execute(t, l.pool, `truncate ways; `+alter)
		l.commitBatches([]string{reading(10+3*i, 1)}, []string{reading(11+3*i, 1)}, []string{reading(12+3*i, 1)})
		l.wantWays("insert", "copy", "copy")
		if failing := l.tables.Failing(); len(failing) > 0 {
			t.Errorf("%s: %v", alter, failing)
		}
	}
	if n := value[int](t, l.pool, `select count(*)::int from telemetry`); n != 13 {
		t.Errorf("%d rows, want 13", n)
	}
}

// TestAlteredBesideALock: a table is altered whose route has nothing to do with it, while somebody holds a partition of another
// route's table that nobody writes to. The start does not wait for that, nor does the line.
func TestAlteredBesideALock(t *testing.T) {
	t.Parallel()
	_, pool := newDatabase(t)
	var routes []mapping.RouteConfig
	for i := range 3 {
		routes = append(routes, mapping.RouteConfig{
			Name: fmt.Sprintf("r%d", i), Topic: fmt.Sprintf("r%d/{device_id}", i), Time: "$.t", Columns: "v:int4=$.v", Partition: "day",
		})
	}
	l := newLine(t, pool, impatient(t), nil, routes...)
	if err := l.tables.Ensure(context.Background()); err != nil {
		t.Fatal(err)
	}
	execute(t, pool, `create table old partition of r1 for values from ('2020-01-01 00:00Z') to ('2020-01-02 00:00Z');
		create table others (n int); create function nothing() returns trigger language plpgsql as $$ begin return new; end $$;
		create trigger others before insert on others for each row execute function nothing()`)
	tx, err := pool.Begin(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.Background()) }()
	if _, err := tx.Exec(context.Background(), `lock table only old in access exclusive mode`); err != nil {
		t.Fatal(err)
	}
	l.tables = NewTables(pool, impatient(t), l.routes) // a start
	if err := l.tables.Ensure(context.Background()); err != nil {
		t.Error(err)
	}
	commit := func(n int) {
		l.renew(impatient(t), nil)
		for i := range routes {
			l.send(fmt.Sprintf("r%d/x", i), fmt.Sprintf(`{"t":%d,"v":%d}`, time.Now().UnixMilli(), n))
		}
		l.flush()
	}
	commit(1)
	execute(t, pool, `alter table r0 add column z int`)
	commit(2)
	commit(3)
	if err := tx.Rollback(context.Background()); err != nil {
		t.Error(err)
	}
	if n := value[int](t, pool, `select count(*)::int from (select from r0 union all select from r1 union all select from r2) r`); n != 9 {
		t.Errorf("%d rows, want 9", n)
	}
	if failing := l.tables.Failing(); len(failing) > 0 {
		t.Error(failing)
	}
}

// TestColumnsOfManyRoutes: each route adds a column to a table that all write. The first rows of each go by COPY: no plan
// is of the table before the last column.
func TestColumnsOfManyRoutes(t *testing.T) {
	t.Parallel()
	_, pool := newDatabase(t)
	var routes []mapping.RouteConfig
	for _, name := range []string{"a", "b", "c"} {
		routes = append(routes, mapping.RouteConfig{Name: name, Topic: name + "/{device_id}", Table: "telemetry", Time: "$.t", Columns: name + ":int4=$.v"})
	}
	l := newLine(t, pool, impatient(t), nil, routes...)
	if err := l.tables.Ensure(context.Background()); err != nil {
		t.Fatal(err)
	}
	execute(t, pool, noteWays)
	for _, route := range routes {
		l.renew(impatient(t), nil)
		l.send(route.Name+"/x", `{"t":1700000000000,"v":1}`)
		l.flush()
	}
	l.wantWays("copy", "copy", "copy")
}

// TestRoundingIsTold: a column of the same type that keeps fewer digits is written, and told of, also when it
// becomes one under a running line.
func TestRoundingIsTold(t *testing.T) {
	t.Parallel()
	tests := []struct{ of, wanted, made, warning string }{
		{"as wanted", "numeric(10,2)", "numeric(10,2)", ""},
		{"more digits", "numeric(10,2)", "numeric(12,3)", ""},
		{"fewer digits", "numeric(10,2)", "numeric(12,1)", "column n is numeric(12,1): PostgreSQL rounds what the route writes, numeric(10,2)"},
		{"any number of digits", "numeric", "numeric(10,0)", "column n is numeric(10,0): PostgreSQL rounds what the route writes, numeric"},
		{"tens", "numeric(10,0)", "numeric(10,-1)", "column n is numeric(10,-1): PostgreSQL rounds"},
		{"unlimited", "numeric(10,2)", "numeric", ""},
		{"all of the time", "timestamptz", "timestamptz(6)", ""},
		{"whole seconds", "timestamptz", "timestamptz(0)", "column n is timestamp(0) with time zone: PostgreSQL rounds"},
	}
	for _, test := range tests {
		t.Run(test.of, func(t *testing.T) {
			t.Parallel()
			_, pool := newDatabase(t)
			config := mapping.RouteConfig{Name: "rounded", Topic: "rounded/{device_id}", Columns: "n:" + test.wanted + "=$.n", Key: "delivery", Partition: "none"}
			l := newLine(t, pool, impatient(t), nil, config)
			l.send("rounded/a", `{"n":null}`)
			l.flush()
			if w := l.tables.Warnings()["rounded"]; len(w) != 0 {
				t.Errorf("warnings %q of its own table", w)
			}
			execute(t, pool, `alter table rounded alter n type `+test.made)
			l.renew(impatient(t), nil)
			l.send("rounded/a", `{"n":null}`)
			l.flush()
			w := strings.Join(l.tables.Warnings()["rounded"], "; ")
			if (w == "") != (test.warning == "") || !strings.Contains(w, test.warning) {
				t.Errorf("warnings %q, want %q", w, test.warning)
			}
			l.want("rounded", 2, 2, 0, 0)
		})
	}
}
