package store

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
)

// observed is a configuration whose log is kept.
func observed(t *testing.T) (Config, *observer.ObservedLogs) {
	core, logs := observer.New(zapcore.InfoLevel)
	cfg := impatient(t)
	cfg.Log = zap.New(core)
	return cfg, logs
}

// TestRelapseIsTimed: a route that breaks again within the minute is parked at once, and the log tells for
// how long it failed all the same.
func TestRelapseIsTimed(t *testing.T) {
	t.Parallel()
	_, pool := newDatabase(t)
	cfg, logs := observed(t)
	cfg.ParkAfter = time.Minute
	l := newLine(t, pool, cfg, nil, telemetry)
	if err := l.tables.Ensure(context.Background()); err != nil {
		t.Fatal(err)
	}
	l.maintain()
	route := l.routes.All()[0]
	l.tables.mu.Lock()
	l.tables.state(route).mendedAt = time.Now() // it was parked before
	l.tables.mu.Unlock()
	execute(t, pool, `alter table telemetry rename message_id to id`)
	l.send("devices/a/telemetry", reading(1, 1))
	l.flush()
	if n := l.counts("telemetry").DeadLettered[ReasonTableUnusable]; n != 1 {
		t.Fatalf("%d parked, want one", n)
	}
	execute(t, pool, `alter table telemetry rename id to message_id`)
	eventually(t, "the route is well", func() bool { return len(l.tables.Failing()) == 0 })
	mended := logs.FilterMessage("table of route can be written again").All()
	if len(mended) != 1 {
		t.Fatalf("logged %d times, want once", len(mended))
	}
	if d := mended[0].ContextMap()["failed_for"].(time.Duration); d < 0 || d > 2*patience {
		t.Errorf("failed for %v", d)
	}
}

// TestParkingIsTold: how many parked messages wait, and how many were replayed.
func TestParkingIsTold(t *testing.T) {
	t.Parallel()
	_, pool := newDatabase(t)
	l := newLine(t, pool, impatient(t), nil, telemetry, healthy)
	if err := l.tables.Ensure(context.Background()); err != nil {
		t.Fatal(err)
	}
	execute(t, pool, `alter table telemetry rename message_id to id`)
	for i := range 7 {
		l.send("devices/a/telemetry", reading(i, 1))
	}
	l.flush()
	l.maintain()
	eventually(t, "seven wait", func() bool { return l.tables.Parking()["telemetry"] == Parking{Parked: true, Waiting: 7} })
	const text = "# HELP bridge_dead_letters_waiting Parked messages, of all replicas, that wait for their table to be mended; counted up to 10000.\n" +
		"# TYPE bridge_dead_letters_waiting gauge\nbridge_dead_letters_waiting{route=\"healthy\"} 0\nbridge_dead_letters_waiting{route=\"telemetry\"} %d\n"
	if err := testutil.CollectAndCompare(l.tables, strings.NewReader(fmt.Sprintf(text, 7)), "bridge_dead_letters_waiting"); err != nil {
		t.Error(err)
	}
	// Somebody deals with one by hand.
	execute(t, pool, `delete from bridge.dead_letters where id = (select min(id::text)::uuid from bridge.dead_letters)`)
	eventually(t, "six wait", func() bool { return l.tables.Parking()["telemetry"].Waiting == 6 })
	execute(t, pool, `alter table telemetry rename id to message_id`)
	eventually(t, "none waits", func() bool { return l.tables.Parking()["telemetry"] == Parking{Replayed: 6} })
	if err := testutil.CollectAndCompare(l.tables, strings.NewReader(fmt.Sprintf(text, 0)), "bridge_dead_letters_waiting"); err != nil {
		t.Error(err)
	}
	if p := l.tables.Parking()["healthy"]; p != (Parking{}) {
		t.Errorf("healthy: %+v", p)
	}
}

// TestPartitionWarningEnds: it is taken back as soon as the partitions are made.
func TestPartitionWarningEnds(t *testing.T) {
	t.Parallel()
	_, pool := newDatabase(t)
	config := telemetry
	config.Partition = "day"
	first := newLine(t, pool, impatient(t), nil, config)
	if err := first.tables.Ensure(context.Background()); err != nil {
		t.Fatal(err)
	}
	execute(t, pool, `do $$ declare p regclass; begin
		for p in select inhrelid::regclass from pg_inherits where inhparent = 'telemetry'::regclass and inhrelid::regclass::text <> 'telemetry_default'
		loop execute 'drop table ' || p; end loop; end $$`)
	tx, err := pool.Begin(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.Background()) }()
	if _, err := tx.Exec(context.Background(), `lock table telemetry in row exclusive mode`); err != nil {
		t.Fatal(err)
	}
	l := newLine(t, pool, impatient(t), nil, config)
	if err := l.tables.Ensure(context.Background()); err != nil {
		t.Fatal(err)
	}
	warned := func() bool {
		w := l.tables.Warnings()["telemetry"]
		return len(w) == 1 && strings.Contains(w[0], "partitions are not made: ")
	}
	if !warned() {
		t.Fatalf("warnings %q", l.tables.Warnings())
	}
	l.maintain()
	if err := tx.Rollback(context.Background()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the warning is gone", func() bool { return len(l.tables.Warnings()) == 0 })
	if n := len(partitionNames(t, l.tables, "telemetry")); n != 6 {
		t.Errorf("%d partitions, want six", n)
	}
}

// TestLossesAreTold: what is made again under a running line is told, what is made at its start is not. A
// table has its partitions soon.
func TestLossesAreTold(t *testing.T) {
	t.Parallel()
	_, pool := newDatabase(t)
	cfg, logs := observed(t)
	config := telemetry
	config.Partition = "day"
	l := newLine(t, pool, cfg, nil, config)
	if err := l.tables.Ensure(context.Background()); err != nil {
		t.Fatal(err)
	}
	l.maintain()
	warnings := func() (texts []string) {
		for _, e := range logs.FilterLevelExact(zapcore.WarnLevel).All() {
			if strings.Contains(e.Message, "anew") {
				texts = append(texts, e.Message)
			}
		}
		return texts
	}
	if w := warnings(); len(w) != 0 {
		t.Errorf("%q at the start", w)
	}
	execute(t, pool, `alter table telemetry drop status`)
	l.send("devices/a/telemetry", reading(1, 1))
	l.flush()
	if w := warnings(); len(w) != 1 || w[0] != "columns of table were gone and have been added anew, empty" {
		t.Errorf("%q, want the column", w)
	}
	execute(t, pool, `drop table telemetry`)
	l.renew(cfg, nil)
	l.send("devices/a/telemetry", reading(2, 1))
	l.flush()
	if w := warnings(); len(w) != 2 || w[1] != "table of route was gone and has been made anew, empty" {
		t.Errorf("%q, want the table", w)
	}
	l.want("telemetry", 2, 2, 0, 0)
	eventually(t, "the partitions are made", func() bool { return len(partitionNames(t, l.tables, "telemetry")) == 6 })
}
