//go:build linux

package bench

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/mqttpg/bridge/integration/bench/page"
)

// render makes the sections of the page that there are results for, and their plots. It is told what the page
// holds already, for some of the targets are judged by sections that others write.
func (r Results) render(old []page.Section) (fresh []page.Section, plots map[string]string) {
	plots = map[string]string{}
	most := r.machine()
	var parts []page.Section
	for _, s := range sections {
		result := r[s.name]
		if result == nil {
			continue
		}
		text, svg := s.render(result)
		plots[s.name] = svg
		parts = append(parts, page.Section{Name: s.name, Text: fmt.Sprintf("## %s\n\n%s\n![%s](performance/%s.svg)\n\nMeasured %s at commit %s, %s.%s\n",
			s.title, text, s.title, s.name, result.Date, result.Commit, rounds(result.rounds()), elsewhere(result.Machine, most))})
	}
	fresh = append(fresh, page.Section{Name: "method", Text: method(most)}, page.Section{Name: "targets", Text: "## Targets\n\n" + targetTable(r, old)})
	return append(fresh, parts...), plots
}

// machine is the one on which most sections were measured.
func (r Results) machine() (most string) {
	count := map[string]int{}
	for _, s := range sections {
		if r[s.name] == nil {
			continue
		}
		if m := r[s.name].Machine; most == "" {
			most = m
		}
		count[r[s.name].Machine]++
	}
	for _, s := range sections { // in this order, so that the answer is always the same
		if r[s.name] != nil && count[r[s.name].Machine] > count[most] {
			most = r[s.name].Machine
		}
	}
	return most
}

// elsewhere says where a section was measured, if that is not where most of them were.
func elsewhere(machine, most string) string {
	if machine == most {
		return ""
	}
	return " On: " + machine + "."
}

func rounds(n int) string {
	if n == 1 {
		return "in one round"
	}
	return fmt.Sprintf("medians of %d rounds with the lowest and the highest in parentheses", n)
}

func method(machine string) string {
	return fmt.Sprintf(`What the bridge costs and how fast it is, next to the broker and the database that it works with. `+"`make bench`"+` measures
all this and writes this page ([how](../README.md#development)); the numbers behind it are in [results.json](performance/results.json).

**Machine:** %s. Load generator, broker, bridge and database share it.

**Broker:** Mosquitto before 2.0.13 exceeds Receive Maximum while it drains a queue, so that batches are full with the default of 2000. At a broker that
keeps to it, they are only with a larger one: [what that means](#receive-maximum-at-a-broker-that-keeps-to-it).

**Work:** QoS 1, JSON of 140 bytes with five mapped columns, 1 000 devices, a keyed route (`+"`TIME`"+`, `+"`KEY=auto`"+`, `+"`PAYLOAD=drop`"+`), defaults
otherwise, the delivery ledger on. Mosquitto queues without limit and without persistence. PostgreSQL with fsync and synchronous commit, a
checkpoint before every measurement, autovacuum off, everything else as it comes. The broker is reached by plain TCP: over TLS and WebSocket the
bridge does not gather what it reads, and at a steady high rate takes more CPU than these figures say.

**Figures:** CPU seconds are those of the whole process since its start, the database with all its processes; they say more than rates,
which other work on the machine moves. Systems and values that are compared take turns in every round; sections of different commits were
measured at different times, and this machine has faster and slower days: compare within a section. Every measurement ends with
the count of the rows: one for each message, or it does not count. A rate is that of the rows between the first and the last commit. A latency is
the time from the moment at which a message was due, not sent, to the moment at which another connection to the database sees that its
transaction has ended: a publisher that is held up hides nothing, nor does the wait for the disk. That connection asks every millisecond,
and what its answers are late by counts as latency. In the tables s/M are CPU seconds per million messages.

`, machine)
}

// column of a table of figures.
type column struct {
	title  string
	figure string
	unit   float64 // what a figure is divided by
}

var costColumns = []column{
	{"messages/s", "rate", 1},
	{"bridge CPU s/M", "system", 1},
	{"broker CPU s/M", "broker", 1},
	{"database CPU s/M", "database", 1},
	{"peak MiB", "peak", 1 << 20},
	{"WAL bytes/message", "wal", 1},
}

// table has a row for each point.
func table(r *Result, first string, columns []column, more ...func(p *Point) (title, text string)) string {
	heading := []string{first}
	for _, c := range columns {
		heading = append(heading, c.title)
	}
	for _, f := range more {
		title, _ := f(r.Points[0])
		heading = append(heading, title)
	}
	rows := [][]string{heading}
	for _, p := range r.Points {
		row := []string{p.Label}
		for _, c := range columns {
			row = append(row, page.Spread(scaled(p.Values[c.figure], c.unit)))
		}
		for _, f := range more {
			_, text := f(p)
			row = append(row, text)
		}
		rows = append(rows, row)
	}
	return page.Table(rows)
}

func scaled(values []float64, unit float64) []float64 {
	out := make([]float64, len(values))
	for i, v := range values {
		out[i] = v / unit
	}
	return out
}

func renderDrain(r *Result) (text, svg string) {
	bars := page.Bars{Title: "CPU seconds per million messages", Unit: "CPU seconds per million messages", Parts: []string{"bridge or peer", "broker", "database"}}
	for _, p := range r.Points {
		if len(p.Values["system"]) > 0 {
			bars.Bars = append(bars.Bars, page.Bar{Label: p.Label, Values: []float64{p.median("system"), p.median("broker"), p.median("database")}})
		}
	}
	columns := slices.Clone(costColumns)
	columns[1].title = "own CPU s/M"
	return `Messages that queued in the broker's session are drained by a process that is started for it; its start counts in the CPU time, not in the rate.

* **telegraf** is tuned: batches of 5 000, flushed every 200 ms, into a table with the same history index. It has no idempotency: what
  the broker sends again is written again. The others are the same but flushing every 10 ms, and Telegraf with the defaults of its documentation, into a table without an index.
  Their configurations are in integration/bench/peers.
* **reader** takes messages from the broker and acknowledges each lot at once, and does nothing with them: mostly the broker's own limit. A
  bridge that acknowledges larger lots, less often, may ask less of the broker, and be as fast.
* **statement** is that reader, and the best statement for the rows: a COPY of ten thousand, sorted and encoded beforehand, into
  the bridge's table.

` +
		table(r, "system, backlog", columns, against(r, "rate against the bridge", "rate"), against(r, "own CPU against the bridge", "system")), bars.SVG()
}

func renderLive(r *Result) (text, svg string) {
	chart := page.Chart{
		Title: "From due to committed",
		X: page.Axis{Label: "share of the messages that were committed by then", Log: true, Ticks: []page.Tick{
			{At: 2, Label: "50 %"}, {At: 10, Label: "90 %"}, {At: 100, Label: "99 %"}, {At: 1000, Label: "99.9 %"},
		}},
		Y: page.Axis{Label: "ms", Log: true},
	}
	flowing, resting := &Result{}, &Result{}
	for _, p := range r.Points {
		if p.X == 0 {
			resting.Points = append(resting.Points, p)
			continue
		}
		flowing.Points = append(flowing.Points, p)
		line := page.Line{Name: p.Label}
		for _, at := range p.Curve {
			line.Marks = append(line.Marks, page.Mark{X: at[0], Y: at[1]})
		}
		chart.Lines = append(chart.Lines, line)
	}
	text = `Milliseconds from the moment at which a message was due to the commit of its row; the last columns are what the load generator takes, the observer
included, and how late it was at worst. At a low rate the bridge buys its latency with many small commits: a message then costs it, and PostgreSQL, more
than it costs a Telegraf that waits for 200 ms. At a high rate it waits for as long as 40 ms, for fewer and larger commits. Telegraf flushing
every 10 ms makes the other choice: it is early, and pays for that with CPU time.

` +
		table(flowing, "system, traffic", []column{
			{"p50 ms", "p50", 1},
			{"p90 ms", "p90", 1},
			{"p99 ms", "p99", 1},
			{"p99.9 ms", "p999", 1},
			{"max ms", "max", 1},
			{"own CPU s/M", "system", 1},
			{"broker CPU s/M", "broker", 1},
			{"database CPU s/M", "database", 1},
			{"peak MiB", "peak", 1 << 20},
			{"generator CPU s/M", "own", 1},
			{"generator late ms", "late", 1},
		}) + "\nWithout any traffic, percent of one core:\n\n" +
		table(resting, "system", []column{{"own CPU %", "system", 1}, {"broker CPU %", "broker", 1}, {"database CPU %", "database", 1}, {"peak MiB", "peak", 1 << 20}})
	chart.Wide = true
	return text, page.SVG(chart)
}

// against tells how many times as much as the bridge a system has of a figure at the same value.
func against(r *Result, title, figure string) func(p *Point) (string, string) {
	return func(p *Point) (string, string) {
		v := ratio(p, (Results{"": r}).find("", product, p.X), figure)
		if math.IsNaN(v) || p.System == product {
			return title, "–"
		}
		return title, page.Number(v) + " times"
	}
}

// change tells by how much a figure differs from that of the first point of the same system.
func change(r *Result, title, figure string) func(p *Point) (string, string) {
	return func(p *Point) (string, string) {
		base := r.Points[0]
		v := p.median(figure) / base.median(figure)
		if math.IsNaN(v) || p == base {
			return title, "–"
		}
		return title, fmt.Sprintf("%+.0f %%", 100*(v-1))
	}
}

// growth plots rate and CPU time over what is varied.
type growth struct {
	title, label string
	powers       bool                  // what is varied spans powers of ten
	all          bool                  // and so do the figures
	tick         func(p *Point) string // nil: the round number
}

func (g growth) plot(r *Result) string {
	rate := page.Chart{Title: g.title + ": rate", X: page.Axis{Label: g.label, Log: g.powers}, Y: page.Axis{Label: "messages/s", Log: g.all}}
	cpu := page.Chart{Title: g.title + ": CPU", Y: page.Axis{Label: "CPU seconds per million messages", Log: g.all}}
	var names []string
	least := math.Inf(1)
	for _, p := range r.Points {
		if !slices.Contains(names, p.System) {
			names = append(names, p.System)
		}
		if p.X > 0 {
			least = min(least, p.X)
		}
	}
	// A logarithmic axis has no zero: it stands a step before the least value.
	place := func(x float64) float64 {
		if x == 0 && g.powers {
			return least / 10
		}
		return x
	}
	for _, p := range r.Points {
		tick := page.Tick{At: place(p.X), Label: page.Short(p.X)}
		if g.tick != nil {
			tick.Label = g.tick(p)
		}
		if !slices.Contains(rate.X.Ticks, tick) {
			rate.X.Ticks = append(rate.X.Ticks, tick)
		}
	}
	cpu.X = rate.X
	line := func(system, figure, name string) page.Line {
		l := page.Line{Name: name}
		for _, p := range r.Points {
			if values := p.Values[figure]; p.System == system && len(values) > 0 {
				l.Marks = append(l.Marks, page.Mark{X: place(p.X), Y: p.median(figure), Low: slices.Min(values), High: slices.Max(values)})
			}
		}
		return l
	}
	for _, system := range names {
		name, prefix := system, system+", "
		if len(names) == 1 {
			name, prefix = "", ""
		}
		rate.Lines = append(rate.Lines, line(system, "rate", name))
		cpu.Lines = append(cpu.Lines, line(system, "system", prefix+"bridge"))
		if len(names) == 1 {
			cpu.Lines = append(cpu.Lines, line(system, "broker", "broker")) // one colour has the same meaning in all plots
		}
		cpu.Lines = append(cpu.Lines, line(system, "database", prefix+"database"))
	}
	return page.SVG(rate, cpu)
}

func renderHistory(r *Result) (text, svg string) {
	return "A million messages, later than all that is there, are drained into tables with a history: a million rows for each of the last days, in day\npartitions with the indexes that the bridge makes. They take turns.\n\n" +
		table(r, "in the table", costColumns, change(r, "rate against the first", "rate")), growth{title: "Table", label: "rows in the table before", powers: true}.plot(r)
}

func renderDevices(r *Result) (text, svg string) {
	return "A million messages, whose topics take turns.\n\n" + table(r, "devices", costColumns, change(r, "rate against the first", "rate")), growth{title: "Devices", label: "devices", powers: true}.plot(r)
}

func renderRoutes(r *Result) (text, svg string) {
	return "The same messages reach one route or are spread evenly over many, which write to one table or to a table each. PostgreSQL opens every table, its partition and\n" +
		"their indexes anew for each batch: the statement alone, in batches as large as the bridge's and with a minimal reader, shows what that costs whoever does it.\n\n" +
		table(r, "routes", costColumns, change(r, "rate against the first", "rate")), growth{title: "Routes", label: "routes", powers: true}.plot(r)
}

func renderPayload(r *Result) (text, svg string) {
	volume := func(p *Point) (string, string) {
		return "MiB/s", page.Number(p.median("rate") * p.X / (1 << 20))
	}
	return "The same five columns out of ever larger payloads. Fewer messages of the large ones.\n\n" +
		table(r, "payload", costColumns, volume), growth{title: "Payload", label: "payload", powers: true, all: true, tick: func(p *Point) string { return p.Label }}.plot(r)
}

func renderSessions(r *Result) (text, svg string) {
	return "One bridge with several sessions (`BRIDGE_MQTT_SESSIONS`), over which the broker spreads the messages.\n\n" +
		table(r, "sessions", costColumns, change(r, "rate against the first", "rate")), growth{title: "Sessions", label: "sessions"}.plot(r)
}

func renderReplicas(r *Result) (text, svg string) {
	return fmt.Sprintf("Several bridges share %d sessions. They are connected before the first message comes; CPU time and memory are those of all together.\n\n", sessionsOfReplicas) +
		table(r, "replicas", costColumns, change(r, "rate against the first", "rate")), growth{title: "Replicas", label: "replicas"}.plot(r)
}

func renderWindows(r *Result) (text, svg string) {
	return "A broker that keeps to Receive Maximum has no more messages on their way than `BRIDGE_MQTT_RECEIVE_MAXIMUM` says, a part of which is\n" +
			"being committed while the next comes. Where a long queue must be worked off quickly, 15 000, two full batches, are worth some more\n" +
			"memory than the default of 2 000.\n\n" +
			table(r, "Receive Maximum", costColumns, change(r, "rate against the first", "rate")),
		growth{title: "Receive Maximum", label: "messages that may be on their way"}.plot(r)
}

func renderUnkeyed(r *Result) (text, svg string) {
	bars := page.Bars{Title: "CPU seconds per million messages", Unit: "CPU seconds per million messages", Parts: []string{"bridge", "broker", "database"}}
	for _, p := range r.Points {
		if len(p.Values["system"]) > 0 {
			bars.Bars = append(bars.Bars, page.Bar{Label: p.Label, Values: []float64{p.median("system"), p.median("broker"), p.median("database")}})
		}
	}
	return "Where only the delivery ledger recognises what comes again, few acknowledgements may be on their way to a broker that reads them late:\n" +
		"they are longer, and the bridge waits until it has read them ([why](decisions/0005-delivery-ledger.md)). A broker that keeps to Receive\n" +
		"Maximum never sees that.\n\n" +
		table(r, "route", costColumns, change(r, "rate against the first", "rate")), bars.SVG()
}

func renderOutage(r *Result) (text, svg string) {
	chart := page.Chart{Title: "Memory while the database is away", X: page.Axis{Label: "seconds"}, Y: page.Axis{Label: "MiB"}, Wide: true}
	for _, p := range r.Points {
		from, away := p.median("from"), p.median("away")
		if math.IsNaN(from + away) {
			continue
		}
		chart.Bands = append(chart.Bands, page.Band{From: from, To: from + away, Label: "database away"})
		line := page.Line{Plain: true}
		for _, at := range p.Curve {
			line.Marks = append(line.Marks, page.Mark{X: at[0], Y: at[1]})
		}
		chart.Lines = append(chart.Lines, line)
	}
	text = fmt.Sprintf("The database server is stopped while %s messages a second come, and started again. Every message has its row in the end.\n\n", page.Count(outageRate)) +
		table(r, "", []column{{"seconds away", "away", 1}, {"messages", "rows", 1}, {"MiB before", "before", 1 << 20}, {"peak MiB", "peak", 1 << 20}, {"added in the last four fifths, MiB", "growth", 1 << 20}, {"seconds to catch up", "recovery", 1}})
	return strings.Replace(text, "|  |", "| outage |", 1), page.SVG(chart)
}

// TestPageIsThatOfItsResults: nobody has written into docs/performance.md what was not measured.
func TestPageIsThatOfItsResults(t *testing.T) {
	docs, dir := filepath.Join("..", "..", "docs"), t.TempDir()
	results, err := loadResults(docs)
	must(t, err)
	want, err := os.ReadFile(filepath.Join(docs, "performance.md"))
	must(t, err)
	must(t, os.WriteFile(filepath.Join(dir, "performance.md"), want, 0o644)) // with the sections that others write
	must(t, results.save(dir))
	got, err := os.ReadFile(filepath.Join(dir, "performance.md"))
	must(t, err)
	if string(got) != string(want) {
		t.Error("docs/performance.md is not what its results give: make bench writes it")
	}
}

// TestPage writes the page of every section from invented figures, a failed measurement among them.
func TestPage(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "performance.md")
	const foreign = "# Performance\n\n<!-- ledger -->\nkept\n<!-- /ledger -->\n"
	must(t, os.WriteFile(path, []byte(foreign), 0o644))
	results := Results{}
	for i, s := range sections {
		r := &Result{Machine: "a machine", Commit: "abc", Date: "2026-11-24"}
		if i == 1 {
			r.Machine = "another"
		}
		for n, x := range []float64{0, 1000, 50e6} {
			p := &Point{System: product, Label: fmt.Sprintf("%s %d", s.name, n), X: x}
			if n != 2 {
				for round := range 2 {
					v := float64(100*i + 10*n + round + 1)
					p.add(Figures{"rate": v, "system": v, "broker": v, "database": v, "peak": v, "p50": v, "p99": v, "from": v, "away": v, "growth": v})
				}
				p.Curve = [][2]float64{{1, 2}, {10, 3}}
			}
			r.Points = append(r.Points, p)
		}
		results[s.name] = r
	}
	must(t, results.save(dir))
	first, err := os.ReadFile(path)
	must(t, err)

	again, err := loadResults(dir)
	must(t, err)
	must(t, again.save(dir))
	second, err := os.ReadFile(path)
	must(t, err)
	if string(first) != string(second) {
		t.Errorf("the page made of the saved results differs:\n%s\n---\n%s", first, second)
	}

	for _, want := range []string{"\nkept\n", "**Machine:** a machine.", " On: another.", "| drain 1 | 11.5 (11.0 to 12.0) |", "| drain 2 | – |", "medians of 2 rounds"} {
		if !strings.Contains(string(first), want) {
			t.Errorf("the page lacks %q:\n%s", want, first)
		}
	}
	for _, s := range sections {
		svg, err := os.ReadFile(filepath.Join(dir, "performance", s.name+".svg"))
		must(t, err)
		if text := string(svg); strings.Contains(text, "NaN") || strings.Contains(text, "Inf") || !strings.Contains(text, "<svg ") {
			t.Errorf("section %s has the plot\n%s", s.name, svg)
		}
	}
	if strings.Contains(string(first), "NaN") || strings.Contains(string(first), "Inf") {
		t.Errorf("the page has figures that are none:\n%s", first)
	}
}
