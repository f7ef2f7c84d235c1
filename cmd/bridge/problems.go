package main

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/mqttpg/bridge/mapping"
)

// problem is one mistake in the environment.
type problem struct {
	variable string
	value    string // the offending part, never a secret
	reason   string // what was expected
}

func (p problem) String() string {
	value := ""
	switch {
	case p.value == hidden:
		value = " " + hidden + ":"
	case p.value != "":
		value = fmt.Sprintf(" %.100q:", p.value)
	}
	return p.variable + ":" + value + " " + p.reason
}

// problems are all mistakes of an environment, one line each.
type problems []problem

func (p *problems) Error() string {
	lines := make([]string, len(*p))
	for i, one := range *p {
		lines[i] = one.String()
	}
	return strings.Join(lines, "\n")
}

// inQuotes is the reason of a value in quotes that mean nothing.
const inQuotes = "expected a value without quotes around it: outside of a shell they are a part of it"

// add adds a mistake, but for what else may be said of a value in quotes.
func (p *problems) add(variable, value, reason string) {
	if !slices.ContainsFunc(*p, func(one problem) bool { return one.variable == variable && one.reason == inQuotes }) {
		*p = append(*p, problem{variable, value, strings.Join(strings.Fields(reason), " ")})
	}
}

// unquote adds the variables whose values stand in quotes that mean nothing, before anybody reads them. A shell takes
// such quotes away; Docker, kustomize and systemd do not. So that nothing of other variables seems wrong for them, they are
// taken away here: the process ends with these problems in any case.
func (p *problems) unquote(variables []variable) {
	for _, v := range variables {
		value := os.Getenv(v.name)
		inner, ok := v.unquoted(strings.TrimSpace(value))
		if !ok {
			continue
		}
		if v.secret() {
			value = hidden
		}
		p.add(v.name, value, inQuotes)
		_ = os.Setenv(v.name, inner) // it was set, so it can be
	}
}

// addErrors adds the mistakes that mapping.Compile joined.
func (p *problems) addErrors(err error) {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		for _, one := range joined.Unwrap() {
			p.addErrors(one)
		}
		return
	}
	if mistake := (*mapping.ConfigError)(nil); errors.As(err, &mistake) {
		p.add(mistake.Variable, mistake.Value, mistake.Reason)
		return
	}
	p.add("BRIDGE_ROUTES", "", err.Error())
}

// addUnknown adds every variable of the environment that nothing reads: a typo must not pass
// silently. known maps each variable to the route that reads it.
func (p *problems) addUnknown(environment []string, known map[string]string, routes []string) {
	environment = slices.Sorted(slices.Values(environment))
	for _, entry := range environment {
		name, value, _ := strings.Cut(entry, "=")
		if _, ok := known[name]; ok || !strings.HasPrefix(name, prefix+"_") || serviceLink(name, value) {
			continue
		}
		p.add(name, "", unknownReason(name, known, routes))
	}
}

// unknownReason says why nobody reads a variable, and what may be meant.
func unknownReason(name string, known map[string]string, routes []string) string {
	own := ownRoute(name, routes)
	if own != "" { // the variables of another may be nearer, and are not meant
		known = maps.Clone(known)
		maps.DeleteFunc(known, func(_, route string) bool { return route != own })
	}
	if route, ok := routeOf(name); ok && !slices.Contains(routes, route) {
		return fmt.Sprintf("route %s is not in BRIDGE_ROUTES", route) + didYouMean(closest(name, known))
	}
	if own != "" {
		start := routeStart(own)
		if near := closestSuffix(strings.TrimPrefix(name, start)); near != "" {
			return "no such variable" + didYouMean(start+near)
		}
		return "no such variable; bridge help env lists what a route has"
	}
	if rest, ok := strings.CutPrefix(name, prefix+"_ROUTE_"); ok {
		if route, suffix, ok := strings.Cut(rest, "_"); ok && closestSuffix(suffix) != "" {
			return fmt.Sprintf("route %s is not in BRIDGE_ROUTES, and a route has no %s%s", strings.ToLower(route), suffix, didYouMean(closestSuffix(suffix)))
		}
	}
	return "no such variable" + didYouMean(closest(name, known))
}

// ownRoute is the route whose variables begin like this one; empty: none.
func ownRoute(variable string, routes []string) string {
	own := ""
	for _, route := range routes {
		if strings.HasPrefix(variable, routeStart(route)) && len(route) > len(own) {
			own = route
		}
	}
	return own
}

// routeStart begins the names of a route's variables.
func routeStart(route string) string { return prefix + "_ROUTE_" + strings.ToUpper(route) + "_" }

func didYouMean(near string) string {
	if near == "" {
		return ""
	}
	return "; did you mean " + near + "?"
}

// closestSuffix is the setting of a route that is meant: one that is cut short or has a letter too
// many, or else the one with the fewest differing letters.
func closestSuffix(suffix string) string {
	best, fewest := "", max(1, len(suffix)/3)+1
	for _, v := range variablesOf("", &routeConfig{}) {
		if len(suffix) >= 3 && (strings.HasPrefix(v.name, suffix) || strings.HasPrefix(suffix, v.name) && len(suffix) <= len(v.name)+2) {
			return v.name
		}
		if d := distance(suffix, v.name); d < fewest {
			best, fewest = v.name, d
		}
	}
	return best
}

// routeOf takes the route's name out of BRIDGE_ROUTE_<NAME>_<SUFFIX> with a suffix that exists.
func routeOf(variable string) (string, bool) {
	rest, ok := strings.CutPrefix(variable, prefix+"_ROUTE_")
	if !ok {
		return "", false
	}
	longest := ""
	for _, v := range variablesOf("", &routeConfig{}) {
		if suffix := "_" + v.name; strings.HasSuffix(rest, suffix) && len(suffix) > len(longest) {
			longest = suffix
		}
	}
	route := strings.ToLower(strings.TrimSuffix(rest, longest))
	return route, longest != "" && route != ""
}

// Kubernetes describes every Service of the namespace to every container: for one named bridge in
// BRIDGE_SERVICE_HOST, BRIDGE_PORT and others, and likewise for one named bridge-metrics.
var (
	ownServiceLink   = regexp.MustCompile(`^BRIDGE_(SERVICE_HOST|SERVICE_PORT(_.+)?|PORT(_.+)?)$`)
	otherServiceLink = regexp.MustCompile(`^BRIDGE_[A-Z0-9_]+_(SERVICE_HOST|SERVICE_PORT(_.+)?|PORT_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)$`)
	serviceLinkPort  = regexp.MustCompile(`^(tcp|udp|sctp)://`)
)

// serviceLink says whether Kubernetes injected the variable. BRIDGE_HTTP_PORT=8080 is a typo, though
// BRIDGE_HTTP_PORT=tcp://10.0.0.1:80 is not.
func serviceLink(name, value string) bool {
	return ownServiceLink.MatchString(name) || otherServiceLink.MatchString(name) ||
		strings.HasSuffix(name, "_PORT") && serviceLinkPort.MatchString(value)
}

// closest is the known name with the fewest differing letters, if it is near enough to be meant.
func closest(name string, known map[string]string) string {
	best, fewest := "", max(2, len(name)/5)+1
	for candidate := range known {
		if d := distance(name, candidate); d < fewest || d == fewest && best != "" && candidate < best {
			best, fewest = candidate, d
		}
	}
	return best
}

// distance is the number of letters to insert, delete or replace to turn a into b.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			d := diagonal
			if a[i] != b[j] {
				d = 1 + min(diagonal, row[j], row[j+1])
			}
			diagonal, row[j+1] = row[j+1], d
		}
	}
	return row[len(b)]
}
