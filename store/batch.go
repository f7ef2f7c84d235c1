package store

import (
	"cmp"
	"fmt"
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
	settled tallies      // without rows: skipped, or known to the ledger
	record  record       // for the ledger

	// searched says that an attempt has tried all routes, and knows which fail: the next ones try these
	// first, and the others when none holds the batch up any more.
	searched bool

	// stubborn is how many attempts failed because of the server in the statement of a route.
	stubborn int

	// unkept is how many attempts failed because of the server over a dead letter.
	unkept int

	// presumed is the outcome of the last attempt that failed: what counts if it was committed after all.
	presumed *outcome

	position []int // in groups, counted from 1, by the number of the route; 0: not yet there
}

// reset makes an empty batch of a settled one, whose memory serves the next. It keeps what a batch of
// everyday size needs.
func (b *batch) reset(entries []Entry) {
	for i := range b.groups {
		g := &b.groups[i]
		clear(g.units)
		g.units = g.units[:0]
		g.rows, g.joint, g.sorted, g.together = forget(g.rows), forget(g.joint), false, 0
	}
	groups := slices.DeleteFunc(b.groups, func(g group) bool { return cap(g.units) > keepUnits })
	record := record{packetIDs: b.record.packetIDs[:0], hashes: b.record.hashes[:0]}
	clear(b.position)
	position := b.position
	*b = batch{entries: entries, groups: groups, settled: tallies{}, record: record, position: position}
	for i := range groups {
		b.position[groups[i].route.Number] = i + 1
	}
}

// group is that of a route.
func (b *batch) group(route *mapping.Route) *group {
	for len(b.position) <= route.Number {
		b.position = append(b.position, 0)
	}
	at := &b.position[route.Number]
	if *at == 0 {
		b.groups = append(b.groups, group{route: route})
		*at = len(b.groups)
	}
	return &b.groups[*at-1]
}

// keepUnits is the size up to which the room for a route's messages is kept for the next batch.
const keepUnits = 1 << 16

// cuts says whether the payloads of dead letters are to be cut.
func (b *batch) cuts() bool { return b.unkept >= unkeptAttempts }

// group is the rows of one route.
type group struct {
	route  *mapping.Route
	units  []unit
	rows   []rowRef // of the units
	sorted bool     // the rows are in the order in which they are written
	twice  bool     // a key stands twice in sorted rows

	// Of the first of several groups that are written to the same table, which may be by one COPY.
	together   int      // how many they are
	joint      []rowRef // the rows of all, in order
	jointTwice bool     // a key stands twice in these
}

// newBatch sorts entries out. Redeliveries that the ledger knows are settled by that, whatever the
// routes would make of them now; it may be nil. The memory of a batch that is settled is used again; it may
// be nil as well.
func newBatch(entries []Entry, known *ledger, settled *batch) *batch {
	b := settled
	if b == nil {
		b = &batch{}
	}
	b.reset(entries)
	if known != nil {
		known.arrive(&entries[0])
		b.record.batch, b.record.incarnation, b.record.broker = known.batch, known.incarnation, known.broker
		b.record.first, b.record.confirmed = known.next, known.confirmed
		b.record.renews = known.incarnation > known.stored || known.broker != known.named
		if known.reuses && known.batch%pruneEvery == 0 {
			b.record.add(0, markReuses) // the batch that says so is about to be deleted
			known.next++
		}
	}
	for i := range entries {
		e := &entries[i]
		if known != nil && e.Message.QoS > 0 {
			hash := known.hash(e.Message, e.Content)
			if known.redelivery(e, hash, &b.record) {
				b.redelivered(e)
				continue
			}
		}
		switch {
		case len(e.Outcomes) == 0 && e.Rejection != nil:
			b.letters = append(b.letters, deadLetter{entry: e, route: noRoute, reason: e.Rejection.Reason, detail: e.Rejection.Detail})
		case len(e.Outcomes) == 0:
			b.letters = append(b.letters, deadLetter{entry: e, route: noRoute, reason: mapping.ReasonNoRoute, detail: "no route matches the topic"})
		}
		for j := range e.Outcomes {
			outcome := &e.Outcomes[j]
			switch {
			case outcome.Rejection != nil:
				b.letters = append(b.letters, deadLetter{entry: e, route: outcome.Route.Name, reason: outcome.Rejection.Reason, detail: outcome.Rejection.Detail})
			case tooLarge(outcome.Rows) != "":
				b.letters = append(b.letters, deadLetter{entry: e, route: outcome.Route.Name, reason: ReasonDatabase, detail: tooLarge(outcome.Rows)})
			case len(outcome.Rows) > 0:
				g := b.group(outcome.Route)
				g.units = append(g.units, unit{entry: i, rows: outcome.Rows, time: outcome.Rows[0].Time})
			default:
				b.settled.of(outcome.Route.Name).skip(cmp.Or(outcome.Skip, mapping.SkipNoRows), 1)
			}
		}
	}
	if len(b.record.packetIDs) > 0 {
		b.record.connection = known.sighted
		known.batch++
		known.stored, known.named = b.record.incarnation, b.record.broker // nothing is stored before this batch
	}
	b.groups = slices.DeleteFunc(b.groups, func(g group) bool { return len(g.units) == 0 }) // kept of the batch before
	slices.SortFunc(b.groups, func(x, y group) int { return cmp.Compare(x.route.Number, y.route.Number) })
	for groups := b.groups; len(groups) > 0; {
		n := ofTable(groups)
		order := orderOf(&groups[0].route.Table)
		for i := range n {
			groups[i].rows = gather(groups[i].rows, groups[i].units)
		}
		if first := &groups[0]; n == 1 {
			first.sorted, first.twice = true, order.sort(first.rows)
		} else {
			first.together = n
			for i := range n {
				first.joint = append(first.joint, groups[i].rows...)
			}
			first.jointTwice = order.sort(first.joint)
		}
		groups = groups[n:]
	}
	return b
}

// ofTable is how many of the first groups are written to the same table: the rows of all may stand in one COPY. Routes
// of a table have numbers side by side.
func ofTable(groups []group) int {
	t := &groups[0].route.Table
	n := 1
	for n < len(groups) && groups[n].route.Table.Schema == t.Schema && groups[n].route.Table.Name == t.Name {
		n++
	}
	return n
}

// maxRow is the size in bytes of the largest row that is offered to the database. The protocol ends at
// 1 GiB for a statement, and no repetition makes a larger one pass. A payload of 256 MiB, the most
// that MQTT carries, becomes such a row when several columns hold it.
const maxRow = 768 << 20

// tooLarge says what is wrong with the size of rows; empty if nothing.
func tooLarge(rows []mapping.Row) string {
	for i := range rows {
		if n := len(rows[i].Fields); n > maxRow {
			return fmt.Sprintf("the row has %d MiB, a statement carries at most %d MiB", n>>20, maxRow>>20)
		}
	}
	return ""
}

// redelivered counts a message whose outcome is committed already.
func (b *batch) redelivered(e *Entry) {
	if len(e.Outcomes) == 0 {
		b.settled.of(noRoute).duplicate++
	}
	for i := range e.Outcomes {
		b.settled.of(e.Outcomes[i].Route.Name).duplicate++
	}
}

// refuse makes dead letters of a group's units.
func (b *batch) refuse(g *group, units []unit, reason mapping.Reason, detail string) []deadLetter {
	letters := make([]deadLetter, 0, len(units))
	for _, u := range units {
		letters = append(letters, deadLetter{entry: &b.entries[u.entry], route: g.route.Name, reason: reason, detail: detail})
	}
	return letters
}
