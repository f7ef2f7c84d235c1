package mapping

import (
	"slices"
	"strings"
)

// Behind lists the routes, sorted by name, that get messages through the subscription to one of
// Filters: who goes without when the broker refuses it.
func (r *Routes) Behind(subscribed string) []string {
	levels := strings.Split(subscribed, "/")
	var names []string
	for _, route := range r.routes {
		if slices.ContainsFunc(route.filters, func(f filter) bool { return covers(levels, f.levels) }) {
			names = append(names, route.Name)
		}
	}
	slices.Sort(names)
	return names
}
