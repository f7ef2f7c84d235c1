package store

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/mqttpg/bridge/mapping"
	"go.uber.org/zap"
)

// tableLock is the advisory lock under which replicas create and change route tables, one at a time.
const tableLock int64 = 0x6272_6467_7462_6c73 // "brdgtbls"

// Tables makes, verifies and maintains the tables of the routes, and remembers which of them cannot
// be written. All writers of a process share it. Safe for concurrent use.
type Tables struct {
	pool   *pgxpool.Pool
	cfg    Config
	routes []*mapping.Route
	log    *zap.Logger

	ensuring sync.Mutex // one route is looked at, at a time

	mu     sync.Mutex
	states map[*mapping.Route]*tableState
}

// tableState is what is known of a route's table.
type tableState struct {
	plan     *plan  // nil: has to be looked at before the next insert
	place    string // the table with its schema; empty: not looked at yet
	warnings []string

	reason       string    // why the route fails; empty: it does not
	failingSince time.Time // start of ParkAfter
	nextProbe    time.Time // a parked route is left alone until then
	byInsert     bool      // an insert failed, so that only an insert can prove the table good
	probes       int       // tries since it is parked: each makes the next one rarer
}

// NewTables returns the tables of routes.
func NewTables(pool *pgxpool.Pool, cfg Config, routes *mapping.Routes) *Tables {
	return newTables(pool, cfg, routes.All())
}

func newTables(pool *pgxpool.Pool, cfg Config, routes []*mapping.Route) *Tables {
	cfg = cfg.withDefaults()
	t := &Tables{pool: pool, cfg: cfg, routes: routes, log: cfg.Log.Named("tables"), states: map[*mapping.Route]*tableState{}}
	for _, route := range routes {
		t.states[route] = &tableState{}
	}
	return t
}

// Ensure makes the tables and partitions that are missing, adds missing columns, and verifies the
// rest; what is there is never altered. A route whose table does not suit is reported by Failing and
// does not stop the others. The error is the database's own trouble: nothing is known then, and
// Ensure should be called again.
//
// Data definition is run only where the catalog lacks something, under an advisory lock, so that
// replicas may start together and a role without the privilege to create works on finished tables.
func (t *Tables) Ensure(ctx context.Context) error {
	var errs []error
	for _, route := range t.routes {
		err := t.ensureRoute(ctx, route)
		if err != nil && classify(err) != verdictRoute {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Failing returns the routes whose tables cannot be written now, and why.
func (t *Tables) Failing() map[string]string {
	t.mu.Lock()
	defer t.mu.Unlock()
	failing := map[string]string{}
	for route, s := range t.states {
		if s.reason != "" {
			failing[route.Name] = s.reason
		}
	}
	return failing
}

// Warnings returns what an operator should know about the tables that can be written, by route.
func (t *Tables) Warnings() map[string][]string {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := map[string][]string{}
	for route, s := range t.states {
		if len(s.warnings) > 0 {
			all[route.Name] = slices.Clone(s.warnings)
		}
	}
	return all
}

// state is called with mu held. Routes beyond those of NewTables come from tests alone.
func (t *Tables) state(route *mapping.Route) *tableState {
	s := t.states[route]
	if s == nil {
		s = &tableState{}
		t.states[route] = s
	}
	return s
}

// prepare returns how to insert a route's rows. A nil plan means that the route is parked, and why. A
// parked route whose time has come is tried again only when mayProbe.
func (t *Tables) prepare(ctx context.Context, route *mapping.Route, mayProbe bool) (_ *plan, parked string, err error) {
	t.mu.Lock()
	s := t.state(route)
	p := s.plan
	if s.reason != "" && t.parked(s) && (!mayProbe || time.Now().Before(s.nextProbe)) {
		parked = s.reason
	}
	t.mu.Unlock()
	if parked != "" {
		return nil, parked, nil
	}
	if p != nil {
		return p, "", nil
	}
	if err := t.ensureRoute(ctx, route); err != nil {
		return nil, "", err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.state(route).plan, "", nil
}

// probing says that a route is parked: an insert that is made all the same is a probe.
func (t *Tables) probing(route *mapping.Route) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.state(route)
	return s.reason != "" && t.parked(s)
}

// parked says that a failing route has had its time. Called with mu held.
func (t *Tables) parked(s *tableState) bool { return time.Since(s.failingSince) >= t.cfg.ParkAfter }

// failed notes that a route's table could not be written or does not suit, and says whether the
// route is parked thereby.
func (t *Tables) failed(route *mapping.Route, err error, byInsert bool) (parked bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.state(route)
	if s.reason == "" {
		s.failingSince = time.Now()
		t.log.Error("table of route cannot be written", zap.String("route", route.Name), zap.Error(err), zap.Duration("parked_after", t.cfg.ParkAfter))
	}
	s.byInsert = s.byInsert || byInsert
	s.reason = err.Error()
	if pgErr := (*pgconn.PgError)(nil); !errors.As(err, &pgErr) || pgErr.Code != "55P03" {
		s.plan = nil // look at the table again before the next insert; a locked one would only hold up the look
	}
	if t.parked(s) {
		s.probes = min(s.probes+1, 6)
	}
	s.nextProbe = time.Now().Add(t.cfg.probeEvery * time.Duration(max(1, s.probes)))
	return t.parked(s)
}

// succeeded notes that rows of a route were committed.
func (t *Tables) succeeded(route *mapping.Route) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s := t.state(route); s.reason != "" {
		t.log.Info("table of route can be written again", zap.String("route", route.Name), zap.Duration("failed_for", time.Since(s.failingSince)))
		s.reason, s.byInsert, s.probes = "", false, 0
	}
}

// ensureRoute brings a route's table to what the route needs and notes how to insert into it. An
// error with verdictRoute is noted as the route's.
func (t *Tables) ensureRoute(ctx context.Context, route *mapping.Route) error {
	t.ensuring.Lock()
	defer t.ensuring.Unlock()
	ctx, cancel := context.WithTimeout(ctx, t.cfg.attemptTimeout)
	defer cancel()
	table, warnings, err := t.ensureTable(ctx, route)
	if err != nil {
		err = fmt.Errorf("prepare table %s of route %s: %w", tableName(&route.Table), route.Name, err)
		if classify(err) == verdictRoute {
			t.failed(route, err, false)
		}
		return err
	}
	// Others wait for the look at a parked table. Maintain makes its partitions when it is well again.
	if !t.probing(route) {
		if err := t.makePartitions(ctx, &route.Table, table); err != nil {
			// The default partition takes the rows meanwhile, and Maintain tries again.
			warnings = append(warnings, "partitions are not made: "+err.Error())
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.state(route)
	for _, w := range warnings {
		if !slices.Contains(s.warnings, w) {
			t.log.Warn("table is used as it is", zap.String("route", route.Name), zap.String("warning", w))
		}
	}
	if place := table.schema + "." + table.name; s.place != place {
		t.log.Info("table of route", zap.String("route", route.Name), zap.String("table", place))
		s.place = place
	}
	s.plan, s.warnings = newPlan(route, table.unique(route.Table.KeyColumns)), warnings
	if !s.byInsert {
		s.reason = ""
	}
	return nil
}

// ensureTable returns the table as it is then, and what an operator should know about it.
func (t *Tables) ensureTable(ctx context.Context, route *mapping.Route) (*catalogTable, []string, error) {
	want := &route.Table
	r, table, err := look(ctx, t.pool, t.cfg.Schema, route)
	if err != nil || !r.Create && len(r.Add) == 0 {
		return table, r.Warnings, err
	}
	err = t.change(ctx, func(tx pgx.Tx) error {
		// Another replica may have done it while we waited for the lock.
		table, err := inspect(ctx, tx, want)
		if err != nil {
			return err
		}
		if table == nil {
			return create(ctx, tx, want)
		}
		missing, err := table.missing(want)
		if err != nil {
			return err
		}
		return addColumns(ctx, tx, want, missing)
	})
	if err != nil {
		return nil, nil, err
	}
	r, table, err = look(ctx, t.pool, t.cfg.Schema, route)
	if err == nil && (r.Create || len(r.Add) > 0) {
		err = &TableError{tableName(want), "was created or extended, but is not there"}
	}
	return table, r.Warnings, err
}

// change runs data definition in a transaction, one replica at a time. It waits for locks only
// briefly: while it waits for an exclusive lock on a table, all writers of that table wait behind it.
func (t *Tables) change(ctx context.Context, f func(tx pgx.Tx) error) error {
	return pgx.BeginFunc(ctx, t.pool, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `select set_config('lock_timeout', $1, true), set_config('timezone', 'UTC', true)`, string(milliseconds(t.cfg.lockTimeout)))
		if err != nil {
			return fmt.Errorf("limit the wait for locks: %w", err)
		}
		if _, err := tx.Exec(ctx, `select pg_advisory_xact_lock($1)`, tableLock); err != nil {
			return fmt.Errorf("wait for other replicas to change tables: %w", err)
		}
		return f(tx)
	})
}

// nameable says that a table that is to be made leaves room for the names of its partitions.
func nameable(want *mapping.Table) error {
	if want.Partition != mapping.PartitionNone && want.Partition != "" && len(want.Name) > maxPartitionedName {
		return &TableError{tableName(want), fmt.Sprintf("the name is too long for a partitioned table: at most %d bytes, so that its partitions can be named", maxPartitionedName)}
	}
	return nil
}

func create(ctx context.Context, tx pgx.Tx, want *mapping.Table) error {
	if err := nameable(want); err != nil {
		return err
	}
	if want.Schema != "" {
		var there bool
		if err := tx.QueryRow(ctx, `select exists (select from pg_catalog.pg_namespace where nspname = $1)`, want.Schema).Scan(&there); err != nil {
			return fmt.Errorf("look for schema %s: %w", want.Schema, err)
		}
		if !there {
			if _, err := tx.Exec(ctx, "create schema "+pgx.Identifier{want.Schema}.Sanitize()); err != nil {
				return fmt.Errorf("create schema %s: %w", want.Schema, err)
			}
		}
	}
	for _, statement := range DDL(want) {
		if _, err := tx.Exec(ctx, statement); err != nil {
			return fmt.Errorf("create table %s: %w", tableName(want), err)
		}
	}
	return nil
}

func addColumns(ctx context.Context, tx pgx.Tx, want *mapping.Table, missing []mapping.Column) error {
	for _, column := range missing {
		column.NotNull = false // the rows that are there have no value for it
		_, err := tx.Exec(ctx, "alter table "+tableIdentifier(want).Sanitize()+" add column "+columnDefinition(column))
		if err != nil {
			return fmt.Errorf("add column %s to %s: %w", column.Name, tableName(want), err)
		}
	}
	return nil
}

// Maintain makes partitions ahead, drops what retention lets go, and looks again at failing tables,
// until ctx is done. Trouble is logged and tried again; it never ends the loop.
func (t *Tables) Maintain(ctx context.Context) {
	const every, soon = time.Hour, time.Minute
	look := time.NewTicker(t.cfg.probeEvery)
	defer look.Stop()
	due := time.Now()
	for {
		if !time.Now().Before(due) {
			due = time.Now().Add(every)
			if err := t.maintain(ctx); err != nil && ctx.Err() == nil {
				t.log.Warn("tables not maintained, trying again soon", zap.Error(err))
				due = time.Now().Add(soon)
			}
		}
		t.mendFailing(ctx)
		select {
		case <-ctx.Done():
			return
		case <-look.C:
		}
	}
}

// mendFailing looks again at tables that did not suit, so that a mended one is known to be good
// before its next message comes.
func (t *Tables) mendFailing(ctx context.Context) {
	t.mu.Lock()
	var failing []*mapping.Route
	for route, s := range t.states {
		if s.reason != "" && s.plan == nil {
			failing = append(failing, route)
		}
	}
	t.mu.Unlock()
	for _, route := range failing {
		// The outcome is in the state; trouble of the database itself is the monitor's to report.
		_ = t.ensureRoute(ctx, route)
	}
}

func (t *Tables) maintain(ctx context.Context) error {
	var errs []error
	tables := map[string]*mapping.Table{}
	retention := map[string]time.Duration{}
	for _, route := range t.routes {
		table := &route.Table
		name := tableName(table)
		if r, known := retention[name]; known {
			// Several routes share the table: it keeps what any of them wants kept.
			if r == 0 || table.Retention == 0 {
				retention[name] = 0
			} else {
				retention[name] = max(r, table.Retention)
			}
			continue
		}
		tables[name], retention[name] = table, table.Retention
	}
	for _, name := range slices.Sorted(maps.Keys(tables)) {
		found, err := inspect(ctx, t.pool, tables[name])
		if err == nil && found != nil {
			err = errors.Join(t.makePartitions(ctx, tables[name], found), t.expire(ctx, found, retention[name]))
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("maintain table %s: %w", name, err))
		}
	}
	return errors.Join(errs...)
}
