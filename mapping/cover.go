package mapping

import (
	"fmt"
	"slices"
	"strings"
)

// covering is a filter of the cover, with the routes that need it.
type covering struct {
	filter
	routes []string
}

// coverOf lists the filters that no other covers, sorted.
func coverOf(routes []*Route) []covering {
	var all []covering
	for _, r := range routes {
		for _, f := range r.filters {
			all = append(all, covering{f, []string{r.Name}})
		}
	}
	slices.SortStableFunc(all, func(a, b covering) int { return strings.Compare(a.text, b.text) })
	var cover []covering
	for i := range all {
		a := &all[i]
		needed := true
		for j := range all {
			b := &all[j]
			// Of filters that cover each other, which are equal or nearly, the first stays.
			if i != j && covers(b.levels, a.levels) && (j < i || !covers(a.levels, b.levels)) {
				needed = false
				break
			}
		}
		if needed {
			cover = append(cover, *a)
		}
	}
	for i := range cover {
		cover[i].routes = nil
		for j := range all {
			name := all[j].routes[0]
			if covers(cover[i].levels, all[j].levels) && !slices.Contains(cover[i].routes, name) {
				cover[i].routes = append(cover[i].routes, name)
			}
		}
	}
	return cover
}

// warnings tells what of a valid configuration may surprise. Each begins with the variables concerned.
func warnings(routes []*Route, cover []covering) (list []string) {
	for i := range cover {
		for j := range cover[:i] {
			a, b := &cover[j], &cover[i]
			if intersect(a.levels, b.levels) {
				list = append(list, fmt.Sprintf("%s: the filters %s and %s overlap, and neither holds all of the other: for a topic that both match, such as %s, "+
					"the broker delivers each message twice, and one copy is passed over; the broker must offer Subscription Identifiers",
					topicVariables(slices.Concat(a.routes, b.routes)), a.text, b.text, common(a.levels, b.levels)))
			}
		}
	}
	for _, r := range routes {
		warn := func(suffix, format string, args ...any) {
			list = append(list, variable(r.Name, suffix)+": "+fmt.Sprintf(format, args...))
		}
		for j := range r.filters {
			if strings.Contains(r.filters[j].text, ",") {
				warn("TOPIC", "the comma belongs to the filter %s: several filters are separated by spaces", r.filters[j].text)
			}
			for k := range r.filters[:j] {
				if covers(r.filters[k].levels, r.filters[j].levels) {
					warn("TOPIC", "the filter %s has no effect, for %s before it matches all of its topics", r.filters[j].text, r.filters[k].text)
					break
				}
			}
		}
		timed := r.time.terms != nil
		if timed && r.clock.zoneless() && r.clock.zone == nil {
			warn("TIME_FORMAT", "the layout has no offset and TIME_ZONE is not set: times are read as UTC")
		}
		if r.Keyed && r.time.reads(sourceReceivedAt) {
			warn("TIME", "where it falls back to received_at, a message that is published again is written again")
		}
		if r.key == keyAuto && timed && !r.Keyed {
			warn("TIME", "it is the time of receipt, which no second delivery repeats: KEY=auto means delivery")
		}
		if r.Each && r.key == keyExplicit && !slices.ContainsFunc(r.keys, func(e expression) bool { return e.reads(sourceElement) }) {
			warn("KEY", "it names nothing of the element (@): of the elements of one message that share a time, only the first is kept")
		}
		if r.Each && r.payload != payloadDrop {
			warn("PAYLOAD", "with EACH the payload kept is the element; what stands beside the array is kept only where a column takes it")
		}
		if r.payload == payloadDrop && len(r.columns) == 0 {
			warn("PAYLOAD", "drop without COLUMNS keeps nothing of what was published")
		}
	}
	return list
}

// topicVariables lists the variables that hold the filters of routes.
func topicVariables(routes []string) string {
	names := slices.Compact(slices.Sorted(slices.Values(routes)))
	for i := range names {
		names[i] = variable(names[i], "TOPIC")
	}
	return strings.Join(names, ", ")
}
