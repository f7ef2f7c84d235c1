package store

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5/pgconn"
)

// isolation commits a batch that holds messages which the database refuses: it halves the units of
// each route until the bad ones stand alone, makes dead letters of them, and commits them together
// with all the good ones.
type isolation struct {
	writer   *Writer
	conn     *pgconn.PgConn
	progress func()
	batch    *batch
	outcome  *outcome
}

func (w *Writer) isolate(ctx context.Context, progress func(), conn *pgconn.PgConn, guard *statement, b *batch, live []*insertion, o *outcome) error {
	is := &isolation{writer: w, conn: conn, progress: progress, batch: b, outcome: o}
	// Deferred constraints must speak up while it is still known whose row they speak of.
	_, err := run(ctx, conn, []*statement{{sql: "begin"}, guard, {sql: "set constraints all immediate"}})
	if err != nil {
		return judged(fmt.Errorf("begin isolation: %w", err), nil, false)
	}
	for _, in := range live {
		group := b.groupOf(in)
		if err := is.halve(ctx, in, group, group.units); err != nil {
			return err
		}
	}
	closing := b.record.statements(w.cfg.Schema, w.fence)
	letters, err := insertDeadLetters(w.cfg.Schema, o.letters)
	if err != nil {
		return err
	}
	closing = append(closing, letters...)
	if _, err := run(ctx, conn, append(closing, &statement{sql: "commit"})); err != nil {
		return judged(fmt.Errorf("commit isolation: %w", err), nil, false)
	}
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
	if !errors.As(err, &failed) || failed.verdict != verdictData {
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
	is.outcome.letters = append(is.outcome.letters, is.batch.refuse(g, units, ReasonDatabase, databaseDetail(failed.err))...)
	return nil
}

// try inserts units behind a savepoint, in one round trip.
func (is *isolation) try(ctx context.Context, in *insertion, units []unit) error {
	in.prepare(in.plan, units)
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
	is.writer.count(is.outcome, in, len(units))
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
