package store

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/mqttpg/bridge/mapping"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

const brokenRoutes = 5

// brokenConfigs are routes to be broken, beside the healthy one. Their rows are told apart by their
// delivery alone.
func brokenConfigs() []mapping.RouteConfig {
	configs := []mapping.RouteConfig{healthy}
	for i := range brokenRoutes {
		name := fmt.Sprintf("broken%d", i)
		configs = append(configs, mapping.RouteConfig{Name: name, Topic: name + "/{device_id}", Columns: "n:int4=$.n", Key: "delivery", Partition: "none"})
	}
	return configs
}

// forBroken repeats SQL for every table that is to be broken.
func forBroken(sql string) string {
	var b strings.Builder
	for i := range brokenRoutes {
		b.WriteString(strings.ReplaceAll(sql, "$t", fmt.Sprintf("broken%d", i)))
		b.WriteString("; ")
	}
	return b.String()
}

// TestBrokenTablesStallNobody breaks five tables at once. The healthy route's messages are all written
// while they are broken; mended, they hold every message once, by themselves.
func TestBrokenTablesStallNobody(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name        string
		spoil, mend string // mend empty: roll back what spoil did in its transaction
	}{
		{name: "locked", spoil: `lock table $t`},
		{name: "beside a long reader", spoil: `select from $t`}, // a new column waits for it
		{name: "dropped, and something else in its place", spoil: `drop table $t; create sequence $t`, mend: `drop sequence $t`},
		{name: "privilege revoked", spoil: `revoke insert on $t from current_user`, mend: `grant insert on $t to current_user`},
		{name: "column of another type", spoil: `alter table $t rename n to m; alter table $t add n bytea`, mend: `alter table $t drop n; alter table $t rename m to n`},
		{name: "trigger without a privilege", spoil: `create function deny_$t() returns trigger language plpgsql as $f$ begin raise 'denied' using errcode = '42501'; end $f$;
			create trigger deny before insert on $t for each row execute function deny_$t()`, mend: `drop trigger deny on $t`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			url, owner := newDatabase(t)
			role, pool := newRole(t, url, owner)
			execute(t, owner, `grant usage on schema bridge to `+role+`; grant select, insert, update on all tables in schema bridge to `+role+`;
				grant usage, create on schema public to `+role)
			cfg := impatient(t)
			cfg.ParkAfter = 2 * time.Second
			l := newLine(t, pool, cfg, nil, brokenConfigs()...)
			if err := l.tables.Ensure(context.Background()); err != nil {
				t.Fatal(err)
			}
			l.maintain()
			wait := l.run(context.Background())

			tx, err := pool.Begin(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = tx.Rollback(context.Background()) }()
			if test.name == "beside a long reader" {
				execute(t, pool, forBroken(`alter table $t drop n`))
			}
			spoil := forBroken(test.spoil)
			if test.name == "privilege revoked" {
				spoil = strings.ReplaceAll(spoil, "current_user", role)
			}
			if _, err := tx.Exec(context.Background(), spoil, pgx.QueryExecModeSimpleProtocol); err != nil {
				t.Fatal(err)
			}
			if test.mend != "" {
				if err := tx.Commit(context.Background()); err != nil {
					t.Fatal(err)
				}
			}
			const rounds = 100
			for round := range rounds {
				for i := range brokenRoutes {
					l.send(fmt.Sprintf("broken%d/a", i), fmt.Sprintf(`{"n":%d}`, round))
				}
				l.send("healthy/a", fmt.Sprintf(`{"ts":%d}`, round+1))
				if round < 20 {
					time.Sleep(5 * time.Millisecond) // several batches
				}
			}
			eventually(t, "the healthy route flows", func() bool { return l.counts("healthy").Written == rounds })
			eventually(t, "everything is settled", func() bool { return len(l.order()) == rounds*(brokenRoutes+1) })
			if n := len(l.tables.Failing()); n != brokenRoutes {
				t.Errorf("%d routes are failing, want %d", n, brokenRoutes)
			}
			retried := retries(l)
			// From here on the line must not touch a broken table: no attempt is lost.
			for round := range rounds {
				for i := range brokenRoutes {
					l.send(fmt.Sprintf("broken%d/a", i), fmt.Sprintf(`{"n":%d}`, rounds+round))
				}
				l.send("healthy/a", fmt.Sprintf(`{"ts":%d}`, rounds+round+1))
				if round%10 == 0 {
					eventually(t, "the healthy route flows on", func() bool { return l.counts("healthy").Written >= uint64(rounds+round) })
				}
			}
			eventually(t, "the healthy route flows on", func() bool { return l.counts("healthy").Written == 2*rounds })
			if now := retries(l); now != retried {
				t.Errorf("%g attempts were lost while the routes were parked", now-retried)
			}
			if n := value[int](t, owner, `select count(*)::int from bridge.dead_letters where reason <> 'table_unusable'`); n != 0 {
				t.Errorf("%d letters of another reason", n)
			}

			if test.mend == "" {
				if err := tx.Rollback(context.Background()); err != nil {
					t.Fatal(err)
				}
			} else {
				execute(t, pool, strings.ReplaceAll(forBroken(test.mend), "current_user", role))
			}
			eventually(t, "nothing waits any more", func() bool {
				l.counts("healthy") // the conservation law
				return value[int](t, owner, `select count(*)::int from bridge.dead_letters where replayed_at is null`) == 0 && len(l.tables.Failing()) == 0
			})
			for i := range brokenRoutes {
				l.send(fmt.Sprintf("broken%d/a", i), fmt.Sprintf(`{"n":%d}`, 2*rounds))
			}
			if err := l.drain(); err != nil {
				t.Fatal(err)
			}
			if err := wait(); err != nil {
				t.Fatal(err)
			}
			for i := range brokenRoutes {
				name := fmt.Sprintf("broken%d", i)
				if got := list[int](t, owner, `select n from `+name+` order by n`); len(got) != 2*rounds+1 || len(slices.Compact(slices.Clone(got))) != len(got) {
					t.Errorf("%s has %d rows, want %d", name, len(got), 2*rounds+1)
				}
				if c := l.counts(name); c.Written != 1 || c.DeadLettered[ReasonTableUnusable] != 2*rounds {
					t.Errorf("%s: %+v", name, c)
				}
				if n := value[int](t, owner, `select count(*)::int from `+name+` where received_at <> "time"`); n != 0 {
					t.Errorf("%s: %d rows have not their time of receipt", name, n)
				}
			}
			if n := testutil.CollectAndCount(l.tables, "bridge_dead_letters_replayed_total"); n != brokenRoutes+1 {
				t.Errorf("%d routes count what was replayed, want %d", n, brokenRoutes+1)
			}
		})
	}
}

// retries is how many attempts were lost so far.
func retries(l *line) (n float64) {
	for _, class := range []string{"42", "55", "57", "table", "timeout", "network", "other", "XX", "40"} {
		n += testutil.ToFloat64(l.metrics.retries.WithLabelValues(class))
	}
	return n
}

// TestRowsThatTheirTableRefuses: row level security speaks of the table and means some rows. Nobody waits
// for them, and the table's other rows go in.
func TestRowsThatTheirTableRefuses(t *testing.T) {
	t.Parallel()
	url, owner := newDatabase(t)
	cfg := impatient(t)
	cfg.ParkAfter = time.Hour // for ever
	makers := newLine(t, owner, cfg, nil, telemetry, healthy)
	if err := makers.tables.Ensure(context.Background()); err != nil {
		t.Fatal(err)
	}
	role, pool := newRole(t, url, owner)
	execute(t, owner, `grant usage on schema bridge to `+role+`; grant select, insert, update on all tables in schema bridge, public to `+role+`;
		alter table telemetry enable row level security; create policy readable on telemetry for select using (true);
		create policy insertable on telemetry for insert with check (device_id <> 'secret')`)
	l := newLine(t, pool, cfg, nil, telemetry, healthy)

	// None of the batch goes in: that may be the table, which is parked at once.
	l.send("devices/secret/telemetry", reading(1, 1))
	l.send("healthy/a", `{"ts":1}`)
	l.flush()
	l.want("healthy", 1, 1, 0, 0)
	if n := l.counts("telemetry").DeadLettered[ReasonTableUnusable]; n != 1 || len(l.tables.Failing()) != 1 {
		t.Errorf("%d parked, failing %v; want one", n, l.tables.Failing())
	}
	// Another one shows that it is not.
	l.renew(cfg, nil)
	l.send("devices/a/telemetry", reading(2, 1))
	l.flush()
	l.maintain()
	eventually(t, "the route is well", func() bool { return len(l.tables.Failing()) == 0 })
	wantLetters(t, owner, "devices/a/telemetry 1 t table_unusable", "devices/secret/telemetry 1 f database SQLSTATE 42501")

	// From now on it is known.
	l.renew(cfg, nil)
	l.send("devices/secret/telemetry", reading(3, 1))
	l.flush()
	l.renew(cfg, nil)
	for i := range 40 {
		l.send(fmt.Sprintf("devices/%s/telemetry", []string{"a", "secret", "b", "c"}[i%4]), reading(10+i, 1))
	}
	l.flush()
	c := l.counts("telemetry")
	if c.Written != 30 || c.DeadLettered[ReasonDatabase] != 11 || c.DeadLettered[ReasonTableUnusable] != 2 || retries(l) != 0 {
		t.Errorf("%+v, %g retries; want 30 written, 11 refused, 2 parked, none retried", c, retries(l))
	}
	if f := l.tables.Failing(); len(f) != 0 {
		t.Errorf("failing %v", f)
	}
}

// TestEveryRowIsRefused: the values are at fault, so nothing is held up, but somebody should know.
func TestEveryRowIsRefused(t *testing.T) {
	t.Parallel()
	_, pool := newDatabase(t)
	l := newLine(t, pool, impatient(t), nil, telemetry, healthy)
	if err := l.tables.Ensure(context.Background()); err != nil {
		t.Fatal(err)
	}
	execute(t, pool, `alter table telemetry add site text not null`)
	for i := range failingRefusals {
		if f := l.tables.Failing(); len(f) != 0 {
			t.Errorf("failing %v after %d batches", f, i)
		}
		l.renew(impatient(t), nil)
		l.send("devices/a/telemetry", reading(i, 1))
		l.send("devices/b/telemetry", reading(i, 1))
		l.send("healthy/a", fmt.Sprintf(`{"ts":%d}`, i+1))
		l.flush()
	}
	if f := l.tables.Failing()["telemetry"]; !strings.Contains(f, "every message of the last 3 batches: SQLSTATE 23502") {
		t.Errorf("failing because %q", f)
	}
	want := `# HELP bridge_route_failing 1 while the table of a route cannot be written, or refuses every message.
# TYPE bridge_route_failing gauge
bridge_route_failing{route="healthy"} 0
bridge_route_failing{route="telemetry"} 1
`
	if err := testutil.CollectAndCompare(l.tables, strings.NewReader(want), "bridge_route_failing"); err != nil {
		t.Error(err)
	}
	execute(t, pool, `alter table telemetry alter site set default ''`)
	l.renew(impatient(t), nil)
	l.send("devices/a/telemetry", reading(9, 1))
	l.flush()
	if f := l.tables.Failing(); len(f) != 0 {
		t.Errorf("still failing %v", f)
	}
	l.want("telemetry", 7, 1, 0, 0)
	l.want("healthy", 3, 3, 0, 0)
}

// park writes a parked message as an earlier process would have left it.
func park(t *testing.T, l *line, topic, payload string) {
	t.Helper()
	id := bury(t, l.pool, strings.Split(topic, "/")[0], topic, payload)
	execute(t, l.pool, fmt.Sprintf(`update bridge.dead_letters set reason = 'table_unusable' where id = '%x'`, id))
}

// TestParkedByAnEarlierProcess: several processes that start replay what is there, each message once,
// and nothing that waits for another reason. One more dies in the middle of it.
func TestParkedByAnEarlierProcess(t *testing.T) {
	t.Parallel()
	_, pool := newDatabase(t)
	l := newLine(t, pool, impatient(t), nil, bare)
	if err := l.tables.Ensure(context.Background()); err != nil {
		t.Fatal(err)
	}
	execute(t, pool, `alter table bare drop constraint bare_pkey`) // no key hides a second row
	const parked = 1500
	for i := range parked {
		park(t, l, "bare/a", fmt.Sprint(i))
	}
	bury(t, pool, "bare", "bare/other", "1")
	park(t, l, "gone/a", "{}")
	park(t, l, "bare/bad", "no number")

	dying, kill := context.WithCancel(context.Background())
	ended := make(chan struct{})
	tables := NewTables(pool, impatient(t), l.routes)
	go func() { tables.Maintain(dying); close(ended) }()
	eventually(t, "the replay is under way", func() bool {
		return value[int](t, pool, `select count(*)::int from bridge.dead_letters where replayed_at is not null`) > 0
	})
	kill()
	<-ended
	l.maintain()
	second := newLine(t, pool, impatient(t), nil, bare)
	second.maintain()
	eventually(t, "what can be is replayed", func() bool {
		return value[int](t, pool, `select count(*)::int from bridge.dead_letters where replayed_at is not null`) == parked
	})
	eventually(t, "what cannot be has its own reason", func() bool {
		return value[string](t, pool, `select reason from bridge.dead_letters where topic = 'bare/bad'`) != string(ReasonTableUnusable)
	})
	if n := value[int](t, pool, `select count(*)::int from bare where received_at = $1`, received); n != parked {
		t.Errorf("%d rows, want %d", n, parked)
	}
	got := list[string](t, pool, `select topic || ' ' || reason from bridge.dead_letters where replayed_at is null order by 1`)
	if want := []string{"bare/bad invalid_value", "bare/other invalid_payload", "gone/a table_unusable"}; !slices.Equal(got, want) {
		t.Errorf("waiting %q, want %q", got, want)
	}
}

// TestParkedMessageThatNoServerBears: it does not keep the others from being replayed, and is left to
// people in the end.
func TestParkedMessageThatNoServerBears(t *testing.T) {
	t.Parallel()
	_, pool := newDatabase(t)
	l := newLine(t, pool, impatient(t), nil, bare)
	if err := l.tables.Ensure(context.Background()); err != nil {
		t.Fatal(err)
	}
	execute(t, pool, `create function exhaust() returns trigger language plpgsql as $$ begin
			if new.device_id = 'huge' then raise 'out of memory' using errcode = '53200'; end if; return new; end $$;
		create trigger exhaust before insert on bare for each row execute function exhaust()`)
	park(t, l, "bare/huge", "0")
	for i := range 20 {
		park(t, l, "bare/a", fmt.Sprint(i))
	}
	l.maintain()
	eventually(t, "the others are replayed", func() bool {
		return value[int](t, pool, `select count(*)::int from bare`) == 20
	})
	eventually(t, "it is left to people", func() bool {
		return slices.Equal(list[string](t, pool, `select topic || ' ' || reason || ' ' || attempts from bridge.dead_letters where replayed_at is null`), []string{"bare/huge database 5"})
	})
}

// TestParkedMessagesBehindRefusedOnes: the oldest parked messages are refused for what they are, in words
// that speak of the table, and are more than a round tries in vain. Those behind them are replayed.
func TestParkedMessagesBehindRefusedOnes(t *testing.T) {
	t.Parallel()
	_, pool := newDatabase(t)
	l := newLine(t, pool, impatient(t), nil, bare)
	if err := l.tables.Ensure(context.Background()); err != nil {
		t.Fatal(err)
	}
	execute(t, pool, `create function deny() returns trigger language plpgsql as $f$ begin raise 'denied' using errcode = '42501'; end $f$;
		create trigger deny before insert on bare for each row when (new.device_id = 'a') execute function deny()`)
	const refused, others = mendMisses * mendBatch, 50
	execute(t, pool, fmt.Sprintf(`insert into bridge.dead_letters (id, route, topic, payload, qos, retain, properties, received_at, reason, detail)
		select ('00000000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid, 'bare', case when n <= %d then 'bare/a' else 'bare/b' end, '7', 1, false, '{}', now(), 'table_unusable', ''
		from generate_series(1, %d) n`, refused, refused+others))
	l.maintain()
	eventually(t, "the others are replayed", func() bool {
		return value[int](t, pool, `select count(*)::int from bare where device_id = 'b'`) == others
	})
	waiting := func() int {
		return value[int](t, pool, `select count(*)::int from bridge.dead_letters where topic = 'bare/a' and reason = 'table_unusable' and replayed_at is null`)
	}
	if n := waiting(); n != refused {
		t.Errorf("%d of the refused ones wait for their table, want %d", n, refused)
	}
	execute(t, pool, `drop trigger deny on bare`)
	eventually(t, "the table takes the first ones as well", func() bool { return waiting() == 0 })
	if n := value[int](t, pool, `select count(*)::int from bare`); n != refused+others {
		t.Errorf("%d rows, want %d", n, refused+others)
	}
}
