package store

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/mqttpg/bridge/mapping"
)

func TestLedgerTellsRedeliveries(t *testing.T) {
	t.Parallel()
	type delivery struct {
		packetID    uint16
		dup         bool
		content     string
		incarnation uint64
	}
	first := delivery{packetID: 7, content: "21.5"}
	for _, tt := range []struct {
		name    string
		between int // other deliveries since the first
		again   delivery
		want    bool
	}{
		{"the same, marked", 0, delivery{7, true, "21.5", 0}, true},
		{"equal content without DUP is a genuine reading", 0, delivery{7, false, "21.5", 0}, false},
		{"another packet identifier", 0, delivery{6, true, "21.5", 0}, false},
		{"other content", 0, delivery{7, true, "21.6", 0}, false},
		{"the last of the window", LedgerWindow - 1, delivery{7, true, "21.5", 0}, true},
		{"the identifier has come round again", LedgerWindow, delivery{7, true, "21.5", 0}, false},
		{"the broker has lost the session", 0, delivery{7, true, "21.5", 1}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			l := newLedger()
			deliver := func(d delivery) bool {
				m := &mapping.Message{Topic: "t", Payload: []byte(d.content), QoS: 1}
				e := &Entry{Message: m, PacketID: d.packetID, Dup: d.dup, Incarnation: d.incarnation}
				l.arrive(e)
				return l.redelivery(e, l.hash(m, 0), &record{})
			}
			if deliver(first) {
				t.Fatal("the first delivery passed for a redelivery")
			}
			for i := range tt.between {
				deliver(delivery{packetID: uint16(8 + i), content: "x"})
			}
			if got := deliver(tt.again); got != tt.want {
				t.Errorf("redelivery %v, want %v", got, tt.want)
			}
		})
	}
}

func TestLedgerHashCoversWhatStaysTheSame(t *testing.T) {
	t.Parallel()
	l := newLedger()
	base := mapping.Message{Topic: "a/b", Payload: []byte("p"), ContentType: "c", CorrelationData: []byte("d"), UserProperties: []mapping.UserProperty{{Name: "n", Value: "v"}}}
	same := base
	same.ReceivedAt, same.Seed, same.Retain = time.Now(), 5, true
	if l.hash(&base, 0) != l.hash(&same, 0) {
		t.Error("the hash depends on the delivery")
	}
	for name, change := range map[string]func(*mapping.Message){
		"topic":            func(m *mapping.Message) { m.Topic = "a/c" },
		"payload":          func(m *mapping.Message) { m.Payload = []byte("q") },
		"content type":     func(m *mapping.Message) { m.ContentType = "" },
		"correlation data": func(m *mapping.Message) { m.CorrelationData = nil },
		"user property":    func(m *mapping.Message) { m.UserProperties = []mapping.UserProperty{{Name: "nv", Value: ""}} },
		"boundary":         func(m *mapping.Message) { m.CorrelationData, m.Payload = nil, []byte("dp") },
	} {
		other := base
		change(&other)
		if l.hash(&base, 0) == l.hash(&other, 0) {
			t.Errorf("%s: the hash does not see it", name)
		}
	}
}

// keyless is a route whose rows nothing but the ledger protects from redeliveries.
var keyless = mapping.RouteConfig{
	Name: "readings", Topic: "readings/{device_id}", Format: "text", Key: "delivery",
	Columns: "value:float8=payload", Payload: "drop", Partition: "none",
}

// own makes session 0 of a share this writer's, as a new lease does.
func own(t *testing.T, pool *pgxpool.Pool, epoch int64) *Lease {
	t.Helper()
	lease := &Lease{Index: 0, ClientID: "s-0", Epoch: epoch, ShareName: "s"}
	execute(t, pool, fmt.Sprintf(`insert into bridge.sessions (share_name, index, client_id, owner, epoch) values ('s', 0, 's-0', 'me', %[1]d)
		on conflict (share_name, index) do update set epoch = %[1]d`, epoch))
	return lease
}

func (l *line) deliver(packetID uint16, dup bool, incarnation uint64, topic, payload string) {
	m := &mapping.Message{
		Topic: topic, Payload: []byte(payload), QoS: 1, Seed: rand.Uint64(),
		ReceivedAt: time.Now().UTC().Truncate(time.Microsecond),
	}
	l.writer.Enqueue(Entry{
		Message: m, Outcomes: l.routes.Map(m, nil), Size: 300,
		PacketID: packetID, Dup: dup, Incarnation: incarnation, Connection: 1,
	})
}

// TestLedgerOutlivesTheOwner has a second owner redelivered what the first one committed.
func TestLedgerOutlivesTheOwner(t *testing.T) {
	t.Parallel()
	_, pool := newDatabase(t)
	l := newLine(t, pool, impatient(t), own(t, pool, 1), keyless)
	for id := range uint16(10) {
		l.deliver(id+1, false, 0, "readings/a", "21.5")
	}
	l.deliver(11, false, 0, "readings/a", "warm") // a dead letter is an outcome as well
	l.deliver(12, false, 0, "readings/a", "")     // and so is a skip
	l.flush()
	l.want("readings", 12, 10, 0, 0)

	l.renew(impatient(t), own(t, pool, 2))
	for id := range uint16(10) {
		l.deliver(id+1, true, 0, "readings/a", "21.5")
	}
	l.deliver(11, true, 0, "readings/a", "warm")
	l.deliver(12, true, 0, "readings/a", "")
	l.deliver(13, true, 0, "readings/a", "21.5") // the first owner never had this one
	l.deliver(14, false, 0, "readings/a", "21.5")
	l.deliver(14, true, 0, "readings/a", "21.5") // the connection broke in between
	l.flush()
	l.want("readings", 27, 12, 13, 0)

	l.renew(impatient(t), own(t, pool, 3))
	l.deliver(14, true, 0, "readings/a", "21.5")
	l.deliver(14, true, 1, "readings/a", "21.5") // of a session that began anew
	l.flush()
	l.want("readings", 29, 13, 14, 0)

	l.renew(impatient(t), own(t, pool, 4))
	l.deliver(13, true, 0, "readings/a", "21.5") // only the lost session knew it
	l.deliver(14, true, 0, "readings/a", "21.5")
	l.flush()
	l.want("readings", 31, 14, 15, 0)

	if n := value[int](t, pool, `select count(*)::int from readings`); n != 14 {
		t.Errorf("%d rows, want 14", n)
	}
	if n := value[int](t, pool, `select count(*)::int from bridge.dead_letters`); n != 1 {
		t.Errorf("%d dead letters, want 1", n)
	}
}

// TestLedgerUnderCrashes drives one session past the end of the packet identifiers with equal
// messages and crashes owners before the commit, between commit and acknowledgement, and amid the
// acknowledgements.
func TestLedgerUnderCrashes(t *testing.T) {
	t.Parallel()
	_, pool := newDatabase(t)
	cfg := impatient(t)
	cfg.Log = nil
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))

	const total, window = 80_000, 2000
	type held struct {
		id  uint16
		dup bool // sent before
	}
	var unacked []held // as the broker has them, in order
	published, id := 0, uint16(0)
	epoch := int64(1)
	l := newLine(t, pool, cfg, own(t, pool, epoch), keyless)
	crashes := 0
	for published < total || len(unacked) > 0 {
		for len(unacked) < window && published < total {
			id = id%65535 + 1
			unacked = append(unacked, held{id: id})
			published++
		}
		for i := range unacked {
			l.deliver(unacked[i].id, unacked[i].dup, 0, "readings/a", "21.5")
			unacked[i].dup = true
		}
		crash := random.IntN(4)
		if crash == 0 { // before anything is committed
			ctx, cancel := context.WithCancelCause(context.Background())
			cancel(errors.New("crash"))
			if err := l.writer.Run(ctx); err == nil {
				t.Fatal("the writer survived")
			}
		} else {
			l.flush()
			acknowledged := len(unacked)
			if crash == 1 {
				acknowledged = random.IntN(len(unacked) + 1)
			}
			unacked = unacked[acknowledged:]
		}
		if crash < 2 {
			crashes++
		}
		epoch++
		l.renew(cfg, own(t, pool, epoch))
	}
	if n := value[int](t, pool, `select count(*)::int from readings`); n != total {
		t.Errorf("%d rows of %d messages after %d crashes", n, total, crashes)
	}
	if crashes == 0 {
		t.Error("nothing crashed")
	}
	rows := value[int](t, pool, `select sum(length(packet_ids) / 2)::int from bridge.deliveries`)
	if rows < LedgerWindow || rows > LedgerWindow+(pruneEvery+2)*1000 {
		t.Errorf("the ledger holds %d deliveries, want about %d", rows, LedgerWindow)
	}
}

// TestLedgerSettlesAmbiguousCommits loses the answer to a commit.
func TestLedgerSettlesAmbiguousCommits(t *testing.T) {
	t.Parallel()
	_, pool := newDatabase(t)
	// Without a primary key nothing but the ledger knows that the rows are there.
	execute(t, pool, `create table readings (device_id text not null, "time" timestamptz not null, message_id uuid not null,
		received_at timestamptz not null, topic text not null, value float8 check (value < 100))`)
	l := newLine(t, pool, impatient(t), own(t, pool, 1), keyless)
	l.writer.ledger = newLedger()
	for id := range uint16(5) {
		l.deliver(id+1, false, 0, "readings/a", "21.5")
	}
	l.deliver(6, false, 0, "readings/a", "warm")
	l.deliver(7, false, 0, "readings/a", "1000")
	b := newBatch(l.writer.queue, l.writer.ledger, nil)
	first, err := l.writer.attempt(context.Background(), b)
	if err != nil {
		t.Fatal(err)
	}
	b.presumed = presume(b, []*insertion{l.writer.insertion(l.routes.ByName("readings"))}, first)
	// The answer got lost; what the attempt would have said is presumed.
	second, err := l.writer.attempt(context.Background(), b)
	if err != nil {
		t.Fatal(err)
	}
	if n := value[int](t, pool, `select count(*)::int from readings`); n != 5 {
		t.Errorf("%d rows, want 5", n)
	}
	if written := second.tallies.of("readings").written; written != 5 || len(second.letters) != 2 {
		t.Errorf("the outcome of the lost answer is %d written and %d dead letters, want 5 and 2", written, len(second.letters))
	}
}

func TestLedgerRefusesAnotherBatchUnderItsNumber(t *testing.T) {
	t.Parallel()
	_, pool := newDatabase(t)
	l := newLine(t, pool, impatient(t), own(t, pool, 1), keyless)
	l.deliver(1, false, 0, "readings/a", "21.5")
	l.flush()
	r := record{batch: 1, first: 1, packetIDs: []byte{0, 2}, hashes: make([]byte, 8)}
	conn, err := pool.Acquire(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	if _, err := r.committed(context.Background(), conn.Conn(), "bridge", l.writer.fence); err == nil {
		t.Error("another batch passes for this one")
	}
	r.batch = 2
	if ok, err := r.committed(context.Background(), conn.Conn(), "bridge", l.writer.fence); ok || err != nil {
		t.Errorf("a batch that was never written: %v, %v", ok, err)
	}
}

// TestLedgerNumberIsTaken has an attempt come before the server has finished the one whose answer got
// lost: the number of the batch, which is unique, keeps it from writing.
func TestLedgerNumberIsTaken(t *testing.T) {
	t.Parallel()
	_, pool := newDatabase(t)
	l := newLine(t, pool, impatient(t), own(t, pool, 1), keyless)
	l.writer.ledger = newLedger()
	l.deliver(1, false, 0, "readings/a", "21.5")
	b := newBatch(l.writer.queue, l.writer.ledger, nil)
	if _, err := l.writer.attempt(context.Background(), b); err != nil {
		t.Fatal(err)
	}
	if _, err := l.writer.attempt(context.Background(), b); err == nil {
		t.Error("a batch was committed twice")
	}
	if b.presumed == nil {
		t.Error("the next attempt will not ask the ledger")
	}
	if n := value[int](t, pool, `select count(*)::int from readings`); n != 1 {
		t.Errorf("%d rows, want 1", n)
	}
}

// TestLedgerOfALostSession: the owner dies before it has committed anything of the new broker session.
func TestLedgerOfALostSession(t *testing.T) {
	t.Parallel()
	_, pool := newDatabase(t)
	l := newLine(t, pool, impatient(t), own(t, pool, 1), keyless)
	l.deliver(1, false, 0, "readings/a", "21.5")
	l.flush()

	l.renew(impatient(t), own(t, pool, 2))
	ctx, die := context.WithCancelCause(context.Background())
	wait := l.run(ctx)
	if err := l.writer.BeginIncarnation(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	die(errors.New("died"))
	if err := wait(); err == nil {
		t.Fatal("the writer survived")
	}
	if err := l.writer.BeginIncarnation(t.Context(), 2); err != nil && !errors.Is(err, errEnded) {
		t.Errorf("after the end: %v", err)
	}

	l.renew(impatient(t), own(t, pool, 3))
	l.deliver(1, true, 0, "readings/a", "21.5") // of the new session, first received by the owner that died
	l.flush()
	if n := value[int](t, pool, `select count(*)::int from readings`); n != 2 {
		t.Errorf("%d rows, want 2: a genuine reading passed for a redelivery", n)
	}
}

func TestBeginIncarnationWaitsForTheLedger(t *testing.T) {
	t.Parallel()
	_, pool := newDatabase(t)
	l := newLine(t, pool, impatient(t), own(t, pool, 1), keyless)
	ctx, cancel := context.WithCancelCause(t.Context())
	impatience := errors.New("no more")
	cancel(impatience)
	if err := l.writer.BeginIncarnation(ctx, 1); !errors.Is(err, impatience) {
		t.Errorf("before the ledger is read: %v", err)
	}
}

// TestLedgerWhenTheBrokerGoesBack judges what a broker sends after it was restored from an older state
// of its sessions, with equal readings all the time.
func TestLedgerWhenTheBrokerGoesBack(t *testing.T) {
	t.Parallel()
	type delivery struct {
		packetID uint16
		dup      bool
		known    bool // want: a redelivery
	}
	type connection struct {
		owner      int // another than before: that one died, and the ledger is loaded
		deliveries []delivery
		lost       bool // the owner dies before it has committed them
	}
	one := func(id uint16) delivery { return delivery{packetID: id} }
	again := func(id uint16) delivery { return delivery{packetID: id, dup: true, known: true} }
	anew := func(id uint16) delivery { return delivery{packetID: id, dup: true} }
	before := connection{deliveries: []delivery{one(1), one(2), one(3), one(4), one(5)}}
	for _, tt := range []struct {
		name        string
		confirmed   uint64 // of the deliveries of the first connection
		connections []connection
	}{
		{"it goes on", 5, []connection{before, {deliveries: []delivery{one(6), one(7)}}}},
		{"acknowledgements were lost", 3, []connection{before, {deliveries: []delivery{again(4), again(5), anew(6), one(7)}}}},
		{"acknowledgements were lost twice", 3, []connection{before, {}, {deliveries: []delivery{again(4), again(5)}}, {deliveries: []delivery{again(5), one(6)}}}},
		{"owners die one after another", 3, []connection{
			before,
			{owner: 1, lost: true, deliveries: []delivery{again(4), again(5), one(6)}},
			{owner: 2, lost: true},
			{owner: 3, deliveries: []delivery{again(4), again(5), anew(6), one(7)}},
		}},
		{"back: what was under way then comes again", 5, []connection{
			before,
			{deliveries: []delivery{again(2), again(3), one(4), one(5)}},
			{deliveries: []delivery{again(3), again(4), again(5), anew(6)}},
		}},
		{"back: the next owner is the first to see it", 5, []connection{before, {owner: 1, deliveries: []delivery{again(2), again(3), one(4), one(5)}}}},
		{"back: others come under the old identifiers, and the owner dies before it commits them", 5, []connection{
			before,
			{owner: 1, lost: true, deliveries: []delivery{one(4), one(5), one(6)}},
			{owner: 2, deliveries: []delivery{anew(4), anew(5), anew(6), one(7)}},
		}},
		{"back: the owner was connected, and dies before it commits others", 5, []connection{
			before,
			{lost: true, deliveries: []delivery{one(4)}},
			{owner: 1, deliveries: []delivery{anew(4), one(5)}},
			{deliveries: []delivery{again(5), anew(6)}},
		}},
		{"back: the owner dies with others on the way, after some were committed", 5, []connection{
			before, {deliveries: []delivery{one(3)}}, {owner: 1, deliveries: []delivery{again(3), anew(4), anew(5), one(6)}},
		}},
		{"back: a connection breaks before anything is read", 5, []connection{before, {}, {deliveries: []delivery{anew(4), one(5)}}}},
		{"back: only redeliveries are read, then the owner dies", 5, []connection{
			before, {deliveries: []delivery{again(2)}}, {owner: 1, deliveries: []delivery{again(2), anew(3), one(4)}},
		}},
		{"identifiers out of sequence", 3, []connection{
			{deliveries: []delivery{one(1), one(2), one(1), one(1)}},
			{deliveries: []delivery{anew(1), one(1)}},
			{owner: 1, deliveries: []delivery{anew(1), again(1), one(2)}},
			{owner: 2, deliveries: []delivery{anew(2), anew(1)}},
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, pool := newDatabase(t)
			var l *line
			var known *ledger
			owner, attempt, want := -1, uint64(0), 0
			for i, c := range tt.connections {
				if c.owner != owner && (c.owner > 0 || i == 0) {
					owner, attempt = c.owner, 0
					l = newLine(t, pool, impatient(t), own(t, pool, int64(owner)+1), keyless)
					known = newLedger()
					if err := known.load(t.Context(), pool, "bridge", l.writer.fence); err != nil {
						t.Fatal(err)
					}
					l.writer.ledger = known
					l.writer.inherited.connections = known.connections
					close(l.writer.opened)
				}
				attempt++
				if err := l.writer.BeginConnection(t.Context(), attempt); err != nil {
					t.Fatal(err)
				}
				if i > 0 && !c.lost {
					known.confirmed = max(known.confirmed, tt.confirmed)
				}
				var entries []Entry
				for _, d := range c.deliveries {
					m := &mapping.Message{Topic: "readings/a", Payload: []byte("21.5"), QoS: 1, Seed: rand.Uint64(), ReceivedAt: time.Now().UTC().Truncate(time.Microsecond)}
					entries = append(entries, Entry{Message: m, Outcomes: l.routes.Map(m, nil), Size: 300, PacketID: d.packetID, Dup: d.dup, Attempt: attempt, Connection: 1})
					if !d.known && !c.lost {
						want++
					}
				}
				if c.lost || len(entries) == 0 {
					continue
				}
				if _, err := l.writer.attempt(t.Context(), newBatch(entries, known, nil)); err != nil {
					t.Fatal(err)
				}
				if n := value[int](t, pool, `select count(*)::int from readings`); n != want {
					t.Fatalf("connection %d: %d rows, want %d", i+1, n, want)
				}
			}
		})
	}
}

// TestLedgerPastTheLastIdentifier: after 65535 comes 1, which is no step back, and redeliveries from both
// sides of it are known.
func TestLedgerPastTheLastIdentifier(t *testing.T) {
	t.Parallel()
	l, r := newLedger(), &record{}
	m := &mapping.Message{Topic: "t", Payload: []byte("21.5"), QoS: 1}
	deliver := func(packetID uint16, dup bool, attempt uint64) bool {
		return l.redelivery(&Entry{Message: m, PacketID: packetID, Dup: dup, Attempt: attempt}, l.hash(m, 0), r)
	}
	for n := range 3 * maxPacketID {
		attempt := uint64(n/20_000) + 1 // a new connection now and then, also at the end of the identifiers
		if deliver(uint16(n%maxPacketID+1), false, attempt) {
			t.Fatalf("delivery %d passed for a redelivery", n)
		}
		if n%maxPacketID != 5 || n < maxPacketID {
			continue
		}
		for _, packetID := range []uint16{65534, 65535, 1, 6} {
			if !deliver(packetID, true, attempt) {
				t.Errorf("delivery %d: the redelivery of %d is not known", n, packetID)
			}
		}
	}
	if l.reuses || len(r.packetIDs) != 2*3*maxPacketID {
		t.Errorf("out of sequence %t, %d identifiers noted", l.reuses, len(r.packetIDs)/2)
	}
}

// TestLedgerAfterAGap: a broker whose queue is full throws messages away, and with them their packet
// identifiers. What looks like a step back then does not count against it for ever.
func TestLedgerAfterAGap(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		next    func(n int) uint16 // packet identifier of the n-th delivery after the gap
		believe bool               // at last: redeliveries are recognised
	}{
		{"it counts up", func(n int) uint16 { return uint16((41_000+n)%maxPacketID + 1) }, true},
		{"the lowest free one, of as many as there can be", func(n int) uint16 { return uint16(n%LedgerWindow + 1) }, false},
		{"the lowest free one of a few", func(n int) uint16 { return uint16(n%20 + 1) }, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, pool := newDatabase(t)
			l := newLine(t, pool, impatient(t), own(t, pool, 1), keyless)
			load := func() *ledger {
				known := newLedger()
				if err := known.load(t.Context(), pool, "bridge", l.writer.fence); err != nil {
					t.Fatal(err)
				}
				return known
			}
			known := load()
			entry := func(packetID uint16, dup bool, attempt uint64) Entry {
				m := &mapping.Message{Topic: "readings/a", Payload: []byte("21.5"), QoS: 1}
				return Entry{Message: m, Outcomes: []mapping.Outcome{{Route: l.routes.All()[0], Skip: mapping.SkipNoRows}}, PacketID: packetID, Dup: dup, Attempt: attempt}
			}
			deliver := func(from, to int, next func(n int) uint16) {
				for ; from < to; from += 1000 {
					var entries []Entry
					for n := from; n < min(from+1000, to); n++ {
						entries = append(entries, entry(next(n), false, 1))
					}
					if _, err := l.writer.attempt(t.Context(), newBatch(entries, known, nil)); err != nil {
						t.Fatal(err)
					}
				}
			}
			recognised := func(known *ledger, packetID uint16) bool {
				e := entry(packetID, true, 2)
				r := &record{first: known.next}
				return known.redelivery(&e, known.hash(e.Message, 0), r)
			}
			deliver(0, 1000, func(n int) uint16 { return uint16(n + 1) })
			deliver(0, 1000, tt.next)
			if recognised(load(), tt.next(999)) {
				t.Error("right after the gap it looks as if the broker gave identifiers out of sequence")
			}
			const end = 3 * LedgerWindow
			deliver(1000, end, tt.next)
			for name, known := range map[string]*ledger{"loaded": load(), "as it is": known} {
				if got := recognised(known, tt.next(end-1)); got != tt.believe {
					t.Errorf("%s: the redelivery of the last one is recognised: %t, want %t", name, got, tt.believe)
				}
				if got := recognised(known, tt.next(end-2000)); got != tt.believe {
					t.Errorf("%s: the redelivery of an earlier one is recognised: %t, want %t", name, got, tt.believe)
				}
			}
		})
	}
}

// TestLedgerInStrides: while a broker throws two of three messages away, its packet identifiers come round
// within the window of the ledger. A message that the last owner did not commit is not the one that had its
// identifier before.
func TestLedgerInStrides(t *testing.T) {
	t.Parallel()
	l := newLedger()
	m := &mapping.Message{Topic: "t", Payload: []byte("21.5"), QoS: 1}
	deliver := func(n int, dup bool, attempt uint64) bool {
		return l.redelivery(&Entry{Message: m, PacketID: uint16(3*n%maxPacketID + 1), Dup: dup, Attempt: attempt}, l.hash(m, 0), &record{})
	}
	const committed = 25_000
	for n := range committed {
		if deliver(n, false, 1) {
			t.Fatalf("delivery %d passed for a redelivery", n)
		}
	}
	for _, tt := range []struct {
		name  string
		n     int
		known bool
	}{{"the last", committed - 1, true}, {"an earlier one", committed - 1000, true}, {"the next", committed, false}, {"a later one", committed + 2000, false}} {
		for _, confirmed := range []uint64{0, committed - 2000, committed} {
			held := *l
			held.seen = slices.Clone(l.seen)
			held.confirmed = confirmed
			e := &Entry{Message: m, PacketID: uint16(3*tt.n%maxPacketID + 1), Dup: true, Attempt: 2}
			if got := held.redelivery(e, held.hash(m, 0), &record{}); got != tt.known {
				t.Errorf("%s, confirmed up to %d: a redelivery %t, want %t", tt.name, confirmed, got, tt.known)
			}
		}
	}
}

// TestLedgerReadLate: once the ledger is read, nothing is being tried again, also where no message follows.
func TestLedgerReadLate(t *testing.T) {
	t.Parallel()
	_, pool := newDatabase(t)
	l := newLine(t, pool, impatient(t), own(t, pool, 1), keyless)
	execute(t, pool, `alter table bridge.deliveries rename to away`)
	ctx, cancel := context.WithCancel(context.Background())
	wait := l.run(ctx)
	eventually(t, "the read is tried again", func() bool { return l.writer.Status().Retrying })
	execute(t, pool, `alter table bridge.away rename to deliveries`)
	eventually(t, "all is well", func() bool { return !l.writer.Status().Retrying })
	cancel()
	if err := wait(); !errors.Is(err, context.Canceled) {
		t.Errorf("run: %v", err)
	}
}
