//go:build unix

package provider

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// query runs one statement on a connection of its own and returns its single value.
func query(ctx context.Context, url, statement string) (value string, err error) {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return "", err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	err = conn.QueryRow(ctx, statement).Scan(&value)
	return value, err
}

func mustQuery(t *testing.T, url, statement, want string) {
	t.Helper()
	got, err := query(t.Context(), url, statement)
	if err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
	if got != want {
		t.Fatalf("%s: got %q, want %q", statement, got, want)
	}
}

func execute(t *testing.T, url, statement string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Exec(t.Context(), statement); err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
	if err := conn.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestDatabaseIsAsCarefulAsARealOne(t *testing.T) {
	url := SharedDatabase(t).AdminURL()
	mustQuery(t, url, "show fsync", "on")
	mustQuery(t, url, "show synchronous_commit", "on")
	mustQuery(t, url, "show max_connections", "200")
}

func TestDatabaseKeepsCommittedRowsAndAddress(t *testing.T) {
	d := StartDatabase(t, DatabaseConfig{Settings: map[string]string{"max_connections": "50"}})
	url := d.Fresh(t)
	mustQuery(t, url, "show max_connections", "50")
	if (current.kind == Processes) != (d.PID() > 0) {
		t.Errorf("process id %d of a database that runs", d.PID())
	}
	execute(t, url, "create table kept (i int); insert into kept values (1)")

	tests := []struct {
		name string
		end  func(context.Context) error
	}{{"stop", d.Stop}, {"kill", d.Kill}, {"stop again", d.Stop}}
	for _, test := range tests {
		if err := test.end(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := query(t.Context(), url, "select 'up'"); err == nil || d.PID() != 0 {
			t.Fatalf("the database answers after %s, or has a process: %d", test.name, d.PID())
		}
		if err := d.Start(t.Context()); err != nil {
			t.Fatalf("after %s: %v", test.name, err)
		}
		mustQuery(t, url, "select count(*)::text from kept", "1")
	}
}

func TestDatabasePauseAndResume(t *testing.T) {
	d := StartDatabase(t, DatabaseConfig{})
	conn, err := pgx.Connect(t.Context(), d.Fresh(t))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(t.Context())) }()
	if err := d.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if d.answers(short) == nil {
		t.Error("a paused database answers")
	}
	if err := d.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Exec(t.Context(), "select 1"); err != nil {
		t.Errorf("the connection did not live on: %v", err)
	}
}

func TestFreshDatabasesAreApart(t *testing.T) {
	d := SharedDatabase(t)
	first, second := d.Fresh(t), d.Fresh(t)
	execute(t, first, "create table only_here (i int)")
	mustQuery(t, first, "select count(*)::text from pg_tables where schemaname = 'public'", "1")
	mustQuery(t, second, "select count(*)::text from pg_tables where schemaname = 'public'", "0")
}

func TestCloneFillsItsTemplateOnce(t *testing.T) {
	d := SharedDatabase(t)
	calls := 0
	prepare := func(ctx context.Context, url string) error {
		calls++
		conn, err := pgx.Connect(ctx, url)
		if err != nil {
			return err
		}
		if _, err := conn.Exec(ctx, "create table filled (i int)"); err != nil {
			return err
		}
		return conn.Close(ctx)
	}
	for range 3 {
		url := d.Clone(t, "template_filled", prepare)
		mustQuery(t, url, "select count(*)::text from pg_tables where tablename = 'filled'", "1")
	}
	if calls != 1 {
		t.Errorf("the template was filled %d times", calls)
	}
}

func TestDatabaseIsDroppedWithItsTest(t *testing.T) {
	d := SharedDatabase(t)
	var url string
	t.Run("inner", func(t *testing.T) { url = d.Fresh(t) })
	if _, err := query(t.Context(), url, "select 'there'"); err == nil {
		t.Error("the database outlived its test")
	}
}
