package store

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/mqttpg/bridge/integration/localpg"
	"github.com/mqttpg/bridge/migrations"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

// ownServer starts a server that the test may stop, with a migrated database.
func ownServer(t *testing.T) (*localpg.Server, *pgxpool.Pool) {
	t.Helper()
	ctx := context.Background()
	server, err := localpg.Start(ctx, localpg.Config{Settings: map[string]string{"fsync": "off", "shared_buffers": "16MB"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Stop() })
	conn, err := pgx.Connect(ctx, server.URL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(ctx) }()
	if err := migrations.Apply(ctx, conn, "bridge", nil); err != nil {
		t.Fatal(err)
	}
	return server, newPool(t, server.URL("postgres"))
}

// TestOutage stops the database in the middle of a stream and starts it again.
func TestOutage(t *testing.T) {
	t.Parallel()
	server, pool := ownServer(t)
	l := newLine(t, pool, impatient(t), nil, telemetry)
	monitor := NewMonitor(pool, "bridge", l.metrics)
	monitor.Ping(context.Background())
	if s := monitor.Status(); !s.Up || s.MigrationVersion != migrations.Latest() || s.ReadOnly || s.LastPing.IsZero() || s.MaxConns != 8 {
		t.Errorf("status %+v of a database that is up", s)
	}
	wait := l.run(context.Background())
	for i := range 50 {
		l.send(fmt.Sprintf("devices/%d/telemetry", i), reading(1, 1))
	}
	eventually(t, "the first messages settle", func() bool { return len(l.order()) == 50 })

	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	for i := range 50 {
		l.send(fmt.Sprintf("devices/%d/telemetry", i), reading(2, 1))
	}
	l.send("devices/a/telemetry", "broken")
	eventually(t, "the batch is retried", func() bool { return l.writer.Status().Retrying })
	monitor.Ping(context.Background())
	if s := monitor.Status(); s.Up || s.LastError == "" || s.Since.IsZero() {
		t.Errorf("status %+v of a database that is down", s)
	}
	if n := len(l.order()); n != 50 {
		t.Errorf("%d messages settled without a database", n)
	}
	l.want("telemetry", 101, 50, 0, 51)

	if err := server.Restart(context.Background()); err != nil {
		t.Fatal(err)
	}
	if err := l.drain(); err != nil {
		t.Error(err)
	}
	if err := wait(); err != nil {
		t.Error(err)
	}
	monitor.Ping(context.Background())
	if s := monitor.Status(); !s.Up {
		t.Errorf("status %+v of a database that is back", s)
	}
	l.wantInOrder(101)
	l.want("telemetry", 101, 100, 0, 0)
	if n := value[int](t, pool, `select count(*)::int from telemetry`); n != 100 {
		t.Errorf("%d rows, want 100", n)
	}
}

// TestDatabaseIsBack: who waits to try again does so at once when the database is seen to be back.
func TestDatabaseIsBack(t *testing.T) {
	t.Parallel()
	server, pool := ownServer(t)
	execute(t, pool, `insert into bridge.sessions (share_name, index, client_id, epoch) values ('s', 0, 's-0', 1)`)
	cfg := impatient(t)
	cfg.retryMin, cfg.retryMax = time.Hour, time.Hour
	committing := newLine(t, pool, cfg, nil, telemetry)
	opening := newLine(t, pool, cfg, &Lease{ClientID: "s-0", Epoch: 1, ShareName: "s"}, telemetry)
	if err := committing.tables.Ensure(t.Context()); err != nil {
		t.Fatal(err)
	}
	recovered := 0
	monitor := NewMonitor(pool, "bridge", nil)
	monitor.Recovered = func() {
		recovered++
		committing.writer.Retry()
		opening.writer.Retry()
		opening.writer.Retry() // does not block
	}
	monitor.Ping(t.Context())
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	var waits []func() error
	for _, l := range []*line{committing, opening} {
		waits = append(waits, l.run(t.Context()))
		l.send("devices/a/telemetry", reading(1, 1))
		eventually(t, "the writer waits to try again", func() bool { return l.writer.Status().Retrying })
	}
	monitor.Ping(t.Context())
	monitor.Ping(t.Context())
	if err := server.Restart(context.Background()); err != nil {
		t.Fatal(err)
	}
	if recovered != 0 {
		t.Errorf("back %d times before it was", recovered)
	}
	eventually(t, "the database is up", func() bool { monitor.Ping(t.Context()); return monitor.Status().Up })
	monitor.Ping(t.Context())
	if recovered != 1 {
		t.Errorf("back %d times", recovered)
	}
	eventually(t, "both have written", func() bool { return len(committing.order()) == 1 && len(opening.order()) == 1 })
	for i, l := range []*line{committing, opening} {
		if err := l.drain(); err != nil {
			t.Error(err)
		}
		if err := waits[i](); err != nil {
			t.Error(err)
		}
		l.wantInOrder(1)
		if s := l.writer.Status(); s.Retrying {
			t.Errorf("status %+v", s)
		}
	}
}

// TestSilentDatabase halts the server: nothing is refused, nothing is answered.
func TestSilentDatabase(t *testing.T) {
	t.Parallel()
	server, pool := ownServer(t)
	cfg := impatient(t)
	cfg.attemptTimeout = 300 * time.Millisecond
	l := newLine(t, pool, cfg, nil, telemetry)
	if err := l.tables.Ensure(context.Background()); err != nil {
		t.Fatal(err)
	}
	if err := server.Pause(); err != nil {
		t.Fatal(err)
	}
	wait := l.run(context.Background())
	l.send("devices/a/telemetry", reading(1, 1))
	eventually(t, "the attempt is given up", func() bool { return l.writer.Status().Retrying })
	if err := server.Resume(); err != nil {
		t.Fatal(err)
	}
	if err := l.drain(); err != nil {
		t.Error(err)
	}
	if err := wait(); err != nil {
		t.Error(err)
	}
	l.wantInOrder(1)
	if n := value[int](t, pool, `select count(*)::int from telemetry`); n != 1 {
		t.Errorf("%d rows, want 1", n)
	}
}

// TestReadOnlyDatabase is what a failover leaves behind for a while.
func TestReadOnlyDatabase(t *testing.T) {
	t.Parallel()
	_, pool := newDatabase(t)
	l := newLine(t, pool, impatient(t), nil, telemetry)
	if err := l.tables.Ensure(context.Background()); err != nil {
		t.Fatal(err)
	}
	database := pgx.Identifier{value[string](t, pool, `select current_database()`)}.Sanitize()
	execute(t, pool, `alter database `+database+` set default_transaction_read_only = on`)
	pool.Reset()
	monitor := NewMonitor(pool, "bridge", nil)
	monitor.Ping(context.Background())
	if s := monitor.Status(); s.Up || !s.ReadOnly {
		t.Errorf("status %+v of a read-only database", s)
	}
	wait := l.run(context.Background())
	l.send("devices/a/telemetry", reading(1, 1))
	eventually(t, "the batch is retried", func() bool { return l.writer.Status().Retrying })
	execute(t, pool, `set transaction read write; alter database `+database+` set default_transaction_read_only = off`)
	if err := l.drain(); err != nil {
		t.Error(err)
	}
	if err := wait(); err != nil {
		t.Error(err)
	}
	l.want("telemetry", 1, 1, 0, 0)
	if f := l.tables.Failing(); len(f) != 0 {
		t.Errorf("a read-only database was blamed on the table: %v", f)
	}
}

// TestFailoverDropsOldConnections: after one refusal no other connection to the old primary is tried.
func TestFailoverDropsOldConnections(t *testing.T) {
	t.Parallel()
	_, pool := newDatabase(t)
	l := newLine(t, pool, impatient(t), nil, telemetry)
	if err := l.tables.Ensure(context.Background()); err != nil {
		t.Fatal(err)
	}
	var conns []*pgxpool.Conn
	for range 6 {
		conn, err := pool.Acquire(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Exec(context.Background(), `set default_transaction_read_only = on`); err != nil {
			t.Fatal(err)
		}
		conns = append(conns, conn)
	}
	for _, conn := range conns {
		conn.Release()
	}
	l.send("devices/a/telemetry", reading(1, 1))
	l.flush()
	if n := testutil.ToFloat64(l.metrics.retries.WithLabelValues("25")); n != 1 {
		t.Errorf("%g attempts were refused, want 1", n)
	}
	l.want("telemetry", 1, 1, 0, 0)
}

// TestTerminatedBackends kills the writer's connections again and again under a stream.
func TestTerminatedBackends(t *testing.T) {
	t.Parallel()
	url, pool := newDatabase(t)
	admin := newPool(t, url)
	cfg := impatient(t)
	cfg.MaxMessages = 20
	l := newLine(t, pool, cfg, nil, telemetry)
	wait := l.run(context.Background())
	const messages = 2000
	for i := range messages {
		l.send(fmt.Sprintf("devices/%d/telemetry", i), reading(1, 1))
		if i%100 == 50 {
			execute(t, admin, `select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()`)
		}
	}
	if err := l.drain(); err != nil {
		t.Error(err)
	}
	if err := wait(); err != nil {
		t.Error(err)
	}
	l.wantInOrder(messages)
	if n := value[int](t, admin, `select count(*)::int from telemetry`); n != messages {
		t.Errorf("%d rows, want %d", n, messages)
	}
	// A commit whose answer was lost counts its messages as duplicates; none is lost.
	if c := l.counts("telemetry"); c.Written+c.Duplicate != messages || c.InFlight != 0 {
		t.Errorf("counts %+v", c)
	}
}

func TestMonitorRuns(t *testing.T) {
	t.Parallel()
	_, pool := newDatabase(t)
	ctx, cancel := context.WithCancel(context.Background())
	monitor := NewMonitor(pool, "elsewhere", nil)
	ended := make(chan struct{})
	go func() { monitor.Run(ctx); close(ended) }()
	eventually(t, "the database is seen", func() bool { return monitor.Status().Up })
	if v := monitor.Status().MigrationVersion; v != 0 {
		t.Errorf("version %d of a schema that is not there", v)
	}
	cancel()
	<-ended
}
