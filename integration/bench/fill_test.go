//go:build linux

package bench

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// fill writes a history of so many rows into a table that a bridge has made: a day's worth each day, from
// today back, where it ends at until, in the shape in which the bridge writes them and with the indexes that it has made. Today's rows and
// yesterday's are made by a query; the days before are copies of yesterday, which are cheaper.
func (b *suite) fill(t *testing.T, s *Stage, table string, rows int, today, until time.Time) {
	t.Helper()
	partition := func(day time.Time) string { return pgx.Identifier{table + day.Format("_p20060102")}.Sanitize() }
	bounds := func(day time.Time) string {
		return fmt.Sprintf("for values from ('%s') to ('%s')", day.Format(time.RFC3339), day.AddDate(0, 0, 1).Format(time.RFC3339))
	}
	var written atomic.Int64
	exec := func(ctx context.Context, db *pgx.Conn, statements ...string) error {
		for _, statement := range statements {
			tag, err := db.Exec(ctx, statement)
			if err != nil {
				return fmt.Errorf("%s: %w", statement, err)
			}
			if tag.Insert() {
				written.Add(tag.RowsAffected())
			}
		}
		return nil
	}
	yesterday := today.AddDate(0, 0, -1)
	if rows > 0 {
		// The bridge makes these partitions itself, as long as they are those around now.
		must(t, exec(t.Context(), s.db, fmt.Sprintf("create table if not exists %s partition of %s %s", partition(today), table, bounds(today))))
		must(t, exec(t.Context(), s.db, dayOf(table, today, until.Sub(today), min(rows, b.day))))
	}
	if rows > b.day {
		must(t, exec(t.Context(), s.db, fmt.Sprintf("create table if not exists %s partition of %s %s", partition(yesterday), table, bounds(yesterday))))
		must(t, exec(t.Context(), s.db, dayOf(table, yesterday, 24*time.Hour, min(rows-b.day, b.day))))
	}

	var columns, shifted, key string
	must(t, s.db.QueryRow(t.Context(), `select string_agg(quote_ident(attname), ', ' order by attnum),
			string_agg(quote_ident(attname) || case attname when 'time' then ' - %s' else '' end, ', ' order by attnum)
		from pg_attribute where attrelid = $1::regclass and attnum > 0 and not attisdropped and attgenerated = ''`, table).Scan(&columns, &shifted))
	must(t, s.db.QueryRow(t.Context(), `select coalesce(string_agg('add ' || pg_get_constraintdef(oid), ', '), '')
		from pg_constraint where conrelid = $1::regclass and contype in ('p', 'u')`, table).Scan(&key))
	days := make(chan int, max(rows/b.day, 1))
	for n := 2; n*b.day < rows; n++ {
		days <- n
	}
	close(days)
	results := make(chan error)
	const workers = 2
	for range workers {
		go func() {
			results <- func() error {
				db, err := pgx.Connect(t.Context(), s.URL)
				if err != nil {
					return err
				}
				defer func() { _ = db.Close(context.WithoutCancel(t.Context())) }()
				for n := range days {
					day := today.AddDate(0, 0, -n)
					name := partition(day)
					statements := []string{
						// Without an index until all is there: it is built from one end to the other then.
						fmt.Sprintf("create table %s (like %s including defaults including constraints including storage including generated)", name, table),
						fmt.Sprintf("insert into %s (%s) select %s from %s limit %d", name, columns,
							fmt.Sprintf(shifted, fmt.Sprintf("interval '%d days'", n-1)), partition(yesterday), rows-n*b.day),
					}
					if key != "" {
						statements = append(statements, "alter table "+name+" "+key)
					}
					statements = append(statements, fmt.Sprintf("alter table %s attach partition %s %s", table, name, bounds(day)))
					if err := exec(t.Context(), db, statements...); err != nil {
						return err
					}
				}
				return nil
			}()
		}()
	}
	for range workers {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
	if got := int(written.Load()); got != rows {
		t.Fatalf("%d of %d rows of history", got, rows)
	}
	s.checkpoint(t)
}

// dayOf is a statement that writes rows of a thousand devices, evenly over some time, device by device.
func dayOf(table string, day time.Time, span time.Duration, rows int) string {
	const devices = 1000
	each := max(rows/devices, 1)
	return fmt.Sprintf(`insert into %s (device_id, "time", message_id, received_at, topic, id, temperature, humidity, battery, status)
		select 'd' || lpad(device::text, 7, '0'), at, overlay(overlay(id placing '8' from 13) placing '8' from 17)::uuid, at,
			's000/d' || lpad(device::text, 7, '0') || '/telemetry', id::uuid, 20 + n %% 100 / 10.0, 40 + n %% 300 / 10.0, 3 + n %% 10 / 10.0, 'ok'
		from (select n, n / %[2]d as device, timestamptz '%[3]s' + (n %% %[2]d + n / %[2]d / 1000.0)::float8 * interval '%[4]d microseconds' as at
				from generate_series(0, %[5]d - 1) as n) as numbers,
			lateral (select lpad(to_hex((extract(epoch from at) * 1000)::bigint), 12, '0') || substr(md5(n::text), 1, 20) as id) as ids`,
		table, each, day.Format(time.RFC3339), (span / time.Duration(each+1)).Microseconds(), rows)
}
