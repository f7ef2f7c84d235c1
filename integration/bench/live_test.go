//go:build linux

package bench

import (
	"encoding/hex"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/mqttpg/bridge/integration/bench/page"
)

// liveWork is traffic at a steady rate; the event times are set when it begins.
func liveWork(rate int, devices int) Work {
	return Work{Devices: devices, Step: time.Second / time.Duration(rate)}
}

// live publishes at the rate of the work for a time and measures how long after the moment at which a
// message was due its row was committed. The work's number of messages is set accordingly. A second of warming up
// is not counted.
//
//	p50, p90, p99, p999, max       milliseconds from due to committed
//	system, broker, database       CPU seconds per million messages
//	peak                           bytes of memory
//	own                            CPU seconds per million messages of this process, which publishes and observes
//	late                           milliseconds that the publisher was behind its schedule at most
//
// and, by numbers of latencies, their distribution.
func live(t *testing.T, s *Stage, system *System, duration time.Duration) (Figures, []float64) {
	t.Helper()
	rate := int(time.Second / s.Work.Step)
	warm := rate
	count := int(duration/s.Work.Step) + warm
	system.Subscribe(t, s)
	s.checkpoint(t)
	pids := system.Start(t, s)
	p := s.greet(t, system)
	defer func() { must(t, p.close()) }()

	commits := watchCommits(t, s) // takes a moment, in which messages would be due
	w := s.Work
	w.First = time.Now().Add(10 * time.Millisecond)
	_, err := p.pace(t.Context(), &w, 1, warm+1)
	must(t, err)
	before, own := s.usage(pids), cpuTime(os.Getpid())
	late, err := p.pace(t.Context(), &w, warm+1, count+1)
	must(t, err)
	must(t, p.await(0))
	s.awaitRows(t, count+1, system.Tables...)
	used := s.usage(pids).minus(before)
	own = cpuTime(os.Getpid()) - own
	commits.end(t)

	n := float64(count - warm)
	latencies := s.latencies(t, system, &w, warm+1, commits)
	if len(latencies) != count-warm {
		t.Fatalf("%d latencies of %d messages", len(latencies), count-warm)
	}
	slices.Sort(latencies)
	peak := int64(0)
	for _, pid := range pids {
		_, most := memory(pid)
		peak += most
	}
	return Figures{
		"p50": page.Percentile(latencies, 0.5), "p90": page.Percentile(latencies, 0.9), "p99": page.Percentile(latencies, 0.99),
		"p999": page.Percentile(latencies, 0.999), "max": latencies[len(latencies)-1],
		"system":   used.system.Seconds() / n * 1e6,
		"broker":   used.broker.Seconds() / n * 1e6,
		"database": used.database.Seconds() / n * 1e6,
		"peak":     float64(peak),
		"own":      own.Seconds() / n * 1e6,
		"late":     late.Seconds() * 1e3,
	}, latencies
}

// greet publishes message 0 and returns when its row is there: the system is at work then.
func (s *Stage) greet(t *testing.T, system *System) *publisher {
	t.Helper()
	p, err := connectPublisher(t.Context(), s.Broker.Addr(""), "publisher")
	must(t, err)
	hello := s.Work
	hello.First = time.Now()
	must(t, p.publish(&hello, 0, 1))
	s.awaitRows(t, 1, system.Tables...)
	return p
}

// idle measures what a system without any traffic takes: "idle" is percent of one core.
func idle(t *testing.T, s *Stage, system *System, duration time.Duration) Figures {
	t.Helper()
	system.Subscribe(t, s)
	pids := system.Start(t, s)
	p := s.greet(t, system)
	must(t, p.close())
	time.Sleep(time.Second)
	before, begun := s.usage(pids), time.Now()
	time.Sleep(duration)
	used := s.usage(pids).minus(before)
	percent := 100 / time.Since(begun).Seconds()
	_, peak := memory(pids[0])
	return Figures{"system": used.system.Seconds() * percent, "database": used.database.Seconds() * percent, "broker": used.broker.Seconds() * percent, "peak": float64(peak)}
}

// latencies are the milliseconds between the times at which messages from a number on were due and their commits.
func (s *Stage) latencies(t *testing.T, system *System, w *Work, from int, commits *visibility) []float64 {
	t.Helper()
	var all []float64
	for _, table := range system.Tables {
		rows, err := s.db.Query(t.Context(), "select id::text, xmin::text::int8 from "+table)
		must(t, err)
		var id string
		var transaction int64
		_, err = pgx.ForEachRow(rows, []any{&id, &transaction}, func() error {
			n := numberOf(id)
			if n < from {
				return nil
			}
			at, seen := commits.of(transaction)
			if !seen {
				return fmt.Errorf("transaction %d of message %d was not seen to end", transaction, n)
			}
			all = append(all, at.Sub(w.Time(n)).Seconds()*1e3)
			return nil
		})
		must(t, err)
	}
	return all
}

// numberOf is the number of the message in its id, -1 if it is none.
func numberOf(id string) int {
	raw, err := hex.DecodeString(id[strings.LastIndexByte(id, '-')+1:])
	if err != nil || len(raw) != 6 {
		return -1
	}
	n := 0
	for _, b := range raw {
		n = n<<8 | int(b)
	}
	return n
}

func TestNumberOf(t *testing.T) {
	for _, n := range []int{0, 1, 65_536, 1 << 40} {
		if got := numberOf(string(appendID(nil, time.Now(), n))); got != n {
			t.Errorf("%d reads as %d", n, got)
		}
	}
	if numberOf("0-zz") != -1 || numberOf("") != -1 {
		t.Error("no id has a number")
	}
}
