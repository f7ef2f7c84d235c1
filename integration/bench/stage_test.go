//go:build linux

package bench

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/mqttpg/bridge/integration/provider"
)

// Stage is what one measurement takes place on: a broker and a database of its own, and the work. It ends
// with its test.
type Stage struct {
	Broker *provider.Broker
	Server *provider.Database // the server of the database
	URL    string             // of the database
	Work   Work

	since     time.Time // rows before it are none of the measurement's
	existing  int       // rows of its tables since then that were there before
	db        *pgx.Conn // the observer's
	uncounted []int     // processes of the server that serve the observer
}

// serverSettings are those of the database server, beside fsync and synchronous_commit, which are on.
var serverSettings = map[string]string{
	"track_commit_timestamp": "on",    // tells when a row became visible
	"autovacuum":             "off",   // it would fall on one measurement and not on the next
	"max_wal_size":           "8GB",   // and so would a checkpoint:
	"checkpoint_timeout":     "30min", // there is one before every measurement
}

// brokerSettings: nothing is dropped, nothing is written to disk.
var brokerSettings = []string{
	"persistence false", "max_inflight_messages 0", "max_queued_messages 0",
	"log_type error", "log_type warning", "connection_messages false",
}

// newStage starts a broker, and connects to a database, which is made unless its URL is given.
func newStage(t *testing.T, server *provider.Database, url string, work Work) *Stage {
	t.Helper()
	s := &Stage{Server: server, URL: url, Work: work}
	s.Broker = provider.StartBroker(t, provider.BrokerConfig{Conf: brokerSettings})
	if s.URL == "" {
		s.URL = server.Fresh(t)
	}
	s.observe(t)
	t.Cleanup(func() { _ = s.db.Close(context.WithoutCancel(t.Context())) })
	return s
}

// observe opens the observer's connection. What it costs is not counted.
func (s *Stage) observe(t *testing.T) {
	t.Helper()
	var err error
	s.db, err = pgx.Connect(t.Context(), s.URL)
	must(t, err)
	var backend int
	// Helpers of a parallel plan would be counted.
	must(t, s.db.QueryRow(t.Context(), "select pg_backend_pid() from set_config('max_parallel_workers_per_gather', '0', false)").Scan(&backend))
	s.uncounted = append(s.uncounted, backend)
}

// usage is CPU time.
type usage struct{ system, broker, database time.Duration }

// usage reads the clocks of the system's processes, the broker and the database server with all its
// children but the observer.
func (s *Stage) usage(pids []int) usage {
	u := usage{broker: cpuTime(s.Broker.PID()), database: familyTime(s.Server.PID(), s.uncounted...)}
	for _, pid := range pids {
		u.system += cpuTime(pid)
	}
	return u
}

func (u usage) minus(v usage) usage {
	return usage{u.system - v.system, u.broker - v.broker, u.database - v.database}
}

// wal is how much write-ahead log there is, in bytes.
func (s *Stage) wal(t *testing.T) int64 {
	t.Helper()
	var position int64
	must(t, s.db.QueryRow(t.Context(), "select pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::int8").Scan(&position))
	return position
}

// checkpoint writes all that is dirty, so that the next measurement does not have to.
func (s *Stage) checkpoint(t *testing.T) {
	t.Helper()
	_, err := s.db.Exec(t.Context(), "checkpoint")
	must(t, err)
}

// filter is the condition of rows that are the measurement's.
func (s *Stage) filter() string {
	if s.since.IsZero() {
		return ""
	}
	return " where time >= '" + s.since.UTC().Format(time.RFC3339) + "'"
}

// rows counts those of some tables that the measurement has brought; there are none in a table that is not
// there.
func (s *Stage) rows(t *testing.T, tables ...string) int {
	t.Helper()
	sum := -s.existing
	for _, table := range tables {
		var there bool
		must(t, s.db.QueryRow(t.Context(), "select to_regclass($1) is not null", table).Scan(&there))
		if !there {
			continue
		}
		var n int
		must(t, s.db.QueryRow(t.Context(), "select count(*) from "+table+s.filter()).Scan(&n))
		sum += n
	}
	return sum
}

// patience with a system that makes no progress.
const patience = 90 * time.Second

// endurance bounds any wait for rows: something may write on and on.
const endurance = 20 * time.Minute

// awaitRows returns when the tables hold so many rows together. It looks at the write-ahead log, which costs
// nothing, and counts when that has come to rest.
func (s *Stage) awaitRows(t *testing.T, want int, tables ...string) {
	t.Helper()
	const pause, rest, little = 50 * time.Millisecond, 250 * time.Millisecond, 32 << 10
	got, progress := -1, time.Now()
	quiet, position := time.Now(), s.wal(t)
	for begun := progress; ; {
		time.Sleep(pause)
		if time.Since(begun) > endurance {
			t.Fatalf("no end after %v", endurance)
		}
		if now := s.wal(t); now-position > little {
			quiet, position = time.Now(), now
			continue
		}
		if time.Since(quiet) < rest {
			continue
		}
		rows := s.rows(t, tables...)
		if rows == want {
			return
		}
		if rows > want {
			t.Fatalf("%d rows of %d messages", rows, want)
		}
		if rows != got {
			got, progress = rows, time.Now()
		}
		if time.Since(progress) > patience {
			t.Fatalf("%d rows of %d messages, and no more for %v", rows, want, patience)
		}
		quiet = time.Now()
	}
}

// commits tells when rows became visible: the first and the last commit, and how many rows the first one had.
func (s *Stage) commits(t *testing.T, after time.Time, tables ...string) (first, last time.Time, head int) {
	t.Helper()
	for _, table := range tables {
		rows, err := s.db.Query(t.Context(), fmt.Sprintf(`select at, n::int from (select pg_xact_commit_timestamp(x) as at, n
			from (select xmin as x, count(*) as n from %s%s group by xmin) as by_transaction) as by_time where at >= $1`, table, s.filter()), after)
		must(t, err)
		var at time.Time
		var n int
		_, err = pgx.ForEachRow(rows, []any{&at, &n}, func() error {
			if first.IsZero() || at.Before(first) {
				first, head = at, n
			} else if at.Equal(first) {
				head += n
			}
			if at.After(last) {
				last = at
			}
			return nil
		})
		must(t, err)
	}
	return first, last, head
}
