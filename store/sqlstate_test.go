package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
)

func TestClassify(t *testing.T) {
	t.Parallel()
	sqlstate := func(code string) error { return fmt.Errorf("insert: %w", &pgconn.PgError{Code: code}) }
	tests := []struct {
		err   error
		want  verdict
		class string
	}{
		{sqlstate("22001"), verdictData, "22"},
		{sqlstate("22P02"), verdictData, "22"},
		{sqlstate("23514"), verdictData, "23"},
		{sqlstate("54000"), verdictData, "54"},
		{sqlstate("P0001"), verdictData, "other"},
		{sqlstate("42P01"), verdictRoute, "42"},
		{sqlstate("42501"), verdictRoute, "42"},
		{sqlstate("3D000"), verdictRoute, "3D"},
		{sqlstate("3F000"), verdictRoute, "3F"},
		{sqlstate("28000"), verdictRoute, "28"},
		{sqlstate("55P03"), verdictRoute, "55"},
		{&pgconn.PgError{Code: "55P03", Where: "while inserting index tuple"}, verdictRetry, "55"},
		{sqlstate("55000"), verdictRoute, "55"},
		{sqlstate("XX002"), verdictRoute, "XX"},
		{&TableError{"t", "is odd"}, verdictRoute, "table"},
		{sqlstate("BR001"), verdictFenced, "other"},
		{sqlstate("08006"), verdictRoute, "08"}, // by a route's statement: a foreign server
		{sqlstate("0A000"), verdictRoute, "other"},
		{sqlstate("HV00N"), verdictRoute, "other"},
		{sqlstate("57014"), verdictRoute, "57"},
		{sqlstate("21000"), verdictData, "other"},
		{sqlstate("2F005"), verdictData, "other"},
		{sqlstate("44000"), verdictData, "other"},
		{sqlstate("P0002"), verdictData, "other"},
		{sqlstate("25006"), verdictRetry, "25"},
		{sqlstate("40P01"), verdictRetry, "40"},
		{sqlstate("53100"), verdictRetry, "53"},
		{sqlstate("57P01"), verdictRetry, "57"},
		{sqlstate("58030"), verdictRetry, "58"},
		{sqlstate("XX000"), verdictRetry, "XX"},
		{sqlstate("ZZ999"), verdictRetry, "other"},
		{sqlstate(""), verdictRetry, "network"},
		{io.ErrUnexpectedEOF, verdictRetry, "network"},
		{context.DeadlineExceeded, verdictRetry, "timeout"},
		{errors.New("whatever"), verdictRetry, "network"},
	}
	for _, test := range tests {
		if got := classify(test.err); got != test.want {
			t.Errorf("classify(%v) = %d, want %d", test.err, got, test.want)
		}
		if got := errorClass(test.err); got != test.class {
			t.Errorf("errorClass(%v) = %q, want %q", test.err, got, test.class)
		}
	}
}

// TestRefusedAtTheDoor: a wrong password or a full server condemns no table.
func TestRefusedAtTheDoor(t *testing.T) {
	t.Parallel()
	pool := newPool(t, databaseURL("bridge_store_no_such_database"))
	_, err := pool.Acquire(context.Background())
	if err == nil {
		t.Fatal("connected to a database that does not exist")
	}
	if got := classify(err); got != verdictRetry {
		t.Errorf("classify(%v) = %d, want retry", err, got)
	}
}

// TestJudged: only the statement of a route can be the fault of its data or its table.
func TestJudged(t *testing.T) {
	t.Parallel()
	in := &insertion{plan: &plan{table: "t", route: compile(t, telemetry).All()[0]}}
	tests := []struct {
		code     string
		in       *insertion
		atCommit bool
		want     verdict
	}{
		{"22001", in, false, verdictData},
		{"23503", in, true, verdictData},
		{"22001", nil, false, verdictRetry},
		{"42P01", in, false, verdictRoute},
		{"42P01", in, true, verdictData},
		{"21000", in, true, verdictData},
		{"42P01", nil, false, verdictRetry},
		{"BR001", nil, false, verdictFenced},
		{"57P01", in, false, verdictRetry},
	}
	for _, test := range tests {
		err := judged(&pgconn.PgError{Code: test.code}, test.in, test.atCommit)
		if err.verdict != test.want {
			t.Errorf("%s of a route %t at the commit %t: verdict %d, want %d", test.code, test.in != nil, test.atCommit, err.verdict, test.want)
		}
	}
}
