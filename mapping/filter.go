package mapping

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// maxFilter is the greatest length of a topic filter in bytes [MQTT-4.7.3-3].
const maxFilter = 65535

// filter is one compiled topic pattern of a route.
type filter struct {
	text     string   // the topic filter proper: captures replaced by + and #
	levels   []string // text, split at /
	captures []capture
	device   int // the level that is the device id, once the route is compiled; -1: none is it alone
}

// capture is a level of the pattern that has a name.
type capture struct {
	name  string
	level int  // index of the level, from 0
	rest  bool // {name...}: this level and all below it
}

// parseFilter reads a topic pattern: an MQTT topic filter in which {name} may stand for + and
// {name...} for #.
func parseFilter(pattern string) (filter, error) {
	if !utf8.ValidString(pattern) || strings.ContainsRune(pattern, 0) {
		return filter{}, errors.New("must be UTF-8 without NUL [MQTT-4.7.3-2]")
	}
	if strings.HasPrefix(pattern, "$share/") {
		return filter{}, errors.New("must not begin with $share/: the bridge adds BRIDGE_MQTT_SHARE_NAME by itself")
	}
	f := filter{levels: strings.Split(pattern, "/"), device: -1}
	for i, level := range f.levels {
		last := i == len(f.levels)-1
		switch {
		case level == "#" && !last:
			return filter{}, errors.New("# must be the last level [MQTT-4.7.1-1]")
		case level == "#" || level == "+":
		case strings.HasPrefix(level, "{") && strings.HasSuffix(level, "}"):
			name, rest := strings.CutSuffix(level[1:len(level)-1], "...")
			if !isName(name) {
				return filter{}, fmt.Errorf("capture %s must be named with lower-case letters, digits and _, not beginning with a digit%s", level, separateBySpaces(level))
			}
			for _, c := range f.captures {
				if c.name == name {
					return filter{}, fmt.Errorf("capture {%s} stands twice", name)
				}
			}
			if rest && !last {
				return filter{}, fmt.Errorf("%s must be the last level, as # must [MQTT-4.7.1-1]", level)
			}
			f.captures = append(f.captures, capture{name: name, level: i, rest: rest})
			f.levels[i] = "+"
			if rest {
				f.levels[i] = "#"
			}
		case strings.ContainsAny(level, "#+"):
			return filter{}, fmt.Errorf("a wildcard must fill its level, not share it as in %q [MQTT-4.7.1-2] [MQTT-4.7.1-3]%s", level, separateBySpaces(level))
		case strings.ContainsAny(level, "{}"):
			return filter{}, fmt.Errorf("a capture must fill its level, not share it as in %q%s", level, separateBySpaces(level))
		}
	}
	f.text = strings.Join(f.levels, "/")
	if f.text == "" {
		return filter{}, errors.New("must hold at least one character [MQTT-4.7.3-1]")
	}
	if len(f.text) > maxFilter {
		return filter{}, fmt.Errorf("must not be longer than %d bytes [MQTT-4.7.3-3]", maxFilter)
	}
	return f, nil
}

// separateBySpaces helps whoever took TOPIC for a comma list.
func separateBySpaces(level string) string {
	if strings.Contains(level, ",") {
		return "; several filters are separated by spaces, not by commas"
	}
	return ""
}

// isName reports whether s may name a capture, a column, a table or a schema.
func isName(s string) bool {
	for i := range len(s) {
		c := s[i]
		letter := c >= 'a' && c <= 'z' || c == '_'
		if !letter && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return s != ""
}

// canonical writes the two filters that can be said in another way as they are easier to compare:
// no topic is empty [MQTT-4.7.3-1], so that +/# is # and /# is /+/#.
func canonical(levels []string) []string {
	if len(levels) == 2 && levels[1] == "#" {
		switch levels[0] {
		case "+":
			return levels[1:]
		case "":
			return []string{"", "+", "#"}
		}
	}
	return levels
}

// covers reports whether every topic that b matches is matched by a too.
func covers(a, b []string) bool {
	if isWild(a[0]) && strings.HasPrefix(b[0], "$") {
		return false // [MQTT-4.7.2-1]
	}
	a, b = canonical(a), canonical(b)
	for i, level := range a {
		switch {
		case level == "#":
			return true
		case i == len(b) || b[i] == "#":
			return false
		case level != "+" && level != b[i]:
			return false
		}
	}
	return len(a) == len(b)
}

// intersect reports whether some topic is matched by both a and b.
func intersect(a, b []string) bool {
	if isWild(a[0]) && strings.HasPrefix(b[0], "$") || isWild(b[0]) && strings.HasPrefix(a[0], "$") {
		return false // [MQTT-4.7.2-1]
	}
	a, b = canonical(a), canonical(b)
	for i := 0; ; i++ {
		switch {
		case i < len(a) && a[i] == "#" || i < len(b) && b[i] == "#":
			return true
		case i == len(a) || i == len(b):
			return len(a) == len(b)
		case a[i] != "+" && b[i] != "+" && a[i] != b[i]:
			return false
		}
	}
}

// common is a topic that both a and b match, which must intersect and neither cover the other.
func common(a, b []string) string {
	var topic []string
	for i := range max(len(a), len(b)) {
		level := "#" // where a filter has ended, # is all that can be
		for _, f := range [2][]string{a, b} {
			if i < len(f) && f[i] != "#" && isWild(level) {
				level = f[i]
			}
		}
		switch level {
		case "#":
			return strings.Join(topic, "/")
		case "+":
			level = "x"
		}
		topic = append(topic, level)
	}
	return strings.Join(topic, "/")
}

func isWild(level string) bool { return level == "#" || level == "+" }
