package migrations

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/mqttpg/bridge/integration/localpg"
	"go.uber.org/goleak"
)

// serverURL is BRIDGE_TEST_DATABASE_URL, or a private server that all tests share.
var (
	serverURL string
	databases atomic.Int64
)

func TestMain(m *testing.M) { os.Exit(withServer(m)) }

func withServer(m *testing.M) int {
	serverURL = os.Getenv("BRIDGE_TEST_DATABASE_URL")
	if serverURL == "" {
		server, err := localpg.Start(context.Background(), localpg.Config{Settings: map[string]string{"fsync": "off", "shared_buffers": "16MB"}})
		if err != nil {
			fmt.Fprintln(os.Stderr, "migrations: tests need PostgreSQL:", err)
			return 1
		}
		defer func() { _ = server.Stop() }()
		serverURL = server.URL("postgres")
	}
	server := goleak.IgnoreCurrent()
	code := m.Run()
	if err := goleak.Find(server); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

// newDatabase makes an empty database and returns a func that connects to it.
func newDatabase(t *testing.T) (connect func() *pgx.Conn) {
	t.Helper()
	ctx := context.Background()
	name := fmt.Sprintf("bridge_migrations_%d_%d", os.Getpid(), databases.Add(1))
	admin := dial(t, "")
	execute(t, admin, "create database "+name)
	t.Cleanup(func() {
		if _, err := admin.Exec(ctx, "drop database "+name+" with (force)"); err != nil {
			t.Error(err)
		}
	})
	return func() *pgx.Conn { return dial(t, name) }
}

func dial(t *testing.T, database string) *pgx.Conn {
	t.Helper()
	config, err := pgx.ParseConfig(serverURL)
	if err != nil {
		t.Fatal(err)
	}
	if database != "" {
		config.Database = database
	}
	conn, err := pgx.ConnectConfig(context.Background(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

func execute(t *testing.T, conn *pgx.Conn, sql string) {
	t.Helper()
	if _, err := conn.Exec(context.Background(), sql); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func TestApplyAndList(t *testing.T) {
	t.Parallel()
	ctx, conn := context.Background(), newDatabase(t)()
	before, err := List(ctx, conn, "bridge")
	if err != nil {
		t.Fatal(err)
	}
	if len(before) != Latest() || slices.ContainsFunc(before, func(m Migration) bool { return m.Applied }) {
		t.Errorf("before: %+v, want %d migrations that are not applied", before, Latest())
	}
	var told []Migration
	if err := Apply(ctx, conn, "bridge", func(m Migration) { told = append(told, m) }); err != nil {
		t.Fatal(err)
	}
	after, err := List(ctx, conn, "bridge")
	if err != nil {
		t.Fatal(err)
	}
	if len(told) != Latest() || len(after) != Latest() {
		t.Fatalf("told of %d, listed %d, want %d", len(told), len(after), Latest())
	}
	for i, m := range after {
		if want := (Migration{Version: i + 1, Name: told[i].Name, Applied: true}); m != want || told[i].Version != i+1 || !strings.HasSuffix(m.Name, ".sql") {
			t.Errorf("migration %+v, told %+v, want %+v", m, told[i], want)
		}
	}
	told = nil
	if err := Apply(ctx, conn, "bridge", func(m Migration) { told = append(told, m) }); err != nil || len(told) != 0 {
		t.Errorf("a second time: %v, ran %+v", err, told)
	}
	// Two bridges may share a database in schemas of their own.
	if err := Apply(ctx, conn, "another", nil); err != nil {
		t.Error(err)
	}
}

// TestEverythingIsCommented keeps the schema readable with \d+ alone.
func TestEverythingIsCommented(t *testing.T) {
	t.Parallel()
	ctx, conn := context.Background(), newDatabase(t)()
	if err := Apply(ctx, conn, "bridge", nil); err != nil {
		t.Fatal(err)
	}
	rows, err := conn.Query(ctx, `
		select c.relname || coalesce('.' || a.attname, '')
		from pg_class c join pg_namespace n on n.oid = c.relnamespace
		left join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
		where n.nspname = 'bridge' and c.relkind = 'r' and c.relname <> 'schema_migrations'
		  and (obj_description(c.oid, 'pg_class') is null or col_description(c.oid, a.attnum) is null)`)
	if err != nil {
		t.Fatal(err)
	}
	bare, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	if len(bare) > 0 {
		t.Errorf("without a comment: %q", bare)
	}
}

func TestReplicasStartTogether(t *testing.T) {
	t.Parallel()
	connect := newDatabase(t)
	var group sync.WaitGroup
	var ran atomic.Int64
	for range 6 {
		conn := connect()
		group.Go(func() {
			if err := Apply(context.Background(), conn, "bridge", func(Migration) { ran.Add(1) }); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	if n := int(ran.Load()); n != Latest() {
		t.Errorf("%d migrations ran, want each once", n)
	}
}

// TestLockedTable: a backup reads a table that a migration alters. Nobody waits behind the migration for the backup, and
// after it the migration can be tried again.
func TestLockedTable(t *testing.T) {
	t.Parallel()
	ctx, connect := context.Background(), newDatabase(t)
	conn, other := connect(), connect()
	var backup pgx.Tx
	err := Apply(ctx, conn, "bridge", func(m Migration) {
		if m.Version != 3 {
			return
		}
		var err error
		if backup, err = other.Begin(ctx); err == nil {
			_, err = backup.Exec(ctx, "lock table bridge.sessions in access share mode")
		}
		if err != nil {
			t.Error(err)
		}
	})
	if !Locked(err) {
		t.Fatalf("migrated under a lock: %v", err)
	}
	execute(t, connect(), "insert into bridge.sessions (share_name, index, client_id) values ('s', 0, 's-0')")
	if all, err := List(ctx, conn, "bridge"); err != nil || !all[1].Applied || all[2].Applied {
		t.Errorf("migrations %+v, %v", all, err)
	}
	if err := backup.Rollback(ctx); err != nil {
		t.Fatal(err)
	}
	if err := Apply(ctx, conn, "bridge", nil); err != nil || Locked(err) {
		t.Error(err)
	}
	var timeout string
	if err := conn.QueryRow(ctx, "show lock_timeout").Scan(&timeout); err != nil || timeout != "0" {
		t.Errorf("lock_timeout is %s afterwards, %v", timeout, err)
	}
}

// TestNewerDatabase is what an old replica meets during a rolling update.
func TestNewerDatabase(t *testing.T) {
	t.Parallel()
	ctx, conn := context.Background(), newDatabase(t)()
	if err := Apply(ctx, conn, "bridge", nil); err != nil {
		t.Fatal(err)
	}
	execute(t, conn, "update bridge.schema_migrations set version = version + 2")
	if err := Apply(ctx, conn, "bridge", nil); err != nil {
		t.Error(err)
	}
	all, err := List(ctx, conn, "bridge")
	if err != nil {
		t.Fatal(err)
	}
	if len(all) != Latest()+2 || all[len(all)-1] != (Migration{Version: Latest() + 2, Name: "unknown to this binary", Applied: true}) {
		t.Errorf("migrations %+v", all)
	}
}

// TestPrivileges: a prepared schema is enough for a role that may not create one, and a migrated one
// for a role that may create nothing.
func TestPrivileges(t *testing.T) {
	t.Parallel()
	ctx, connect := context.Background(), newDatabase(t)
	conn := connect()
	role := fmt.Sprintf("bridge_migrator_%d", os.Getpid())
	execute(t, conn, "create role "+role)
	t.Cleanup(func() {
		_, err := conn.Exec(ctx, "reset role; drop owned by "+role+" cascade; drop role "+role)
		if err != nil {
			t.Error(err)
		}
	})
	execute(t, conn, "set role "+role)
	if err := Apply(ctx, conn, "bridge", nil); err == nil || !strings.Contains(err.Error(), "create schema bridge") {
		t.Errorf("without any privilege: %v", err)
	}
	execute(t, conn, "reset role; create schema bridge; grant usage, create on schema bridge to "+role+"; set role "+role)
	if err := Apply(ctx, conn, "bridge", nil); err != nil {
		t.Fatalf("with a prepared schema: %v", err)
	}
	execute(t, conn, "reset role; revoke create on schema bridge from "+role+"; set role "+role)
	if err := Apply(ctx, conn, "bridge", nil); err != nil {
		t.Errorf("with a migrated schema: %v", err)
	}
	execute(t, conn, "reset role; revoke all on schema bridge from "+role+"; set role "+role)
	hint := `: grant usage on schema "bridge" to "` + role + `"; grant select on "bridge"."schema_migrations" to "` + role + `"`
	if _, err := List(ctx, conn, "bridge"); err == nil || !strings.Contains(err.Error(), "permission denied") || !strings.HasSuffix(err.Error(), hint) {
		t.Errorf("with no privilege any more: %v, want a hint%s", err, hint)
	}
}

func TestSchemaNames(t *testing.T) {
	t.Parallel()
	ctx, conn := context.Background(), newDatabase(t)()
	for _, name := range []string{"", "Bridge", "a b", "a;b", `a"b`, "1a", strings.Repeat("a", 64)} {
		if err := Apply(ctx, conn, name, nil); err == nil {
			t.Errorf("schema %q was accepted", name)
		}
		if _, err := List(ctx, conn, name); err == nil {
			t.Errorf("schema %q was listed", name)
		}
	}
}

// TestBrokenConnection: errors say what was being done.
func TestBrokenConnection(t *testing.T) {
	t.Parallel()
	ctx, conn := context.Background(), newDatabase(t)()
	if err := conn.Close(ctx); err != nil {
		t.Fatal(err)
	}
	if err := Apply(ctx, conn, "bridge", nil); err == nil || !strings.Contains(err.Error(), "look for bridge.schema_migrations") {
		t.Errorf("apply: %v", err)
	}
	if _, err := List(ctx, conn, "bridge"); err == nil {
		t.Error("list: no error")
	}
}

func TestFence(t *testing.T) {
	t.Parallel()
	ctx, conn := context.Background(), newDatabase(t)()
	if err := Apply(ctx, conn, "bridge", nil); err != nil {
		t.Fatal(err)
	}
	execute(t, conn, "insert into bridge.sessions (share_name, index, client_id, epoch) values ('s', 0, 's-0', 5)")
	execute(t, conn, "select bridge.fence('s', 0, 5)")
	for _, call := range []string{"'s', 0, 4", "'s', 0, 6", "'s', 1, 5", "'other', 0, 5"} {
		_, err := conn.Exec(ctx, "select bridge.fence("+call+")")
		if err == nil || !strings.Contains(err.Error(), "BR001") {
			t.Errorf("fence(%s): %v, want BR001", call, err)
		}
	}
}
