// Package page makes the document that shows measurements: figures with their spread, Markdown tables,
// plots as SVG, and a document whose parts can be replaced one by one.
package page

import (
	"fmt"
	"math"
	"slices"
	"strings"
)

// Section is a part of a document between the marks <!-- name --> and <!-- /name -->.
type Section struct {
	Name, Text string
}

// Parse returns the sections of a document in their order. What stands outside of marks is left out. A
// section that does not end is an error.
func Parse(document string) ([]Section, error) {
	var sections []Section
	for {
		_, rest, found := strings.Cut(document, "<!-- ")
		if !found {
			return sections, nil
		}
		name, rest, found := strings.Cut(rest, " -->\n")
		if !found || strings.ContainsAny(name, " \n") {
			document = rest // some other comment
			continue
		}
		text, after, found := strings.Cut(rest, "<!-- /"+name+" -->\n")
		if !found {
			return nil, fmt.Errorf("section %s does not end", name)
		}
		sections = append(sections, Section{name, text})
		document = after
	}
}

// Compose writes a document of a heading and sections.
func Compose(heading string, sections []Section) string {
	var out strings.Builder
	out.WriteString("# " + heading + "\n")
	for _, s := range sections {
		fmt.Fprintf(&out, "\n<!-- %[1]s -->\n%[2]s\n<!-- /%[1]s -->\n", s.Name, strings.TrimRight(s.Text, "\n"))
	}
	return out.String()
}

// Merge puts fresh sections into the place of old ones of the same name. The fresh ones stand first and in
// their own order; old ones that are not among them follow.
func Merge(old, fresh []Section) []Section {
	merged := slices.Clone(fresh)
	for _, s := range old {
		if !slices.ContainsFunc(fresh, func(f Section) bool { return f.Name == s.Name }) {
			merged = append(merged, s)
		}
	}
	return merged
}

// Table is a Markdown table; the first row is the heading.
func Table(rows [][]string) string {
	var out strings.Builder
	for i, row := range rows {
		out.WriteString("| " + strings.Join(row, " | ") + " |\n")
		if i == 0 {
			out.WriteString("|" + strings.Repeat("---|", len(row)) + "\n")
		}
	}
	return out.String()
}

// Median of values in any order; NaN if there are none.
func Median(values []float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(values))
	return (sorted[(len(sorted)-1)/2] + sorted[len(sorted)/2]) / 2
}

// Percentile is the least of sorted values that at least the share q of all do not exceed; NaN if there are
// none.
func Percentile(sorted []float64, q float64) float64 {
	if len(sorted) == 0 {
		return math.NaN()
	}
	return sorted[min(max(int(math.Ceil(q*float64(len(sorted))))-1, 0), len(sorted)-1)]
}

// Spread writes the median of some values, and the lowest and the highest if there are several.
func Spread(values []float64) string {
	switch len(values) {
	case 0:
		return "–"
	case 1:
		return Number(values[0])
	}
	return fmt.Sprintf("%s (%s to %s)", Number(Median(values)), Number(slices.Min(values)), Number(slices.Max(values)))
}

// Number writes a figure with three significant digits, more if it is whole, and thousands apart.
func Number(v float64) string {
	switch magnitude := math.Abs(v); {
	case math.IsNaN(v) || math.IsInf(v, 0):
		return "–"
	case magnitude == 0:
		return "0"
	case magnitude >= 999.5:
		return Count(int(math.Round(v)))
	case magnitude >= 100:
		return fmt.Sprintf("%.0f", v)
	case magnitude >= 10:
		return fmt.Sprintf("%.1f", v)
	case magnitude >= 0.1:
		return fmt.Sprintf("%.2f", v)
	default:
		return fmt.Sprintf("%.3f", v)
	}
}

// Count writes a whole number with thousands apart.
func Count(n int) string {
	if n < 0 {
		return "-" + Count(-n)
	}
	text := fmt.Sprint(n)
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + " " + text[i:]
	}
	return text
}

// Short writes a round figure in the room there is below an axis: 200k, 50M, 1.5.
func Short(v float64) string {
	for _, unit := range []struct {
		size float64
		name string
	}{{1e9, "G"}, {1e6, "M"}, {1e3, "k"}} {
		if math.Abs(v) >= unit.size {
			return fmt.Sprintf("%.3g%s", v/unit.size, unit.name)
		}
	}
	return fmt.Sprintf("%.3g", v)
}
