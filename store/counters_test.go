package store

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/mqttpg/bridge/mapping"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

func TestCountersCollect(t *testing.T) {
	t.Parallel()
	route := &mapping.Route{Name: "r"}
	c := NewCounters([]*mapping.Route{route})
	e := Entry{Outcomes: []mapping.Outcome{{Route: route}}}
	for range 6 {
		c.received(&e)
	}
	c.received(&Entry{})
	c.settled(tallies{"r": {
		written: 1, duplicate: 1,
		deadLettered: map[mapping.Reason]uint64{ReasonDatabase: 1},
		skipped:      map[mapping.SkipReason]uint64{mapping.SkipEmpty: 1},
	}})
	c.abandoned([]Entry{e, {}})
	want := `# HELP bridge_messages_in_flight Messages received and not committed yet.
# TYPE bridge_messages_in_flight gauge
bridge_messages_in_flight{route="none"} 0
bridge_messages_in_flight{route="r"} 1
# HELP bridge_messages_skipped_total Messages passed over; abandoned: left unacknowledged at a hard stop, for the broker to deliver again; refused_by_table: a trigger or rule of the table kept nothing of them.
# TYPE bridge_messages_skipped_total counter
bridge_messages_skipped_total{reason="abandoned",route="none"} 1
bridge_messages_skipped_total{reason="abandoned",route="r"} 1
bridge_messages_skipped_total{reason="empty",route="none"} 0
bridge_messages_skipped_total{reason="empty",route="r"} 1
bridge_messages_skipped_total{reason="no_rows",route="none"} 0
bridge_messages_skipped_total{reason="no_rows",route="r"} 0
bridge_messages_skipped_total{reason="overlap",route="none"} 0
bridge_messages_skipped_total{reason="overlap",route="r"} 0
bridge_messages_skipped_total{reason="refused_by_table",route="none"} 0
bridge_messages_skipped_total{reason="refused_by_table",route="r"} 0
bridge_messages_skipped_total{reason="retained",route="none"} 0
bridge_messages_skipped_total{reason="retained",route="r"} 0
# HELP bridge_messages_received_total Messages received for a route.
# TYPE bridge_messages_received_total counter
bridge_messages_received_total{route="none"} 1
bridge_messages_received_total{route="r"} 6
`
	err := testutil.CollectAndCompare(c, strings.NewReader(want), "bridge_messages_in_flight", "bridge_messages_skipped_total",
		"bridge_messages_received_total")
	if err != nil {
		t.Error(err)
	}
	if problems, err := testutil.CollectAndLint(c); err != nil || len(problems) > 0 {
		t.Errorf("lint: %v %v", problems, err)
	}
}

// TestDeadLettersAreCountedFromZero: an alert on a rise does not see the first letter of a counter that begins with it.
func TestDeadLettersAreCountedFromZero(t *testing.T) {
	t.Parallel()
	route := &mapping.Route{Name: "r"}
	c := NewCounters([]*mapping.Route{route})
	c.received(&Entry{Outcomes: []mapping.Outcome{{Route: route}}})
	c.settled(tallies{"r": {deadLettered: map[mapping.Reason]uint64{ReasonDatabase: 1}}})
	var want strings.Builder
	want.WriteString("# HELP bridge_messages_dead_lettered_total Messages kept in the table of dead letters.\n# TYPE bridge_messages_dead_lettered_total counter\n")
	for _, reason := range LetterReasons() {
		n := 0
		if reason == ReasonDatabase {
			n = 1
		}
		fmt.Fprintf(&want, "bridge_messages_dead_lettered_total{reason=%q,route=\"none\"} 0\nbridge_messages_dead_lettered_total{reason=%q,route=\"r\"} %d\n", reason, reason, n)
	}
	if err := testutil.CollectAndCompare(c, strings.NewReader(want.String()), "bridge_messages_dead_lettered_total"); err != nil {
		t.Error(err)
	}
}

// TestLawHoldsInEverySnapshot looks while the line is busy.
func TestLawHoldsInEverySnapshot(t *testing.T) {
	t.Parallel()
	_, pool := newDatabase(t)
	cfg := impatient(t)
	cfg.MaxMessages = 7
	l := newLine(t, pool, cfg, nil, telemetry, healthy)
	stop := make(chan struct{})
	var group sync.WaitGroup
	group.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				l.counts("telemetry")
			}
		}
	})
	wait := l.run(context.Background())
	for i := range 300 {
		switch i % 4 {
		case 0:
			l.send("devices/a/telemetry", reading(i%60, 1))
		case 1:
			l.send("devices/a/telemetry", "broken")
		case 2:
			l.send("healthy/a", "")
		case 3:
			l.send("nowhere", "")
		}
	}
	if err := l.drain(); err != nil {
		t.Error(err)
	}
	if err := wait(); err != nil {
		t.Error(err)
	}
	close(stop)
	group.Wait()
	l.want("telemetry", 150, 15, 60, 0)
	if n := l.counts("healthy").Skipped[mapping.SkipEmpty]; n != 75 {
		t.Errorf("skipped %d, want 75", n)
	}
}

func TestMetrics(t *testing.T) {
	t.Parallel()
	_, pool := newDatabase(t)
	l := newLine(t, pool, impatient(t), &Lease{Index: 4}, telemetry)
	l.writer.fence = nil
	registry := prometheus.NewRegistry()
	l.metrics = NewMetrics(registry)
	l.renew(impatient(t), nil)
	l.send("devices/a/telemetry", reading(1, 1))
	l.metrics.add(l.writer)
	if n := testutil.CollectAndCount((*oldestCollector)(l.metrics)); n != 1 {
		t.Errorf("%d sessions with an oldest message, want 1", n)
	}
	l.flush()
	if n := testutil.CollectAndCount((*oldestCollector)(l.metrics)); n != 0 {
		t.Errorf("%d sessions with an oldest message after the writer's end", n)
	}
	if n := l.counts("telemetry").Rows; n != 1 {
		t.Errorf("%d rows, want 1", n)
	}
	for _, name := range []string{"bridge_batch_commit_duration_seconds", "bridge_batch_messages", "bridge_ingest_latency_seconds", "bridge_event_lag_seconds"} {
		if n, err := testutil.GatherAndCount(registry, name); n != 1 || err != nil {
			t.Errorf("%s: %d series, %v", name, n, err)
		}
	}
	if problems, err := testutil.GatherAndLint(registry); err != nil || len(problems) > 0 {
		t.Errorf("lint: %v %v", problems, err)
	}
	if s := (&Writer{fence: &Lease{Index: 4, ClientID: "plant-4"}}).session(); s != "plant-4" {
		t.Errorf("session %q, want 4", s)
	}
}
