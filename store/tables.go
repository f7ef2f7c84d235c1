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
//
// A route whose table cannot be written is failing: the line is held for it for Config.ParkAfter. Then
// it is parked: the line leaves its table alone and makes dead letters of its messages, until [Tables.Maintain]
// finds that the table can be written again. Tables is a [prometheus.Collector].
type Tables struct {
	pool   *pgxpool.Pool
	cfg    Config
	routes *mapping.Routes
	log    *zap.Logger

	mu     sync.Mutex
	states map[*mapping.Route]*tableState
}

// tableState is what is known of a route's table.
type tableState struct {
	looking sync.Mutex // one goroutine looks at the table, at a time

	// The rest is under Tables.mu.

	plan      *plan  // nil: has to be looked at before the next insert
	place     string // the table with its schema; empty: not looked at yet
	warnings  []string
	unmade    string // why partitions are not made; empty: they are
	due       bool   // they should be looked at soon
	unexpired string // why rows that retention lets go are still there; empty: they are gone

	reason       string // why the route fails; empty: it does not
	failingSince time.Time
	parkAt       time.Time // failing: the line is held until then
	byInsert     bool      // an insert failed, so that only an insert can prove the table good
	parked       bool
	mendedAt     time.Time // when it was parked last, until then; zero: never

	refusals int    // batches in a row of which the database refused every message of the route
	refusal  string // and why

	rowCodes map[string]bool // SQLSTATEs of tables by which this one refused some rows and took others

	vanishing bool      // rows that it took without an error were not in it
	lookedAt  time.Time // for that

	mendAt   time.Time     // the mender leaves the route alone until then
	mendWait time.Duration // and has waited so long for that

	mendBehind any    // the letter behind which the next round of the mender begins; nil: with the first
	waiting    uint64 // parked messages of all processes, as last counted
	replayed   uint64 // dead letters
}

const (
	// relapseWithin is for how long after a route was parked another failure parks it at once: all
	// routes have waited for it once.
	relapseWithin = time.Minute
	// failingRefusals is how many batches in a row make a route failing of which the database refuses
	// every message for its values. Nothing is held up for it; but somebody should look.
	failingRefusals = 3
)

// NewTables returns the tables of routes.
func NewTables(pool *pgxpool.Pool, cfg Config, routes *mapping.Routes) *Tables {
	cfg = cfg.withDefaults()
	t := &Tables{pool: pool, cfg: cfg, routes: routes, log: cfg.Log.Named("tables"), states: map[*mapping.Route]*tableState{}}
	for _, route := range routes.All() {
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
	s := newSurvey(t.pool, t.cfg.Schema)
	ensure := func() error {
		var errs []error
		for _, route := range t.routes.All() {
			err := t.ensureRoute(ctx, route, true, s)
			if err != nil && classify(err) != verdictRoute {
				errs = append(errs, err)
			}
		}
		return errors.Join(errs...)
	}
	if err := ensure(); err != nil || !s.changed {
		return err
	}
	return ensure() // what a route added to a table is news to the others that write it
}

// Failing returns the routes whose tables cannot be written now, or refuse every message, and why.
func (t *Tables) Failing() map[string]string {
	t.mu.Lock()
	defer t.mu.Unlock()
	failing := map[string]string{}
	for route, s := range t.states {
		switch {
		case s.reason != "":
			failing[route.Name] = s.reason
		case s.refusals >= failingRefusals:
			failing[route.Name] = fmt.Sprintf("the database refused every message of the last %d batches: %s", s.refusals, s.refusal)
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
		if s.unmade != "" {
			all[route.Name] = append(all[route.Name], "partitions are not made: "+s.unmade)
		}
		if s.unexpired != "" {
			all[route.Name] = append(all[route.Name], "rows older than RETENTION are not removed: "+s.unexpired)
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

// prepare looks at a route's table and returns how to insert its rows. A nil plan without an error means that the route is
// parked, and why.
func (t *Tables) prepare(ctx context.Context, route *mapping.Route) (_ *plan, parked string, err error) {
	err = t.ensureRoute(ctx, route, false, newSurvey(t.pool, t.cfg.Schema))
	p, parked, _ := t.known(route)
	if parked != "" {
		return nil, parked, nil
	}
	if p == nil && err == nil { // another writer has failed in the meantime
		err = fmt.Errorf("prepare table %s of route %s: %w", tableName(&route.Table), route.Name, &TableError{tableName(&route.Table), "has failed meanwhile"})
	}
	return p, "", err
}

// known returns what a route's rows are inserted with, nil when its table has to be looked at; or why it
// is parked. Failing says that the last attempt to write its table did not succeed.
func (t *Tables) known(route *mapping.Route) (_ *plan, parked string, failing bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.state(route)
	if s.parked {
		return nil, s.reason, true
	}
	return s.plan, "", s.reason != ""
}

// uncopied notes that a route's table takes inserts alone, as long as it is not looked at again.
func (t *Tables) uncopied(route *mapping.Route) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s := t.state(route); s.plan != nil {
		p := *s.plan
		p.copy = ""
		s.plan = &p
	}
}

// lookAgain has a route's table looked at before the next batch.
func (t *Tables) lookAgain(route *mapping.Route) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.state(route).plan = nil
}

// failing says that the last attempt to write a route's table did not succeed.
func (t *Tables) failing(route *mapping.Route) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.state(route).reason != ""
}

// failed notes that a route's table could not be written or does not suit in an attempt that began at
// since, and says whether the route is parked. All routes that fail in one attempt have the same
// delay, so that they are parked together.
func (t *Tables) failed(route *mapping.Route, err error, byInsert bool, since time.Time) (parked bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.state(route)
	if s.reason == "" {
		s.failingSince, s.parkAt = since, since.Add(t.cfg.ParkAfter)
		if time.Since(s.mendedAt) < relapseWithin {
			s.parkAt = since
		}
		t.log.Error("table of route cannot be written", zap.String("route", route.Name), zap.Error(err), zap.Duration("parked_after", t.cfg.ParkAfter))
	}
	s.byInsert = s.byInsert || byInsert
	s.reason = err.Error()
	s.rowCodes = nil
	if pgErr := (*pgconn.PgError)(nil); !errors.As(err, &pgErr) || pgErr.Code != "55P03" {
		s.plan = nil // look at the table again before the next insert; a locked one would only hold up the look
	}
	if !s.parked && !time.Now().Before(s.parkAt) {
		t.park(route, s)
	}
	return s.parked
}

// untilParked is for how long a failing route goes on to hold the line.
func (t *Tables) untilParked(route *mapping.Route) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	const least = time.Millisecond
	return max(least, time.Until(t.state(route).parkAt))
}

// failedForRows notes that a table takes rows, but none of a batch's. Waiting mends no row: the route
// is parked at once.
func (t *Tables) failedForRows(route *mapping.Route, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.state(route)
	if s.reason == "" {
		s.failingSince = time.Now()
		s.parkAt = s.failingSince
		t.log.Error("table of route refuses every row", zap.String("route", route.Name), zap.Error(err))
	}
	s.reason, s.byInsert, s.plan = err.Error(), true, nil
	if !s.parked {
		t.park(route, s)
	}
}

// ofSomeRows notes that a table refused some rows in words that speak of the table, and took others.
func (t *Tables) ofSomeRows(route *mapping.Route, err error) {
	pgErr := (*pgconn.PgError)(nil)
	if route == nil || !errors.As(err, &pgErr) {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.state(route)
	if s.rowCodes == nil {
		s.rowCodes = map[string]bool{}
	}
	s.rowCodes[pgErr.Code] = true
}

// isOfRows says that an error of that kind has been of some rows alone before.
func (t *Tables) isOfRows(route *mapping.Route, err error) bool {
	pgErr := (*pgconn.PgError)(nil)
	if !errors.As(err, &pgErr) {
		return false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.state(route).rowCodes[pgErr.Code]
}

// park is called with mu held.
func (t *Tables) park(route *mapping.Route, s *tableState) {
	if time.Since(s.mendedAt) >= relapseWithin {
		s.mendWait = 0
	}
	s.parked = true
	t.mendRarer(s)
	t.log.Warn("route is parked: its messages become dead letters until its table can be written", zap.String("route", route.Name))
}

// succeeded notes that rows of a route were committed.
func (t *Tables) succeeded(route *mapping.Route) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.mended(route, t.state(route))
}

// committed notes that a batch with rows of a route was committed, and why the database refused every message of
// the route; an empty refusal: it did not.
func (t *Tables) committed(route *mapping.Route, refusal string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.state(route)
	t.mended(route, s)
	if refusal == "" {
		s.refusals = 0
		return
	}
	s.refusals, s.refusal = s.refusals+1, refusal
}

// mended is called with mu held.
func (t *Tables) mended(route *mapping.Route, s *tableState) {
	if s.reason == "" {
		return
	}
	t.log.Info("table of route can be written again", zap.String("route", route.Name), zap.Duration("failed_for", time.Since(s.failingSince)))
	if s.parked {
		s.mendedAt = time.Now()
	}
	s.reason, s.byInsert, s.parked = "", false, false
}

// ensureRoute brings a route's table to what the route needs and notes how to insert into it. An
// error with verdictRoute is noted as the route's. Unless beside the line, it does no more than must be
// done for a route that fails.
func (t *Tables) ensureRoute(ctx context.Context, route *mapping.Route, beside bool, seen *survey) error {
	t.mu.Lock()
	looking := &t.state(route).looking
	t.mu.Unlock()
	looking.Lock()
	defer looking.Unlock()
	ctx, cancel := context.WithTimeout(ctx, t.cfg.attemptTimeout)
	defer cancel()
	began := time.Now()
	failing := t.failing(route)
	wait := t.cfg.lineLock
	if failing {
		wait = t.cfg.shortLock
	}
	t.mu.Lock()
	known := t.state(route).place != ""
	t.mu.Unlock()
	table, warnings, err := t.ensureTable(ctx, route, wait, known, seen)
	if err != nil {
		err = fmt.Errorf("prepare table %s of route %s: %w", tableName(&route.Table), route.Name, err)
		if classify(err) == verdictRoute {
			t.failed(route, err, false, began)
		}
		return err
	}
	var unmade error
	partitions := beside || !failing
	if partitions {
		wanted := partitioning{tableName(&route.Table), route.Table.Partition}
		reason, made := seen.partitions[wanted]
		if !made {
			reason = t.makePartitions(ctx, &route.Table, table)
			seen.partitions[wanted] = reason
		}
		unmade = reason
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.state(route)
	place := table.schema + "." + table.name
	for _, other := range t.routes.All() {
		if other == route {
			break
		}
		if t.state(other).place == place {
			if warning := Alias(route, other); warning != "" {
				warnings = append(warnings, warning)
			}
			break
		}
	}
	for _, w := range warnings {
		if !slices.Contains(s.warnings, w) {
			t.log.Warn("table is used as it is", zap.String("route", route.Name), zap.String("warning", w))
		}
	}
	// The default partition takes the rows until Maintain has made those that are missing.
	if partitions {
		if unmade != nil && s.unmade == "" {
			t.log.Warn("partitions are not made, trying again soon", zap.String("route", route.Name), zap.Error(unmade))
		}
		s.partitioned(unmade)
	} else {
		s.due = true
	}
	if s.place != place {
		t.log.Info("table of route", zap.String("route", route.Name), zap.String("table", place))
		s.place = place
	}
	s.plan, s.warnings = newPlan(route, table), warnings
	if !s.byInsert {
		t.mended(route, s)
	}
	return nil
}

// partitioned notes whether the partitions could be made. Called with mu held.
func (s *tableState) partitioned(err error) {
	s.unmade, s.due = "", err != nil
	if err != nil {
		s.unmade = err.Error()
	}
}

// ensureTable returns the table as it is then, and what an operator should know about it. It waits for
// the lock of a table at most for wait. What has to be made of a table that was known is a loss.
func (t *Tables) ensureTable(ctx context.Context, route *mapping.Route, wait time.Duration, known bool, seen *survey) (*catalogTable, []string, error) {
	want := &route.Table
	r, table, err := seen.look(ctx, route)
	if err != nil || !r.Create && len(r.Add) == 0 {
		return table, r.Warnings, err
	}
	var created bool
	var added []string
	err = t.change(ctx, wait, func(tx pgx.Tx) error {
		// Another replica may have done it while we waited for the lock.
		table, err := inspect(ctx, tx, want)
		if err != nil {
			return err
		}
		if table == nil {
			created = true
			return create(ctx, tx, want)
		}
		missing, err := table.missing(want)
		if err != nil {
			return err
		}
		for _, column := range missing {
			added = append(added, column.Name)
		}
		return addColumns(ctx, tx, want, missing)
	})
	if err != nil {
		return nil, nil, err
	}
	switch {
	case known && created:
		t.log.Warn("table of route was gone and has been made anew, empty", zap.String("route", route.Name), zap.String("table", tableName(want)))
	case known && len(added) > 0:
		t.log.Warn("columns of table were gone and have been added anew, empty", zap.String("route", route.Name), zap.String("table", tableName(want)), zap.Strings("columns", added))
	}
	seen.forget()
	r, table, err = seen.look(ctx, route)
	if err == nil && (r.Create || len(r.Add) > 0) {
		err = &TableError{tableName(want), "was created or extended, but is not there"}
	}
	return table, r.Warnings, err
}

// change runs data definition in a transaction, one replica at a time. It waits for the locks of tables
// at most for wait: while it waits for an exclusive lock on a table, all writers of that table wait
// behind it. The others may wait for several tables.
func (t *Tables) change(ctx context.Context, wait time.Duration, f func(tx pgx.Tx) error) error {
	const othersWait = 10
	return pgx.BeginFunc(ctx, t.pool, func(tx pgx.Tx) error {
		// The server notices within half a minute that this process is gone, as in guard: it holds locks that all wait for.
		_, err := tx.Exec(ctx, `select set_config('lock_timeout', $1, true), set_config('timezone', 'UTC', true),`+
			` set_config('idle_in_transaction_session_timeout', $2, true), set_config('tcp_keepalives_idle', '15', true),`+
			` set_config('tcp_keepalives_interval', '5', true), set_config('tcp_keepalives_count', '3', true)`,
			string(milliseconds(othersWait*wait)), string(milliseconds(t.cfg.attemptTimeout)))
		if err != nil {
			return fmt.Errorf("limit the wait for locks: %w", err)
		}
		if _, err := tx.Exec(ctx, `select pg_advisory_xact_lock($1)`, tableLock); err != nil {
			return fmt.Errorf("wait for other replicas to change tables: %w", err)
		}
		if _, err := tx.Exec(ctx, `select set_config('lock_timeout', $1, true)`, string(milliseconds(wait))); err != nil {
			return fmt.Errorf("limit the wait for locks: %w", err)
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

// Maintain makes partitions ahead and drops what retention lets go, and beside that mends what is
// failing or parked, until ctx is done. It is called after [Tables.Ensure], and begins half a minute later. Trouble is
// logged and tried again; it never ends the loop.
func (t *Tables) Maintain(ctx context.Context) {
	const every = time.Hour
	var mending sync.WaitGroup
	defer mending.Wait()
	mending.Go(func() { t.mendAll(ctx) })
	again, reported := time.Now().Add(t.cfg.maintainSoon), "" // Ensure has just looked at all; not after the first tick
	ticker := time.NewTicker(t.cfg.maintainSoon)
	defer ticker.Stop()
	for {
		if !time.Now().Before(again) || t.maintenanceDue() {
			again = time.Now().Add(every)
			err := Plain(t.maintain(ctx))
			text := ""
			if err != nil && ctx.Err() == nil {
				again, text = time.Time{}, err.Error()
			}
			if text != "" && text != reported {
				t.log.Warn("tables not maintained, trying again soon", zap.Error(err))
			}
			reported = text
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// MaintainOnce makes partitions ahead and drops what retention lets go. It may take as long as that takes, and may run beside
// [Tables.Maintain]. A table that could not be maintained does not keep it from the others; the error names all.
func (t *Tables) MaintainOnce(ctx context.Context) error { return t.maintain(ctx) }

// maintenanceDue says that partitions should be looked at soon.
func (t *Tables) maintenanceDue() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, s := range t.states {
		if s.due {
			return true
		}
	}
	return false
}

func (t *Tables) maintain(ctx context.Context) error {
	var errs []error
	tables := map[string]*mapping.Table{}
	retention := map[string]time.Duration{}
	for _, route := range t.routes.All() {
		table := &route.Table
		name := tableName(table)
		if r, known := retention[name]; known {
			retention[name] = longer(r, table.Retention) // several routes share the table
			continue
		}
		tables[name], retention[name] = table, table.Retention
	}
	var seen []expiring
	unseen := map[string]bool{} // names without a schema of tables that could not be looked at
	for _, name := range slices.Sorted(maps.Keys(tables)) {
		found, err := inspect(ctx, t.pool, tables[name])
		if err != nil && classify(err) != verdictRoute { // what does not suit is another one: both names would say so
			unseen[tables[name].Name] = true
		}
		if err == nil && found == nil {
			t.expired(expiring{names: []string{name}}, nil) // what was too old is gone with it
		}
		if err == nil && found != nil {
			i := slices.IndexFunc(seen, func(e expiring) bool { return e.table.oid == found.oid })
			if i < 0 {
				seen = append(seen, expiring{found, retention[name], []string{name}})
			} else { // t and public.t
				seen[i].retention = longer(seen[i].retention, retention[name])
				seen[i].names = append(seen[i].names, name)
			}
			unmade := t.makePartitions(ctx, tables[name], found)
			t.mu.Lock()
			for route, s := range t.states {
				if tableName(&route.Table) != name {
					continue
				}
				s.partitioned(unmade)
				if s.plan == nil {
					continue
				}
				// Rules, triggers and indexes may have come and gone. Only what no longer suits is looked at again
				// by the line, which waits for that.
				s.plan = nil
				if missing, err := found.missing(&route.Table); err == nil && len(missing) == 0 {
					s.plan = newPlan(route, found)
				}
			}
			t.mu.Unlock()
			err = unmade
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("maintain table %s: %w", name, err))
		}
	}
	for _, e := range seen {
		if unseen[e.table.name] {
			continue // it may be this table by another name, of a route that keeps more
		}
		err := t.expire(ctx, e.table, e.retention)
		if err != nil {
			errs = append(errs, fmt.Errorf("maintain table %s.%s: %w", e.table.schema, e.table.name, err))
		}
		t.expired(e, err)
	}
	return errors.Join(errs...)
}

// expiring is a table and how long its rows are kept.
type expiring struct {
	table     *catalogTable
	retention time.Duration
	names     []string // by which routes call it
}

// expired notes whether what is too old is gone.
func (t *Tables) expired(e expiring, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for route, s := range t.states {
		if !slices.Contains(e.names, tableName(&route.Table)) {
			continue
		}
		s.unexpired = ""
		if err != nil {
			s.unexpired = err.Error()
		}
	}
}

// longer is the retention that keeps what any of two wants kept. 0 is for ever.
func longer(a, b time.Duration) time.Duration {
	if a == 0 || b == 0 {
		return 0
	}
	return max(a, b)
}
