//go:build linux

package bench

import (
	"fmt"
	"math"
	"regexp"
	"strconv"
	"testing"

	"github.com/mqttpg/bridge/integration/bench/page"
)

// target is a figure that is aimed at.
type target struct {
	what     string
	unit     string
	least    bool // the bound is the least, not the most
	bound    float64
	measured func(r Results, old []page.Section) float64 // NaN: it was not measured
}

// Names of the peers and limits that targets speak of.
const (
	product   = "bridge"
	telegraf  = "telegraf"  // tuned, into a table with the same history index
	statement = "statement" // the best statement alone, while a minimal reader drains the broker
)

const (
	backlog = 1_000_000 // of the drains that targets speak of
	slow    = 1000
	fast    = 20_000
)

// ratio of a figure of two points.
func ratio(a, b *Point, figure string) float64 { return a.median(figure) / b.median(figure) }

var targets = []target{
	{
		"Bridge CPU per million messages on the drain", "s", false, 2.5,
		func(r Results, _ []page.Section) float64 {
			return r.find("drain", product, backlog).median("system")
		},
	},
	{
		"Telegraf, tuned, takes so many times more CPU", "", true, 8,
		func(r Results, _ []page.Section) float64 {
			return ratio(r.find("drain", telegraf, backlog), r.find("drain", product, backlog), "system")
		},
	},
	{
		"Drain rate against Telegraf, tuned, into a table with the same history index", "", true, 4,
		func(r Results, _ []page.Section) float64 {
			return ratio(r.find("drain", product, backlog), r.find("drain", telegraf, backlog), "rate")
		},
	},
	{
		"Drain rate against the best statement alone, with a minimal reader on the same broker", "%", true, 80,
		func(r Results, _ []page.Section) float64 {
			return 100 * ratio(r.find("drain", product, backlog), r.find("drain", statement, backlog), "rate")
		},
	},
	{
		"PostgreSQL CPU per row into 50 million rows, against 1 million", "%", false, 110,
		func(r Results, _ []page.Section) float64 {
			return 100 * ratio(r.find("history", product, 50e6), r.find("history", product, 1e6), "database")
		},
	},
	{
		"Write-ahead log per row into 50 million rows, against 1 million", "%", false, 110,
		func(r Results, _ []page.Section) float64 {
			return 100 * ratio(r.find("history", product, 50e6), r.find("history", product, 1e6), "wal")
		},
	},
	{
		"At 20 000 messages/s, p99 against the p50 of Telegraf, tuned (flushing every 200 ms)", "%", false, 100,
		func(r Results, _ []page.Section) float64 {
			return 100 * r.find("live", product, fast).median("p99") / r.find("live", telegraf, fast).median("p50")
		},
	},
	{
		"At 20 000 messages/s, bridge CPU per million", "s", false, 5,
		func(r Results, _ []page.Section) float64 { return r.find("live", product, fast).median("system") },
	},
	{
		"At 1 000 messages/s, p99 from due to committed", "ms", false, 10,
		func(r Results, _ []page.Section) float64 { return r.find("live", product, slow).median("p99") },
	},
	{
		"Idle CPU of the bridge", "% of a core", false, 0.5,
		func(r Results, _ []page.Section) float64 { return r.find("live", product, 0).median("system") },
	},
	{
		"Peak memory on the drain of 1 million messages", "MiB", false, 40,
		func(r Results, _ []page.Section) float64 {
			return r.find("drain", product, backlog).median("peak") / (1 << 20)
		},
	},
	{
		"Memory that is added in a database outage of five minutes, after its first minute", "MiB", false, 4,
		func(r Results, _ []page.Section) float64 {
			return r.find("outage", product, 300).median("growth") / (1 << 20)
		},
	},
	{
		"Rate into a table of 50 million rows, against an empty one", "%", true, 90,
		func(r Results, _ []page.Section) float64 {
			return 100 * ratio(r.find("history", product, 50e6), r.find("history", product, 0), "rate")
		},
	},
	{
		"200 routes instead of one, into one table: loss of rate", "%", false, 10,
		func(r Results, _ []page.Section) float64 {
			return 100 * (1 - ratio(r.find("routes", oneTable, 200), r.find("routes", oneTable, 1), "rate"))
		},
	},
	{
		"200 routes with a table each instead of one route: loss of rate", "%", false, 10,
		func(r Results, _ []page.Section) float64 {
			return 100 * (1 - ratio(r.find("routes", manyTables, 200), r.find("routes", oneTable, 1), "rate"))
		},
	},
	{
		"200 routes with a table each: rate against the best statement alone into as many tables", "%", true, 80,
		func(r Results, _ []page.Section) float64 {
			return 100 * ratio(r.find("routes", manyTables, 200), r.find("routes", manyTablesAlone, 200), "rate")
		},
	},
	{
		"200 routes instead of one, into one table: additional CPU of the bridge", "%", false, 10,
		func(r Results, _ []page.Section) float64 {
			return 100 * (ratio(r.find("routes", oneTable, 200), r.find("routes", oneTable, 1), "system") - 1)
		},
	},
	{
		"1 million devices instead of 1 000: loss of rate", "%", false, 25,
		func(r Results, _ []page.Section) float64 {
			return 100 * (1 - ratio(r.find("devices", product, 1e6), r.find("devices", product, 1000), "rate"))
		},
	},
	{
		"1 million devices instead of 1 000: additional CPU of the bridge", "%", false, 25,
		func(r Results, _ []page.Section) float64 {
			return 100 * (ratio(r.find("devices", product, 1e6), r.find("devices", product, 1000), "system") - 1)
		},
	},
	{
		"Delivery ledger and fence (is the session still ours?): share of the bridge's CPU on the drain", "%", false, 10,
		func(r Results, old []page.Section) float64 {
			return 100 * ledgerCost(old).bridge / r.find("drain", product, backlog).median("system")
		},
	},
	{
		"Delivery ledger and fence: share of all CPU on the drain, which is what limits its rate", "%", false, 5,
		func(r Results, old []page.Section) float64 {
			all, cost := r.find("drain", product, backlog), ledgerCost(old)
			return 100 * (cost.bridge + cost.database) / (all.median("system") + all.median("broker") + all.median("database"))
		},
	},
}

// ledgerLine is a line of the table that the benchmark of package store writes: a full batch, route, without or with, and
// behind the milliseconds of a batch and the write-ahead log the CPU seconds of the writer and of the database per million
// messages.
var ledgerLine = regexp.MustCompile(fmt.Sprintf(`(?m)^\| %d \| (keyed|keyless) \| (without|with) (?:\| [^|]+){2}\| ([\d.]+) [^|]*\| ([\d.]+) `, bridgeBatch))

// added are the CPU seconds per million messages that the ledger and the fence add.
type added struct{ bridge, database float64 }

// ledgerCost reads from the section of the page what they add, of the kind of route where that is more.
func ledgerCost(sections []page.Section) added {
	costs := map[[2]string]added{}
	for _, s := range sections {
		if s.Name != "ledger" {
			continue
		}
		for _, line := range ledgerLine.FindAllStringSubmatch(s.Text, -1) {
			bridge, err1 := strconv.ParseFloat(line[3], 64)
			database, err2 := strconv.ParseFloat(line[4], 64)
			if err1 == nil && err2 == nil {
				costs[[2]string{line[1], line[2]}] = added{bridge, database}
			}
		}
	}
	if len(costs) != 4 {
		return added{math.NaN(), math.NaN()}
	}
	var most added
	for _, kind := range []string{"keyed", "keyless"} {
		with, without := costs[[2]string{kind, "with"}], costs[[2]string{kind, "without"}]
		most.bridge = max(most.bridge, with.bridge-without.bridge)
		most.database = max(most.database, with.database-without.database)
	}
	return most
}

// targetTable judges by the medians.
func targetTable(r Results, old []page.Section) string {
	rows := [][]string{{"target", "aim", "measured", "met"}}
	for _, target := range targets {
		sign, verdict, text := "at most", "not measured", "–"
		if target.least {
			sign = "at least"
		}
		v := target.measured(r, old)
		if !math.IsNaN(v) && !math.IsInf(v, 0) {
			text, verdict = withUnit(v, target.unit), "yes"
			if target.least && v < target.bound || !target.least && v > target.bound {
				verdict = "**no**"
			}
		}
		rows = append(rows, []string{target.what, sign + " " + withUnit(target.bound, target.unit), text, verdict})
	}
	return page.Table(rows)
}

func withUnit(v float64, unit string) string {
	text := page.Number(v)
	if v == math.Trunc(v) && math.Abs(v) < 1000 {
		text = strconv.FormatFloat(v, 'f', -1, 64)
	}
	if unit == "" {
		return text + " times"
	}
	return fmt.Sprintf("%s %s", text, unit)
}

func TestTargets(t *testing.T) {
	point := func(system string, x float64, f Figures) *Point {
		p := &Point{System: system, X: x}
		p.add(f)
		return p
	}
	r := Results{
		"drain": {Points: []*Point{point(product, backlog, Figures{"system": 2.5, "rate": 100, "peak": 41 << 20}), point(telegraf, backlog, Figures{"system": 25, "rate": 30})}},
		"live":  {Points: []*Point{point(product, 0, Figures{"system": 0.4})}},
	}
	r["drain"].Points[0].add(Figures{"broker": 4, "database": 3.5})
	old := []page.Section{{Name: "ledger", Text: `
| 1000 | keyed | with | 9.50 (9.01 to 9.52) | 225.5 (219.0 to 240.8) | 9.60 (9.58 to 9.76) | 9.80 (9.46 to 9.01) |
| 7500 | keyed | without | 4.08 (3.92 to 4.31) | 204.4 (204.4 to 204.4) | 0.40 (0.44 to 0.78) | 3.50 (3.42 to 3.77) |
| 7500 | keyed | with | 4.50 (4.01 to 4.52) | 225.5 (219.0 to 240.8) | 0.60 (0.58 to 0.76) | 3.80 (3.46 to 4.01) |
| 7500 | keyed | **difference** | +10.1 % | +10.3 % | +49.1 % | +4.1 % |
| 7500 | keyless | without | 5.05 (4.07 to 5.13) | 204.4 (204.4 to 204.4) | 0.61 (0.45 to 0.71) | 4.10 (3.61 to 4.38) |
| 7500 | keyless | with | 4.90 (4.18 to 7.60) | 239.6 (218.9 to 241.7) | 0.76 (0.55 to 0.83) | 4.50 (3.64 to 4.84) |
`}}
	got := targetTable(r, old)
	for _, want := range []string{
		"| Bridge CPU per million messages on the drain | at most 2.50 s | 2.50 s | yes |",
		"| Telegraf, tuned, takes so many times more CPU | at least 8 times | 10 times | yes |",
		"| Drain rate against Telegraf, tuned, into a table with the same history index | at least 4 times | 3.33 times | **no** |",
		"| Drain rate against the best statement alone, with a minimal reader on the same broker | at least 80 % | – | not measured |",
		"| Idle CPU of the bridge | at most 0.50 % of a core | 0.40 % of a core | yes |",
		"| Peak memory on the drain of 1 million messages | at most 40 MiB | 41 MiB | **no** |",
		"| Delivery ledger and fence (is the session still ours?): share of the bridge's CPU on the drain | at most 10 % | 8.00 % | yes |",
		"| Delivery ledger and fence: share of all CPU on the drain, which is what limits its rate | at most 5 % | 6.00 % | **no** |",
	} {
		if !regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(want) + `$`).MatchString(got) {
			t.Errorf("no line\n%s\nin\n%s", want, got)
		}
	}
}
