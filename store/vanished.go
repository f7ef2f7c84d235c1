package store

import (
	"context"
	"encoding/binary"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/mqttpg/bridge/mapping"
)

// vanishedEvery is how often it is looked at most whether rows that were not inserted are in the table,
// as long as they always were.
const vanishedEvery = time.Minute

// recountMost is how long the looks after one batch may take.
const recountMost = 2 * time.Second

// recount looks, after the commit, whether the messages that count as duplicates are in their table.
// Those that are not have vanished: a trigger of the operator's returned null. As that is rare, and
// duplicates may be frequent, it looks now and then, and at every batch once it has found one. The acknowledgements
// wait for it: so it gives up soon.
func (w *Writer) recount(ctx context.Context, conn *pgx.Conn, b *batch, live []*insertion, o *outcome) {
	ctx, cancel := context.WithTimeout(ctx, recountMost)
	defer cancel()
	for _, in := range live { // before any of the looks fails: the next batch must not guess again
		if in.unsure() {
			w.tables.lookAgain(in.plan.route)
		}
	}
	for _, in := range live {
		route := in.plan.route
		t := o.tallies[route.Name]
		if in.unsure() {
			if there, err := w.present(ctx, conn, route, in.units); err == nil {
				t.written, t.skipped = there, map[mapping.SkipReason]uint64{SkipRefusedByTable: uint64(len(in.units)) - there}
			} else {
				_ = conn.Close(ctx)
				return
			}
			continue
		}
		if t == nil || t.duplicate == 0 || in.plan.conflict == "" || !route.Keyed || !w.tables.mayVanish(route) {
			continue
		}
		refused := b.refused(in, o) // the keys of these may be in the table as well
		units := slices.DeleteFunc(slices.Clone(b.groupOf(in).units), func(u unit) bool { return refused[&b.entries[u.entry]] })
		there, err := w.present(ctx, conn, route, units)
		if err != nil {
			_ = conn.Close(ctx) // it is a count
			return
		}
		if absent := min(uint64(len(units))-there, t.duplicate); absent > 0 {
			t.duplicate -= absent
			t.skip(SkipRefusedByTable, absent)
			w.tables.vanish(route)
		}
	}
}

// present says how many of the units have a row in their table.
func (w *Writer) present(ctx context.Context, conn *pgx.Conn, route *mapping.Route, units []unit) (uint64, error) {
	var unitOf, devices, times, ids column
	for i, u := range units {
		for j := range u.rows {
			row := &u.rows[j]
			unitOf.add(binary.BigEndian.AppendUint32(nil, uint32(i)))
			devices.add([]byte(row.DeviceID))
			times.add(binary.BigEndian.AppendUint64(nil, uint64(row.Time)))
			ids.add(row.MessageID[:])
		}
	}
	conditions := make([]string, len(route.Table.KeyColumns))
	for i, name := range route.Table.KeyColumns {
		name = pgx.Identifier{name}.Sanitize()
		conditions[i] = "t." + name + " = k." + name
	}
	var n uint64
	s := &statement{
		sql: `select count(distinct k.unit) from unnest($1, $2, $3, $4) k(unit, "device_id", "time", "message_id")` +
			" where exists (select from " + tableIdentifier(&route.Table).Sanitize() + " t where " + strings.Join(conditions, " and ") + ")",
		params: [][]byte{unitOf.array(pgtype.Int4OID), devices.array(pgtype.TextOID), times.array(pgtype.TimestamptzOID), ids.array(pgtype.UUIDOID)},
		oids:   []uint32{pgtype.Int4ArrayOID, pgtype.TextArrayOID, pgtype.TimestamptzArrayOID, pgtype.UUIDArrayOID},
		read:   func(values [][]byte) error { n = binary.BigEndian.Uint64(values[0]); return nil },
	}
	_, err := run(ctx, conn.PgConn(), []*statement{guard(w.cfg, nil, w.cfg.shortLock), s})
	return n, err
}

// mayVanish says whether it is time to look for vanished rows of a route.
func (t *Tables) mayVanish(route *mapping.Route) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.state(route)
	if !s.vanishing && time.Since(s.lookedAt) < vanishedEvery {
		return false
	}
	s.lookedAt = time.Now()
	return true
}

// vanish notes that rows of a route vanish.
func (t *Tables) vanish(route *mapping.Route) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.state(route).vanishing = true
}
