package store

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"slices"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/mqttpg/bridge/mapping"
)

const (
	// replayPage is how many letters are looked up at a time, without their payloads.
	replayPage = 1000
	// replayTries is how often a transaction is tried before the replay gives up. A person waits for
	// it and can repeat the command; a deadlock with a running bridge is over by the next try.
	replayTries = 5
)

// ReplayResult is what became of the letters that waited when a replay began.
type ReplayResult struct {
	Replayed int // letters that do not wait any more because of this replay
	Skipped  int // those of them that gave no rows: the routes pass such a message over
	Rows     int // rows inserted
	Known    int // rows that were there already
	// Elsewhere are letters that another replay settled, or somebody deleted, in the meantime.
	Elsewhere int
	// Waiting are the letters that still wait, by why.
	Waiting map[WaitingLetters]int
}

// WaitingLetters is a kind of letters that still wait.
type WaitingLetters struct {
	Route  string
	Reason mapping.Reason
}

// StillWaiting is how many letters still wait.
func (r *ReplayResult) StillWaiting() int {
	n := 0
	for _, count := range r.Waiting {
		n += count
	}
	return n
}

// ReplayDeadLetters writes the waiting letters that the filter chooses through routes as they are now:
// a letter of a route through that route, a letter of none through all that match its topic. A letter
// is written whole or keeps waiting, with the new reason. Rows and replayed_at are committed together,
// and the rows of a letter have the same ids in every replay, so that a replay may be interrupted and
// repeated at any time. Several may run at once, and beside running bridges.
//
// With an error the result is what was committed before it.
func ReplayDeadLetters(ctx context.Context, pool *pgxpool.Pool, cfg Config, routes *mapping.Routes, filter LetterFilter) (ReplayResult, error) {
	filter.Waiting = true
	cfg = cfg.withDefaults()
	r := newReplay(NewTables(pool, cfg, routes), filter, cfg.lockTimeout, replayTries)
	err := r.run(ctx)
	return r.result, err
}

func newReplay(tables *Tables, filter LetterFilter, lockTimeout time.Duration, tries int) *replay {
	return &replay{
		pool: tables.pool, cfg: tables.cfg, routes: tables.routes, tables: tables, filter: filter, lockTimeout: lockTimeout, tries: tries,
		plans: map[*mapping.Route]*plan{}, insertions: map[*mapping.Route]*insertion{}, unusable: map[*mapping.Route]string{},
		result: ReplayResult{Waiting: map[WaitingLetters]int{}},
	}
}

type replay struct {
	pool   *pgxpool.Pool
	cfg    Config
	routes *mapping.Routes
	tables *Tables
	filter LetterFilter
	result ReplayResult

	lockTimeout time.Duration
	tries       int
	unattended  bool // a transaction that finds its table unusable leaves no trace

	plans      map[*mapping.Route]*plan
	insertions map[*mapping.Route]*insertion
	unusable   map[*mapping.Route]string // tables that cannot be written, and why: not tried twice
}

// claim is a letter to be replayed.
type claim struct {
	id       [16]byte
	attempts int32 // when it was looked up; more: another replay has tried it since
	size     int64
}

// replayed is a letter in a transaction.
type replayed struct {
	id       [16]byte
	route    string
	message  *mapping.Message
	outcomes []mapping.Outcome // with rows
	rows     int

	// Why it keeps waiting; empty: it does not.
	reason  mapping.Reason
	detail  string
	byTable bool // its table takes rows, but refused this one in words that speak of the table
}

func (l *replayed) refuse(reason mapping.Reason, detail string) {
	l.reason, l.detail = reason, cutDetail(detail)
}

func (r *replay) run(ctx context.Context) error {
	var began time.Time // letters that arrive from now on are left to the next replay, or this one might never end
	if err := r.pool.QueryRow(ctx, "select now()").Scan(&began); err != nil {
		return fmt.Errorf("ask the database for the time: %w", err)
	}
	// Letters that another replay has locked are passed over, and looked at again in the end: it may
	// have died.
	var passed []claim
	for last := any(nil); ; {
		page, err := r.page(ctx, began, last, "id limit "+strconv.Itoa(replayPage))
		if err != nil {
			return err
		}
		if len(page) == 0 {
			break
		}
		last = page[len(page)-1].id
		locked, err := r.all(ctx, page, false)
		if err != nil {
			return err
		}
		passed = append(passed, locked...)
	}
	_, err := r.all(ctx, passed, true)
	return err
}

// page looks up some letters behind the last one. Their ids begin with the time of receipt, so that this
// is the order of receipt, and the order in which every replay locks them.
func (r *replay) page(ctx context.Context, began time.Time, last any, order string) ([]claim, error) {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.attemptTimeout)
	defer cancel()
	condition, params := r.filter.where()
	n := len(params)
	sql := fmt.Sprintf("select id, attempts, octet_length(payload)::int8 + octet_length(properties::text) from %s where %s and created_at <= $%d",
		letterTable(r.cfg.Schema), condition, n+1)
	params = append(params, began)
	if last != nil {
		sql += fmt.Sprintf(" and id > $%d", n+2)
		params = append(params, pgtype.UUID{Bytes: last.([16]byte), Valid: true})
	}
	rows, err := r.pool.Query(ctx, sql+" order by "+order, params...)
	if err != nil {
		return nil, fmt.Errorf("look for waiting dead letters: %w", unprepared(r.cfg.Schema, err))
	}
	page, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (c claim, err error) {
		return c, row.Scan(&c.id, &c.attempts, &c.size)
	})
	if err != nil {
		return nil, fmt.Errorf("look for waiting dead letters: %w", unprepared(r.cfg.Schema, err))
	}
	return page, nil
}

// all replays claims, and returns those that another replay has locked; with wait there are none.
func (r *replay) all(ctx context.Context, claims []claim, wait bool) (locked []claim, err error) {
	for len(claims) > 0 {
		n, passed, err := r.some(ctx, claims, wait)
		if err != nil {
			return nil, err
		}
		claims, locked = claims[n:], append(locked, passed...)
	}
	return locked, nil
}

// some replays the first of claims, as many as fit into one transaction, and tries that again while
// there is hope.
func (r *replay) some(ctx context.Context, claims []claim, wait bool) (n int, locked []claim, err error) {
	for try, pause := 1, r.cfg.retryMin; ; {
		if r.unattended {
			clear(r.unusable) // what it knew may not be true any more
		}
		tx := &replayTransaction{replay: r}
		err := tx.attempt(ctx, claims, wait)
		if err == nil {
			r.count(tx)
			return tx.taken, tx.locked, nil
		}
		if ctx.Err() != nil {
			return 0, nil, context.Cause(ctx)
		}
		if len(tx.unprepared) > 0 {
			if err := r.prepare(ctx, tx.unprepared); err != nil {
				return 0, nil, err
			}
			continue
		}
		if try >= r.tries {
			return 0, nil, err
		}
		if readOnly(err) {
			r.pool.Reset()
		}
		if err := pauseFor(ctx, pause); err != nil {
			return 0, nil, err
		}
		try, pause = try+1, min(2*pause, r.cfg.retryMax)
	}
}

// prepare makes and looks at the tables of routes.
func (r *replay) prepare(ctx context.Context, routes []*mapping.Route) error {
	for _, route := range routes {
		p, parked, err := r.tables.prepare(ctx, route)
		switch {
		case err != nil && classify(err) != verdictRoute:
			return err
		case err != nil:
			r.unusable[route] = databaseDetail(err)
		case p == nil:
			r.unusable[route] = parked
		default:
			r.plans[route] = p
		}
	}
	return nil
}

// count counts a transaction that was committed.
func (r *replay) count(tx *replayTransaction) {
	for _, l := range tx.letters {
		if l.reason != "" {
			r.result.Waiting[WaitingLetters{l.route, l.reason}]++
			continue
		}
		r.result.Replayed++
		if l.rows == 0 {
			r.result.Skipped++
		}
	}
	for kind, n := range tx.tried {
		r.result.Waiting[kind] += n
	}
	r.result.Elsewhere += tx.gone
	r.result.Rows += tx.written
	r.result.Known += tx.offered - tx.written
}

// mapLetter maps a letter by the routes as they are now.
func (r *replay) mapLetter(l *replayed) {
	var outcomes []mapping.Outcome
	for _, o := range r.routes.Map(l.message, nil) {
		if l.route == noRoute || o.Route.Name == l.route {
			outcomes = append(outcomes, o)
		}
	}
	switch {
	case len(outcomes) > 0:
	case l.route == noRoute:
		l.refuse(mapping.ReasonNoRoute, "no route matches the topic")
	case r.routes.ByName(l.route) == nil:
		l.refuse(mapping.ReasonNoRoute, "route "+l.route+" is not configured")
	default:
		l.refuse(mapping.ReasonNoRoute, "route "+l.route+" does not match the topic")
	}
	for _, o := range outcomes {
		switch {
		case o.Rejection != nil:
			detail := o.Rejection.Detail
			if l.route == noRoute {
				detail = "route " + o.Route.Name + ": " + detail
			}
			l.refuse(o.Rejection.Reason, detail)
			return
		case tooLarge(o.Rows) != "":
			l.refuse(ReasonDatabase, tooLarge(o.Rows))
			return
		case len(o.Rows) > 0:
			l.outcomes = append(l.outcomes, o)
			l.rows += len(o.Rows)
		}
	}
}

// replaySeed makes the ids of a letter's rows the same in every replay.
func replaySeed(id [16]byte) uint64 {
	h := fnv.New64a()
	h.Write(id[:])
	return h.Sum64()
}

// replayTransaction replays some letters in one transaction.
type replayTransaction struct {
	*replay
	conn *pgconn.PgConn

	taken      int     // claims that it deals with
	locked     []claim // of those: passed over
	letters    []*replayed
	tried      map[WaitingLetters]int  // letters that another replay has tried since they were looked up
	gone       int                     // letters that do not wait any more
	byRow      map[*mapping.Route]bool // its table takes rows: what it refuses is the fault of the row
	cause      error                   // the last that spoke of a table
	offered    int                     // rows
	written    int                     // rows
	unprepared []*mapping.Route        // with an error: what must be looked at before the next attempt
}

var errUnprepared = errors.New("a table has not been looked at yet")

func (tx *replayTransaction) attempt(ctx context.Context, claims []claim, wait bool) (err error) {
	conn, err := tx.pool.Acquire(ctx)
	if err != nil {
		return fmt.Errorf("connect to database: %w", err)
	}
	defer conn.Release()
	defer func() {
		if err != nil { // whatever state the connection is in, the next attempt begins on a fresh one
			_ = conn.Conn().Close(context.WithoutCancel(ctx))
		}
	}()
	tx.conn = conn.Conn().PgConn()
	// Deferred constraints must speak up while it is still known whose row they speak of.
	_, err = tx.send(ctx, []*statement{{sql: "begin"}, guard(tx.cfg, nil, tx.lockTimeout), {sql: "set constraints all immediate"}})
	if err != nil {
		return fmt.Errorf("begin replay: %w", err)
	}
	if err := tx.take(ctx, conn.Conn(), claims, wait); err != nil {
		return err
	}
	var live []*replayed
	for _, l := range tx.letters {
		if l.reason == "" && l.rows > 0 {
			live = append(live, l)
		}
		for i := range l.outcomes {
			route := l.outcomes[i].Route
			if tx.plans[route] == nil && tx.unusable[route] == "" && !slices.Contains(tx.unprepared, route) {
				tx.unprepared = append(tx.unprepared, route)
			}
		}
	}
	if len(tx.unprepared) > 0 {
		return errUnprepared // not now: it takes another connection, and the pool may have one alone
	}
	tx.byRow = map[*mapping.Route]bool{}
	if err := tx.insert(ctx, live); err != nil {
		return err
	}
	if tx.inVain() && tx.unattended {
		return &unusableError{tx.cause, len(tx.byRow) > 0}
	}
	return tx.close(ctx)
}

// unusableError is why a replay that nobody watches was taken back.
type unusableError struct {
	cause  error
	ofRows bool // the table takes rows, but none of these
}

func (e *unusableError) Error() string { return e.cause.Error() }
func (e *unusableError) Unwrap() error { return e.cause }

// inVain says that no letter could be written, and that the fault is the table's. That is so as well
// where the table takes rows, but none of these.
func (tx *replayTransaction) inVain() bool {
	written := map[string]bool{}
	done, unusable := false, false
	for _, l := range tx.letters {
		if l.reason == "" {
			done = true
			written[l.route] = written[l.route] || l.rows > 0
		}
	}
	for _, l := range tx.letters {
		switch {
		case l.byTable && !written[l.route]:
			l.reason = ReasonTableUnusable
		case l.byTable:
			tx.tables.ofSomeRows(tx.routes.ByName(l.route), tx.cause)
		}
		unusable = unusable || l.reason == ReasonTableUnusable
	}
	return unusable && !done && tx.cause != nil
}

// send is one round trip.
func (tx *replayTransaction) send(ctx context.Context, statements []*statement) (failed int, err error) {
	ctx, cancel := context.WithTimeout(ctx, tx.cfg.attemptTimeout)
	defer cancel()
	return run(ctx, tx.conn, statements)
}

// take locks, reads and maps the first of claims: as many as are allowed in a batch, payloads and rows
// counted each.
func (tx *replayTransaction) take(ctx context.Context, conn *pgx.Conn, claims []claim, wait bool) error {
	size := int64(0)
	n := 0
	for n < len(claims) && n < tx.cfg.MaxMessages && (n == 0 || size+claims[n].size <= int64(tx.cfg.MaxBytes)) {
		size += claims[n].size
		n++
	}
	letters, attempts, reasons, err := tx.lock(ctx, conn, claims[:n], wait)
	if err != nil {
		return err
	}
	tx.tried = map[WaitingLetters]int{}
	bytes := 0
	for tx.taken = 0; tx.taken < n && bytes < tx.cfg.MaxBytes; tx.taken++ {
		c := claims[tx.taken]
		l := letters[c.id]
		switch {
		case l == nil && wait:
			tx.gone++
		case l == nil:
			tx.locked = append(tx.locked, c)
		case attempts[c.id] != c.attempts:
			tx.tried[WaitingLetters{l.route, reasons[c.id]}]++
		default:
			if l.reason == "" {
				tx.mapLetter(l)
			}
			for i := range l.outcomes {
				for j := range l.outcomes[i].Rows {
					bytes += len(l.outcomes[i].Rows[j].Fields)
				}
			}
			tx.letters = append(tx.letters, l)
		}
	}
	return nil
}

// lock reads those of claims that still wait and that nobody else has locked; with wait it waits for
// who has.
func (tx *replayTransaction) lock(ctx context.Context, conn *pgx.Conn, claims []claim, wait bool) (
	letters map[[16]byte]*replayed, attempts map[[16]byte]int32, reasons map[[16]byte]mapping.Reason, err error,
) {
	ctx, cancel := context.WithTimeout(ctx, tx.cfg.attemptTimeout)
	defer cancel()
	ids := make([]pgtype.UUID, len(claims))
	for i, c := range claims {
		ids[i] = pgtype.UUID{Bytes: c.id, Valid: true}
	}
	how := " skip locked"
	if wait {
		how = ""
	}
	rows, err := conn.Query(ctx, "select id, attempts, route, reason, detail, topic, payload, qos, retain, properties::text, received_at from "+letterTable(tx.cfg.Schema)+
		" where id = any($1::uuid[]) and replayed_at is null order by id for update"+how, ids)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("lock dead letters: %w", err)
	}
	letters, attempts, reasons = map[[16]byte]*replayed{}, map[[16]byte]int32{}, map[[16]byte]mapping.Reason{}
	var id [16]byte
	var tries int32
	var qos int16
	var route, topic, detail string
	var reason mapping.Reason
	var payload, document []byte
	var retain bool
	var receivedAt time.Time
	_, err = pgx.ForEachRow(rows, []any{&id, &tries, &route, &reason, &detail, &topic, &payload, &qos, &retain, &document, &receivedAt}, func() error {
		l := &replayed{id: id, route: route, message: &mapping.Message{
			Topic: topic, Payload: payload, QoS: byte(qos), Retain: retain, ReceivedAt: receivedAt.UTC(), Seed: replaySeed(id),
		}}
		if reason == mapping.ReasonTooLarge {
			l.refuse(reason, detail) // it is not whole, as the detail says: there is nothing to replay
		}
		if _, err := readProperties(document, l.message); err != nil {
			if reason == ReasonTableUnusable {
				reason = mapping.ReasonInvalidPayload // or it would be tried for ever
			}
			l.refuse(reason, err.Error()) // somebody has changed it by hand; the others are well
		}
		letters[id], attempts[id], reasons[id] = l, tries, reason
		payload, document = nil, nil // so that the next row gets memory of its own
		return nil
	})
	if err != nil {
		return nil, nil, nil, fmt.Errorf("lock dead letters: %w", err)
	}
	return letters, attempts, reasons, nil
}

// insert inserts the rows of letters, and halves the letters until those that the database refuses
// stand alone. Letters of a table that cannot be written are refused together.
func (tx *replayTransaction) insert(ctx context.Context, letters []*replayed) error {
	letters = slices.DeleteFunc(slices.Clone(letters), tx.refuseUnusable)
	if len(letters) == 0 {
		return nil
	}
	err := tx.try(ctx, letters)
	if err == nil {
		return nil
	}
	failed := (*attemptError)(nil)
	if !errors.As(err, &failed) || failed.verdict != verdictData && failed.verdict != verdictRoute {
		return err
	}
	if _, err := tx.send(ctx, []*statement{{sql: "rollback to savepoint part"}, {sql: "release savepoint part"}}); err != nil {
		return fmt.Errorf("roll back: %w", err)
	}
	if failed.verdict == verdictRoute {
		tx.cause = failed
		if waited(err) || !tx.byRow[failed.route] && !tx.takesRows(ctx, failed.route) {
			tx.unusable[failed.route] = databaseDetail(failed.err)
			return tx.insert(ctx, letters)
		}
		tx.byRow[failed.route] = true
	}
	if len(letters) == 1 {
		letters[0].refuse(ReasonDatabase, databaseDetail(failed.err))
		letters[0].byTable = failed.verdict == verdictRoute
		return nil
	}
	middle := len(letters) / 2
	if err := tx.insert(ctx, letters[:middle]); err != nil {
		return err
	}
	return tx.insert(ctx, letters[middle:])
}

// takesRows says whether the fault is that of the rows: the table refuses nothing when there are none.
func (tx *replayTransaction) takesRows(ctx context.Context, route *mapping.Route) bool {
	_, err := tx.send(ctx, []*statement{{sql: "savepoint part"}, tx.plans[route].nothing(), {sql: "release savepoint part"}})
	if err == nil {
		return true
	}
	_, _ = tx.send(ctx, []*statement{{sql: "rollback to savepoint part"}, {sql: "release savepoint part"}}) // or the next statement fails
	return false
}

// refuseUnusable refuses a letter with rows for a table that cannot be written, and says whether it did.
func (tx *replayTransaction) refuseUnusable(l *replayed) bool {
	for i := range l.outcomes {
		if why := tx.unusable[l.outcomes[i].Route]; why != "" {
			l.refuse(ReasonTableUnusable, why)
			return true
		}
	}
	return false
}

// try inserts the rows of letters behind a savepoint, in one round trip.
func (tx *replayTransaction) try(ctx context.Context, letters []*replayed) error {
	entries := make([]Entry, len(letters))
	for i, l := range letters {
		entries[i] = Entry{Message: l.message, Outcomes: l.outcomes}
	}
	b := newBatch(entries, nil, nil)
	statements := []*statement{{sql: "savepoint part"}}
	owner := []*insertion{nil}
	var live []*insertion
	for i := range b.groups {
		g := &b.groups[i]
		in := tx.insertions[g.route]
		if in == nil {
			in = &insertion{}
			tx.insertions[g.route] = in
		}
		in.prepareInsert(tx.plans[g.route], g.units)
		live = append(live, in)
		for _, s := range in.parts {
			statements, owner = append(statements, &s.statement), append(owner, in)
		}
	}
	statements, owner = append(statements, &statement{sql: "release savepoint part"}), append(owner, nil)
	if failed, err := tx.send(ctx, statements); err != nil {
		if failed < len(statements) {
			return judged(err, owner[failed], false)
		}
		return judged(err, nil, false)
	}
	for _, in := range live {
		rows, _, _ := in.result()
		tx.written += int(rows)
		tx.offered += len(in.rows)
	}
	return nil
}

// close notes what became of the letters, and commits.
func (tx *replayTransaction) close(ctx context.Context) error {
	var done, waiting, reasons, details column
	for _, l := range tx.letters {
		if l.reason == "" {
			done.add(l.id[:])
			continue
		}
		waiting.add(l.id[:])
		reasons.add([]byte(l.reason))
		details.add([]byte(l.detail))
	}
	var statements []*statement
	table := letterTable(tx.cfg.Schema)
	if done.n > 0 {
		statements = append(statements, &statement{
			sql:    "update " + table + " set replayed_at = now(), attempts = attempts + 1 where id = any($1)",
			params: [][]byte{done.array(pgtype.UUIDOID)}, oids: []uint32{pgtype.UUIDArrayOID},
		})
	}
	if waiting.n > 0 {
		statements = append(statements, &statement{
			sql: "update " + table + " l set attempts = l.attempts + 1, reason = u.reason, detail = u.detail" +
				" from unnest($1, $2, $3) u(id, reason, detail) where l.id = u.id",
			params: [][]byte{waiting.array(pgtype.UUIDOID), reasons.array(pgtype.TextOID), details.array(pgtype.TextOID)},
			oids:   []uint32{pgtype.UUIDArrayOID, pgtype.TextArrayOID, pgtype.TextArrayOID},
		})
	}
	if _, err := tx.send(ctx, append(statements, &statement{sql: "commit"})); err != nil {
		return fmt.Errorf("commit replay: %w", err)
	}
	return nil
}
