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

// warnings tells what of a valid configuration may surprise.
func warnings(routes []*Route, cover []covering) (list []string) {
	warn := func(format string, args ...any) { list = append(list, fmt.Sprintf(format, args...)) }
	for i := range cover {
		for j := range cover[:i] {
			a, b := &cover[j], &cover[i]
			if intersect(a.levels, b.levels) {
				warn("The filters %s (%s) and %s (%s) overlap, and neither holds all of the other: for a topic that both match, such as %s, "+
					"the broker delivers each message twice, and one copy is passed over. The broker must offer Subscription Identifiers.",
					a.text, routeNames(a.routes), b.text, routeNames(b.routes), common(a.levels, b.levels))
			}
		}
	}
	for _, r := range routes {
		for j := range r.filters {
			if strings.Contains(r.filters[j].text, ",") {
				warn("Route %s: the comma belongs to the filter %s: several filters are separated by spaces.", r.Name, r.filters[j].text)
			}
			for k := range r.filters[:j] {
				if covers(r.filters[k].levels, r.filters[j].levels) {
					warn("Route %s: the filter %s has no effect, for %s before it matches all of its topics.", r.Name, r.filters[j].text, r.filters[k].text)
					break
				}
			}
		}
		timed := r.time.terms != nil
		if timed && r.clock.zoneless() && r.clock.zone == nil {
			warn("Route %s: TIME_FORMAT has no offset and TIME_ZONE is not set: times are read as UTC.", r.Name)
		}
		if r.Keyed && r.time.reads(sourceReceivedAt) {
			warn("Route %s: where TIME falls back to received_at, a message that is published again is written again.", r.Name)
		}
		if r.key == keyAuto && timed && !r.Keyed {
			warn("Route %s: TIME is the time of receipt, which no second delivery repeats: KEY=auto means delivery.", r.Name)
		}
		if r.Each && r.key == keyExplicit && !slices.ContainsFunc(r.keys, func(e expression) bool { return e.reads(sourceElement) }) {
			warn("Route %s: KEY names nothing of the element (@): of the elements of one message that share a time, only the first is kept.", r.Name)
		}
		if r.Each && r.payload != payloadDrop {
			warn("Route %s: with EACH the payload kept is the element; what stands beside the array is kept only where a column takes it.", r.Name)
		}
		if r.payload == payloadDrop && len(r.columns) == 0 {
			warn("Route %s: PAYLOAD=drop without COLUMNS keeps nothing of what was published.", r.Name)
		}
	}
	return list
}

func routeNames(names []string) string {
	if len(names) == 1 {
		return "route " + names[0]
	}
	return "routes " + strings.Join(names, ", ")
}
