//go:build unix

package faults

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/mqttpg/bridge/integration/provider"
)

// scenarios are the rows of the matrix, in the order of the table.
var scenarios = slices.Concat(bridgeScenarios, brokerScenarios, databaseScenarios, identicalScenarios, warScenarios)

var table matrix

func TestMain(m *testing.M) {
	zerolog.SetGlobalLevel(zerolog.Disabled) // toxics log to a logger of their own
	code := provider.Main(m)
	if len(table.rows) > 0 {
		fmt.Print("\n" + table.String() + "\n")
	}
	if path := os.Getenv("FAULTS_DOC"); path != "" && code == 0 {
		if err := os.WriteFile(path, []byte(table.document()), 0o644); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// number reads a number from the environment, 0 when there is none.
func number(t *testing.T, variable string) uint64 {
	t.Helper()
	text := os.Getenv(variable)
	if text == "" {
		return 0
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("%s is %q, expected a number", variable, text)
	}
	return n
}

// TestFaults plays the short list once; with FAULTS_MINUTES all scenarios, round after round.
func TestFaults(t *testing.T) {
	minutes, seed := int(number(t, "FAULTS_MINUTES")), number(t, "FAULTS_SEED")
	if seed == 0 {
		seed = uint64(time.Now().UnixNano()) % 1_000_000
	}
	t.Logf("FAULTS_SEED=%d", seed)
	table.seed = seed
	long := minutes > 0
	list := scenarios
	if !long {
		list = slices.DeleteFunc(slices.Clone(scenarios), func(sc *scenario) bool { return !sc.short })
	}
	// Half of the time is for servers that start and queues that drain.
	seconds := 4
	if long {
		seconds = min(max(minutes*60/len(list)/2, 8), 60)
	}
	end := time.Now().Add(time.Duration(minutes) * time.Minute)
	for round := range uint64(1000) {
		for _, sc := range list {
			if round > 0 && time.Now().After(end) {
				return
			}
			name := sc.name
			if round > 0 {
				name = fmt.Sprintf("%s/%d", sc.name, round+1)
			}
			t.Run(name, func(t *testing.T) {
				r := play(t, sc, seed+round, long, seconds)
				judge(t, sc, r)
				table.add(sc, r)
				if table.broker == "" {
					table.versions(t)
				}
			})
		}
		if !long || len(table.rows) == 0 { // nothing matches -run: further rounds would not either
			return
		}
	}
}

// judge holds a result against what is promised.
func judge(t *testing.T, sc *scenario, r result) {
	t.Helper()
	if r.acknowledged == 0 {
		t.Error("the broker acknowledged nothing: there was no load")
	}
	if r.missing > sc.forgive.missing {
		t.Errorf("%d rows are missing: %s", r.missing, r.account)
	}
	if r.extra > 0 && !sc.forgive.extra {
		t.Errorf("%d rows are too many: %s", r.extra, r.account)
	}
	if sc.calm && r.reconnects > 0 {
		t.Errorf("%d reconnects to a broker that had no part in the trouble", r.reconnects)
	}
	if r.keyedExtra > 0 {
		t.Errorf("%d rows too many in tables with a key: %s", r.keyedExtra, r.account)
	}
}

// matrix is the table in the making.
type matrix struct {
	seed             uint64
	broker, database string // versions
	rows             []*line
}

// line is one row: a scenario over all its rounds.
type line struct {
	scenario *scenario
	runs     int
	result
}

func (m *matrix) add(sc *scenario, r result) {
	i := slices.IndexFunc(m.rows, func(l *line) bool { return l.scenario == sc })
	if i < 0 {
		m.rows = append(m.rows, &line{scenario: sc, runs: 1, result: r})
		return
	}
	l := m.rows[i]
	l.runs++
	l.published += r.published
	l.acknowledged += r.acknowledged
	l.rows += r.rows
	l.missing += r.missing
	l.extra += r.extra
	l.deadLettered += r.deadLettered
	l.reconnects += r.reconnects
	l.peak, l.gap = max(l.peak, r.peak), max(l.gap, r.gap)
	if r.remark != "" {
		l.remark = r.remark
	}
}

// versions asks the servers for their versions.
func (m *matrix) versions(t *testing.T) {
	t.Helper()
	broker := provider.StartBroker(t, provider.BrokerConfig{})
	if found := regexp.MustCompile(`mosquitto version (\S+) starting`).FindStringSubmatch(broker.Logs(t.Context())); found != nil {
		m.broker = found[1]
	}
	m.database = serverVersion(t, provider.SharedDatabase(t).AdminURL())
}

// String is the table as Markdown.
func (m *matrix) String() string {
	cells := [][]string{{"scenario", "runs", "published", "acknowledged", "rows", "missing", "extra", "dead-lettered", "reconnects", "peak memory", "longest gap", "remark"}}
	for _, l := range m.rows {
		gap := ""
		if l.gap > 0 {
			gap = l.gap.Round(10 * time.Millisecond).String()
		}
		remark := l.remark
		if why := l.scenario.forgive.because; why != "" {
			remark = strings.TrimPrefix(remark+"; "+why, "; ")
		}
		cells = append(cells, []string{
			l.scenario.name, fmt.Sprint(l.runs), fmt.Sprint(l.published), fmt.Sprint(l.acknowledged), fmt.Sprint(l.rows),
			fmt.Sprint(l.missing), fmt.Sprint(l.extra), fmt.Sprint(l.deadLettered), fmt.Sprint(l.reconnects),
			fmt.Sprintf("%d MiB", l.peak/1024), gap, remark,
		})
	}
	widths := make([]int, len(cells[0]))
	for _, row := range cells {
		for i, cell := range row {
			widths[i] = max(widths[i], len(cell))
		}
	}
	var out strings.Builder
	for n, row := range cells {
		for i, cell := range row {
			fmt.Fprintf(&out, "| %-*s ", widths[i], cell)
		}
		out.WriteString("|\n")
		if n == 0 {
			for _, width := range widths {
				out.WriteString("|" + strings.Repeat("-", width+2))
			}
			out.WriteString("|\n")
		}
	}
	fmt.Fprintf(&out, "\nMosquitto %s, PostgreSQL %s, FAULTS_SEED=%d\n", m.broker, m.database, m.seed)
	return out.String()
}

// document is docs/faults.md.
func (m *matrix) document() string {
	return `# The fault matrix

Written by ` + "`make faults`" + `; do not edit. Every scenario runs the real bridge between a real broker and a real
database, with toxiproxy on both links, and publishes at QoS 1 straight to the broker. (Those of identical messages have
no link to the broker, for it would hold [acknowledgements](decisions/0005-delivery-ledger.md).) All kinds of messages
run at once: equal to the byte without id and time, distinct without id and time, with an id, with an event
time, with three rows a message, plain text, and now and then a broken one, which must become exactly one dead
letter. Afterwards the tables are compared with what the broker had acknowledged to the publisher, message by message.

* **acknowledged**: those the broker took. The others broke off with the publisher's connection, or were answered
  with "no matching subscribers", as by a restarted Mosquitto before the bridge has made its shared subscription anew.
* **missing**: rows of acknowledged messages that are not there.
* **extra**: rows beyond those of the published messages.
* **reconnects**: connections of the bridges that the broker counted, beyond the first of each session.
  A restarted bridge connects again.
* **peak memory**: the greatest resident set of any bridge.
* **longest gap**: the longest time in which any session committed nothing while messages were published.
* **remark**: of the last run.

The scenarios of identical messages have nothing but those, and QoS 2 has its own. After most kills the dead bridge's lease is
ended by SQL, so that more kills fit into the time; elsewhere its five seconds are waited for. A full disk, a read-only
server and one kind of deadlock are raised by a trigger with their SQLSTATE. The real deadlocks are with a transaction of
somebody else: as long as no route fails, and each table has one route, replicas lock tables and keys in one order and make none
among themselves. Clock
jumps are those of the stamps in the database, shifted by SQL; no machine's clock is moved.

The conservation law held at every scrape, five times a second, in every scenario. Where a number other than
0 stands under missing or extra, the remark says why the protocol allows no better; [delivery](delivery.md)
says what to do about it.

` + m.String()
}
