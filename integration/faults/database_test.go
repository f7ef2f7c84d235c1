//go:build unix

package faults

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
)

// databaseScenarios are those in which the database or the way to it suffers.
var databaseScenarios = []*scenario{
	{
		name: "database restarts", server: true, calm: true,
		trouble: func(s *stage) {
			restarts := 0
			for ; restarts == 0 || s.loading(); restarts++ {
				s.pause(200*time.Millisecond, 1500*time.Millisecond)
				must(s.t, s.server.Stop(s.ctx))
				s.pause(0, time.Second)
				must(s.t, s.server.Start(s.ctx))
				s.pause(0, time.Second)
			}
			s.factf("%d restarts", restarts)
		},
	},
	{
		name: "database killed", server: true, calm: true,
		trouble: func(s *stage) {
			kills := 0
			for ; kills == 0 || s.loading(); kills++ {
				s.pause(200*time.Millisecond, 1500*time.Millisecond)
				must(s.t, s.server.Kill(s.ctx))
				s.pause(0, 300*time.Millisecond)
				must(s.t, s.server.Start(s.ctx))
				s.pause(0, time.Second)
			}
			s.factf("%d kills", kills)
		},
	},
	{
		name: "database away for the whole load", server: true, calm: true,
		trouble: func(s *stage) {
			s.pause(500*time.Millisecond, time.Second)
			must(s.t, s.server.Stop(s.ctx))
			for s.loading() {
				s.pause(100*time.Millisecond, 100*time.Millisecond)
			}
			s.load.end()
			must(s.t, s.server.Start(s.ctx))
		},
	},
	{
		name: "answer of COMMIT lost", calm: true, short: true,
		trouble: func(s *stage) {
			losses := 0
			for ; s.loading(); losses++ {
				s.pause(50*time.Millisecond, 500*time.Millisecond)
				s.loseAnswerOfCommit()
				s.dbLink.mend() // which closes the connections
				s.ready(s.bridges[0])
			}
			s.factf("%d times", losses)
		},
	},
	{
		name: "pg_terminate_backend at random", calm: true, short: true,
		trouble: func(s *stage) {
			db := s.connect()
			defer func() { _ = db.Close(context.WithoutCancel(s.ctx)) }()
			ended := 0
			for s.loading() {
				s.pause(0, 300*time.Millisecond)
				tag, err := db.Exec(s.ctx, `select pg_terminate_backend(pid) from pg_stat_activity
					where datname = current_database() and pid <> pg_backend_pid() order by random() limit 1`)
				must(s.t, err)
				ended += int(tag.RowsAffected())
			}
			s.factf("%d backends ended", ended)
		},
	},
	{
		name: "disk full (53100)", calm: true,
		trouble: func(s *stage) { s.refuse("53100") },
	},
	{
		name: "read-only (25006)", calm: true, short: true,
		trouble: func(s *stage) { s.refuse("25006") },
	},
	{
		name: "read-only database, as after a failover", calm: true,
		trouble: func(s *stage) {
			times := 0
			for ; s.loading(); times++ {
				s.pause(200*time.Millisecond, time.Second)
				s.readOnly(true)
				s.pause(time.Second, 3*time.Second)
				s.readOnly(false)
				s.awaitCommit()
			}
			s.factf("%d times", times)
		},
	},
	{
		name: "deadlocks raised (40P01)", env: map[string]string{"BRIDGE_MQTT_SESSIONS": "3"}, replicas: 3, calm: true,
		trouble: func(s *stage) {
			s.addSwitch()
			s.execute("insert into trouble values ('40P01', 0.02)")
			for s.loading() {
				s.pause(100*time.Millisecond, 100*time.Millisecond)
			}
			s.execute("delete from trouble")
			s.factf("%.0f retries", s.metric(s.bridges[0], "bridge_database_retries_total"))
		},
	},
	{
		name: "real deadlocks",
		prepare: func(s *stage) { // after the second lock below, before the bridge gives up to wait for the first
			s.execute("do $$ begin execute format('alter database %I set deadlock_timeout = %L', current_database(), '100ms'); end $$")
		},
		env: map[string]string{"BRIDGE_MQTT_SESSIONS": "3"}, replicas: 3, calm: true,
		trouble: func(s *stage) {
			for s.loading() {
				s.deadlock()
				s.pause(50*time.Millisecond, 500*time.Millisecond)
			}
			n := 0
			s.within(5*time.Second, func() bool {
				n = s.number("select deadlocks::int from pg_stat_database where datname = current_database()")
				return n > 0
			})
			if n == 0 {
				s.t.Error("there was no deadlock")
			}
			s.factf("%d deadlocks", n)
		},
	},
	{
		name: "lock held on a table", calm: true, env: map[string]string{"BRIDGE_PARK_AFTER": "1s"},
		trouble: func(s *stage) { s.lockTable(func() {}) },
	},
	{
		name: "lock held on a table, bridge killed", env: map[string]string{"BRIDGE_PARK_AFTER": "1s"},
		trouble: func(s *stage) {
			s.lockTable(func() {
				s.kill(s.bridges[0])
				s.expire()
				must(s.t, s.bridges[0].Start(s.ctx)) // it is not ready while it cannot look at a table
			})
		},
	},
}

// lockTable holds a lock on one table until the load has ended and all others are complete.
func (s *stage) lockTable(meanwhile func()) {
	s.t.Helper()
	db, other := s.connect(), s.connect()
	defer func() {
		_ = db.Close(context.WithoutCancel(s.ctx))
		_ = other.Close(context.WithoutCancel(s.ctx))
	}()
	locked := pick(s, s.load.kinds[:6])
	tx, err := db.Begin(s.ctx)
	must(s.t, err)
	_, err = tx.Exec(s.ctx, "lock table "+locked.name)
	must(s.t, err)
	for s.loading() {
		s.pause(500*time.Millisecond, 3*time.Second)
		meanwhile()
	}
	s.load.end()
	healthy := slices.DeleteFunc(slices.Clone(s.load.kinds), func(k *kind) bool { return k == locked })
	s.until("the other tables are complete", func() bool {
		_, lacking := s.load.arrived(s.t, other, healthy)
		return lacking == 0
	})
	must(s.t, tx.Commit(s.ctx))
	s.factf("%s locked, %d of its messages parked", locked.name, s.number("select count(*)::int from bridge.dead_letters where reason = 'table_unusable'"))
}

// addSwitch makes every table of a route refuse rows with the SQLSTATE that stands in table trouble,
// with the chance that stands beside it.
func (s *stage) addSwitch() {
	s.t.Helper()
	s.execute(`create table trouble (code text, chance float8)`,
		`create function trouble() returns trigger language plpgsql as $$
		declare
			code text;
		begin
			select t.code into code from trouble t where random() < t.chance;
			if found then
				raise exception using errcode = code, message = 'made by the scenario';
			end if;
			return null;
		end $$`)
	for _, k := range s.load.kinds {
		if k.route != nil {
			s.execute("create trigger trouble after insert on " + k.name + " for each statement execute function trouble()")
		}
	}
}

// refuse lets the database refuse all rows, now and then, with an SQLSTATE.
func (s *stage) refuse(code string) {
	s.t.Helper()
	s.addSwitch()
	times := 0
	for ; s.loading(); times++ {
		s.pause(200*time.Millisecond, time.Second)
		s.execute(fmt.Sprintf("insert into trouble values ('%s', 1)", code))
		s.pause(500*time.Millisecond, 3*time.Second)
		s.execute("delete from trouble")
		s.awaitCommit()
	}
	s.factf("%d times", times)
}

// readOnly turns the database over; connections that there are stay as they are until they end.
func (s *stage) readOnly(on bool) {
	s.t.Helper()
	admin, err := pgx.Connect(s.ctx, s.server.AdminURL())
	must(s.t, err)
	defer func() { _ = admin.Close(context.WithoutCancel(s.ctx)) }()
	config, err := pgx.ParseConfig(s.databaseURL)
	must(s.t, err)
	_, err = admin.Exec(s.ctx, fmt.Sprintf("alter database %s set default_transaction_read_only = %t", pgx.Identifier{config.Database}.Sanitize(), on))
	must(s.t, err)
	_, err = admin.Exec(s.ctx, "select pg_terminate_backend(pid) from pg_stat_activity where datname = $1", config.Database)
	must(s.t, err)
}

// deadlock locks two tables against the order in which a batch may write them, and lets PostgreSQL
// choose the bridge as the victim.
func (s *stage) deadlock() {
	s.t.Helper()
	db := s.connect()
	defer func() { _ = db.Close(context.WithoutCancel(s.ctx)) }()
	first, second := pick(s, s.load.kinds[:5]), pick(s, s.load.kinds[:5])
	for _, statement := range []string{
		"set deadlock_timeout = '1min'", // who waits longest is not the one who notices
		"set lock_timeout = '3s'",
		"begin",
		"lock table " + first.name + " in share row exclusive mode",
		"select pg_sleep(0.05)",
	} {
		if _, err := db.Exec(s.ctx, statement); err != nil {
			s.t.Logf("%s: %v", statement, err)
			return
		}
	}
	if _, err := db.Exec(s.ctx, "lock table "+second.name+" in share row exclusive mode"); err != nil {
		s.t.Logf("lock the second table: %v", err)
	}
}

// awaitCommit waits until the bridges have written something new.
func (s *stage) awaitCommit() {
	s.t.Helper()
	before := s.batches()
	s.until("the bridge writes again", func() bool { return s.batches() > before })
}
