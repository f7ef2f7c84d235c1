package store

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/mqttpg/bridge/mapping"
)

var healthy = mapping.RouteConfig{Name: "healthy", Topic: "healthy/{device_id}", Time: "$.ts", Partition: "none"}

// TestDroppedTableComesBack: a table that somebody dropped under us is made again.
func TestDroppedTableComesBack(t *testing.T) {
	t.Parallel()
	_, pool := newDatabase(t)
	l := newLine(t, pool, impatient(t), nil, telemetry)
	l.send("devices/a/telemetry", reading(1, 1))
	l.flush()
	execute(t, pool, `drop table telemetry`)
	l.renew(impatient(t), nil)
	l.send("devices/a/telemetry", reading(2, 1))
	l.flush()
	l.want("telemetry", 2, 2, 0, 0)
	if f := l.tables.Failing(); len(f) != 0 {
		t.Errorf("still failing: %v", f)
	}
}

// TestDroppedColumnComesBack: likewise a column.
func TestDroppedColumnComesBack(t *testing.T) {
	t.Parallel()
	_, pool := newDatabase(t)
	l := newLine(t, pool, impatient(t), nil, telemetry)
	l.send("devices/a/telemetry", reading(1, 1))
	l.flush()
	execute(t, pool, `alter table telemetry rename column temperature to heat`)
	l.renew(impatient(t), nil)
	l.send("devices/a/telemetry", reading(2, 5))
	l.flush()
	l.want("telemetry", 2, 2, 0, 0)
	if v := value[float64](t, pool, `select temperature from telemetry where temperature is not null`); v != 5 {
		t.Errorf("temperature %g, want 5", v)
	}
}

// TestParking: a route whose table stays unusable is parked, the other flows, and the mended one
// flows again.
func TestParking(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name        string
		spoil, mend string
		reason      string
	}{
		{
			"another type", `alter table telemetry drop temperature; alter table telemetry add temperature bytea`,
			`alter table telemetry drop temperature; alter table telemetry add temperature float8`,
			"column temperature is bytea, the route writes float8",
		},
		{
			"generated column", `alter table telemetry drop temperature; alter table telemetry add temperature float8 generated always as (1) stored`,
			`alter table telemetry drop temperature`, "column temperature is generated",
		},
		{"no key column", `alter table telemetry rename message_id to id`, `alter table telemetry rename id to message_id`, "has no column message_id"},
		{"a sequence", `drop table telemetry; create sequence telemetry`, `drop sequence telemetry`, "neither a table nor a view"},
		{
			"a view", `alter table telemetry rename to real; create view telemetry as select * from real limit 1`,
			`drop view telemetry; alter table real rename to telemetry`, "cannot insert into view",
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			_, pool := newDatabase(t)
			l := newLine(t, pool, impatient(t), nil, telemetry, healthy)
			if err := l.tables.Ensure(context.Background()); err != nil {
				t.Fatal(err)
			}
			execute(t, pool, test.spoil)
			l.maintain()
			wait := l.run(t.Context())
			l.send("devices/a/telemetry", reading(1, 1))
			l.send("healthy/a", reading(1, 1))
			eventually(t, "the healthy route flows", func() bool { return l.counts("healthy").Written == 1 })
			if n := l.counts("telemetry").DeadLettered[ReasonTableUnusable]; n != 1 {
				t.Errorf("%d messages of the broken route dead-lettered, want 1", n)
			}
			if reason := l.tables.Failing()["telemetry"]; !strings.Contains(reason, test.reason) {
				t.Errorf("failing because %q, want %q", reason, test.reason)
			}
			detail := value[string](t, pool, `select detail from bridge.dead_letters where reason = 'table_unusable' limit 1`)
			if !strings.Contains(detail, test.reason) {
				t.Errorf("detail %q, want %q", detail, test.reason)
			}
			execute(t, pool, test.mend)
			eventually(t, "the mended route is found", func() bool { return len(l.tables.Failing()) == 0 })
			l.send("devices/a/telemetry", reading(2, 1))
			eventually(t, "it flows, and what was parked is in its table", func() bool {
				return l.counts("telemetry").Written == 1 && value[int](t, pool, `select count(*)::int from telemetry`) == 2
			})
			if err := l.drain(); err != nil {
				t.Error(err)
			}
			if err := wait(); err != nil {
				t.Error(err)
			}
			l.wantInOrder(len(l.order()))
		})
	}
}

// TestLockedTableIsParked: somebody forgot a transaction, which has a table, the partition of today, or a table of many routes.
func TestLockedTableIsParked(t *testing.T) {
	t.Parallel()
	daily := telemetry
	daily.Partition = "day"
	many := []mapping.RouteConfig{telemetry}
	for i := range 30 {
		also := telemetry
		also.Name, also.Table = fmt.Sprintf("also_%d", i), "telemetry"
		many = append(many, also)
	}
	for _, test := range []struct {
		name   string
		routes []mapping.RouteConfig
		lock   string
	}{
		{"table", []mapping.RouteConfig{telemetry}, "telemetry"},
		{"partition", []mapping.RouteConfig{daily}, time.Now().UTC().Format("telemetry_p20060102")},
		{"table of many routes", many, "telemetry"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			_, pool := newDatabase(t)
			l := newLine(t, pool, impatient(t), nil, append(test.routes, healthy)...)
			if err := l.tables.Ensure(context.Background()); err != nil {
				t.Fatal(err)
			}
			tx, err := pool.Begin(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = tx.Rollback(context.Background()) }()
			if _, err := tx.Exec(context.Background(), `lock table `+test.lock); err != nil {
				t.Fatal(err)
			}
			now := fmt.Sprintf(`{"ts":%d,"temperature":1}`, time.Now().UnixMilli())
			l.send("devices/a/telemetry", now)
			l.send("healthy/a", reading(1, 1))
			l.flush()
			l.want("healthy", 1, 1, 0, 0)
			failing := l.tables.Failing()
			for _, route := range test.routes {
				if n := l.counts(route.Name).DeadLettered[ReasonTableUnusable]; n != 1 {
					t.Errorf("%d messages of route %s dead-lettered, want 1", n, route.Name)
				}
				if reason := failing[route.Name]; !strings.Contains(reason, "route "+route.Name+":") || !strings.Contains(reason, "55P03") {
					t.Errorf("route %s fails because of %q", route.Name, reason)
				}
			}
			l.maintain()
			if err := tx.Rollback(context.Background()); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the unlocked routes are found", func() bool { return len(l.tables.Failing()) == 0 })
			l.renew(impatient(t), nil)
			l.send("devices/b/telemetry", now)
			l.flush()
			for _, route := range test.routes {
				l.want(route.Name, 2, 1, 0, 0)
			}
		})
	}
}

// TestParkedMessagesAreCountedOnce: somebody makes an index on a table of a route that is parked at once. The table can be read
// meanwhile; that it holds none of the rows says nothing of the messages, which are dead letters.
func TestParkedMessagesAreCountedOnce(t *testing.T) {
	t.Parallel()
	several := mapping.RouteConfig{Name: "several", Topic: "devices/{device_id}/telemetry", Each: "$.p", Time: "@.t", Partition: "none"}
	for _, lock := range []string{"share", "access exclusive"} {
		t.Run(lock, func(t *testing.T) {
			t.Parallel()
			_, pool := newDatabase(t)
			cfg := impatient(t)
			cfg.ParkAfter = 0
			l := newLine(t, pool, cfg, nil, telemetry, several)
			if err := l.tables.Ensure(context.Background()); err != nil {
				t.Fatal(err)
			}
			tx, err := pool.Begin(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = tx.Rollback(context.Background()) }()
			if _, err := tx.Exec(context.Background(), `lock table telemetry, several in `+lock+` mode`); err != nil {
				t.Fatal(err)
			}
			l.send("devices/a/telemetry", `{"ts":1800000000,"p":[{"t":1800000000},{"t":1800000001}]}`)
			l.flush()
			for _, route := range []string{"telemetry", "several"} {
				l.want(route, 1, 0, 0, 0)
				if n := l.counts(route).DeadLettered[ReasonTableUnusable]; n != 1 {
					t.Errorf("route %s: %d dead letters, want 1", route, n)
				}
			}
		})
	}
}

// TestForeignRowIsWaitedFor: another transaction has inserted the same key and is not done. The table
// is well, so that nothing is parked, however long it takes.
func TestForeignRowIsWaitedFor(t *testing.T) {
	t.Parallel()
	_, pool := newDatabase(t)
	cfg := impatient(t)
	cfg.ParkAfter, cfg.lineLock = 0, 50*time.Millisecond
	l := newLine(t, pool, cfg, nil, telemetry)
	l.send("devices/a/telemetry", reading(1, 1))
	l.flush()
	tx, err := pool.Begin(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.Background()) }()
	_, err = tx.Exec(context.Background(), `with gone as (delete from telemetry returning *) select count(*) from gone`)
	if err != nil {
		t.Fatal(err)
	}
	l.renew(cfg, nil)
	wait := l.run(context.Background())
	l.send("devices/a/telemetry", reading(1, 1))
	eventually(t, "the batch is retried", func() bool { return l.writer.Status().Retrying })
	if err := tx.Rollback(context.Background()); err != nil {
		t.Fatal(err)
	}
	if err := l.drain(); err != nil {
		t.Error(err)
	}
	if err := wait(); err != nil {
		t.Error(err)
	}
	l.want("telemetry", 2, 1, 1, 0)
}

// TestPrivileges works as a role that may insert into some tables and create none.
func TestPrivileges(t *testing.T) {
	t.Parallel()
	url, pool := newDatabase(t)
	owner := newLine(t, pool, impatient(t), nil, telemetry, healthy)
	if err := owner.tables.Ensure(context.Background()); err != nil {
		t.Fatal(err)
	}
	role, restricted := newRole(t, url, pool)
	execute(t, pool, `grant usage on schema bridge to `+role+`; grant insert, select on bridge.dead_letters to `+role+`;
		revoke create on schema public from public; grant insert, select on healthy to `+role)
	l := newLine(t, restricted, impatient(t), nil, telemetry, healthy)
	if err := l.tables.Ensure(context.Background()); err != nil {
		t.Fatal(err)
	}
	if f := l.tables.Failing(); len(f) != 1 || !strings.Contains(f["telemetry"], "no privilege to insert") {
		t.Errorf("failing %v, want telemetry alone for want of a privilege", f)
	}
	l.send("devices/a/telemetry", reading(1, 1))
	l.send("healthy/a", reading(1, 1))
	l.flush()
	l.want("healthy", 1, 1, 0, 0)
	if n := l.counts("telemetry").DeadLettered[ReasonTableUnusable]; n != 1 {
		t.Errorf("%d dead letters of the forbidden route, want 1", n)
	}
	execute(t, pool, `grant insert, select on telemetry to `+role)
	l.maintain()
	eventually(t, "maintenance finds the mended table", func() bool { return len(l.tables.Failing()) == 0 })
	l.renew(impatient(t), nil)
	l.send("devices/a/telemetry", reading(2, 1))
	l.flush()
	l.want("telemetry", 2, 1, 0, 0)
}

// TestUnwritableDeadLettersHoldTheBatch: nothing is settled until they can be written.
func TestUnwritableDeadLettersHoldTheBatch(t *testing.T) {
	t.Parallel()
	_, pool := newDatabase(t)
	l := newLine(t, pool, impatient(t), nil, telemetry)
	execute(t, pool, `alter table bridge.dead_letters add constraint never check (false)`)
	wait := l.run(context.Background())
	l.send("devices/a/telemetry", "broken")
	l.send("devices/a/telemetry", reading(1, 1))
	eventually(t, "the batch is retried", func() bool { return l.writer.Status().Retrying })
	if n := len(l.order()); n != 0 {
		t.Errorf("%d messages settled without their dead letter", n)
	}
	execute(t, pool, `alter table bridge.dead_letters drop constraint never`)
	if err := l.drain(); err != nil {
		t.Error(err)
	}
	if err := wait(); err != nil {
		t.Error(err)
	}
	l.wantInOrder(2)
	l.want("telemetry", 2, 1, 0, 0)
}
