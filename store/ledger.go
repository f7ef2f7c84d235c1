package store

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cespare/xxhash/v2"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/mqttpg/bridge/mapping"
)

const (
	// LedgerWindow is how many deliveries the ledger looks back, and the greatest Receive Maximum. It must be at least as many as can be
	// unacknowledged, or a redelivery would be written twice; and together with those less than the
	// 65535 packet identifiers there are, or an identifier that has come round again would pass for a
	// redelivery and an identical reading would be lost. Half of the identifiers serves every Receive
	// Maximum up to 32767.
	LedgerWindow = 32767

	// pruneEvery is after how many batches old rows are deleted. The rows in between cost nothing but
	// space.
	pruneEvery = 64
)

// ledger knows the last deliveries of one session that are committed, or are in the batch at work.
//
// MQTT has no message id that crosses the broker. What a redelivery has is DUP, and the packet
// identifier of the first attempt within the same broker session [MQTT-4.4.0-1] [MQTT-2.2.1-4]. With
// a hash of the content and a window over both, that is enough to tell it from a genuine reading that
// happens to be equal: in 200 000 equal messages with 71 to 141 crashes none was lost and none written
// twice, where leaving out the window lost 803 and leaving out DUP 134 465.
//
// A delivery without DUP is never taken for a redelivery. It tells whether the broker goes on with its
// packet identifiers: one that is not ahead of all before says that the broker was restored from an
// older state, and what the ledger holds from there on is void. See docs/decisions for the cases.
//
// Only the writer's goroutine uses a ledger.
type ledger struct {
	incarnation int64  // of the broker session
	inherited   int64  // the one that was loaded
	stored      int64  // the latest incarnation that the database knows of, or will from a batch before the next
	broker      string // whose session it is; empty: not known
	named       string // what it knows of that
	next        uint64 // number of the next delivery
	batch       int64  // number of the next batch
	seen        []seen // by packet identifier
	digest      *xxhash.Digest

	connections int64  // begun by earlier owners: Entry.Attempt counts from there
	sighted     int64  // the connection that brought the last delivery without DUP
	confirmed   uint64 // the broker has seen the acknowledgements of deliveries up to this number
	last        uint16 // the packet identifier ahead of all others; 0: none
	reuses      bool   // the broker does not use packet identifiers in sequence
	fresh       uint16 // the packet identifier of the last delivery without DUP to this process; 0: none
	ascent      int    // so many deliveries without DUP in a row had an identifier ahead of the one before
}

// seen is the last delivery with a packet identifier.
type seen struct {
	hash   uint64
	number uint64 // 0: none in this incarnation
}

// Marks among the packet identifiers of a record, under identifier 0, which MQTT does not use.
const (
	markBack   = 0 // the broker went back to the identifier that follows
	markReuses = 1 // the broker does not use identifiers in sequence
	markCounts = 2 // it does after all
)

func newLedger() *ledger {
	return &ledger{next: 1, batch: 1, seen: make([]seen, 1<<16), digest: xxhash.New()}
}

// redelivery says whether e repeats a delivery whose outcome is in the ledger. What must be kept of e
// is added to r.
func (l *ledger) redelivery(e *Entry, hash uint64, r *record) bool {
	known := l.seen[e.PacketID]
	connection := l.connections + int64(e.Attempt)
	// An identifier ahead of the last one is on its way to a new message: it stood for another one before, and
	// has come round within the window because the broker threw messages away, with their identifiers.
	behind := l.reuses || !ahead(l.last, e.PacketID)
	if e.Dup && behind && known.number != 0 && known.hash == hash && l.next-known.number <= LedgerWindow {
		switch {
		case l.reuses:
			// An identifier that was acknowledged may stand for another message at once. What is in this
			// batch was not acknowledged yet.
			if known.number >= r.first {
				e.Number = known.number
				return true
			}
		case known.number > l.confirmed:
			e.Number = known.number
			return true
		case connection-l.sighted <= 1:
			// The broker had seen the acknowledgement and sends again: it has gone back to an earlier state.
			// On no connection since can it have given the identifier to another message.
			e.Number = l.note(e.PacketID, hash, r)
			return true
		}
		// Otherwise there was a connection of which nobody knows what the broker sent on it, and this may
		// be another message under the identifier of an old one. A row too many is better than none.
	}
	if !e.Dup {
		l.watch(e.PacketID, connection, r)
		l.sighted = connection
	}
	e.Number = l.note(e.PacketID, hash, r)
	return false
}

// watch sees from a delivery without DUP whether the broker goes on with its packet identifiers.
//
// A broker that gives the lowest free one never goes up for longer than Receive Maximum, which is at most
// LedgerWindow. One that does so counts: it had only thrown away as many messages, with their
// identifiers, as look like a step back. What is in the window then is of that ascent.
func (l *ledger) watch(packetID uint16, connection int64, r *record) {
	if l.fresh != 0 && ahead(l.fresh, packetID) {
		l.ascent++
	} else {
		l.ascent = 0
	}
	l.fresh = packetID
	switch {
	case l.reuses && l.ascent > LedgerWindow:
		l.reuses, l.last = false, 0
		r.add(0, markCounts)
		l.next++
	case l.reuses || l.last == 0 || ahead(l.last, packetID):
	case connection == l.sighted: // no restart of the broker in between
		l.reuses = true
		r.add(0, markReuses)
		l.next++
	default:
		r.add(0, markBack)
		l.next++
		l.back(packetID)
	}
}

// note enters a delivery and returns its number.
func (l *ledger) note(packetID uint16, hash uint64, r *record) uint64 {
	r.add(packetID, hash)
	return l.enter(packetID, hash)
}

func (l *ledger) enter(packetID uint16, hash uint64) uint64 {
	number := l.next
	l.seen[packetID] = seen{hash, number}
	l.next++
	if l.last == 0 || l.reuses || ahead(l.last, packetID) {
		l.last = packetID
	}
	return number
}

// back forgets what stands at a packet identifier and ahead of it: the broker begins there again.
func (l *ledger) back(packetID uint16) {
	for id := packetID; ; id = id%maxPacketID + 1 {
		l.seen[id] = seen{}
		if id == l.last {
			break
		}
	}
	l.last = packetID
}

const maxPacketID = 65535

// ahead says whether packet identifier b comes after a, where identifiers are given in sequence and
// 1 follows 65535. Half of them count as ahead. A broker that went back further than that does no
// harm: an identifier comes round again when its old delivery has left the window.
func ahead(a, b uint16) bool {
	distance := (int(b) - int(a) + maxPacketID) % maxPacketID
	return distance > 0 && distance <= maxPacketID/2
}

// arrive begins a new incarnation when the broker has lost the session since the last entry, or when
// this is another broker than the one that the last owner of the session was connected to.
func (l *ledger) arrive(e *Entry) {
	incarnation, broker := l.inherited, l.broker
	if e.Broker != "" {
		broker = e.Broker
	}
	switch {
	case e.Incarnation > 0:
		incarnation += 1 + int64(e.Incarnation) // as BeginIncarnation reckons
	case l.broker != "" && l.broker != broker:
		incarnation++
	default:
		incarnation = l.incarnation
	}
	l.broker = broker
	if incarnation == l.incarnation {
		return
	}
	l.incarnation = incarnation
	l.last, l.reuses, l.fresh, l.ascent = 0, false, 0, 0
	clear(l.seen)
}

// hash is over all that is the same in every delivery of a message. Message Expiry Interval counts
// down and Subscription Identifiers may change with a subscription, so neither is in it. content is that
// of Entry.
func (l *ledger) hash(m *mapping.Message, content uint64) uint64 {
	d := l.digest
	d.Reset()
	var n [8]byte
	part := func(s string) {
		binary.BigEndian.PutUint64(n[:], uint64(len(s)))
		_, _ = d.Write(n[:]) // a hash takes everything
		_, _ = d.WriteString(s)
	}
	part(m.Topic)
	part(m.ContentType)
	for i := range m.UserProperties {
		part(m.UserProperties[i].Name)
		part(m.UserProperties[i].Value)
	}
	binary.BigEndian.PutUint64(n[:], uint64(len(m.CorrelationData)))
	_, _ = d.Write(n[:])
	_, _ = d.Write(m.CorrelationData)
	_, _ = d.Write(m.Payload)
	if content != 0 {
		binary.BigEndian.PutUint64(n[:], content)
		_, _ = d.Write(n[:])
	}
	return d.Sum64()
}

// record is what the ledger keeps of a batch.
type record struct {
	batch, incarnation int64
	renews             bool   // the incarnation or the broker is not stored yet
	broker             string // of the incarnation; empty: as it is
	first              uint64
	confirmed          uint64
	connection         int64 // of the last delivery without DUP
	packetIDs, hashes  []byte
}

// add notes a delivery of the batch.
func (r *record) add(packetID uint16, hash uint64) {
	r.packetIDs = binary.BigEndian.AppendUint16(r.packetIDs, packetID)
	r.hashes = binary.BigEndian.AppendUint64(r.hashes, hash)
}

// statements insert the record and keep the ledger. There are none for a batch without deliveries of
// QoS 1 or 2.
func (r *record) statements(schema string, lease *Lease) []*statement {
	if len(r.packetIDs) == 0 {
		return nil
	}
	params, oids := r.params(lease)
	insert := &statement{
		sql: "insert into " + pgx.Identifier{schema, "deliveries"}.Sanitize() +
			" (share_name, index, epoch, batch, incarnation, first, confirmed, connection, packet_ids, hashes)" +
			" values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
		params: params, oids: oids,
	}
	return append([]*statement{insert}, r.keeping(schema, lease)...)
}

// params are the record as begin_batch takes it.
func (r *record) params(lease *Lease) ([][]byte, []uint32) {
	params, oids := ofSession(lease, lease.Epoch, r.batch, r.incarnation, int64(r.first), int64(r.confirmed), r.connection)
	return append(params, r.packetIDs, r.hashes), append(oids, pgtype.ByteaOID, pgtype.ByteaOID)
}

// ofSession are parameters that begin with the name of a session.
func ofSession(lease *Lease, more ...int64) ([][]byte, []uint32) {
	params := [][]byte{[]byte(lease.ShareName), binary.BigEndian.AppendUint32(nil, uint32(lease.Index))}
	oids := []uint32{pgtype.TextOID, pgtype.Int4OID}
	for _, n := range more {
		params = append(params, binary.BigEndian.AppendUint64(nil, uint64(n)))
		oids = append(oids, pgtype.Int8OID)
	}
	return params, oids
}

// keeping makes the statements that now and then delete what has left the window, and store the
// incarnation when it is new.
func (r *record) keeping(schema string, lease *Lease) []*statement {
	var list []*statement
	// A row is needed as long as its last delivery is in the window; the batch that follows it begins
	// one later, so the rows before the last one that begins outside can go.
	if outside := int64(r.first) - LedgerWindow; r.batch%pruneEvery == 0 && outside > 0 {
		table := pgx.Identifier{schema, "deliveries"}.Sanitize()
		params, oids := ofSession(lease, outside)
		list = append(list, &statement{
			sql: "delete from " + table + " where share_name = $1 and index = $2 and first < $3" +
				" and batch < (select max(batch) from " + table + " where share_name = $1 and index = $2 and first <= $3)",
			params: params, oids: oids,
		})
	}
	if r.renews {
		list = append(list, storeIncarnation(schema, lease, r.incarnation, r.broker))
	}
	return list
}

// storeIncarnation makes the statement that voids the ledger up to the incarnation before.
func storeIncarnation(schema string, lease *Lease, incarnation int64, broker string) *statement {
	s := updateSession(schema, lease, "incarnation = greatest(incarnation, $4), broker = coalesce(nullif($5, ''), broker)")
	s.params = append(s.params, binary.BigEndian.AppendUint64(nil, uint64(incarnation)), []byte(broker))
	s.oids = append(s.oids, pgtype.Int8OID, pgtype.TextOID)
	return s
}

// storeConnection makes the statement that counts a connection to the broker.
func storeConnection(schema string, lease *Lease, connections int64) *statement {
	s := updateSession(schema, lease, "connections = greatest(connections, $4)")
	s.params = append(s.params, binary.BigEndian.AppendUint64(nil, uint64(connections)))
	s.oids = append(s.oids, pgtype.Int8OID)
	return s
}

// updateSession makes a statement that changes the row of a session while it is held; parameters of
// the change begin with $4.
func updateSession(schema string, lease *Lease, change string) *statement {
	return &statement{
		sql: "update " + pgx.Identifier{schema, "sessions"}.Sanitize() + " set " + change +
			" where share_name = $1 and index = $2 and epoch = $3",
		params: [][]byte{
			[]byte(lease.ShareName), binary.BigEndian.AppendUint32(nil, uint32(lease.Index)),
			binary.BigEndian.AppendUint64(nil, uint64(lease.Epoch)),
		},
		oids: []uint32{pgtype.TextOID, pgtype.Int4OID, pgtype.Int8OID},
	}
}

// load reads the ledger of a session. The lease must be held: nobody else adds to it then.
func (l *ledger) load(ctx context.Context, db *pgxpool.Pool, schema string, lease *Lease) error {
	*l = *newLedger()
	err := db.QueryRow(ctx, "select incarnation, connections, broker from "+pgx.Identifier{schema, "sessions"}.Sanitize()+
		" where share_name = $1 and index = $2", lease.ShareName, lease.Index).Scan(&l.incarnation, &l.connections, &l.broker)
	if err != nil {
		return fmt.Errorf("read the incarnation of session %d: %w", lease.Index, err)
	}
	l.inherited, l.stored, l.named = l.incarnation, l.incarnation, l.broker
	rows, err := db.Query(ctx, "select batch, incarnation, first, confirmed, connection, packet_ids, hashes from "+pgx.Identifier{schema, "deliveries"}.Sanitize()+
		" where share_name = $1 and index = $2 order by batch", lease.ShareName, lease.Index)
	if err != nil {
		return fmt.Errorf("read the delivery ledger: %w", err)
	}
	var batch, incarnation, first, confirmed int64
	var packetIDs, hashes []byte
	_, err = pgx.ForEachRow(rows, []any{&batch, &incarnation, &first, &confirmed, &l.sighted, &packetIDs, &hashes}, func() error {
		if len(packetIDs)*4 != len(hashes) {
			return fmt.Errorf("batch %d has %d bytes of packet identifiers and %d of hashes", batch, len(packetIDs), len(hashes))
		}
		l.batch, l.next, l.confirmed = batch+1, uint64(first), uint64(confirmed)
		if incarnation != l.incarnation {
			l.next += uint64(len(packetIDs) / 2)
			return nil
		}
		for i := 0; i < len(packetIDs); i += 2 {
			packetID, hash := binary.BigEndian.Uint16(packetIDs[i:]), binary.BigEndian.Uint64(hashes[4*i:])
			switch {
			case packetID != 0:
				l.enter(packetID, hash)
				continue
			case hash == markReuses:
				l.reuses = true
			case hash == markCounts:
				l.reuses, l.last = false, 0
			case l.last != 0 && i+2 < len(packetIDs):
				l.back(binary.BigEndian.Uint16(packetIDs[i+2:]))
			}
			l.next++
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("read the delivery ledger: %w", err)
	}
	l.connections = max(l.connections, l.sighted) // a connection begun while the database was away is not counted
	return nil
}

// committed says whether the batch stands in the ledger: an earlier attempt was committed and its
// answer lost on the way. Another batch under its number is a defect, and holds the line rather than
// lose a message.
func (r *record) committed(ctx context.Context, conn *pgx.Conn, schema string, lease *Lease) (bool, error) {
	var epoch, first int64
	var packetIDs, hashes []byte
	err := conn.QueryRow(ctx, "select epoch, first, packet_ids, hashes from "+pgx.Identifier{schema, "deliveries"}.Sanitize()+
		" where share_name = $1 and index = $2 and batch = $3", lease.ShareName, lease.Index, r.batch).Scan(&epoch, &first, &packetIDs, &hashes)
	if errors.Is(err, pgx.ErrNoRows) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look up batch %d in the delivery ledger: %w", r.batch, err)
	}
	if epoch != lease.Epoch || first != int64(r.first) || !bytes.Equal(packetIDs, r.packetIDs) || !bytes.Equal(hashes, r.hashes) {
		return false, fmt.Errorf("batch %d of session %d stands in the delivery ledger with other deliveries", r.batch, lease.Index)
	}
	return true, nil
}
