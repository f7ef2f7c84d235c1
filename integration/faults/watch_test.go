//go:build unix

package faults

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	dto "github.com/prometheus/client_model/go"

	"github.com/mqttpg/bridge/integration/provider"
)

// watcher scrapes one bridge as long as the scenario lasts.
type watcher struct {
	bridge *provider.Bridge

	mu         sync.Mutex
	peak       int // greatest resident set of all lives of the process, KiB
	scrapes    int
	duplicates map[int]int // redeliveries recognised, by process id; the last scrape of each counts
	settled    float64     // messages received, when none is in flight; -1 otherwise
}

// watch checks the conservation law at every scrape: it holds at every instant.
func watch(t *testing.T, bridge *provider.Bridge) *watcher {
	t.Helper()
	w := &watcher{bridge: bridge, settled: -1, duplicates: map[int]int{}}
	ctx, stop := context.WithCancel(context.Background())
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		broken := false
		for ctx.Err() == nil {
			if law := w.scrape(ctx); law != "" && !broken {
				broken = true
				t.Errorf("the conservation law is broken: %s", law)
			}
			select {
			case <-ctx.Done():
			case <-time.After(200 * time.Millisecond):
			}
		}
	}()
	t.Cleanup(func() { stop(); <-stopped })
	return w
}

// scrape returns how the law is broken, or nothing.
func (w *watcher) scrape(ctx context.Context) string {
	pid := w.bridge.PID()
	peak := peakMemory(pid)
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	families, err := w.bridge.Metrics(ctx)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.peak = max(w.peak, peak)
	w.settled = -1
	if err != nil {
		return "" // it is down, or halted: the scenario's business
	}
	w.scrapes++
	w.duplicates[pid] = 0
	for _, n := range byRoute(families["bridge_messages_duplicate_total"]) {
		w.duplicates[pid] += int(n)
	}
	received, inFlight, broken := law(families)
	if inFlight == 0 {
		w.settled = received
	}
	return broken
}

// law adds up what was received and what is in flight, and says for which route, if any, messages were
// made or lost between receipt and outcome.
func law(families map[string]*dto.MetricFamily) (received, inFlight float64, broken string) {
	for route, n := range byRoute(families["bridge_messages_received_total"]) {
		waiting := byRoute(families["bridge_messages_in_flight"])[route]
		outcomes := waiting
		for _, outcome := range []string{"written", "duplicate", "dead_lettered", "skipped"} {
			outcomes += byRoute(families["bridge_messages_"+outcome+"_total"])[route]
		}
		if n != outcomes {
			broken = fmt.Sprintf("route %s received %v, its outcomes and what is in flight are %v", route, n, outcomes)
		}
		received, inFlight = received+n, inFlight+waiting
	}
	return received, inFlight, broken
}

// byRoute adds up the samples of a family by their label route.
func byRoute(family *dto.MetricFamily) map[string]float64 {
	sums := map[string]float64{}
	for _, sample := range family.GetMetric() {
		for _, label := range sample.GetLabel() {
			if label.GetName() == "route" {
				sums[label.GetValue()] += sample.GetCounter().GetValue() + sample.GetGauge().GetValue()
			}
		}
	}
	return sums
}

// peakMemory is the greatest resident set of a process in KiB; 0 where /proc does not tell.
func peakMemory(pid int) int {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	for lines := bufio.NewScanner(bytes.NewReader(status)); lines.Scan(); {
		var kib int
		if _, err := fmt.Sscanf(lines.Text(), "VmHWM: %d kB", &kib); err == nil {
			return kib
		}
	}
	return 0
}

// gaps notes when each session committed.
type gaps struct {
	mu      sync.Mutex
	commits map[int]map[int64]time.Time // by session and batch
}

// watchGaps reads the ledger, of which each batch has a row, until the scenario ends.
func watchGaps(t *testing.T, databaseURL string) *gaps {
	t.Helper()
	g := &gaps{commits: map[int]map[int64]time.Time{}}
	ctx, stop := context.WithCancel(context.Background())
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		for ctx.Err() == nil {
			if db, err := pgx.Connect(ctx, databaseURL); err == nil {
				for g.read(ctx, db) == nil {
					time.Sleep(500 * time.Millisecond)
				}
				_ = db.Close(context.WithoutCancel(ctx))
			}
		}
	}()
	t.Cleanup(func() { stop(); <-stopped })
	return g
}

func (g *gaps) read(ctx context.Context, db *pgx.Conn) error {
	rows, err := db.Query(ctx, "select index, batch, committed_at from bridge.deliveries where committed_at > now() - interval '5 s'")
	if err != nil {
		return err
	}
	var session int
	var batch int64
	var at time.Time
	g.mu.Lock()
	defer g.mu.Unlock()
	_, err = pgx.ForEachRow(rows, []any{&session, &batch, &at}, func() error {
		if g.commits[session] == nil {
			g.commits[session] = map[int64]time.Time{}
		}
		g.commits[session][batch] = at
		return nil
	})
	return err
}

// longest is the longest time between two commits of one session while messages were published.
func (g *gaps) longest(start, end time.Time) time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	longest := time.Duration(0)
	for _, commits := range g.commits {
		times := []time.Time{start, end}
		for _, at := range commits {
			if at.After(start) && at.Before(end) {
				times = append(times, at)
			}
		}
		slices.SortFunc(times, time.Time.Compare)
		for i := range times[1:] {
			longest = max(longest, times[i+1].Sub(times[i]))
		}
	}
	return longest
}
