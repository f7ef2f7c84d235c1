package store

import (
	"context"
	"fmt"
	"testing"

	"github.com/mqttpg/bridge/mapping"
)

// TestVanishedRows: a trigger that returns null keeps a row out without an error. That is no duplicate.
func TestVanishedRows(t *testing.T) {
	t.Parallel()
	keyed := telemetry
	delivery := mapping.RouteConfig{Name: "telemetry", Topic: "devices/{device_id}/telemetry", Key: "delivery", Partition: "none"}
	byID := mapping.RouteConfig{Name: "telemetry", Topic: "devices/{device_id}/telemetry", Key: "$.temperature", Partition: "none"}
	several := mapping.RouteConfig{Name: "telemetry", Topic: "devices/{device_id}/telemetry", Each: "$.p", Time: "@.t", Partition: "none"}
	for name, test := range map[string]struct {
		route     mapping.RouteConfig
		keyless   bool
		duplicate uint64
	}{
		"event time":              {keyed, false, 1},
		"event time, no index":    {keyed, true, 0},
		"explicit key":            {byID, false, 1},
		"delivery":                {delivery, false, 0},
		"delivery, no index":      {delivery, true, 0},
		"several rows":            {several, false, 1},
		"several rows, all alike": {several, true, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, pool := newDatabase(t)
			l := newLine(t, pool, impatient(t), nil, test.route)
			if err := l.tables.Ensure(context.Background()); err != nil {
				t.Fatal(err)
			}
			if test.keyless {
				execute(t, pool, `alter table telemetry drop constraint telemetry_pkey`)
				l.tables = NewTables(pool, impatient(t), l.routes)
				l.renew(impatient(t), nil)
			}
			execute(t, pool, `create function hide() returns trigger language plpgsql as $$ begin
					if new.device_id = 'hidden' then return null; end if; return new; end $$;
				create trigger hide before insert on telemetry for each row execute function hide()`)
			payload := func(n int) string {
				if test.route.Each != "" {
					return fmt.Sprintf(`{"p":[{"t":%d},{"t":%d}]}`, 1_800_000_000+n, 1_900_000_000+n)
				}
				return reading(n, float64(n))
			}
			for i := range 3 {
				l.send("devices/hidden/telemetry", payload(i))
			}
			if name != "several rows, all alike" { // of these it is not known which messages are meant
				for i := range 4 {
					l.send("devices/seen/telemetry", payload(i))
				}
				if test.duplicate > 0 {
					l.send("devices/seen/telemetry", payload(0))
				}
			}
			l.flush()
			c := l.counts("telemetry")
			if c.Skipped[SkipRefusedByTable] != 3 || c.Duplicate != test.duplicate || c.InFlight != 0 {
				t.Errorf("%d refused by the table and %d duplicates, want 3 and %d: %+v", c.Skipped[SkipRefusedByTable], c.Duplicate, test.duplicate, c)
			}
		})
	}
}

// TestLooksThatFail: where nobody could see which messages a new trigger took, it is asked for by all routes before their
// next batch.
func TestLooksThatFail(t *testing.T) {
	t.Parallel()
	_, pool := newDatabase(t)
	other := telemetry
	other.Name, other.Topic, other.Table = "other", "other/{device_id}/telemetry", "telemetry"
	l := newLine(t, pool, impatient(t), nil, telemetry, other)
	if err := l.tables.Ensure(t.Context()); err != nil {
		t.Fatal(err)
	}
	var live []*insertion
	for _, route := range l.routes.All() {
		p, _, _ := l.tables.known(route)
		units := []unit{{rows: []mapping.Row{{DeviceID: "d"}}}}
		live = append(live, &insertion{plan: p, units: units, guessed: true})
	}
	conn, err := pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	late, cancel := context.WithCancel(t.Context())
	cancel()
	l.writer.recount(late, conn.Conn(), &batch{}, live, &outcome{tallies: tallies{"telemetry": {written: 1}, "other": {written: 1}}})
	for _, route := range l.routes.All() {
		if p, _, _ := l.tables.known(route); p != nil {
			t.Errorf("route %s goes on by a plan that does not know of the trigger", route.Name)
		}
	}
}

// TestRefusedMessageWithAKnownKey: the database refuses a message whose key is in the table. The duplicates beside it are
// duplicates.
func TestRefusedMessageWithAKnownKey(t *testing.T) {
	t.Parallel()
	_, pool := newDatabase(t)
	route := mapping.RouteConfig{Name: "orders", Topic: "orders/{device_id}", Key: "$.id", Columns: "n:int4=$.n", Partition: "none"}
	l := newLine(t, pool, impatient(t), nil, route)
	if err := l.tables.Ensure(context.Background()); err != nil {
		t.Fatal(err)
	}
	execute(t, pool, `alter table orders add check (n < 100)`)
	l.send("orders/a", `{"id":1,"n":1}`)
	l.flush()
	l.renew(impatient(t), nil)
	l.send("orders/a", `{"id":1,"n":1}`)
	l.send("orders/a", `{"id":1,"n":100}`)
	l.flush()
	l.want("orders", 3, 1, 1, 0)
	if c := l.counts("orders"); c.DeadLettered[ReasonDatabase] != 1 {
		t.Errorf("%d dead letters, want 1: %+v", c.DeadLettered[ReasonDatabase], c)
	}
}

// TestTriggerThatRecognisesDuplicates: it returns null for what is there already. Such a message is a duplicate, and no
// error tells so.
func TestTriggerThatRecognisesDuplicates(t *testing.T) {
	t.Parallel()
	_, pool := newDatabase(t)
	l := newLine(t, pool, impatient(t), nil, telemetry)
	if err := l.tables.Ensure(context.Background()); err != nil {
		t.Fatal(err)
	}
	execute(t, pool, `create function known() returns trigger language plpgsql as $$ begin
		if exists (select from telemetry where device_id = new.device_id and "time" = new."time") then return null; end if; return new; end $$;
		create trigger known before insert on telemetry for each row execute function known()`)
	if err := l.tables.maintain(context.Background()); err != nil {
		t.Fatal(err)
	}
	l.send("devices/a/telemetry", reading(1, 1))
	l.flush()
	l.renew(impatient(t), nil)
	l.send("devices/a/telemetry", reading(1, 1))
	l.send("devices/a/telemetry", reading(2, 1))
	l.flush()
	l.want("telemetry", 3, 2, 1, 0)
}
