package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// isolation commits a batch that the database does not take as it is. Each route is written behind a
// savepoint of its own. Where messages are refused, it halves the units of the route until the bad
// ones stand alone, makes dead letters of them, and commits them together with all the good ones. Where
// a table cannot be written, it notes so, and makes dead letters of all messages of the route once that
// is parked; before, it ends without a commit, but finds all such tables at a time.
type isolation struct {
	writer   *Writer
	conn     *pgconn.PgConn
	progress func()
	batch    *batch
	outcome  *outcome
	began    time.Time        // of the attempt
	broken   error            // the first route that holds the batch up
	locked   map[string]error // tables that were waited for in vain: other routes of theirs need not wait again

	// Of the route at work.
	part    outcome // what became of its units so far
	byRow   bool    // its table takes rows: what it refuses is the fault of the row
	known   bool    // it has refused some in the same words, and taken others
	refused int     // units
}

// giveUpAfter is how many units of a route are refused one by one, and none taken, before all of them
// are held to be: a batch of thousands must not hold up the line for that.
const giveUpAfter = 50

// errAllRefused is why a route is parked whose table takes no row although it could.
var errAllRefused = errors.New("the table takes none of the rows")

func (is *isolation) run(ctx context.Context, guard *statement, live []*insertion) error {
	w := is.writer
	// Deferred constraints must speak up while it is still known whose row they speak of.
	_, err := run(ctx, is.conn, []*statement{{sql: "begin"}, guard, {sql: "set constraints all immediate"}})
	if err != nil {
		return judged(fmt.Errorf("begin isolation: %w", err), nil, false)
	}
	// What failed comes first: what it holds up needs not be written to no avail.
	order := slices.Clone(live)
	slices.SortStableFunc(order, func(a, b *insertion) int { return cmp.Compare(boolByte(b.failing), boolByte(a.failing)) })
	for _, in := range order {
		in.copying = false // nor is anything copied of a route that turns out to be parked
		if is.broken != nil && is.batch.searched && !in.failing {
			break
		}
		if err := is.route(ctx, in); err != nil {
			return err
		}
	}
	is.batch.searched = true
	if is.broken != nil {
		return is.broken
	}
	closing := is.batch.record.statements(w.cfg.Schema, w.fence)
	letters, err := insertDeadLetters(w.cfg.Schema, is.outcome.letters, is.batch.cuts())
	if err != nil {
		return err
	}
	first, end := len(closing), len(closing)+len(letters)
	closing = append(closing, letters...)
	if failed, err := run(ctx, is.conn, append(closing, &statement{sql: "commit"})); err != nil {
		e := judged(fmt.Errorf("commit isolation: %w", err), nil, false)
		e.letter = first <= failed && failed < end
		return e
	}
	return nil
}

// route writes what it can of one route.
func (is *isolation) route(ctx context.Context, in *insertion) error {
	route := in.plan.route
	g := is.batch.groupOf(in)
	park := func(why string) {
		is.outcome.letters = append(is.outcome.letters, is.batch.refuse(g, g.units, ReasonTableUnusable, why)...)
	}
	if _, why, _ := is.writer.tables.known(route); why != "" {
		park(why) // another writer has parked it, or this attempt
		return nil
	}
	hold := func(err error) {
		if is.writer.tables.failed(route, err, true, is.began) {
			_, why, _ := is.writer.tables.known(route)
			park(why)
		} else {
			is.broken = cmp.Or(is.broken, error(&attemptError{verdict: verdictRoute, route: route, err: err}))
		}
	}
	if err := is.locked[in.plan.table]; err != nil {
		hold(fmt.Errorf("insert into %s for route %s: %w", in.plan.table, route.Name, err))
		return nil
	}
	err := is.units(ctx, in, g, false)
	failed := (*attemptError)(nil)
	if err == nil || !errors.As(err, &failed) || failed.verdict != verdictRoute {
		return err
	}
	if !waited(err) {
		// The table or the rows? Where none is refused, the table is well.
		if err := is.undo(ctx, "route"); err != nil {
			return err
		}
		if _, err := run(ctx, is.conn, []*statement{in.plan.nothing()}); err == nil {
			is.progress()
			is.known = is.writer.tables.isOfRows(route, failed)
			again := is.units(ctx, in, g, true)
			if again == nil {
				is.writer.tables.ofSomeRows(route, failed)
				return nil
			}
			if errors.Is(again, errAllRefused) {
				is.writer.tables.failedForRows(route, failed)
				park(failed.Error())
				return is.undo(ctx, "route")
			}
			if !errors.As(again, &failed) || failed.verdict != verdictRoute {
				return again
			}
		} else if pgErr := (*pgconn.PgError)(nil); !errors.As(err, &pgErr) {
			return judged(err, nil, false)
		}
	}
	if pgErr := (*pgconn.PgError)(nil); errors.As(err, &pgErr) && pgErr.Code == "55P03" {
		if is.locked == nil {
			is.locked = map[string]error{}
		}
		is.locked[in.plan.table] = pgErr
	}
	hold(failed.err)
	return is.undo(ctx, "route")
}

// undo takes back what was written since a savepoint, which stays.
func (is *isolation) undo(ctx context.Context, savepoint string) error {
	if _, err := run(ctx, is.conn, []*statement{{sql: "rollback to savepoint " + savepoint}}); err != nil {
		return judged(fmt.Errorf("roll back: %w", err), nil, false)
	}
	is.progress()
	return nil
}

// units writes a route's units behind a savepoint. byRow: its table takes rows, so that what it refuses
// is the fault of the row.
func (is *isolation) units(ctx context.Context, in *insertion, g *group, byRow bool) error {
	is.part, is.byRow, is.refused = outcome{tallies: tallies{}}, byRow, 0
	if _, err := run(ctx, is.conn, []*statement{{sql: "savepoint route"}}); err != nil {
		return judged(fmt.Errorf("set savepoint: %w", err), nil, false)
	}
	if err := is.halve(ctx, in, g, g.units); err != nil {
		return err
	}
	if byRow && is.refused == len(g.units) && !is.known {
		return errAllRefused
	}
	is.outcome.letters = append(is.outcome.letters, is.part.letters...)
	maps.Copy(is.outcome.tallies, is.part.tallies)
	return nil
}

func (b *batch) groupOf(in *insertion) *group {
	for i := range b.groups {
		if b.groups[i].route == in.plan.route {
			return &b.groups[i]
		}
	}
	panic("insertion of a route that is not in the batch")
}

// halve inserts units, or the halves of them, or refuses the one unit that is left.
func (is *isolation) halve(ctx context.Context, in *insertion, g *group, units []unit) error {
	err := is.try(ctx, in, units)
	if err == nil {
		return nil
	}
	failed := (*attemptError)(nil)
	if !errors.As(err, &failed) {
		return err
	}
	ofRow := failed.verdict == verdictData || is.byRow && failed.verdict == verdictRoute && !waited(err) ||
		is.batch.stubborn >= stubbornAttempts && failed.route != nil && ofServer(err)
	if !ofRow {
		return err
	}
	if _, err := run(ctx, is.conn, []*statement{{sql: "rollback to savepoint part"}, {sql: "release savepoint part"}}); err != nil {
		return judged(fmt.Errorf("roll back: %w", err), nil, false)
	}
	is.progress()
	if len(units) > 1 {
		middle := len(units) / 2
		if err := is.halve(ctx, in, g, units[:middle]); err != nil {
			return err
		}
		return is.halve(ctx, in, g, units[middle:])
	}
	is.refused++
	if is.byRow && is.refused == giveUpAfter && len(is.part.tallies) == 0 && !is.known {
		return errAllRefused
	}
	is.part.letters = append(is.part.letters, is.batch.refuse(g, units, ReasonDatabase, databaseDetail(failed.err))...)
	return nil
}

// try inserts units behind a savepoint, in one round trip.
func (is *isolation) try(ctx context.Context, in *insertion, units []unit) error {
	in.prepareInsert(in.plan, units)
	statements := []*statement{{sql: "savepoint part"}}
	for _, s := range in.parts {
		statements = append(statements, &s.statement)
	}
	statements = append(statements, &statement{sql: "release savepoint part"})
	failed, err := run(ctx, is.conn, statements)
	if err != nil {
		if 0 < failed && failed < len(statements)-1 {
			return judged(err, in, false)
		}
		return judged(err, nil, false)
	}
	is.progress()
	is.writer.count(&is.part, in, len(units))
	return nil
}

// databaseDetail says what the database found wrong with a message. It names column and constraint
// and leaves out PgError.Detail, which repeats the whole row.
func databaseDetail(err error) string {
	pgErr := (*pgconn.PgError)(nil)
	if !errors.As(err, &pgErr) {
		return cutDetail(err.Error())
	}
	detail := fmt.Sprintf("SQLSTATE %s: %s", pgErr.Code, pgErr.Message)
	if pgErr.ColumnName != "" {
		detail += ", column " + pgErr.ColumnName
	}
	if pgErr.ConstraintName != "" {
		detail += ", constraint " + pgErr.ConstraintName
	}
	return cutDetail(detail)
}
