//go:build linux

package bench

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/mqttpg/bridge/integration/provider"
)

func TestMain(m *testing.M) {
	if job := os.Getenv(limitVariable); job != "" {
		runLimit(job) // this is a child process
	}
	// Containers would add a proxy and hide their processes.
	if err := os.Setenv("BRIDGE_TEST_PROVIDER", "processes"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(provider.Main(m))
}

// scale is how much is measured.
type scale struct {
	rounds   int
	drain    []int         // messages
	rates    []int         // messages a second
	live     time.Duration // at each rate
	idle     time.Duration
	messages int   // of a drain of the sections below
	history  []int // rows that are there before, the newest of them today
	day      int   // of them a day
	devices  []int
	all      int // messages that reach all devices
	routes   []int
	sizes    []int // bytes
	sessions []int
	replicas []int
	batches  []int // rows of a limit's batches
	windows  []int // messages that a limit has under way
	receive  []int // Receive Maximums
	outage   time.Duration
	around   time.Duration // traffic before and after the outage
}

var full = scale{
	rounds: 3, drain: []int{200_000, 1_000_000}, rates: []int{1000, 20_000}, live: 15 * time.Second, idle: 20 * time.Second,
	messages: 200_000, history: []int{0, 1_000_000, 10_000_000, 50_000_000}, day: 1_000_000,
	devices: []int{10, 1000, 100_000, 1_000_000}, all: 1_000_000, routes: []int{1, 10, 50, 200},
	sizes: []int{50, 140, 1 << 10, 8 << 10, 64 << 10}, sessions: []int{1, 2, 4, 8}, replicas: []int{1, 2, 3}, batches: []int{1000, 5000, 10_000}, windows: []int{bridgeWindow, 10_000, greatestWindow}, receive: []int{500, bridgeWindow, 5000, 15_000},
	outage: 5 * time.Minute, around: 10 * time.Second,
}

// quick goes through everything once and has no figure that says anything.
var quick = scale{
	rounds: 1, drain: []int{3000}, rates: []int{500}, live: 500 * time.Millisecond, idle: 100 * time.Millisecond,
	messages: 2000, history: []int{0, 3500}, day: 1000,
	devices: []int{10, 1000}, all: 2000, routes: []int{1, 3},
	sizes: []int{50, 1 << 10}, sessions: []int{2}, replicas: []int{2}, batches: []int{500}, windows: []int{bridgeWindow}, receive: []int{500, bridgeWindow},
	outage: time.Second, around: 500 * time.Millisecond,
}

// suite is one run.
type suite struct {
	scale
	server  *provider.Database
	dir     string // of the page
	results Results
	machine string
	broker  string // its version
	commit  string
}

// TestBench measures all sections, or those named by BENCH_ONLY.
func TestBench(t *testing.T) {
	b := &suite{scale: quick, dir: os.Getenv("BENCH_DOCS"), commit: commit()}
	if b.dir != "" {
		b.scale = full
		b.rounds = setting(t, "BENCH_ROUNDS", b.rounds, strconv.Atoi)
		b.outage = setting(t, "BENCH_OUTAGE", b.outage, time.ParseDuration)
	} else {
		b.dir = t.TempDir()
	}
	var only []string
	if text := os.Getenv("BENCH_ONLY"); text != "" {
		only = strings.Split(text, ",")
	}
	for _, name := range only {
		if !slices.ContainsFunc(sections, func(s section) bool { return s.name == name }) {
			t.Fatalf("BENCH_ONLY names a section %q, expected some of %s", name, sectionNames())
		}
	}
	var err error
	b.results, err = loadResults(b.dir)
	must(t, err)

	b.server = sharedServer(t)
	// As much as the greatest drain writes: the first to write so much would pay for memory and files that the server
	// has from then on.
	t.Run("warming up", func(t *testing.T) {
		s := newStage(t, b.server, "", drainWork(slices.Max(b.drain), 1000))
		b.broker = brokerVersion(t, s)
		b.machine = machine(t, s, b.broker)
		system := bridge("bridge", bridgeOptions{})
		drain(t, s, &system)
	})
	for _, section := range b.chosen(t, only) {
		t.Run(section.name, func(t *testing.T) {
			begun := time.Now()
			r := &Result{Machine: b.machine, Commit: b.commit, Date: begun.UTC().Format(time.DateOnly)}
			r.Points = section.measure(t, b)
			b.results[section.name] = r
			must(t, b.results.save(b.dir)) // an interrupted run has not run in vain
			t.Logf("%s: %v", section.name, time.Since(begun).Round(time.Second))
		})
	}
	b.inspect(t, b.chosen(t, only))
}

// chosen are the sections that are to be measured, and can be with this broker.
func (b *suite) chosen(t *testing.T, only []string) []section {
	t.Helper()
	return slices.DeleteFunc(slices.Clone(sections), func(s section) bool {
		if len(only) > 0 && !slices.Contains(only, s.name) {
			return true
		}
		fits := s.fits == nil || s.fits(b)
		if !fits {
			t.Logf("section %s is left as it is: it is about another broker than Mosquitto %s", s.name, b.broker)
		}
		return !fits
	})
}

// sharedServer starts the database server of a test's stages.
func sharedServer(t *testing.T) *provider.Database {
	t.Helper()
	return provider.StartDatabase(t, provider.DatabaseConfig{Settings: serverSettings})
}

// setting reads a variable of the environment.
func setting[T any](t *testing.T, variable string, standard T, parse func(string) (T, error)) T {
	t.Helper()
	text := os.Getenv(variable)
	if text == "" {
		return standard
	}
	v, err := parse(text)
	if err != nil {
		t.Fatalf("%s is %q: %v", variable, text, err)
	}
	return v
}

// inspect looks at what a run has left behind.
func (b *suite) inspect(t *testing.T, measured []section) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(b.dir, "performance.md"))
	must(t, err)
	for _, section := range measured {
		r := b.results[section.name]
		if r == nil || len(r.Points) == 0 {
			t.Errorf("section %s has no results", section.name)
			continue
		}
		for _, p := range r.Points {
			if len(p.Values) == 0 {
				t.Errorf("section %s: %s has no figures", section.name, p.Label)
			}
		}
		for _, want := range []string{"<!-- " + section.name + " -->", "](performance/" + section.name + ".svg)"} {
			if !strings.Contains(string(text), want) {
				t.Errorf("the page lacks %q", want)
			}
		}
		if _, err := os.Stat(filepath.Join(b.dir, "performance", section.name+".svg")); err != nil {
			t.Error(err)
		}
	}
}

// job is one point of a section and how it is measured.
type job struct {
	point   *Point
	measure func(t *testing.T, p *Point) Figures
}

// play measures jobs in rounds, in turn, so that what the machine does meanwhile befalls all; every other
// round goes backwards. A job that fails has no figures of that round.
func (b *suite) play(t *testing.T, jobs []job) (points []*Point) {
	t.Helper()
	for _, j := range jobs {
		points = append(points, j.point)
	}
	for round := range b.rounds {
		turn := slices.Clone(jobs)
		if round%2 != 0 {
			slices.Reverse(turn)
		}
		for _, j := range turn {
			t.Run(fmt.Sprintf("%s, round %d", j.point.Label, round+1), func(t *testing.T) {
				f := j.measure(t, j.point)
				j.point.add(f)
				t.Log(f)
			})
		}
	}
	return points
}
