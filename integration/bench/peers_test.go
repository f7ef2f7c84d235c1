//go:build linux

package bench

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"
)

// Telegraf beside the one that the targets speak of: as it comes, and with settings for low latency.
const (
	telegrafDefaults = "telegraf defaults"
	telegrafQuick    = "telegraf flushing every 10 ms"
)

// peers are the systems that the bridge is compared with, and the limits of the machine. Telegraf, which is
// built from its Go module for it, takes part when BENCH_PEERS is set.
func peers(t *testing.T) []System {
	t.Helper()
	l := newLimits(t)
	all := []System{l.reader("reader", greatestWindow), l.statement(statement, bestStatement, bestBatch, 1, true)}
	if os.Getenv("BENCH_PEERS") == "" {
		return all
	}
	binary := buildTelegraf(t)
	return append([]System{
		peer(telegraf, binary, "tuned.conf", "200ms"),
		peer(telegrafQuick, binary, "tuned.conf", "10ms"),
		peer(telegrafDefaults, binary, "defaults.conf", ""),
	}, all...)
}

// buildTelegraf builds the module below peers.
func buildTelegraf(t *testing.T) string {
	t.Helper()
	path, err := filepath.Abs("../../.cache/bin/telegraf")
	must(t, err)
	cmd := exec.CommandContext(t.Context(), "go", "build", "-buildvcs=false", "-o", path, ".")
	cmd.Dir = "peers"
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build Telegraf: %v\n%s", err, out)
	}
	return path
}

// Telegraf's session and table.
const (
	peerClientID = "telegraf"
	peerTable    = "peer"
)

// peerEnvironment is what the configurations below peers leave open.
func peerEnvironment(broker, database, flush string) map[string]string {
	return map[string]string{
		"BENCH_BROKER": "tcp://" + broker, "BENCH_DATABASE": database,
		"BENCH_CLIENT_ID": peerClientID, "BENCH_TABLE": peerTable, "BENCH_FLUSH": flush,
	}
}

// peer is Telegraf with one of its configurations.
func peer(name, binary, configuration, flush string) System {
	return System{
		Name: name, Tables: []string{peerTable},
		Subscribe: func(t *testing.T, s *Stage) {
			t.Helper()
			makeSession(t, s.Broker.Addr(""), peerClientID, drainFilter, mqtt311)
		},
		Start: func(t *testing.T, s *Stage) []int {
			t.Helper()
			var env []string
			for name, value := range peerEnvironment(s.Broker.Addr(""), s.URL, flush) {
				env = append(env, name+"="+value)
			}
			return []int{startProgram(t, binary, []string{filepath.Join("peers", configuration)}, env).pid()}
		},
	}
}

// TestPeerConfigurations sees that the configurations ask for what they are given, and for all of it.
// Telegraf's own reading of them is tested where it is built.
func TestPeerConfigurations(t *testing.T) {
	given := peerEnvironment("", "", "")
	asked := map[string]bool{}
	for _, name := range []string{"defaults.conf", "tuned.conf"} {
		text, err := os.ReadFile(filepath.Join("peers", name))
		must(t, err)
		for _, found := range regexp.MustCompile(`\$\{(\w+)\}`).FindAllSubmatch(text, -1) {
			variable := string(found[1])
			asked[variable] = true
			if _, there := given[variable]; !there {
				t.Errorf("%s asks for %s, which it is not given", name, variable)
			}
		}
		if !regexp.MustCompile(`topics = \["` + regexp.QuoteMeta(drainFilter) + `"\]`).Match(text) {
			t.Errorf("%s subscribes to something else than %s", name, drainFilter)
		}
	}
	if len(asked) != len(given) {
		t.Errorf("of %v they ask only for %v", given, asked)
	}
}

func TestAgainst(t *testing.T) {
	point := func(system string, x, rate float64) *Point {
		p := &Point{System: system, X: x}
		p.add(Figures{"rate": rate})
		return p
	}
	r := &Result{Points: []*Point{point(product, 1, 100), point(telegraf, 1, 25), point(product, 2, 300), point(telegraf, 2, 100), point(telegraf, 3, 1)}}
	of := against(r, "rate", "rate")
	for i, want := range []string{"–", "0.25 times", "–", "0.33 times", "–"} {
		if _, got := of(r.Points[i]); got != want {
			t.Errorf("point %d: %s, want %s", i, got, want)
		}
	}
}
