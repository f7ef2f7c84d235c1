package store

import (
	"cmp"
	"slices"

	"github.com/mqttpg/bridge/mapping"
)

// batch is a run of entries in the order of receipt, sorted out by what is to become of them. It is
// the same for every attempt to commit it: row ids and dead letter ids do not change, so that an
// attempt whose commit was lost on the way can be repeated.
type batch struct {
	entries []Entry
	groups  []group      // rows, one group per route, in the order every replica writes them in
	letters []deadLetter // what the routes rejected
	skipped tallies
}

// group is the rows of one route.
type group struct {
	route *mapping.Route
	units []unit
}

func newBatch(entries []Entry) *batch {
	b := &batch{entries: entries, skipped: tallies{}}
	position := map[*mapping.Route]int{}
	for i := range entries {
		e := &entries[i]
		if len(e.Outcomes) == 0 {
			b.letters = append(b.letters, deadLetter{entry: e, route: noRoute, reason: mapping.ReasonNoRoute, detail: "no route matches the topic"})
		}
		for j := range e.Outcomes {
			outcome := &e.Outcomes[j]
			switch {
			case outcome.Rejection != nil:
				b.letters = append(b.letters, deadLetter{entry: e, route: outcome.Route.Name, reason: outcome.Rejection.Reason, detail: outcome.Rejection.Detail})
			case len(outcome.Rows) > 0:
				at, known := position[outcome.Route]
				if !known {
					at = len(b.groups)
					position[outcome.Route] = at
					b.groups = append(b.groups, group{route: outcome.Route})
				}
				b.groups[at].units = append(b.groups[at].units, unit{entry: i, rows: outcome.Rows})
			default:
				b.skipped.of(outcome.Route.Name).skipped[cmp.Or(outcome.Skip, mapping.SkipNoRows)]++
			}
		}
	}
	slices.SortFunc(b.groups, func(x, y group) int {
		return cmp.Or(
			cmp.Compare(x.route.Table.Schema, y.route.Table.Schema),
			cmp.Compare(x.route.Table.Name, y.route.Table.Name),
			cmp.Compare(x.route.Name, y.route.Name),
		)
	})
	return b
}

// refuse makes dead letters of a group's units.
func (b *batch) refuse(g *group, units []unit, reason mapping.Reason, detail string) []deadLetter {
	letters := make([]deadLetter, 0, len(units))
	for _, u := range units {
		letters = append(letters, deadLetter{entry: &b.entries[u.entry], route: g.route.Name, reason: reason, detail: detail})
	}
	return letters
}
