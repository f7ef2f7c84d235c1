//go:build linux

package bench

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/mqttpg/bridge/integration/bench/page"
)

// section is a part of the page.
type section struct {
	name    string
	title   string
	measure func(t *testing.T, b *suite) []*Point
	render  func(r *Result) (text, svg string)
	fits    func(b *suite) bool // what it is about can be seen with this broker; nil: with any
}

// sections in the order of the page.
var sections = []section{
	{"drain", "Draining a backlog", measureDrain, renderDrain, nil},
	{"live", "Live traffic", measureLive, renderLive, nil},
	{"limits", "The limits of this machine", measureLimits, renderLimits, nil},
	{"history", "Growth with the table", measureHistory, renderHistory, nil},
	{"devices", "Growth with the number of devices", measureDevices, renderDevices, nil},
	{"routes", "Growth with the number of routes", measureRoutes, renderRoutes, nil},
	{"payload", "Growth with the payload", measurePayload, renderPayload, nil},
	{"sessions", "Several sessions", measureSessions, renderSessions, nil},
	{"replicas", "Several replicas", measureReplicas, renderReplicas, nil},
	{"window", "Receive Maximum, at a broker that keeps to it", measureWindows, renderWindows, (*suite).keepsToWindow},
	{"unkeyed", "Routes without a key, at a broker that exceeds Receive Maximum", measureUnkeyed, renderUnkeyed, func(b *suite) bool { return !b.keepsToWindow() }},
	{"outage", "A database outage", measureOutage, renderOutage, nil},
}

// keepsToWindow says that the broker sends no more than the Receive Maximum, as Mosquitto does since 2.0.13.
func (b *suite) keepsToWindow() bool {
	var major, minor, patch int
	if _, err := fmt.Sscanf(b.broker, "%d.%d.%d", &major, &minor, &patch); err != nil {
		return false
	}
	return slices.Compare([]int{major, minor, patch}, []int{2, 0, 13}) >= 0
}

func sectionNames() string {
	names := make([]string, len(sections))
	for i, s := range sections {
		names[i] = s.name
	}
	return strings.Join(names, ", ")
}

// drainJob drains some work on a stage of its own.
func (b *suite) drainJob(label string, x float64, system System, work func() Work) job {
	return job{&Point{System: system.Name, Label: label, X: x}, func(t *testing.T, _ *Point) Figures {
		return drain(t, newStage(t, b.server, "", work()), &system)
	}}
}

func measureDrain(t *testing.T, b *suite) []*Point {
	var jobs []job
	for _, n := range b.drain {
		for _, system := range systems(t) {
			jobs = append(jobs, b.drainJob(fmt.Sprintf("%s, %s messages", system.Name, page.Count(n)), float64(n), system,
				func() Work { return drainWork(n, 1000) }))
		}
	}
	return b.play(t, jobs)
}

// systems are the bridge and what it is compared with.
func systems(t *testing.T) []System {
	t.Helper()
	return append([]System{bridge("bridge", bridgeOptions{})}, peers(t)...)
}

// curvePlaces are the percentiles of the plot of latencies, as the share of messages that take longer.
var curvePlaces = []float64{0.5, 0.25, 0.1, 0.05, 0.025, 0.01, 0.005, 0.0025, 0.001}

func measureLive(t *testing.T, b *suite) []*Point {
	var jobs []job
	for _, system := range systems(t) {
		if system.Limit || system.Subscribe == nil || system.Progress != nil {
			continue // a limit that has no latency
		}
		for _, rate := range b.rates {
			jobs = append(jobs, job{
				&Point{System: system.Name, Label: fmt.Sprintf("%s, %s messages/s", system.Name, page.Count(rate)), X: float64(rate)},
				func(t *testing.T, p *Point) Figures {
					f, latencies := live(t, newStage(t, b.server, "", liveWork(rate, 1000)), &system, b.live)
					p.Curve = nil
					for _, rest := range curvePlaces {
						p.Curve = append(p.Curve, [2]float64{1 / rest, page.Percentile(latencies, 1-rest)})
					}
					return f
				},
			})
		}
		jobs = append(jobs, job{
			&Point{System: system.Name, Label: system.Name + ", idle"},
			func(t *testing.T, _ *Point) Figures {
				return idle(t, newStage(t, b.server, "", liveWork(1000, 1000)), &system, b.idle)
			},
		})
	}
	return b.play(t, jobs)
}

// measureHistory drains backlogs each of which is later than all that is there, as that of an outage is: rows between
// others split the pages of an index.
func measureHistory(t *testing.T, b *suite) []*Point {
	url := b.server.Fresh(t)
	today := time.Now().UTC().Truncate(24 * time.Hour)
	work := drainWork(b.all, 1000)
	long := time.Duration(work.Messages) * work.Step
	until := today.Add(max(time.Since(today)-time.Duration(b.rounds)*long, time.Second)) // where the history ends
	var jobs []job
	for _, rows := range b.history {
		table := fmt.Sprintf("history_%d", rows)
		system := bridge("bridge", bridgeOptions{table: table})
		stage := func(t *testing.T, work Work) *Stage {
			s := newStage(t, b.server, url, work)
			s.since = today
			return s
		}
		t.Run("fill "+table, func(t *testing.T) {
			s := stage(t, work)
			system.Subscribe(t, s) // makes the table
			b.fill(t, s, table, rows, today, until)
		})
		next := until
		jobs = append(jobs, job{
			&Point{System: system.Name, Label: page.Count(rows), X: float64(rows)},
			func(t *testing.T, _ *Point) Figures {
				w := work
				w.First, next = next, next.Add(long)
				s := stage(t, w)
				if rows == 0 {
					_, err := s.db.Exec(t.Context(), "truncate "+table)
					must(t, err)
				}
				return drain(t, s, &system)
			},
		})
	}
	return b.play(t, jobs)
}

func measureDevices(t *testing.T, b *suite) []*Point {
	var jobs []job
	for _, devices := range b.devices {
		jobs = append(jobs, b.drainJob(page.Count(devices), float64(devices), bridge("bridge", bridgeOptions{}),
			func() Work { return drainWork(b.all, devices) }))
	}
	return b.play(t, jobs)
}

// Names of the two ways to have several routes, and of the best statement into as many tables, in batches as large
// as the bridge's.
const (
	oneTable        = "one table"
	manyTables      = "a table each"
	manyTablesAlone = "a table each, statement"

	bridgeBatch = 7500
)

func measureRoutes(t *testing.T, b *suite) []*Point {
	l := newLimits(t)
	var jobs []job
	for _, routes := range b.routes {
		for _, system := range []System{
			bridge(oneTable, bridgeOptions{routes: routes}),
			bridge(manyTables, bridgeOptions{routes: routes, tables: true}),
			l.statement(manyTablesAlone, bestStatement, bridgeBatch, routes, true),
		} {
			if routes == 1 && system.Name != oneTable {
				continue
			}
			jobs = append(jobs, b.drainJob(fmt.Sprintf("%d, %s", routes, system.Name), float64(routes), system, func() Work {
				w := drainWork(b.all, 1000) // as many as make the start of a process with many routes a small part
				w.Sites = routes
				return w
			}))
		}
	}
	return b.play(t, jobs)
}

func measurePayload(t *testing.T, b *suite) []*Point {
	const volume = 256 << 20 // bytes that the broker has to hold at most
	var jobs []job
	for _, size := range b.sizes {
		jobs = append(jobs, b.drainJob(bytesOf(size), float64(size), bridge("bridge", bridgeOptions{}), func() Work {
			w := drainWork(min(b.messages, volume/size), 1000)
			w.Size = size
			return w
		}))
	}
	return b.play(t, jobs)
}

func bytesOf(n int) string {
	if n >= 1<<10 {
		return fmt.Sprintf("%d KiB", n>>10)
	}
	return fmt.Sprintf("%d B", n)
}

func measureSessions(t *testing.T, b *suite) []*Point {
	var jobs []job
	for _, sessions := range b.sessions {
		system := bridge("bridge", bridgeOptions{sessions: sessions})
		jobs = append(jobs, b.drainJob(strconv.Itoa(sessions), float64(sessions), system, func() Work { return drainWork(b.messages, 1000) }))
	}
	return b.play(t, jobs)
}

// sessionsOfReplicas can be divided by 1, 2 and 3.
const sessionsOfReplicas = 6

func measureReplicas(t *testing.T, b *suite) []*Point {
	var jobs []job
	for _, replicas := range b.replicas {
		system := bridge("bridge", bridgeOptions{replicas: replicas, sessions: sessionsOfReplicas})
		jobs = append(jobs, b.drainJob(strconv.Itoa(replicas), float64(replicas), system, func() Work { return drainWork(b.messages, 1000) }))
	}
	return b.play(t, jobs)
}

// measureWindows drains with several Receive Maximums, of which the second is the default.
func measureWindows(t *testing.T, b *suite) []*Point {
	var jobs []job
	for _, window := range b.receive {
		jobs = append(jobs, b.drainJob(page.Count(window), float64(window), bridge("bridge", bridgeOptions{window: window}),
			func() Work { return drainWork(b.messages, 1000) }))
	}
	return b.play(t, jobs)
}

// measureUnkeyed drains into a route that needs the ledger, whose acknowledgements are long at such a broker, and into one that does not.
func measureUnkeyed(t *testing.T, b *suite) []*Point {
	var jobs []job
	for x, o := range []bridgeOptions{{}, {keyless: true}} {
		label := "with a key"
		if o.keyless {
			label = "without a key"
		}
		jobs = append(jobs, b.drainJob(label, float64(x), bridge("bridge", o), func() Work { return drainWork(b.all, 1000) }))
	}
	return b.play(t, jobs)
}

// outageRate is in messages a second.
const outageRate = 1000

// measureOutage stops the database server under load and starts it again. The curve is the memory of the
// bridge in MiB over seconds.
//
//	before, peak, growth  bytes: at the end of the traffic before, at most, and what was added in the last
//	                      four fifths of the outage
//	away                  seconds
//	recovery              seconds from the start of the server until all that was due before it was written
func measureOutage(t *testing.T, b *suite) []*Point {
	p := &Point{System: "bridge", Label: "database away", X: b.outage.Seconds()}
	t.Run(p.Label, func(t *testing.T) {
		server := sharedServer(t)
		s := newStage(t, server, server.Fresh(t), liveWork(outageRate, 1000))
		system := bridge("bridge", bridgeOptions{})
		system.Subscribe(t, s)
		pid := system.Start(t, s)[0]
		publisher := s.greet(t, &system)

		w, begun := s.Work, time.Now()
		w.First = begun
		count := int((b.outage + 2*b.around) / w.Step)
		published := make(chan error, 1)
		go func() {
			_, err := publisher.pace(t.Context(), &w, 1, count+1)
			published <- errors.Join(err, publisher.await(0))
		}()
		watch := func(duration time.Duration) (sizes []float64) {
			every := min(time.Second, max(duration/10, 20*time.Millisecond))
			for end := time.Now().Add(duration); time.Now().Before(end); time.Sleep(every) {
				now, _ := memory(pid)
				p.Curve = append(p.Curve, [2]float64{time.Since(begun).Seconds(), float64(now) / (1 << 20)})
				sizes = append(sizes, float64(now))
			}
			return sizes
		}
		before := watch(b.around)
		must(t, s.db.Close(t.Context())) // its server ends
		left := time.Now()
		must(t, server.Stop(t.Context()))
		during := watch(b.outage - time.Since(left))
		back := time.Now()
		must(t, server.Start(t.Context()))
		s.observe(t)
		watch(b.around)
		must(t, <-published)
		s.awaitRows(t, count+1, system.Tables...)
		var last time.Time
		must(t, s.db.QueryRow(t.Context(), "select max(pg_xact_commit_timestamp(xmin)) from "+system.Tables[0]+" where time < $1", back).Scan(&last))
		watch(b.around / 2)
		must(t, publisher.close())
		_, peak := memory(pid)
		p.add(Figures{
			"before": page.Median(before), "peak": float64(peak), "growth": slices.Max(during) - during[len(during)/5],
			"from": left.Sub(begun).Seconds(), "away": back.Sub(left).Seconds(), "recovery": last.Sub(back).Seconds(), "rows": float64(count + 1),
		})
	})
	return []*Point{p}
}
