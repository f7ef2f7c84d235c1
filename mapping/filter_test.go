package mapping

import (
	"fmt"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"unicode/utf8"
)

func TestParseFilter(t *testing.T) {
	for _, test := range []struct {
		pattern, filter, captures string
	}{
		{"devices/{device_id}/telemetry", "devices/+/telemetry", "device_id=1"},
		{"{site}/{rest...}", "+/#", "site=0 rest=1..."},
		{"#", "#", ""},
		{"+", "+", ""},
		{"/", "/", ""},
		{"a//b", "a//b", ""},
		{"$SYS/broker/#", "$SYS/broker/#", ""},
		{"räume/+/°C", "räume/+/°C", ""},
	} {
		f, err := parseFilter(test.pattern)
		if err != nil {
			t.Errorf("%q: %v", test.pattern, err)
			continue
		}
		var captures []string
		for _, c := range f.captures {
			s := fmt.Sprintf("%s=%d", c.name, c.level)
			if c.rest {
				s += "..."
			}
			captures = append(captures, s)
		}
		if got := strings.Join(captures, " "); f.text != test.filter || got != test.captures {
			t.Errorf("%q is filter %q with captures %q, want %q and %q", test.pattern, f.text, got, test.filter, test.captures)
		}
	}
}

func TestParseFilterMistakes(t *testing.T) {
	for pattern, want := range map[string]string{
		"":                           "at least one character [MQTT-4.7.3-1]",
		"a/#/b":                      "# must be the last level [MQTT-4.7.1-1]",
		"a#":                         "must fill its level",
		"a/b+/c":                     `"b+" [MQTT-4.7.1-2]`,
		"sensor{id}":                 "a capture must fill its level",
		"{id}x/y":                    "a capture must fill its level",
		"{Id}":                       "named with lower-case letters",
		"{}":                         "named with lower-case letters",
		"{1st}":                      "named with lower-case letters",
		"{a}/{a}":                    "{a} stands twice",
		"{rest...}/x":                "must be the last level, as #",
		"$share/group/a":             "BRIDGE_MQTT_SHARE_NAME",
		"a\x00b":                     "NUL",
		"a\xffb":                     "UTF-8",
		strings.Repeat("a", 1+65535): "65535 bytes",
	} {
		if _, err := parseFilter(pattern); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.20q: %v, want %q", pattern, err, want)
		}
	}
}

// naive matches as the specification says it, by a regular expression.
func naive(filter, topic string) bool {
	if (filter[0] == '+' || filter[0] == '#') && strings.HasPrefix(topic, "$") {
		return false
	}
	var parts []string
	for level := range strings.SplitSeq(filter, "/") {
		switch level {
		case "+":
			parts = append(parts, "[^/]*")
		case "#":
		default:
			parts = append(parts, regexp.QuoteMeta(level))
		}
	}
	expr := strings.Join(parts, "/")
	switch {
	case filter == "#":
		expr = ".*"
	case strings.HasSuffix(filter, "/#"):
		expr += "(/.*)?"
	}
	compiled, ok := naives.Load(expr)
	if !ok {
		compiled = regexp.MustCompile("^(?:" + expr + ")$")
		naives.Store(expr, compiled)
	}
	return compiled.(*regexp.Regexp).MatchString(topic)
}

var naives sync.Map // of compiled expressions

// sequences lists all texts of one to most levels.
func sequences(levels []string, most int) (all []string) {
	shorter := []string{""}
	for n := range most {
		var longer []string
		for _, s := range shorter {
			for _, level := range levels {
				if n > 0 {
					longer = append(longer, s+"/"+level)
				} else if level != "" || most > 1 {
					longer = append(longer, level)
				}
			}
		}
		all = append(all, longer...)
		shorter = longer
	}
	return slices.DeleteFunc(all, func(s string) bool { return s == "" })
}

// TestFilterRelations compares matching, covering and overlapping with what the naive matcher
// says of every topic, for every pair of small filters.
func TestFilterRelations(t *testing.T) {
	topics := sequences([]string{"a", "b", "", "$a", "other"}, 4)
	texts := slices.DeleteFunc(sequences([]string{"a", "$a", "", "+", "#"}, 3), func(s string) bool {
		_, err := parseFilter(s)
		return err != nil
	})
	matches := make([][]bool, len(texts))
	filters := make([]filter, len(texts))
	for i, text := range texts {
		filters[i], _ = parseFilter(text)
		matches[i] = make([]bool, len(topics))
		var tree trie
		tree.add(filters[i].levels, match{})
		for j, topic := range topics {
			matches[i][j] = naive(text, topic)
			if got := len(tree.find(strings.Split(topic, "/"), nil)) == 1; got != matches[i][j] {
				t.Fatalf("filter %q, topic %q: matched %t", text, topic, got)
			}
		}
	}
	for i := range texts {
		for j := range texts {
			all, some := true, false
			for k := range topics {
				all = all && (matches[i][k] || !matches[j][k])
				some = some || matches[i][k] && matches[j][k]
			}
			if got := covers(filters[i].levels, filters[j].levels); got != all {
				t.Errorf("%q covers %q: %t", texts[i], texts[j], got)
			}
			if got := intersect(filters[i].levels, filters[j].levels); got != some {
				t.Errorf("%q and %q overlap: %t", texts[i], texts[j], got)
			}
			if a, b := filters[i].levels, filters[j].levels; some && !covers(a, b) && !covers(b, a) {
				if topic := common(a, b); topic == "" || !naive(texts[i], topic) || !naive(texts[j], topic) {
					t.Errorf("%q and %q have the topic %q in common", texts[i], texts[j], topic)
				}
			}
		}
	}
}

// TestFiltersAreAMaximalCover takes random sets of routes: what is subscribed to must match exactly
// what the routes match, and no filter may be left out of need.
func TestFiltersAreAMaximalCover(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	topics := sequences([]string{"a", "b", "$a", ""}, 4)
	texts := slices.DeleteFunc(sequences([]string{"a", "b", "$a", "+", "#"}, 4), func(s string) bool {
		_, err := parseFilter(s)
		return err != nil
	})
	for range 300 {
		var configs []RouteConfig
		for i := range 1 + random.IntN(5) {
			var patterns []string
			for range 1 + random.IntN(3) {
				patterns = append(patterns, texts[random.IntN(len(texts))])
			}
			configs = append(configs, RouteConfig{Name: fmt.Sprintf("r%d", i), Topic: strings.Join(patterns, " ")})
		}
		r := mustCompile(t, configs...)
		for i, a := range r.Filters() {
			for j, b := range r.Filters() {
				if i != j && covers(strings.Split(a, "/"), strings.Split(b, "/")) {
					t.Fatalf("%v: %s covers %s", configs, a, b)
				}
			}
		}
		if !slices.IsSorted(r.Filters()) {
			t.Fatalf("%v: filters %v are not sorted", configs, r.Filters())
		}
		for range 20 {
			topic := topics[random.IntN(len(topics))]
			subscribed := slices.ContainsFunc(r.Filters(), func(f string) bool { return naive(f, topic) })
			var want, got []string
			for _, route := range r.All() {
				if slices.ContainsFunc(route.Filters, func(f string) bool { return naive(f, topic) }) {
					want = append(want, route.Name)
				}
			}
			for _, o := range r.Map(message(topic, "1"), nil) {
				got = append(got, o.Route.Name)
			}
			if !slices.Equal(got, want) || subscribed != (want != nil) {
				t.Fatalf("%v: topic %q went to %v, want %v; subscribed %t", configs, topic, got, want, subscribed)
			}
		}
	}
}

func TestFirstMatchingFilterGivesTheCaptures(t *testing.T) {
	r := mustCompile(t, RouteConfig{
		Name: "a", Topic: "x/{device_id}/{kind} {site}/y/z {device_id}/#", Payload: "drop",
		Device: "{device_id} ?? {site}", Columns: "kind={kind}, site={site}",
	})
	for topic, want := range map[string]string{
		"x/1/k": `"device_id":"1".*"kind":"k","site":null`,
		"x/y/z": `"device_id":"y".*"kind":"z","site":null`,
		"q/y/z": `"device_id":"q".*"kind":null,"site":"q"`,
		"q":     `"device_id":"q".*"kind":null,"site":null`,
	} {
		got := render(t, r.Map(message(topic, "1"), nil))
		if !regexp.MustCompile(want).MatchString(got) || strings.Contains(got, "\n") {
			t.Errorf("%s: %s, want %s", topic, got, want)
		}
	}
}

func FuzzParseFilter(f *testing.F) {
	for _, seed := range []string{"a/+/#", "{a}/{b...}", "$share/a/b", "a/{b}c", "//", "#/a"} {
		f.Add(seed, "a/b/c")
	}
	f.Fuzz(func(t *testing.T, pattern, topic string) {
		parsed, err := parseFilter(pattern)
		if err != nil {
			return
		}
		again, err := parseFilter(parsed.text)
		if err != nil || again.text != parsed.text {
			t.Fatalf("%q became %q, which is refused: %v", pattern, parsed.text, err)
		}
		if topic == "" || !strings.Contains(topic, "/") && strings.ContainsAny(topic, "+#") {
			return
		}
		var tree trie
		tree.add(parsed.levels, match{})
		if got := len(tree.find(strings.Split(topic, "/"), nil)) == 1; utf8.ValidString(topic) && !strings.Contains(topic, "\n") && got != naive(parsed.text, topic) {
			t.Fatalf("filter %q, topic %q: matched %t", parsed.text, topic, got)
		}
	})
}

func BenchmarkMatch(b *testing.B) {
	for _, n := range []int{1, 10, 100, 1000} {
		b.Run(fmt.Sprint("routes=", n), func(b *testing.B) {
			var tree trie
			for i := range n {
				f, err := parseFilter(fmt.Sprintf("site/%d/{device_id}/telemetry", i))
				if err != nil {
					b.Fatal(err)
				}
				tree.add(f.levels, match{i, 0})
			}
			var (
				levels []string
				found  []match
			)
			topic := fmt.Sprintf("site/%d/device-17/telemetry", n-1)
			b.ReportAllocs()
			for b.Loop() {
				levels = splitLevels(topic, levels[:0])
				found = tree.find(levels, found[:0])
			}
			if len(found) != 1 {
				b.Fatal(found)
			}
		})
	}
}

// TestFiltersSeparatedByCommas: they are one filter, and the mistake says how it is meant.
func TestFiltersSeparatedByCommas(t *testing.T) {
	for _, pattern := range []string{"j/+,j2/+", "{a},{b}", "a/{b},c/{d}", "a/+,"} {
		if _, err := parseFilter(pattern); err == nil || !strings.Contains(err.Error(), "separated by spaces, not by commas") {
			t.Errorf("%s: %v", pattern, err)
		}
	}
	if _, err := parseFilter("a/b+/c"); err == nil || strings.Contains(err.Error(), "commas") {
		t.Errorf("without a comma: %v", err)
	}
}
