//go:build linux

package bench

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/mqttpg/bridge/integration/bench/page"
	"github.com/mqttpg/bridge/integration/provider"
)

// Kinds of statements that write a batch.
const (
	copyRows   = "COPY"
	unnestRows = "unnest ON CONFLICT"
)

// Of the statements and batches that the section limits compares, the best.
const (
	bestStatement = copyRows
	bestBatch     = 10_000
)

// Windows of a reader: what a bridge asks for unless it is told otherwise, and the greatest there is.
const (
	bridgeWindow   = 2000
	greatestWindow = 65_535
)

// drainFilter matches all topics of a work.
const drainFilter = "+/+/telemetry"

// limits are what parts of a bridge reach alone on this machine.
type limits struct {
	dir   string
	files map[[2]int]string // with rows, by their number and that of the sites
}

func newLimits(t *testing.T) *limits { return &limits{dir: t.TempDir(), files: map[[2]int]string{}} }

// rowsOf is the key of limits.files.
func rowsOf(w *Work) [2]int { return [2]int{w.Messages, w.Sites} }

// reader takes messages from the broker and does nothing but acknowledge them.
func (l *limits) reader(name string, window int) System {
	const clientID = "reader"
	report := ""
	return System{
		Name: name, Limit: true,
		Subscribe: func(t *testing.T, s *Stage) {
			t.Helper()
			makeSession(t, s.Broker.Addr(""), clientID, drainFilter, mqtt5)
		},
		Start: func(t *testing.T, s *Stage) []int {
			t.Helper()
			p := startLimit(t, limit{Broker: s.Broker.Addr(""), ClientID: clientID, Window: uint16(window), Messages: s.Work.Messages})
			report = p.log
			return []int{p.pid()}
		},
		Progress: func() (messages int, first, last time.Time) { return readReport(report) },
	}
}

// readReport reads what a limit has written when it was through.
func readReport(path string) (messages int, first, last time.Time) {
	var r limitReport
	text, err := os.ReadFile(path)
	if err != nil || json.Unmarshal(text, &r) != nil {
		return 0, first, last // it has not written it yet, or not all of it
	}
	return r.Messages, r.First, r.Last
}

// statement writes the rows that the bridge makes of a work into the table that the bridge makes, in sorted
// batches that were encoded before. If it drains, a minimal reader takes a message from the broker for each
// row, in the same process and at most four batches ahead, so that both are at work as long as one is. Several
// tables are one for each site.
func (l *limits) statement(name, kind string, batch, tables int, drains bool) System {
	const clientID, table = "statement", "telemetry"
	product := bridge("", bridgeOptions{table: table, routes: tables, tables: tables > 1})
	report := ""
	system := System{
		Name: name, Tables: product.Tables, Limit: true,
		Subscribe: func(t *testing.T, s *Stage) {
			t.Helper()
			l.makeRows(t, s)
			t.Run("make the table", func(t *testing.T) { // with a broker of its own, that only this one has sessions
				own := newStage(t, s.Server, s.URL, s.Work)
				product.Subscribe(t, own)
			})
			if drains {
				makeSession(t, s.Broker.Addr(""), clientID, drainFilter, mqtt5)
			}
		},
		Start: func(t *testing.T, s *Stage) []int {
			t.Helper()
			job := limit{
				Messages: s.Work.Messages, Database: s.URL, Table: table, Tables: tables,
				Rows: l.files[rowsOf(&s.Work)], Statement: kind, Batch: batch,
			}
			if drains {
				job.Broker, job.ClientID, job.Window = s.Broker.Addr(""), clientID, greatestWindow
			}
			p := startLimit(t, job)
			report = p.log
			return []int{p.pid()}
		},
	}
	if drains {
		system.Progress = func() (messages int, first, last time.Time) { return readReport(report) }
	}
	return system
}

// makeRows has a bridge write as many rows as the work of a stage has messages, and keeps them in a file.
func (l *limits) makeRows(t *testing.T, s *Stage) {
	t.Helper()
	key := rowsOf(&s.Work)
	if l.files[key] != "" {
		return
	}
	t.Run("make the rows", func(t *testing.T) {
		own := newStage(t, s.Server, "", s.Work)
		product := bridge("bridge", bridgeOptions{routes: s.Work.Sites})
		drain(t, own, &product)
		path := filepath.Join(l.dir, fmt.Sprintf("%d rows of %d sites", s.Work.Messages, s.Work.Sites))
		file, err := os.Create(path)
		must(t, err)
		// In the order in which they were published.
		_, err = own.db.PgConn().CopyTo(t.Context(), file, "copy (select * from "+product.Tables[0]+" order by id) to stdout (format binary)")
		must(t, err)
		must(t, file.Close())
		l.files[key] = path
	})
	if l.files[key] == "" {
		t.FailNow()
	}
}

// startLimit starts this very program for a limit.
func startLimit(t *testing.T, job limit) *program {
	t.Helper()
	self, err := os.Executable()
	must(t, err)
	text, err := json.Marshal(job)
	must(t, err)
	return startProgram(t, self, nil, []string{limitVariable + "=" + string(text)})
}

// measureLimits compares the ways to write rows, alone and while a reader drains the broker.
func measureLimits(t *testing.T, b *suite) []*Point {
	l := newLimits(t)
	work := func() Work { return drainWork(b.all, 1000) }
	var jobs []job
	for _, window := range b.windows {
		label := fmt.Sprintf("reader with Receive Maximum %s", page.Number(float64(window)))
		jobs = append(jobs, b.drainJob(label, float64(window), l.reader(label, window), work))
	}
	for _, kind := range []string{copyRows, unnestRows} {
		for _, batch := range b.batches {
			label := fmt.Sprintf("%s, batches of %s", kind, page.Number(float64(batch)))
			system := l.statement(label, kind, batch, 1, false)
			alone := b.drainJob(label, float64(batch), system, work)
			alone.measure = func(t *testing.T, _ *Point) Figures {
				return writeAlone(t, newStage(t, b.server, "", work()), system)
			}
			jobs = append(jobs, alone)
			if kind == bestStatement {
				label += ", with the reader"
				jobs = append(jobs, b.drainJob(label, float64(batch), l.statement(label, kind, batch, 1, true), work))
			}
		}
	}
	return b.play(t, jobs)
}

// writeAlone is a drain of no backlog, by a system that only needs its table.
func writeAlone(t *testing.T, s *Stage, system System) Figures {
	t.Helper()
	system.Subscribe(t, s)
	system.Subscribe = nil
	return drain(t, s, &system)
}

func renderLimits(r *Result) (text, svg string) {
	chart := page.Bars{Title: "CPU seconds per million messages", Unit: "CPU seconds per million messages", Parts: []string{"reader and writer", "broker", "database"}}
	for _, p := range r.Points {
		if len(p.Values["system"]) > 0 {
			chart.Bars = append(chart.Bars, page.Bar{Label: p.Label, Values: []float64{p.median("system"), p.median("broker"), p.median("database")}})
		}
	}
	columns := slices.DeleteFunc(slices.Clone(costColumns), func(c column) bool { return c.figure == "peak" })
	columns[1].title = "own CPU s/M"
	return `What parts of a bridge reach alone. The reader takes PUBLISH packets at QoS 1 and acknowledges them. The writers have the rows that the bridge made of
the same messages, and the table that it makes; the batches were sorted by the key and encoded before, which is part of their own CPU. With
the reader, one process takes a message from the broker for each row that it writes, and the time ends when the broker has
seen the last acknowledgement as well. None of them maps, keeps an acknowledgement until
the commit, or has a ledger.

` + table(r, "limit", columns), chart.SVG()
}

func TestLimits(t *testing.T) {
	server := provider.StartDatabase(t, provider.DatabaseConfig{Settings: serverSettings})
	l := newLimits(t)
	const alone = "alone"
	for _, system := range []System{
		l.reader("reader", 100),
		l.statement("copy", copyRows, 100, 1, true),     // more batches than the reader may be ahead
		l.statement("unnest", unnestRows, 700, 1, true), // the last batch is a short one
		l.statement(alone, copyRows, 700, 1, false),
		l.statement("copy to tables", copyRows, 700, 3, true),
	} {
		t.Run(system.Name, func(t *testing.T) {
			w := drainWork(3000, 100)
			if w.Sites = 1; len(system.Tables) > 1 {
				w.Sites = len(system.Tables)
			}
			s := newStage(t, server, "", w)
			var f Figures
			if system.Name == alone {
				f = writeAlone(t, s, system)
			} else {
				f = drain(t, s, &system)
			}
			for _, name := range []string{"rate", "system"} {
				if f[name] <= 0 {
					t.Errorf("%s is %g", name, f[name])
				}
			}
			if len(system.Tables) == 0 {
				return
			}
			// They are the very rows that the bridge makes.
			var rows, messages, devices, keys int
			all := ""
			for i, name := range system.Tables {
				all += fmt.Sprintf("%s select * from %s where topic = 's%03d/' || device_id || '/telemetry'", map[bool]string{true: " union all"}[i > 0], name, i)
			}
			must(t, s.db.QueryRow(t.Context(), `select count(*)::int, count(distinct id)::int, count(distinct device_id)::int, count(distinct message_id)::int
				from (`+all+`) r where status = 'ok' and temperature >= 10`).Scan(&rows, &messages, &devices, &keys))
			if rows != 3000 || messages != 3000 || devices != 100 || keys != 3000 {
				t.Errorf("%d rows of %d messages and %d devices with %d keys", rows, messages, devices, keys)
			}
		})
	}
}
