//go:build unix

package docs

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
)

// TestSizes: what kubernetes.md says of a bridge's size is what the benchmark measured last.
func TestSizes(t *testing.T) {
	file, err := os.ReadFile("performance/results.json")
	if err != nil {
		t.Fatal(err)
	}
	var sections map[string]struct {
		Points []struct {
			Label  string               `json:"Label"`
			Values map[string][]float64 `json:"Values"`
		} `json:"Points"`
	}
	if err := json.Unmarshal(file, &sections); err != nil {
		t.Fatal(err)
	}
	// perMillion is the median of the CPU seconds per million messages.
	perMillion := func(section, label, figure string) float64 {
		for _, p := range sections[section].Points {
			if values := slices.Sorted(slices.Values(p.Values[figure])); p.Label == label && len(values)%2 == 1 {
				return values[len(values)/2]
			}
		}
		t.Fatalf("section %s has no point %q with an odd number of values of %s", section, label, figure)
		return 0
	}
	at := func(rate float64, figure string) (live20, drain float64) {
		return rate / 1e6 * perMillion("live", "bridge, 20 000 messages/s", figure), rate / 1e6 * perMillion("drain", "bridge, 1 000 000 messages", figure)
	}
	page, err := os.ReadFile("kubernetes.md")
	if err != nil {
		t.Fatal(err)
	}
	own20, ownDrain := at(50_000, "system")
	database20, databaseDrain := at(50_000, "database")
	for _, want := range []string{
		fmt.Sprintf("| measured: %.2f cores | measured: %.2f cores | 0.3 MB/s |",
			perMillion("live", "bridge, 1 000 messages/s", "system")/1e3, perMillion("live", "bridge, 1 000 messages/s", "database")/1e3),
		fmt.Sprintf("| measured: %.2f cores | measured: %.2f cores | 6 MB/s |", own20*0.4, database20*0.4),
		fmt.Sprintf("| calculated: %.2f to %.2f cores | calculated: %.2f to %.2f cores |", ownDrain, own20, databaseDrain, database20),
		fmt.Sprintf("(%.1f CPU seconds of the bridge per million messages, %.1f\nof PostgreSQL, %.0f bytes of",
			ownDrain*20, databaseDrain*20, perMillion("drain", "bridge, 1 000 000 messages", "wal")),
	} {
		if !strings.Contains(string(page), want) {
			t.Errorf("kubernetes.md does not say %q", want)
		}
	}
}
