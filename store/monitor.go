package store

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

const (
	pingEvery   = 2 * time.Second
	pingTimeout = 5 * time.Second
)

// DatabaseStatus is how the database was when it was last asked.
type DatabaseStatus struct {
	Up       bool      // it answered, and takes writes
	Since    time.Time // of the present value of Up; zero: never asked
	LastPing time.Time // last answer; zero: none yet
	PingMS   float64   // how long it took, in milliseconds

	LastError   string // of the last failure; empty: none yet
	LastErrorAt time.Time

	ReadOnly         bool // it answers, but is a standby or otherwise takes no writes
	MigrationVersion int  // 0: not migrated

	MaxConns, TotalConns, IdleConns, AcquiredConns int32 // of the pool
}

// Monitor asks the database regularly how it is. Safe for concurrent use.
type Monitor struct {
	// Recovered, when set, is called when the database is up again after it was down, by whoever pings.
	// It must not block. To be set before the first ping.
	Recovered func()

	pool    *pgxpool.Pool
	schema  string
	metrics *Metrics

	mu     sync.Mutex
	status DatabaseStatus
}

// NewMonitor returns a monitor of the database behind pool. metrics may be nil.
func NewMonitor(pool *pgxpool.Pool, schema string, metrics *Metrics) *Monitor {
	return &Monitor{pool: pool, schema: schema, metrics: metrics}
}

// Run asks at once and then every two seconds, until ctx is done. A database that does not answer
// within five seconds is down.
func (m *Monitor) Run(ctx context.Context) {
	ticker := time.NewTicker(pingEvery)
	defer ticker.Stop()
	for {
		m.Ping(ctx)
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// Status returns what the last question found out, and how the pool is now.
func (m *Monitor) Status() DatabaseStatus {
	m.mu.Lock()
	s := m.status
	m.mu.Unlock()
	stat := m.pool.Stat()
	s.MaxConns, s.TotalConns, s.IdleConns, s.AcquiredConns = stat.MaxConns(), stat.TotalConns(), stat.IdleConns(), stat.AcquiredConns()
	return s
}

// Ping asks the database once and updates the status.
func (m *Monitor) Ping(ctx context.Context) {
	started := time.Now()
	readOnly, version, err := m.ask(ctx)
	if ctx.Err() != nil {
		return // we are leaving: says nothing about the database
	}
	now := time.Now()
	if recovered := m.note(started, now, readOnly, version, err); recovered && m.Recovered != nil {
		m.Recovered()
	}
}

// note updates the status, and says whether the database has come back.
func (m *Monitor) note(started, now time.Time, readOnly bool, version int, err error) (recovered bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := &m.status
	if err == nil {
		s.LastPing, s.PingMS = now, float64(now.Sub(started).Microseconds())/1000
		s.ReadOnly, s.MigrationVersion = readOnly, version
		if readOnly {
			err = fmt.Errorf("the server is read-only")
		}
	}
	if err != nil {
		s.LastError, s.LastErrorAt = err.Error(), now
	}
	if up := err == nil; up != s.Up || s.Since.IsZero() {
		recovered = up && !s.Since.IsZero()
		s.Up, s.Since = up, now
	}
	m.metrics.setUp(s.Up)
	return recovered
}

func (m *Monitor) ask(ctx context.Context) (readOnly bool, version int, err error) {
	ctx, cancel := context.WithTimeout(ctx, pingTimeout)
	defer cancel()
	var migrated bool
	table := pgx.Identifier{m.schema, "schema_migrations"}.Sanitize()
	err = m.pool.QueryRow(ctx, `select current_setting('transaction_read_only') = 'on',
		exists (select from pg_catalog.pg_tables where schemaname = $1 and tablename = 'schema_migrations')`, m.schema).Scan(&readOnly, &migrated)
	if err == nil && migrated {
		err = m.pool.QueryRow(ctx, `select coalesce(max(version), 0) from `+table).Scan(&version)
	}
	if err != nil {
		return false, 0, fmt.Errorf("ping database: %w", Plain(err))
	}
	return readOnly, version, nil
}
