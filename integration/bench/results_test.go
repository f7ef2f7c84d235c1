//go:build linux

package bench

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"

	"github.com/mqttpg/bridge/integration/bench/page"
)

// Results are all there is to the page: a section that is measured again replaces its part.
type Results map[string]*Result

// Result of one section.
type Result struct {
	Machine string
	Commit  string
	Date    string
	Points  []*Point
}

// rounds is how many values the figures have at most.
func (r *Result) rounds() (n int) {
	for _, p := range r.Points {
		for _, values := range p.Values {
			n = max(n, len(values))
		}
	}
	return n
}

// Point is what the rounds gave for one system and one value of what is varied.
type Point struct {
	System string
	Label  string
	X      float64
	Values map[string][]float64 // by figure, one for each round that succeeded
	Curve  [][2]float64         `json:",omitempty"` // of the last round
}

// add keeps the figures of a round.
func (p *Point) add(f Figures) {
	if p.Values == nil {
		p.Values = map[string][]float64{}
	}
	for name, v := range f {
		p.Values[name] = append(p.Values[name], v)
	}
}

// median of a figure; NaN if there is none.
func (p *Point) median(figure string) float64 {
	if p == nil {
		return math.NaN()
	}
	return page.Median(p.Values[figure])
}

// find returns the point of a system at a value, nil if there is none.
func (r Results) find(section, system string, x float64) *Point {
	if r[section] != nil {
		for _, p := range r[section].Points {
			if p.System == system && p.X == x {
				return p
			}
		}
	}
	return nil
}

func resultsPath(dir string) string { return filepath.Join(dir, "performance", "results.json") }

// loadResults reads what earlier runs gave.
func loadResults(dir string) (Results, error) {
	results := Results{}
	text, err := os.ReadFile(resultsPath(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return results, nil
	}
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(text, &results); err != nil {
		return nil, fmt.Errorf("read %s: %w", resultsPath(dir), err)
	}
	return results, nil
}

// save writes the results and what is made of them: page and plots.
func (r Results) save(dir string) error {
	if err := os.MkdirAll(filepath.Join(dir, "performance"), 0o755); err != nil {
		return err
	}
	text, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return err
	}
	// A line for each list of numbers, not for each number.
	text = numberLists.ReplaceAllFunc(text, func(list []byte) []byte { return []byte(strings.Join(strings.Fields(string(list)), "")) })
	if err := os.WriteFile(resultsPath(dir), append(text, '\n'), 0o644); err != nil {
		return err
	}
	path := filepath.Join(dir, "performance.md")
	document, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	old, err := page.Parse(string(document))
	if err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	fresh, plots := r.render(old)
	for name, svg := range plots {
		if err := os.WriteFile(filepath.Join(dir, "performance", name+".svg"), []byte(svg), 0o644); err != nil {
			return err
		}
	}
	return os.WriteFile(path, []byte(page.Compose("Performance", page.Merge(old, fresh))), 0o644)
}

var numberLists = regexp.MustCompile(`\[[-+0-9.eE,\s]*\]`)

// commit names the state of the sources; what this writes itself does not make it dirty.
func commit() string {
	hash, err := exec.Command("git", "rev-parse", "--short", "HEAD").Output()
	if err != nil {
		return "unknown" // a copy without its history, or one of another account
	}
	name := strings.TrimSpace(string(hash))
	changes, err := exec.Command("git", "status", "--porcelain", "--untracked-files=no", "--", ":(top)", ":(top,exclude)docs").Output()
	if err != nil || len(changes) > 0 {
		name += " with changes"
	}
	return name
}

// brokerVersion is Mosquitto's, which it prints with its usage, and calls that an error.
func brokerVersion(t *testing.T, s *Stage) string {
	t.Helper()
	help, _ := exec.CommandContext(t.Context(), fmt.Sprintf("/proc/%d/exe", s.Broker.PID()), "-h").CombinedOutput()
	return strings.TrimPrefix(firstLine(string(help)), "mosquitto version ")
}

// machine describes what all this runs on.
func machine(t *testing.T, s *Stage, broker string) string {
	t.Helper()
	if len(children(s.Server.PID())) == 0 {
		t.Fatal("this kernel does not list the children of a process (CONFIG_PROC_CHILDREN): the database's CPU time cannot be read")
	}
	var database string
	must(t, s.db.QueryRow(t.Context(), "select split_part(current_setting('server_version'), ' ', 1)").Scan(&database))
	kernel, err := os.ReadFile("/proc/sys/kernel/osrelease")
	must(t, err)
	model := "unknown processor"
	if text, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		if found := regexp.MustCompile(`(?m)^model name\s*:\s*(.+)$`).FindSubmatch(text); found != nil {
			model = string(found[1])
		}
	}
	gib := 0.0
	if text, err := os.ReadFile("/proc/meminfo"); err == nil {
		var kib float64
		if _, err := fmt.Sscanf(string(text), "MemTotal: %f kB", &kib); err == nil {
			gib = kib / (1 << 20)
		}
	}
	module, err := os.ReadFile(filepath.Join("peers", "go.mod"))
	must(t, err)
	peer := regexp.MustCompile(`(?m)/telegraf v(\S+)`).FindSubmatch(module)
	if peer == nil {
		t.Fatal("peers/go.mod does not tell Telegraf's version")
	}
	return fmt.Sprintf("%d CPUs (%s), %.0f GiB, Linux %s, %s, Mosquitto %s, PostgreSQL %s, Telegraf %s",
		runtime.NumCPU(), model, gib, strings.TrimSpace(string(kernel)), strings.Replace(runtime.Version(), "go", "Go ", 1), broker, database, peer[1])
}

func firstLine(text string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(text), "\n")
	return line
}
