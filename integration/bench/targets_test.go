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
		"At 20 000 messages/s, p99 against Telegraf's p50", "%", false, 100,
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
		"Memory added in the last four of five minutes of a database outage", "MiB", false, 4,
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
		"Cost of 200 routes over one: loss of rate, into one table", "%", false, 10,
		func(r Results, _ []page.Section) float64 {
			return 100 * (1 - ratio(r.find("routes", oneTable, 200), r.find("routes", oneTable, 1), "rate"))
		},
	},
	{
		"The same, into a table each", "%", false, 10,
		func(r Results, _ []page.Section) float64 {
			return 100 * (1 - ratio(r.find("routes", manyTables, 200), r.find("routes", oneTable, 1), "rate"))
		},
	},
	{
		"200 routes into a table each: rate against the best statement alone into as many tables", "%", true, 80,
		func(r Results, _ []page.Section) float64 {
			return 100 * ratio(r.find("routes", manyTables, 200), r.find("routes", manyTablesAlone, 200), "rate")
		},
	},
	{
		"Cost of 200 routes over one: bridge CPU, into one table", "%", false, 10,
		func(r Results, _ []page.Section) float64 {
			return 100 * (ratio(r.find("routes", oneTable, 200), r.find("routes", oneTable, 1), "system") - 1)
		},
	},
	{
		"Cost of 1 million devices over 1 000: loss of rate", "%", false, 25,
		func(r Results, _ []page.Section) float64 {
			return 100 * (1 - ratio(r.find("devices", product, 1e6), r.find("devices", product, 1000), "rate"))
		},
	},
	{
		"Cost of 1 million devices over 1 000: bridge CPU", "%", false, 25,
		func(r Results, _ []page.Section) float64 {
			return 100 * (ratio(r.find("devices", product, 1e6), r.find("devices", product, 1000), "system") - 1)
		},
	},
	{
		"Ledger and fence: bridge CPU", "%", false, 10,
		func(_ Results, old []page.Section) float64 { _, cpu := ledgerCost(old); return cpu },
	},
	{
		"Ledger and fence: loss of rate", "%", false, 5,
		func(_ Results, old []page.Section) float64 { rate, _ := ledgerCost(old); return rate },
	},
}

// ledgerLine is the difference for the keyed route in the table that the benchmark of package store writes:
// milliseconds of a batch, write-ahead log, CPU of the bridge, CPU of the database.
var ledgerLine = regexp.MustCompile(`(?m)^\| keyed \| \*\*difference\*\* \| ([-+.\d]+) % \| [-+.\d]+ % \| ([-+.\d]+) %`)

// ledgerCost reads percent of rate and of CPU time from the section of the page that has them.
func ledgerCost(sections []page.Section) (rate, cpu float64) {
	for _, s := range sections {
		if s.Name != "ledger" {
			continue
		}
		if found := ledgerLine.FindStringSubmatch(s.Text); found != nil {
			longer, err1 := strconv.ParseFloat(found[1], 64)
			cpu, err2 := strconv.ParseFloat(found[2], 64)
			if err1 == nil && err2 == nil {
				return 100 * (1 - 1/(1+longer/100)), cpu
			}
		}
	}
	return math.NaN(), math.NaN()
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
	old := []page.Section{{Name: "ledger", Text: "| keyed | **difference** | +25.0 % | +3.4 % | -2.9 % | +3.4 % |\n"}}
	got := targetTable(r, old)
	for _, want := range []string{
		"| Bridge CPU per million messages on the drain | at most 2.50 s | 2.50 s | yes |",
		"| Telegraf, tuned, takes so many times more CPU | at least 8 times | 10 times | yes |",
		"| Drain rate against Telegraf, tuned, into a table with the same history index | at least 4 times | 3.33 times | **no** |",
		"| Drain rate against the best statement alone, with a minimal reader on the same broker | at least 80 % | – | not measured |",
		"| Idle CPU of the bridge | at most 0.50 % of a core | 0.40 % of a core | yes |",
		"| Peak memory on the drain of 1 million messages | at most 40 MiB | 41 MiB | **no** |",
		"| Ledger and fence: bridge CPU | at most 10 % | -2.90 % | yes |",
		"| Ledger and fence: loss of rate | at most 5 % | 20.0 % | **no** |",
	} {
		if !regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(want) + `$`).MatchString(got) {
			t.Errorf("no line\n%s\nin\n%s", want, got)
		}
	}
}
