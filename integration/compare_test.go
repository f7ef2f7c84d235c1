//go:build unix

package integration

import (
	"context"
	"crypto/md5"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// rows is a multiset of table rows: how often each occurs. A row is written as its columns' text
// as PostgreSQL prints it, so that expectation and table are compared without a second decoder.
type rows map[string]int

// null is how a missing value is written in a row.
const null = "∅"

// add counts one row of these columns.
func (r rows) add(columns ...any) { r[line(columns...)]++ }

// line writes columns as PostgreSQL prints them in UTC.
func line(columns ...any) string {
	texts := make([]string, len(columns))
	for i, column := range columns {
		switch v := column.(type) {
		case nil:
			texts[i] = null
		case []byte:
			texts[i] = digest(v)
		case bool:
			texts[i] = fmt.Sprint(v)[:1]
		case time.Time:
			texts[i] = v.UTC().Format("2006-01-02 15:04:05.999999-07")
		default:
			texts[i] = fmt.Sprint(v)
		}
	}
	return strings.Join(texts, " | ")
}

// digest stands for a payload in a row: its length and its MD5 sum, as digestSQL makes them.
func digest(payload []byte) string {
	return fmt.Sprintf("%d:%x", len(payload), md5.Sum(payload))
}

// digestSQL is the SQL expression for the digest of a bytea column.
func digestSQL(column string) string {
	return "length(" + column + ") || ':' || md5(" + column + ")"
}

// total is the number of rows.
func (r rows) total() int {
	n := 0
	for _, times := range r {
		n += times
	}
	return n
}

// tableRows reads what a query gives.
func tableRows(t *testing.T, databaseURL, query string) rows {
	t.Helper()
	got := rows{}
	withConnection(t, databaseURL, func(ctx context.Context, conn *pgx.Conn) error {
		result, err := conn.Query(ctx, query, pgx.QueryExecModeSimpleProtocol) // text format throughout
		if err != nil {
			return err
		}
		defer result.Close()
		for result.Next() {
			var columns []any
			for _, value := range result.RawValues() {
				if value == nil {
					columns = append(columns, nil)
				} else {
					columns = append(columns, string(value))
				}
			}
			got.add(columns...)
		}
		return result.Err()
	})
	return got
}

// execute runs statements.
func execute(t *testing.T, databaseURL string, statements ...string) {
	t.Helper()
	withConnection(t, databaseURL, func(ctx context.Context, conn *pgx.Conn) error {
		for _, statement := range statements {
			if _, err := conn.Exec(ctx, statement); err != nil {
				return fmt.Errorf("%s: %w", statement, err)
			}
		}
		return nil
	})
}

func withConnection(t *testing.T, databaseURL string, do func(context.Context, *pgx.Conn) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	config, err := pgx.ParseConfig(databaseURL)
	if err != nil {
		t.Fatalf("database URL: %v", err)
	}
	config.RuntimeParams["timezone"] = "UTC"
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		t.Fatalf("connect to the database: %v", err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	if err := do(ctx, conn); err != nil {
		t.Fatalf("database: %v", err)
	}
}

// sameRows fails the test unless table holds exactly the wanted rows, and lists what is missing
// and what should not be there.
func sameRows(t *testing.T, table string, want, got rows) {
	t.Helper()
	missing, extra := subtract(want, got), subtract(got, want)
	if len(missing) == 0 && len(extra) == 0 {
		return
	}
	t.Errorf("%s: %d rows instead of %d\n%s%s", table, got.total(), want.total(),
		listing("missing", missing), listing("extra", extra))
}

// subtract returns what a has more of than b.
func subtract(a, b rows) rows {
	rest := rows{}
	for row, times := range a {
		if times > b[row] {
			rest[row] = times - b[row]
		}
	}
	return rest
}

func listing(title string, r rows) string {
	if len(r) == 0 {
		return ""
	}
	const most = 10
	var b strings.Builder
	fmt.Fprintf(&b, "  %s: %d\n", title, r.total())
	for i, row := range slices.Sorted(maps.Keys(r)) {
		if i == most {
			fmt.Fprintf(&b, "    … and %d others\n", len(r)-most)
			break
		}
		if len(row) > 300 {
			row = row[:300] + "…"
		}
		fmt.Fprintf(&b, "    %d × %s\n", r[row], row)
	}
	return b.String()
}

// TestSameRowsSeesDifferences guards the judge: a comparison that finds nothing proves nothing.
func TestSameRowsSeesDifferences(t *testing.T) {
	want := rows{"a": 1, "b": 2}
	for _, test := range []struct {
		name           string
		got            rows
		missing, extra int
	}{
		{"equal", rows{"a": 1, "b": 2}, 0, 0},
		{"one of two twins lost", rows{"a": 1, "b": 1}, 1, 0},
		{"doubled", rows{"a": 2, "b": 2}, 0, 1},
		{"changed", rows{"a": 1, "b": 1, "c": 1}, 1, 1},
		{"empty", rows{}, 3, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			missing, extra := subtract(want, test.got).total(), subtract(test.got, want).total()
			if missing != test.missing || extra != test.extra {
				t.Errorf("missing %d, extra %d; want %d and %d", missing, extra, test.missing, test.extra)
			}
		})
	}
}
