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
}

// cuts says whether the payloads of dead letters are to be cut.
func (b *batch) cuts() bool { return b.unkept >= unkeptAttempts }

// group is the rows of one route.
type group struct {
	route *mapping.Route
	units []unit
}

// newBatch sorts entries out. Redeliveries that the ledger knows are settled by that, whatever the
// routes would make of them now; it may be nil.
func newBatch(entries []Entry, known *ledger) *batch {
	b := &batch{entries: entries, settled: tallies{}}
	if known != nil {
		known.arrive(&entries[0])
		b.record = record{
			batch: known.batch, incarnation: known.incarnation, broker: known.broker, first: known.next, confirmed: known.confirmed,
			renews: known.incarnation > known.stored || known.broker != known.named,
		}
		b.record.packetIDs, b.record.hashes = make([]byte, 0, 2*len(entries)), make([]byte, 0, 8*len(entries))
		if known.reuses && known.batch%pruneEvery == 0 {
			b.record.add(0, markReuses) // the batch that says so is about to be deleted
			known.next++
		}
	}
	position := map[*mapping.Route]int{}
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
				at, known := position[outcome.Route]
				if !known {
					at = len(b.groups)
					position[outcome.Route] = at
					g := group{route: outcome.Route}
					if at == 0 { // most batches are of one route
						g.units = make([]unit, 0, len(entries)-i)
					}
					b.groups = append(b.groups, g)
				}
				b.groups[at].units = append(b.groups[at].units, unit{entry: i, rows: outcome.Rows})
			default:
				b.settled.of(outcome.Route.Name).skipped[cmp.Or(outcome.Skip, mapping.SkipNoRows)]++
			}
		}
	}
	if len(b.record.packetIDs) > 0 {
		b.record.connection = known.sighted
		known.batch++
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
