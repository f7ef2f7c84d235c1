//go:build linux

package bench

import (
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mqttpg/bridge/integration/bench/page"
)

// Figures of one measurement, by name.
type Figures map[string]float64

func (f Figures) String() string {
	var all []string
	for _, name := range slices.Sorted(maps.Keys(f)) {
		all = append(all, name+" "+page.Number(f[name]))
	}
	return strings.Join(all, ", ")
}

// drain queues the work in the system's session, starts the system and measures until all is written. The
// CPU time is that of the whole life of the system until then, its start included; the rate is that of the
// rows between the first and the last commit.
//
//	rate                           messages a second
//	system, broker, database       CPU seconds per million messages
//	peak                           bytes of memory, the greatest of all processes together
//	wal                            bytes of write-ahead log per message
func drain(t *testing.T, s *Stage, system *System) Figures {
	t.Helper()
	n := s.Work.Messages
	if system.Subscribe != nil {
		system.Subscribe(t, s)
		publishBacklog(t, s.Broker.Addr(""), &s.Work)
	}
	s.existing = s.rows(t, system.Tables...)
	s.checkpoint(t)

	before, wal, begun := s.usage(nil), s.wal(t), time.Now()
	pids := system.Start(t, s)
	var first, last time.Time
	head := 0
	if system.Progress != nil {
		first, last = awaitProgress(t, system, n)
	}
	if len(system.Tables) > 0 {
		s.awaitRows(t, n, system.Tables...)
	}
	used := s.usage(pids).minus(before)
	wal = s.wal(t) - wal
	peak := int64(0)
	for _, pid := range pids {
		_, most := memory(pid)
		peak += most
	}
	if len(system.Tables) > 0 {
		end := last // of the acknowledgements
		if first, last, head = s.commits(t, begun, system.Tables...); last.Before(end) {
			last = end
		}
	}
	f := Figures{
		"system":   used.system.Seconds() / float64(n) * 1e6,
		"broker":   used.broker.Seconds() / float64(n) * 1e6,
		"database": used.database.Seconds() / float64(n) * 1e6,
		"peak":     float64(peak),
		"wal":      float64(wal) / float64(n),
	}
	if system.Limit {
		delete(f, "peak") // it is that of rows which were encoded before
	}
	if took := last.Sub(first).Seconds(); took > 0 {
		f["rate"] = float64(n-head) / took
	}
	return f
}

// awaitProgress returns when the system says that it has dealt with all.
func awaitProgress(t *testing.T, system *System, want int) (first, last time.Time) {
	t.Helper()
	before, progress := -1, time.Now()
	for {
		n, first, last := system.Progress()
		if n >= want {
			return first, last
		}
		if n != before {
			before, progress = n, time.Now()
		}
		if time.Since(progress) > patience {
			t.Fatalf("%d of %d messages, and no more for %v", n, want, patience)
		}
		time.Sleep(10 * time.Millisecond)
	}
}
