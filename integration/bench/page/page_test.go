package page

import (
	"encoding/xml"
	"errors"
	"io"
	"math"
	"strings"
	"testing"
)

func TestSectionsAreReplacedOneByOne(t *testing.T) {
	const document = "# Performance\n\nlost\n<!-- a comment of words -->\n<!-- ledger -->\nold ledger\n<!-- /ledger -->\n\n<!-- drain -->\nold drain\n<!-- /drain -->\n"
	old, err := Parse(document)
	if err != nil || len(old) != 2 || old[0] != (Section{"ledger", "old ledger\n"}) || old[1].Name != "drain" {
		t.Fatalf("%v, %v", old, err)
	}
	text := Compose("Performance", Merge(old, []Section{{"drain", "new drain\n\n"}, {"live", "new live"}}))
	const want = "# Performance\n\n<!-- drain -->\nnew drain\n<!-- /drain -->\n\n<!-- live -->\nnew live\n<!-- /live -->\n\n<!-- ledger -->\nold ledger\n<!-- /ledger -->\n"
	if text != want {
		t.Errorf("got\n%s", text)
	}
	again, err := Parse(text)
	if err != nil || Compose("Performance", again) != text {
		t.Errorf("it does not read its own writing: %v, %v", again, err)
	}
	if _, err := Parse("<!-- drain -->\nand no end"); err == nil || !strings.Contains(err.Error(), "drain") {
		t.Errorf("got %v", err)
	}
}

func TestTable(t *testing.T) {
	got := Table([][]string{{"a", "b"}, {"1", "2"}})
	if want := "| a | b |\n|---|---|\n| 1 | 2 |\n"; got != want {
		t.Errorf("got %q", got)
	}
}

func TestMedianAndPercentile(t *testing.T) {
	if got := Median([]float64{3, 1, 2}); got != 2 {
		t.Errorf("median of three: %g", got)
	}
	if got := Median([]float64{4, 1, 2, 3}); got != 2.5 {
		t.Errorf("median of four: %g", got)
	}
	hundred := make([]float64, 100)
	for i := range hundred {
		hundred[i] = float64(i + 1)
	}
	for q, want := range map[float64]float64{0: 1, 0.01: 1, 0.5: 50, 0.99: 99, 0.999: 100, 1: 100} {
		if got := Percentile(hundred, q); got != want {
			t.Errorf("percentile %g: %g, want %g", q, got, want)
		}
	}
	if !math.IsNaN(Median(nil)) || !math.IsNaN(Percentile(nil, 0.5)) {
		t.Error("no values have a median")
	}
}

func TestNumbers(t *testing.T) {
	for v, want := range map[float64]string{
		0: "0", 0.0123: "0.012", 0.5: "0.50", 2.345: "2.35", 23.45: "23.4", 234.4: "234", 999.6: "1 000", 1234.5: "1 235", 1234567: "1 234 567", -20_000: "-20 000",
	} {
		if got := Number(v); got != want {
			t.Errorf("%g is %q, want %q", v, got, want)
		}
	}
	for v, want := range map[float64]string{0: "0", 0.25: "0.25", 50: "50", 1500: "1.5k", 200_000: "200k", 50_000_000: "50M", 2e9: "2G"} {
		if got := Short(v); got != want {
			t.Errorf("%g is %q, want %q", v, got, want)
		}
	}
	for want, values := range map[string][]float64{"–": nil, "7.00": {7}, "2.00 (1.00 to 3.00)": {3, 1, 2}} {
		if got := Spread(values); got != want {
			t.Errorf("%v is %q, want %q", values, got, want)
		}
	}
}

// wellFormed reads an image to its end and returns its texts.
func wellFormed(t *testing.T, svg string) string {
	t.Helper()
	var texts strings.Builder
	decoder := xml.NewDecoder(strings.NewReader(svg))
	for {
		token, err := decoder.Token()
		if errors.Is(err, io.EOF) {
			return texts.String()
		}
		if err != nil {
			t.Fatalf("%v\n%s", err, svg)
		}
		if text, ok := token.(xml.CharData); ok {
			texts.WriteString(string(text) + "\n")
		}
	}
}

func TestCharts(t *testing.T) {
	lines := []Line{{Name: "bridge & broker", Marks: []Mark{{X: 0, Y: 90, Low: 80, High: 100}, {X: 1e6, Y: 95}, {X: 5e7, Y: 93}}}}
	svg := SVG(
		Chart{Title: "Rate <of rows>", X: Axis{Label: "rows", Log: true}, Y: Axis{Label: "thousand/s"}, Lines: lines},
		Chart{Title: "Memory", Bands: []Band{{From: 10, To: 40, Label: "database away"}}, Lines: []Line{{Plain: true}}},
	)
	texts := wellFormed(t, svg)
	for _, want := range []string{"Rate <of rows>", "bridge & broker", "database away", "1M", "100M", "100", "rows", "thousand/s"} {
		if !strings.Contains(texts, "\n"+want+"\n") {
			t.Errorf("no text %q in\n%s", want, texts)
		}
	}
	for _, bad := range []string{"NaN", "Inf"} {
		if strings.Contains(svg, bad) {
			t.Errorf("%s in\n%s", bad, svg)
		}
	}
	if got := strings.Count(svg, "<circle"); got != 3 {
		t.Errorf("%d dots", got)
	}
}

func TestBars(t *testing.T) {
	bars := Bars{Title: "CPU", Unit: "seconds per million", Parts: []string{"bridge", "broker"}, Bars: []Bar{{"bridge", []float64{2, 5}}, {"other", []float64{25, 5}}}}
	texts := wellFormed(t, bars.SVG())
	for _, want := range []string{"CPU", "seconds per million", "bridge", "other", "7.00", "30.0"} {
		if !strings.Contains(texts, "\n"+want+"\n") {
			t.Errorf("no text %q in\n%s", want, texts)
		}
	}
}

func TestScales(t *testing.T) {
	for _, c := range []struct {
		axis   Axis
		values []float64
		want   string
	}{
		{Axis{}, []float64{3, 97}, "0 20 40 60 80 100"},
		{Axis{}, []float64{0}, "0 0.2 0.4 0.6 0.8 1"},
		{Axis{Log: true}, []float64{1, 64}, "1 2 5 10 20 50 100"},
		{Axis{Log: true}, []float64{10, 1e6}, "10 100 1k 10k 100k 1M"},
		{Axis{Log: true}, []float64{0}, "1 2 5 10"},
		{Axis{Ticks: []Tick{{2, "two"}}}, []float64{1}, "two"},
	} {
		s := c.axis.scale(c.values)
		var labels []string
		for _, tick := range s.ticks {
			labels = append(labels, tick.Label)
			if at := s.place(tick.At); at < -0.001 || at > 1.001 {
				t.Errorf("%v: tick %s stands at %g", c.values, tick.Label, at)
			}
		}
		if got := strings.Join(labels, " "); got != c.want {
			t.Errorf("%v: %s, want %s", c.values, got, c.want)
		}
	}
}
