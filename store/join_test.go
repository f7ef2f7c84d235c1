package store

import (
	"context"
	"fmt"
	"slices"
	"testing"

	"github.com/mqttpg/bridge/mapping"
)

// newJoinedLine has three routes into table telemetry, those of sites a and b with the same columns, c with others.
func newJoinedLine(t *testing.T, prepare string) *line {
	t.Helper()
	_, pool := newDatabase(t)
	var routes []mapping.RouteConfig
	for _, site := range []string{"a", "b", "c"} {
		route := telemetry
		route.Name, route.Topic, route.Table = site, site+"/{device_id}/telemetry", "telemetry"
		if site == "c" {
			route.Columns = "temperature:float8=$.temperature"
		}
		routes = append(routes, route)
	}
	l := newLine(t, pool, impatient(t), nil, routes...)
	if err := l.tables.Ensure(context.Background()); err != nil {
		t.Fatal(err)
	}
	execute(t, pool, noteWays)
	if prepare != "" {
		execute(t, pool, prepare)
	}
	return l
}

// commit has messages committed as one batch, each given as the site and the second.
func (l *line) commit(messages ...string) {
	l.t.Helper()
	insertions := l.writer.insertions
	l.renew(impatient(l.t), nil)
	l.writer.insertions = insertions // what the writer has learnt
	for _, m := range messages {
		var site string
		var second int
		if _, err := fmt.Sscanf(m, "%1s%d", &site, &second); err != nil {
			l.t.Fatal(err)
		}
		l.send(site+"/d/telemetry", reading(second, float64(second)))
	}
	l.flush()
}

// TestRoutesShareACopy: those that write the same columns of the same table have one COPY, and each its own counts.
func TestRoutesShareACopy(t *testing.T) {
	t.Parallel()
	l := newJoinedLine(t, "")
	l.commit("a1", "b2", "c3", "b1", "a2", "b3")
	l.wantWays("copy", "copy")
	l.want("a", 2, 2, 0, 0)
	l.want("b", 3, 3, 0, 0)
	l.want("c", 1, 1, 0, 0)
	l.commit("a2", "b4") // one has it already: both are inserted
	l.wantWays("copy", "copy", "insert", "insert")
	l.want("a", 3, 2, 1, 0)
	l.want("b", 4, 4, 0, 0)
	l.commit("b5", "b6")
	l.commit("a5", "b7") // a is still inserted, b is copied again
	l.wantWays("copy", "copy", "insert", "insert", "copy", "insert", "copy")
	l.want("a", 4, 3, 1, 0)
	l.want("b", 7, 7, 0, 0)
	l.commit("a6", "a6", "b8", "b9") // a holds a key twice, and is inserted at once
	l.wantWays("copy", "copy", "insert", "insert", "copy", "insert", "copy", "insert", "copy")
	l.want("a", 6, 4, 2, 0)
	l.want("b", 9, 9, 0, 0)
	if n := value[int](t, l.pool, `select count(distinct (topic, "time"))::int from telemetry where temperature = extract(second from "time")`); n != 14 {
		t.Errorf("%d different rows, want 14", n)
	}
	l.wantInOrder(16)
}

// TestSharedCopyIsolates: what the database refuses of one route is the dead letter of that one.
func TestSharedCopyIsolates(t *testing.T) {
	t.Parallel()
	l := newJoinedLine(t, `alter table telemetry add check (temperature <> 2)`)
	l.commit("a1", "b2", "b3", "a4")
	l.want("a", 2, 2, 0, 0)
	l.want("b", 2, 1, 0, 0)
	if n := l.counts("b").DeadLettered[ReasonDatabase]; n != 1 {
		t.Errorf("%d dead letters of the route, want 1", n)
	}
	if got := list[string](t, l.pool, `select topic || temperature from telemetry order by temperature`); !slices.Equal(got, []string{"a/d/telemetry1", "b/d/telemetry3", "a/d/telemetry4"}) {
		t.Errorf("rows %q", got)
	}
}

// TestSharedCopyOfWhatVanishes: a trigger that came after the table was looked at lets rows vanish. Nobody
// can tell from the COPY whose they were, so the table is asked.
func TestSharedCopyOfWhatVanishes(t *testing.T) {
	t.Parallel()
	l := newJoinedLine(t, `create function warm() returns trigger language plpgsql as $$ begin
		if new.temperature < 3 then return null; end if; return new; end $$;
		create trigger warm before insert on telemetry for each row execute function warm()`)
	l.commit("a1", "a3", "b2", "b4", "b5")
	l.wantWays("copy")
	l.want("a", 2, 1, 0, 0)
	l.want("b", 3, 2, 0, 0)
	for _, site := range []string{"a", "b"} {
		if n := l.counts(site).Skipped[SkipRefusedByTable]; n != 1 {
			t.Errorf("route %s: %d messages refused by the table, want 1", site, n)
		}
	}
	l.commit("a6", "b1", "b7") // now the trigger is known, and each has a COPY of its own
	l.wantWays("copy", "copy", "copy")
	l.want("b", 5, 3, 0, 0)
	if n := l.counts("b").Skipped[SkipRefusedByTable]; n != 2 {
		t.Errorf("%d messages refused by the table, want 2", n)
	}
}

// TestNoSharedCopyWithoutAKey: should rows vanish, such a table could not be asked whose they were.
func TestNoSharedCopyWithoutAKey(t *testing.T) {
	t.Parallel()
	l := newJoinedLine(t, `alter table telemetry drop constraint telemetry_pkey`)
	l.tables = NewTables(l.pool, impatient(t), l.routes)
	l.commit("a1", "b2")
	l.wantWays("copy", "copy")
	l.want("a", 1, 1, 0, 0)
	l.want("b", 1, 1, 0, 0)
}
