package store

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/mqttpg/bridge/mapping"
	"go.uber.org/zap"
)

const (
	defaultSuffix = "_default"
	// Partitions are made for the past range, for late rows right after midnight, the present one
	// and three ahead, which outlasts a long weekend without maintenance.
	partitionsBack, partitionsAhead = 1, 3
	// maxPartitionedName leaves room for the longest suffix, _pYYYYMMDD, in an identifier of 63 bytes.
	maxPartitionedName = 63 - len("_p20060102")
	// expireRows is how many rows of the default partition one statement deletes, so that no
	// transaction grows long.
	expireRows = 10_000
)

// span is the range of one partition: from inclusive, to exclusive, UTC.
type span struct {
	from, to time.Time
}

func (s span) overlaps(o span) bool { return s.from.Before(o.to) && o.from.Before(s.to) }

// spanAt is the range of width that n ranges after the one of now begins.
func spanAt(width mapping.Partition, now time.Time, n int) span {
	year, month, day := now.UTC().Date()
	switch width {
	case mapping.PartitionMonth:
		from := time.Date(year, month+time.Month(n), 1, 0, 0, 0, 0, time.UTC)
		return span{from, from.AddDate(0, 1, 0)}
	case mapping.PartitionWeek:
		sinceMonday := (int(now.UTC().Weekday()) + 6) % 7
		from := time.Date(year, month, day-sinceMonday+7*n, 0, 0, 0, 0, time.UTC)
		return span{from, from.AddDate(0, 0, 7)}
	default:
		from := time.Date(year, month, day+n, 0, 0, 0, 0, time.UTC)
		return span{from, from.AddDate(0, 0, 1)}
	}
}

// suffix names a partition: _pYYYYMMDD, _pYYYYwWW (ISO year and week) or _pYYYYMM.
func (s span) suffix(width mapping.Partition) string {
	switch width {
	case mapping.PartitionMonth:
		return s.from.Format("_p200601")
	case mapping.PartitionWeek:
		year, week := s.from.ISOWeek()
		return fmt.Sprintf("_p%04dw%02d", year, week)
	default:
		return s.from.Format("_p20060102")
	}
}

// ourSuffix matches the names that suffix gives.
var ourSuffix = regexp.MustCompile(`^_p(\d{8}|\d{4}w\d{2}|\d{6})$`)

// partition is one that the database has.
type partition struct {
	schema, name string
	span         span // zero for the default partition and for bounds that are no two times
	isDefault    bool
}

// bounds is how the catalog writes the range of a partition when the time zone is UTC (see PoolConfig for the style of dates).
var bounds = regexp.MustCompile(`^FOR VALUES FROM \('([^']*)'\) TO \('([^']*)'\)$`)

// partitionsOf lists the partitions of a table, and tells the database's time. The settings, which end with the
// transaction, come first: bounds are written in UTC, and a partition that somebody has locked is waited for at most
// for a second, unless it is said otherwise.
func partitionsOf(ctx context.Context, db querier, table *catalogTable) (all []partition, now time.Time, err error) {
	rows, err := db.Query(ctx, `
		select now(), n.nspname::text, c.relname::text, coalesce(pg_catalog.pg_get_expr(c.relpartbound, c.oid), '')
		from (select set_config('timezone', 'UTC', true),
			set_config('lock_timeout', case current_setting('lock_timeout') when '0' then '1s' else current_setting('lock_timeout') end, true) offset 0) s
		left join (pg_catalog.pg_inherits i
			join pg_catalog.pg_class c on c.oid = i.inhrelid
			join pg_catalog.pg_namespace n on n.oid = c.relnamespace) on i.inhparent = $1::oid
		order by 3`, int64(table.oid))
	if err != nil {
		return nil, now, fmt.Errorf("list partitions of %s: %w", table.name, err)
	}
	all, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (partition, error) {
		var p partition
		var schema, name *string // null: there is none
		var bound string
		if err := row.Scan(&now, &schema, &name, &bound); err != nil || name == nil {
			return p, err
		}
		p.schema, p.name, p.isDefault = *schema, *name, bound == "DEFAULT"
		if m := bounds.FindStringSubmatch(bound); m != nil {
			const layout = "2006-01-02 15:04:05.999999-07"
			from, errFrom := time.Parse(layout, m[1])
			to, errTo := time.Parse(layout, m[2])
			if errFrom == nil && errTo == nil {
				p.span = span{from, to}
			}
		}
		return p, nil
	})
	if err != nil {
		return nil, now, fmt.Errorf("list partitions of %s: %w", table.name, err)
	}
	return slices.DeleteFunc(all, func(p partition) bool { return p.name == "" }), now, nil
}

// makePartitions makes the partitions around now that are missing, by the database's clock. A range
// that overlaps with partitions of another width is left to them and to the default partition.
func (t *Tables) makePartitions(ctx context.Context, want *mapping.Table, table *catalogTable) error {
	if !table.partitioned || want.Partition == mapping.PartitionNone || want.Partition == "" {
		return nil
	}
	missing, _, err := missingSpans(ctx, t.pool, want, table) // without the lock
	if err != nil || len(missing) == 0 {
		return err
	}
	return t.change(ctx, t.cfg.lineLock, func(tx pgx.Tx) error {
		missing, existing, err := missingSpans(ctx, tx, want, table)
		if err != nil {
			return err
		}
		for _, s := range missing {
			if err := makePartition(ctx, tx, want, table, existing, s); err != nil {
				return err
			}
			t.log.Info("partition made", zap.String("table", table.name), zap.Time("from", s.from), zap.Time("to", s.to))
		}
		return nil
	})
}

func missingSpans(ctx context.Context, db querier, want *mapping.Table, table *catalogTable) (missing []span, existing []partition, err error) {
	existing, now, err := partitionsOf(ctx, db, table)
	if err != nil {
		return nil, nil, err
	}
	for n := -partitionsBack; n <= partitionsAhead; n++ {
		s := spanAt(want.Partition, now, n)
		if !slices.ContainsFunc(existing, func(p partition) bool { return p.span.overlaps(s) }) {
			missing = append(missing, s)
		}
	}
	return missing, existing, nil
}

// makePartition makes one partition and moves into it the rows that the default partition has caught.
// It is attached when it is complete: creating it as a partition would lock out all writers of the
// table, attaching it locks out those of the default partition only.
func makePartition(ctx context.Context, tx pgx.Tx, want *mapping.Table, table *catalogTable, existing []partition, s span) error {
	parent := pgx.Identifier{table.schema, table.name}.Sanitize()
	name := pgx.Identifier{table.schema, table.name + s.suffix(want.Partition)}.Sanitize()
	statements := []string{"create table " + name + " (like " + parent + " including defaults including constraints including storage including generated)"}
	if at := slices.IndexFunc(existing, func(p partition) bool { return p.isDefault }); at >= 0 {
		from := pgx.Identifier{existing[at].schema, existing[at].name}.Sanitize()
		columns, err := movable(ctx, tx, table)
		if err != nil {
			return err
		}
		statements = append(statements,
			// Nobody may add a row of the range between the move and the attachment.
			"lock table "+from+" in access exclusive mode",
			fmt.Sprintf(`with moved as (delete from %s where "time" >= %s and "time" < %s returning %s) insert into %s (%s) select %s from moved`,
				from, timeLiteral(s.from), timeLiteral(s.to), columns, name, columns, columns),
		)
	}
	statements = append(statements, fmt.Sprintf("alter table %s attach partition %s for values from (%s) to (%s)", parent, name, timeLiteral(s.from), timeLiteral(s.to)))
	for _, statement := range statements {
		if _, err := tx.Exec(ctx, statement); err != nil {
			return fmt.Errorf("make partition %s: %w", name, err)
		}
	}
	return nil
}

// movable lists the columns of a table that can be copied.
func movable(ctx context.Context, tx pgx.Tx, table *catalogTable) (string, error) {
	rows, err := tx.Query(ctx, `select attname::text from pg_catalog.pg_attribute
		where attrelid = $1::oid and attnum > 0 and not attisdropped and attgenerated = '' order by attnum`, int64(table.oid))
	if err != nil {
		return "", fmt.Errorf("list columns of %s: %w", table.name, err)
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return "", fmt.Errorf("list columns of %s: %w", table.name, err)
	}
	return quoteAll(names), nil
}

func timeLiteral(t time.Time) string { return t.UTC().Format("'2006-01-02 15:04:05+00'") }

// insufficientPrivilege is the SQLSTATE of what the role may not do.
const insufficientPrivilege = "42501"

// expire drops partitions that are wholly older than the retention and deletes older rows from the
// default partition, or from a table without partitions. Only partitions that are attached to the
// table and named by us are dropped.
func (t *Tables) expire(ctx context.Context, table *catalogTable, retention time.Duration) error {
	if retention <= 0 {
		return nil
	}
	all, now, err := partitionsOf(ctx, t.pool, table)
	if err != nil {
		return err
	}
	limit := now.Add(-retention)
	parent := pgx.Identifier{table.schema, table.name}
	rest := parent
	var old []partition
	if table.partitioned {
		rest = nil
		for _, p := range all {
			if p.isDefault {
				rest = pgx.Identifier{p.schema, p.name}
			}
			suffix, ours := strings.CutPrefix(p.name, table.name)
			if ours && p.schema == table.schema && ourSuffix.MatchString(suffix) && !p.span.to.IsZero() && !p.span.to.After(limit) {
				old = append(old, p)
			}
		}
	}
	var errs []error
	for _, p := range old {
		if err := t.drop(ctx, p); err != nil {
			errs = append(errs, err)
		}
	}
	if rest != nil {
		ways := []leftover{{rest, ""}}
		if table.partitioned {
			// Privileges of the table alone are enough here, but all of the oldest partition is read as well.
			ways = append(ways, leftover{parent, "tableoid = " + literal(rest.Sanitize()) + "::regclass and "})
		}
		err := unlessRefused(ways, func(l leftover) error { return t.deleteOlder(ctx, l, limit) })
		if refused(err) {
			older := true
			asked := unlessRefused(ways, func(l leftover) (err error) {
				older, err = t.hasOlder(ctx, l, limit)
				return err
			})
			if asked == nil && !older {
				err = nil // another role sees to it
			}
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (t *Tables) drop(ctx context.Context, p partition) error {
	name := pgx.Identifier{p.schema, p.name}.Sanitize()
	err := t.change(ctx, t.cfg.lineLock, func(tx pgx.Tx) error {
		// Another replica may have dropped it.
		_, err := tx.Exec(ctx, "drop table if exists "+name)
		return err
	})
	if err != nil {
		return fmt.Errorf("drop partition %s: %w", name, err)
	}
	t.log.Info("partition dropped", zap.String("partition", p.name), zap.Time("to", p.span.to))
	return nil
}

// leftover is where rows are that go with no partition.
type leftover struct {
	table pgx.Identifier
	only  string // a condition with an and behind it, or nothing
}

// unlessRefused does something in the first way that the role has the privileges for.
func unlessRefused(ways []leftover, do func(leftover) error) (err error) {
	for _, way := range ways {
		if err = do(way); !refused(err) {
			break
		}
	}
	return err
}

// refused says that the role has not the privilege for what it tried.
func refused(err error) bool {
	pgErr, ok := errors.AsType[*pgconn.PgError](err)
	return ok && pgErr.Code == insufficientPrivilege
}

func (t *Tables) deleteOlder(ctx context.Context, from leftover, limit time.Time) error {
	deleted := int64(0)
	defer func() {
		if deleted > 0 {
			t.log.Info("old rows deleted", zap.String("table", strings.Join(from.table, ".")), zap.Int64("rows", deleted), zap.Time("to", limit))
		}
	}()
	for {
		// A ctid is one of a row in each table: where this has partitions or heirs, the time tells which is meant.
		tag, err := t.pool.Exec(ctx, fmt.Sprintf(`delete from %[1]s where %[3]s"time" < $1 and ctid = any (array(select ctid from %[1]s where %[3]s"time" < $1 limit %[2]d))`,
			from.table.Sanitize(), expireRows, from.only), limit)
		if err != nil {
			return fmt.Errorf("delete old rows from %s: %w", from.table.Sanitize(), err)
		}
		deleted += tag.RowsAffected()
		if tag.RowsAffected() < expireRows {
			return nil
		}
	}
}

// hasOlder says whether there are rows before limit.
func (t *Tables) hasOlder(ctx context.Context, from leftover, limit time.Time) (older bool, err error) {
	err = t.pool.QueryRow(ctx, `select exists (select from `+from.table.Sanitize()+` where `+from.only+`"time" < $1)`, limit).Scan(&older)
	return older, err
}
