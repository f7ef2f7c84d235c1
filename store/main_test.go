package store

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/mqttpg/bridge/integration/localpg"
	"github.com/mqttpg/bridge/migrations"
	"go.uber.org/goleak"
)

// The tests share one server: BRIDGE_TEST_DATABASE_URL, or a private one that is started here. Each
// has a database of its own, cloned from a migrated template.
var (
	serverURL string
	databases atomic.Int64
)

const template = "bridge_store_template"

func TestMain(m *testing.M) { os.Exit(withServer(m)) }

func withServer(m *testing.M) int {
	ctx := context.Background()
	serverURL = os.Getenv("BRIDGE_TEST_DATABASE_URL")
	if serverURL == "" {
		server, err := localpg.Start(ctx, localpg.Config{Settings: map[string]string{"fsync": "off", "max_connections": "200", "shared_buffers": "32MB"}})
		if err != nil {
			fmt.Fprintln(os.Stderr, "store: tests need PostgreSQL:", err)
			return 1
		}
		defer func() { _ = server.Stop() }()
		serverURL = server.URL("postgres")
	}
	if err := makeTemplate(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "store: make template database:", err)
		return 1
	}
	server := goleak.IgnoreCurrent() // it runs until after the check
	code := m.Run()
	if err := goleak.Find(server); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

func makeTemplate(ctx context.Context) error {
	conn, err := pgx.Connect(ctx, serverURL)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }()
	for _, statement := range []string{"drop database if exists " + template, "create database " + template} {
		if _, err := conn.Exec(ctx, statement); err != nil {
			return err
		}
	}
	inside, err := pgx.Connect(ctx, databaseURL(template))
	if err != nil {
		return err
	}
	defer func() { _ = inside.Close(ctx) }()
	return migrations.Apply(ctx, inside, "bridge", nil)
}

func databaseURL(name string) string {
	u, err := url.Parse(serverURL)
	if err != nil {
		panic(err)
	}
	u.Path = "/" + name
	return u.String()
}

// newDatabase returns the URL of a migrated database and a pool of it.
func newDatabase(t *testing.T) (string, *pgxpool.Pool) {
	t.Helper()
	name := fmt.Sprintf("bridge_store_%d_%d", os.Getpid(), databases.Add(1))
	admin := newPool(t, serverURL)
	execute(t, admin, "create database "+name+" template "+template)
	t.Cleanup(func() { execute(t, admin, "drop database "+name+" with (force)") })
	return databaseURL(name), newPool(t, databaseURL(name))
}

func newPool(t *testing.T, url string) *pgxpool.Pool {
	t.Helper()
	pool, err := openPool(url, 8)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

func openPool(url string, maxConns int32) (*pgxpool.Pool, error) {
	cfg, err := PoolConfig(url)
	if err != nil {
		return nil, err
	}
	cfg.MaxConns = maxConns
	return pgxpool.NewWithConfig(context.Background(), cfg)
}

// newRole makes a role that may do nothing but connect, and returns a pool that works as it.
func newRole(t *testing.T, url string, owner *pgxpool.Pool) (string, *pgxpool.Pool) {
	t.Helper()
	name := fmt.Sprintf("bridge_role_%d_%d", os.Getpid(), databases.Add(1))
	execute(t, owner, "create role "+name+" login")
	t.Cleanup(func() { execute(t, owner, "drop owned by "+name+"; drop role "+name) })
	pool, err := openPool(url+"&options=-c%20role%3D"+name, 4)
	if !strings.Contains(url, "?") {
		pool, err = openPool(url+"?options=-c%20role%3D"+name, 4)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return name, pool
}

func execute(t *testing.T, pool *pgxpool.Pool, sql string, args ...any) {
	t.Helper()
	if len(args) == 0 {
		args = []any{pgx.QueryExecModeSimpleProtocol}
	}
	if _, err := pool.Exec(context.Background(), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// value returns the one value of a query.
func value[T any](t *testing.T, pool *pgxpool.Pool, sql string, args ...any) T {
	t.Helper()
	var v T
	if err := pool.QueryRow(context.Background(), sql, args...).Scan(&v); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return v
}

// list returns the first column of a query.
func list[T any](t *testing.T, pool *pgxpool.Pool, sql string, args ...any) []T {
	t.Helper()
	rows, err := pool.Query(context.Background(), sql, args...)
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	all, err := pgx.CollectRows(rows, pgx.RowTo[T])
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return all
}
