package store

import (
	"context"
	"encoding/binary"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgtype"
	"github.com/mqttpg/bridge/mapping"
)

// TestFailingTriggers: whatever the operator's own code does to one row, the other rows and the other
// routes flow.
func TestFailingTriggers(t *testing.T) {
	t.Parallel()
	for name, body := range map[string]string{
		"a subquery of several rows": `perform (select x from generate_series(1, 2) x); return new;`,
		"a strict select":            `select 1 into strict new.status where false; return new;`,
		"no return":                  ``,
		"its own exception":          `raise exception 'not this one';`,
		"division by zero":           `perform 1 / 0; return new;`,
	} {
		for _, deferred := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, deferred %t", name, deferred), func(t *testing.T) {
				t.Parallel()
				_, pool := newDatabase(t)
				l := newLine(t, pool, impatient(t), nil, telemetry, healthy)
				if err := l.tables.Ensure(context.Background()); err != nil {
					t.Fatal(err)
				}
				execute(t, pool, `create function fail() returns trigger language plpgsql as $$ begin if new.device_id <> 'poison' then return new; end if; `+body+` end $$`)
				if deferred {
					execute(t, pool, `create constraint trigger fail after insert on telemetry deferrable initially deferred for each row execute function fail()`)
				} else {
					execute(t, pool, `create trigger fail before insert on telemetry for each row execute function fail()`)
				}
				l.send("devices/poison/telemetry", reading(1, 1))
				l.send("devices/good/telemetry", reading(2, 1))
				l.send("healthy/a", `{"ts":1}`)
				l.flush()
				l.want("telemetry", 2, 1, 0, 0)
				l.want("healthy", 1, 1, 0, 0)
				if n := value[int](t, pool, `select count(*)::int from bridge.dead_letters where topic = 'devices/poison/telemetry' and reason = 'database'`); n != 1 {
					t.Errorf("%d dead letters of the poison, want 1", n)
				}
			})
		}
	}
}

// TestSlowTrigger: a statement that does not end is the route's fault, not the network's.
func TestSlowTrigger(t *testing.T) {
	t.Parallel()
	_, pool := newDatabase(t)
	cfg := impatient(t)
	cfg.attemptTimeout = 2 * time.Second
	l := newLine(t, pool, cfg, nil, telemetry, healthy)
	if err := l.tables.Ensure(context.Background()); err != nil {
		t.Fatal(err)
	}
	execute(t, pool, `create function sleep() returns trigger language plpgsql as $$ begin perform pg_sleep(600); return new; end $$;
		create trigger sleep before insert on telemetry for each row execute function sleep()`)
	l.send("devices/a/telemetry", reading(1, 1))
	l.send("healthy/a", `{"ts":1}`)
	l.flush()
	l.want("healthy", 1, 1, 0, 0)
	if n := l.counts("telemetry").DeadLettered[ReasonTableUnusable]; n != 1 {
		t.Errorf("%d parked, want 1", n)
	}
}

// TestStatementsAreBounded: several huge messages of one batch do not make a statement that the protocol
// cannot carry.
func TestStatementsAreBounded(t *testing.T) {
	t.Parallel()
	huge := make([]byte, 40<<20)
	letter := deadLetter{entry: &Entry{Message: &mapping.Message{Topic: "t", Payload: huge}}, route: "r"}
	small := deadLetter{entry: &Entry{Message: &mapping.Message{Topic: "t"}}, route: "r"}
	list, err := insertDeadLetters("bridge", []deadLetter{letter, small, letter, small, small}, false)
	if err != nil || len(list) != 2 {
		t.Errorf("%d statements, %v, want 2", len(list), err)
	}

	field := append(binary.BigEndian.AppendUint32(nil, uint32(len(huge))), huge...)
	p := &plan{oids: []uint32{pgtype.ByteaOID}, arrays: []uint32{pgtype.ByteaArrayOID}}
	var units []unit
	for i := range 3 {
		units = append(units, unit{rows: []mapping.Row{{Time: int64(i), Fields: field}}})
	}
	in := &insertion{}
	in.prepareInsert(p, units)
	if len(in.parts) != 3 {
		t.Fatalf("%d statements, want 3", len(in.parts))
	}
	for i, part := range in.parts {
		if n := len(part.params[0]); n < len(field) || n > len(field)+100 || len(part.rows) != 1 {
			t.Errorf("statement %d: %d bytes, %d rows", i, n, len(part.rows))
		}
	}
}
