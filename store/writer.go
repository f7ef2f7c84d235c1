package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/mqttpg/bridge/mapping"
	"go.uber.org/zap"
)

// idleTurn is how often the loop of an idle writer turns, for those who watch that it does.
const idleTurn = time.Second

// Writer commits the messages of one session, in the order of receipt. Run is its one loop; all other methods
// may be called from anywhere at any time.
type Writer struct {
	pool     *pgxpool.Pool
	cfg      Config
	tables   *Tables
	counters *Counters
	metrics  *Metrics
	fence    *Lease
	settle   func([]Entry)
	log      *zap.Logger

	wake  chan struct{} // capacity 1: there may be something new for Run
	retry chan struct{} // capacity 1: the present pause is over
	done  chan struct{} // closed when Run has returned

	opened    chan struct{} // closed when the ledger is read
	inherited struct {      // what was read with it; set before opened is closed
		incarnation, connections int64
	}

	mu        sync.Mutex
	queue     []Entry // head: the oldest entry that is not in a batch
	head      int
	bytes     int           // of the queue
	taken     [][]Entry     // batches that are not settled, the oldest first; at most two
	takenAt   time.Time     // when the last batch was taken
	linger    time.Duration // how long after that the next one is
	window    int           // after so many messages the broker seems to wait
	windowFor int           // for so many batches that is believed
	confirmed uint64        // see Confirm
	draining  bool
	drained   bool // Run ended because Drain had asked and nothing was left
	ended     bool
	status    WriterStatus

	ledger     *ledger      // of Run alone; nil without a fence: who shares a session cannot keep its ledger
	insertions []*insertion // of the commit at work; by the number of the route; nil: it has had no rows yet
}

// WriterStatus is what a writer is doing.
type WriterStatus struct {
	InFlight      int // messages enqueued and not settled
	InFlightBytes int
	// OldestUnacknowledged is the age of the oldest message that is not settled; 0 when there is none.
	OldestUnacknowledged time.Duration
	LastCommit           time.Time // zero: none yet
	LastError            string    // of the last attempt that failed; empty: none yet
	LastErrorAt          time.Time
	LastErrorRoute       string // whose table or rows it was about; empty: no route's
	Retrying             bool   // the attempt after LastError has not succeeded yet
	// LastTurn is when the loop last showed life: at most a second ago when idle, and at most the 60 s
	// of a round trip and the 15 s of a pause when the database does not answer.
	LastTurn time.Time
}

// NewWriter returns a writer that commits to pool and reports what it committed to settle. settle is
// called by the goroutine of Run, in the order of receipt, once for every batch and with exactly its
// entries; it must not block, and the slice is the writer's again when it returns. fence may be nil:
// then no lease is checked. metrics may be nil.
func NewWriter(pool *pgxpool.Pool, cfg Config, tables *Tables, counters *Counters, metrics *Metrics, fence *Lease, settle func([]Entry)) *Writer {
	cfg = cfg.withDefaults()
	w := &Writer{
		pool: pool, cfg: cfg, tables: tables, counters: counters, metrics: metrics, fence: fence, settle: settle,
		log:    cfg.Log.Named("writer"),
		wake:   make(chan struct{}, 1),
		retry:  make(chan struct{}, 1),
		done:   make(chan struct{}),
		opened: make(chan struct{}),
	}
	if fence != nil {
		w.log = w.log.With(zap.Int("session", fence.Index))
	}
	w.status.LastTurn = time.Now()
	return w
}

// session is the label of the writer's session in the metrics: its client id.
func (w *Writer) session() string {
	if w.fence == nil {
		return ""
	}
	return w.fence.ClientID
}

// Enqueue hands a message over. It never blocks; memory is bounded by the budget that the caller
// acquired. A writer whose Run has ended lets the message go, unacknowledged.
func (w *Writer) Enqueue(e Entry) {
	e.enqueuedAt = time.Now()
	w.mu.Lock()
	w.counters.received(&e)
	if w.ended {
		w.mu.Unlock()
		w.counters.abandoned([]Entry{e})
		return
	}
	if len(w.queue) == cap(w.queue) {
		w.queue = slices.Grow(w.queue, len(w.queue)+1) // in larger steps than append, which would leave more behind
	}
	w.queue = append(w.queue, e)
	w.bytes += e.Size
	n := len(w.queue) - w.head
	signal := n == w.cfg.MaxMessages || w.bytes >= w.cfg.MaxBytes || len(w.taken) == 0 && (n == 1 || n == w.worthwhile())
	w.mu.Unlock()
	if signal {
		w.signal()
	}
}

func (w *Writer) signal() {
	select {
	case w.wake <- struct{}{}:
	default: // Run has not seen the last one yet
	}
}

// Run commits until Drain has finished, and then returns nil; or until ctx is done, and then leaves
// everything uncommitted unacknowledged and returns the cause of ctx; or until the lease is lost, and
// then returns [ErrFenced]. It is called once.
func (w *Writer) Run(ctx context.Context) error {
	w.metrics.add(w)
	defer w.metrics.remove(w)
	defer w.end()
	if err := w.openLedger(ctx); err != nil {
		return err
	}
	// While the database has one batch the next is sorted out if it is full, and while it has that one, the first
	// is settled: the database is hardly ever waited for.
	var at *pending
	for b, other := new(batch), new(batch); ; b, other = other, b {
		entries, err := w.collect(ctx, b.entries, at)
		if err == nil && len(entries) > 0 {
			w.sortOut(entries, b)
		}
		last := at
		if at = nil; last != nil {
			<-last.done
			err = cmp.Or(last.err, err)
		}
		if err == nil && len(entries) > 0 {
			at = w.start(ctx, b, last != nil)
		}
		if last != nil && last.err == nil {
			w.settled(last)
		}
		if err != nil || last == nil && at == nil {
			return err
		}
	}
}

// sortOut makes a batch of entries, in the memory of one that is settled.
func (w *Writer) sortOut(entries []Entry, settled *batch) {
	if w.ledger != nil {
		w.mu.Lock()
		w.ledger.confirmed = max(w.ledger.confirmed, w.confirmed)
		w.mu.Unlock()
	}
	newBatch(entries, w.ledger, settled)
}

// pending is a batch that the database has.
type pending struct {
	batch *batch
	began time.Time
	done  chan struct{} // closed when it has ended, and the rest is set

	ended   time.Time
	outcome *outcome
	err     error
}

// start has the database commit a batch. There is one commit at a time. A small one is waited for unless there is
// something to do: no full batch comes together meanwhile, and a goroutine for each costs a tenth of the bridge's CPU
// time at a thousand messages a second.
func (w *Writer) start(ctx context.Context, b *batch, busy bool) *pending {
	w.mu.Lock()
	b.record.confirmed = max(b.record.confirmed, w.confirmed) // it may have been sorted out long before
	w.mu.Unlock()
	p := &pending{batch: b, began: time.Now(), done: make(chan struct{})}
	commit := func() {
		defer close(p.done)
		p.outcome, p.err = w.commit(ctx, b)
		p.ended = time.Now()
		if w.letGo(b); p.err == nil {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.status.LastCommit, w.status.Retrying = p.ended, false
		}
	}
	if busy || len(b.entries) >= min(enough, w.cfg.MaxMessages) {
		go commit()
	} else {
		commit()
	}
	return p
}

// letGo forgets the rows of a batch, but for memory that the next one uses.
func (w *Writer) letGo(b *batch) {
	for i := range b.groups {
		if n := b.groups[i].route.Number; n < len(w.insertions) && w.insertions[n] != nil { // else it was parked all the time
			w.insertions[n].letGo()
		}
	}
}

// BeginIncarnation voids what the ledger knows of the broker's session, because the broker has begun
// a new one: the packet identifiers start over. incarnation is that of the entries to come. It returns
// when that is stored, or with an error when ctx is done first.
//
// The caller does not subscribe before. Otherwise a process could die with messages of the new session
// received and not committed, and their redelivery, with DUP and a packet identifier of the old
// session, could pass for committed. Where the database does not answer, the first batch stores it.
func (w *Writer) BeginIncarnation(ctx context.Context, incarnation uint64) error {
	return w.storeAhead(ctx, func() *statement {
		// One is left free for a first connection that leads to another broker than the last owner's.
		return storeIncarnation(w.cfg.Schema, w.fence, w.inherited.incarnation+1+int64(incarnation), "")
	})
}

// BeginConnection notes that a connection to the broker is about to be made, the attempt given being
// its number in the entries to come. It returns when that is stored, or with an error when ctx is done
// first.
//
// The caller calls it before CONNECT. A process that dies before it has committed anything of a
// connection leaves behind that there was one, on which the broker may have sent what nobody knows of.
// Without the note only this is lost: when the database is away, the broker goes back to an earlier
// state and the process dies, all together, equal readings may pass for redeliveries.
func (w *Writer) BeginConnection(ctx context.Context, attempt uint64) error {
	return w.storeAhead(ctx, func() *statement {
		return storeConnection(w.cfg.Schema, w.fence, w.inherited.connections+int64(attempt))
	})
}

// Confirm tells that the broker has certainly seen the acknowledgements of all deliveries up to the
// number given, an Entry.Number. One of them that comes again shows that the broker has gone back.
func (w *Writer) Confirm(number uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.confirmed = max(w.confirmed, number)
}

// storeAhead runs a statement about the session before the batch that would carry it, once the ledger
// is read.
func (w *Writer) storeAhead(ctx context.Context, what func() *statement) error {
	if w.fence == nil {
		return nil
	}
	select {
	case <-w.opened:
	case <-w.done:
		return errEnded
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	conn, err := w.pool.Acquire(ctx)
	if err != nil {
		return fmt.Errorf("connect to database: %w", err)
	}
	defer conn.Release()
	if _, err := run(ctx, conn.Conn().PgConn(), []*statement{what()}); err != nil {
		return fmt.Errorf("update session %d: %w", w.fence.Index, err)
	}
	return nil
}

var errEnded = errors.New("the writer has ended")

// openLedger reads the ledger of the session. Nothing can be committed before that.
func (w *Writer) openLedger(ctx context.Context) error {
	if w.fence == nil {
		return nil
	}
	w.ledger = newLedger()
	for pause := w.cfg.retryMin; ; pause = min(2*pause, w.cfg.retryMax) {
		bounded, progress, cancel := w.bounded(ctx)
		progress()
		err := w.ledger.load(bounded, w.pool, w.cfg.Schema, w.fence)
		cancel()
		if err == nil {
			w.inherited.incarnation, w.inherited.connections = w.ledger.inherited, w.ledger.connections
			w.mu.Lock()
			w.status.Retrying = false
			w.mu.Unlock()
			close(w.opened)
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		err = Plain(err)
		w.noteError(err, nil)
		w.log.Warn("delivery ledger not read, trying again", zap.Error(err), zap.Duration("pause", pause))
		if err := w.pause(ctx, pause); err != nil {
			return err
		}
	}
}

// Retry ends the present pause between two attempts, or else the next one: the database is back. It does
// not block.
func (w *Writer) Retry() {
	select {
	case w.retry <- struct{}{}:
	default:
	}
}

// pause is pauseFor, but that Retry ends it.
func (w *Writer) pause(ctx context.Context, d time.Duration) error {
	return pauseUntil(ctx, d, w.retry)
}

// pauseFor waits about d. The jitter keeps replicas from returning in step.
func pauseFor(ctx context.Context, d time.Duration) error { return pauseUntil(ctx, d, nil) }

// pauseUntil is pauseFor, but that enough ends it.
func pauseUntil(ctx context.Context, d time.Duration, enough <-chan struct{}) error {
	timer := time.NewTimer(d/2 + rand.N(d)) //nolint:gosec // jitter, no secret
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-enough:
	case <-timer.C:
	}
	return nil
}

// collect waits for a batch: what gathered while the last one was committed, if that is much or took
// long; or else what gathers until some time after the last one, which depends on the rate. A
// lone message in a quiet time is not waited with. While a commit is at work, only a full batch is taken: a
// larger one costs less. No entries and no error: that commit has ended, or without one, the writer is drained.
// The entries are put where others were.
func (w *Writer) collect(ctx context.Context, where []Entry, at *pending) ([]Entry, error) {
	timer := time.NewTimer(idleTurn)
	defer timer.Stop()
	var ended chan struct{}
	if at != nil {
		ended = at.done
	}
	for {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if at == nil {
			w.turned() // else it is the commit that has to turn
		}
		entries, wait := w.take(where, at != nil)
		if len(entries) > 0 || wait < 0 {
			return entries, nil
		}
		timer.Reset(wait)
		select {
		case <-ctx.Done():
		case <-ended:
			return nil, nil
		case <-w.wake:
		case <-timer.C:
		}
	}
}

const (
	// leastLinger is how far apart batches are at a low rate: a commit costs bridge and database half a
	// millisecond of CPU, whatever it holds.
	leastLinger = 5 * time.Millisecond
	// lingerPerRate is waited for each message a second. From 2 500 on it is more than the least, and at 20 000
	// a batch holds 800.
	lingerPerRate = 2 * time.Microsecond
	// enough messages are not waited with: a commit costs next to nothing beside their rows.
	enough = 1000
)

// lingerFor is how long after a batch the next one is taken that is not worthwhile by itself, from the
// size of the batch and the time that had passed since the one before.
func lingerFor(most time.Duration, messages int, passed time.Duration) time.Duration {
	perSecond := float64(messages) / max(passed, time.Microsecond).Seconds()
	return min(max(time.Duration(perSecond)*lingerPerRate, leastLinger), most)
}

const (
	// leastWindow is the least number of messages that is taken for a window. Fewer are what a slow stream
	// brings.
	leastWindow = 8
	// windowFor is for how many batches a window is believed in.
	windowFor = 64
)

// worthwhile is how many messages are committed at once: enough of them, or as many as the broker
// seems to send before it waits for acknowledgements. Mosquitto sends 20 unless told otherwise, and
// does not say so: a batch of that size was waited with to no avail.
//
// Of the window that the broker was asked for half is worthwhile: if it were more, broker and database
// would wait for one another.
func (w *Writer) worthwhile() int {
	n := min(enough, w.cfg.MaxMessages)
	if w.cfg.Window > 0 {
		n = min(n, max(w.cfg.Window/2, 1))
	}
	if w.windowFor > 0 {
		n = min(n, w.window)
	}
	return n
}

// take takes the next batch from the queue, only a full one if so told, or says how long to wait for it; a negative
// time means that the drained writer has nothing left.
func (w *Writer) take(where []Entry, full bool) (_ []Entry, wait time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	waiting := w.queue[w.head:]
	if full && len(waiting) < w.cfg.MaxMessages && w.bytes < w.cfg.MaxBytes {
		return nil, idleTurn
	}
	if len(waiting) == 0 {
		if w.draining {
			w.drained, w.ended = true, true // from here on Enqueue lets go
			return nil, -1
		}
		return nil, idleTurn
	}
	now := time.Now()
	if !w.draining && len(waiting) < w.worthwhile() && w.bytes < w.cfg.MaxBytes {
		if wait := w.linger - now.Sub(w.takenAt); wait > 0 {
			return nil, wait
		}
		w.window, w.windowFor = 0, 0
		if len(waiting) >= leastWindow && now.Sub(waiting[len(waiting)-1].enqueuedAt) > w.linger/2 {
			w.window, w.windowFor = len(waiting), windowFor
		}
	}
	n, size := 0, 0
	for n < len(waiting) && n < w.cfg.MaxMessages && waiting[n].sameSession(&waiting[0]) && (n == 0 || size+waiting[n].Size <= w.cfg.MaxBytes) {
		size += waiting[n].Size
		n++
	}
	entries := append(where[:0], waiting[:n]...)
	w.taken = append(w.taken, entries)
	clear(waiting[:n])
	w.head += n
	w.bytes -= size
	w.linger = lingerFor(w.cfg.Linger, n, now.Sub(w.takenAt))
	w.takenAt = now
	w.windowFor = max(w.windowFor-1, 0)
	if w.head == len(w.queue) {
		w.queue, w.head = w.queue[:0], 0
	} else if w.head > len(w.queue)/2 {
		rest := copy(w.queue, w.queue[w.head:])
		clear(w.queue[rest:])
		w.queue, w.head = w.queue[:rest], 0
	}
	return entries, 0
}

// settled counts a committed batch and hands it back.
func (w *Writer) settled(p *pending) {
	b, o := p.batch, p.outcome
	for _, l := range o.letters {
		o.tallies.of(l.route).deadLetter(l.reason)
	}
	for route, t := range b.settled {
		into := o.tallies.of(route)
		into.duplicate += t.duplicate
		for reason, n := range t.skipped {
			into.skip(reason, n)
		}
	}
	w.counters.settled(o.tallies)
	w.metrics.committed(b, p.ended, p.ended.Sub(p.began))
	w.settle(b.entries)

	b.reset(b.entries[:0])

	w.mu.Lock()
	defer w.mu.Unlock()
	clear(w.taken[0])
	w.taken = slices.Delete(w.taken, 0, 1)
}

// end lets everything go that Run leaves behind.
func (w *Writer) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ended = true
	for _, entries := range w.taken {
		w.counters.abandoned(entries)
	}
	w.counters.abandoned(w.queue[w.head:])
	w.taken, w.queue, w.head, w.bytes = nil, nil, 0, 0
	close(w.done)
}

// errNotDrained is why Drain did not finish when Run ended for another reason.
var errNotDrained = errors.New("writer ended before it was drained")

// Drain commits what is enqueued and what still arrives until nothing is left at one moment, and
// thereby ends Run. It returns when everything is settled, or with an error when ctx is done first
// (Run then goes on draining until its own context ends) or when Run ended for another reason.
func (w *Writer) Drain(ctx context.Context) error {
	w.mu.Lock()
	w.draining = true
	w.mu.Unlock()
	w.signal()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-w.done:
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.drained {
		return errNotDrained
	}
	return nil
}

// Status says what the writer is doing.
func (w *Writer) Status() WriterStatus {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.status
	waiting := w.queue[w.head:]
	s.InFlight, s.InFlightBytes = len(waiting), w.bytes
	for _, entries := range w.taken {
		s.InFlight += len(entries)
		for i := range entries {
			s.InFlightBytes += entries[i].Size
		}
	}
	switch {
	case len(w.taken) > 0:
		s.OldestUnacknowledged = time.Since(w.taken[0][0].enqueuedAt)
	case len(waiting) > 0:
		s.OldestUnacknowledged = time.Since(waiting[0].enqueuedAt)
	}
	return s
}

func (w *Writer) turned() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.status.LastTurn = time.Now()
}

func (w *Writer) noteError(err error, route *mapping.Route) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.status.LastError, w.status.LastErrorAt, w.status.Retrying = err.Error(), time.Now(), true
	if w.status.LastErrorRoute = ""; route != nil {
		w.status.LastErrorRoute = route.Name
	}
}

// insertion returns the memory of a route's inserts.
func (w *Writer) insertion(route *mapping.Route) *insertion {
	for len(w.insertions) <= route.Number {
		w.insertions = append(w.insertions, nil)
	}
	in := &w.insertions[route.Number]
	if *in == nil {
		*in = &insertion{}
	}
	return *in
}
