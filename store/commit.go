package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/mqttpg/bridge/mapping"
	"go.uber.org/zap"
)

// routePause is the longest pause between attempts that a route holds up: its table may be well again
// at any time, and others wait.
const routePause = time.Second

// stubbornAttempts is how often the server may fail over a statement of a route for its own reasons, about
// a minute, until the messages that it fails over are looked for and refused.
const stubbornAttempts = 12

// unkeptAttempts is how often the server may fail over dead letters in the same way until long payloads
// are cut.
const unkeptAttempts = 5

// outcome is what an attempt made of a batch, true once it is committed.
type outcome struct {
	tallies tallies
	letters []deadLetter
}

// attemptError is the end of an attempt.
type attemptError struct {
	verdict verdict
	route   *mapping.Route // for verdictRoute
	letter  bool           // a dead letter could not be written
	altered []*insertion   // whose COPY found other columns than were looked at
	err     error
}

func (e *attemptError) Error() string { return e.err.Error() }
func (e *attemptError) Unwrap() error { return e.err }

// commit tries until the batch is committed, the lease is lost or ctx is done.
//
// An attempt whose connection died after the Sync was sent may have been committed: nobody knows. The
// next one first looks whether the batch stands in the ledger. Should the server still be at it by
// then, the number of the batch, which is unique, makes the next attempt wait for it and then fail.
func (w *Writer) commit(ctx context.Context, b *batch) (*outcome, error) {
	pause := w.cfg.retryMin
	for {
		w.turned()
		o, err := w.attempt(ctx, b)
		if err == nil {
			return o, nil
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		failed := (*attemptError)(nil)
		if !errors.As(err, &failed) {
			failed = &attemptError{verdict: verdictRetry, err: err}
		}
		if failed.verdict == verdictFenced {
			return nil, fmt.Errorf("%w: %w", ErrFenced, err)
		}
		err = Plain(err)
		w.noteError(err, failed.route)
		w.metrics.retried(errorClass(err))
		if readOnly(err) {
			w.pool.Reset() // all its connections lead to the old primary
		}
		if failed.route != nil && ofServer(err) {
			b.stubborn++
		}
		if failed.letter && tooMuch(err) {
			b.unkept++
		}
		wait := pause
		if failed.verdict == verdictRoute {
			wait = min(pause, routePause, w.tables.untilParked(failed.route))
		}
		w.log.Warn("batch not committed, trying again", zap.Error(err), zap.String("class", errorClass(err)),
			zap.Int("messages", len(b.entries)), zap.Duration("pause", wait))
		if err := w.pause(ctx, wait); err != nil {
			return nil, err
		}
		pause = min(2*pause, w.cfg.retryMax)
	}
}

// attempt tries to commit the batch in one transaction.
func (w *Writer) attempt(ctx context.Context, b *batch) (*outcome, error) {
	ctx, progress, cancel := w.bounded(ctx)
	defer cancel()

	began := time.Now()
	o := &outcome{tallies: make(tallies, len(b.groups)), letters: append([]deadLetter(nil), b.letters...)}
	live, careful, broken, err := w.prepare(ctx, b, o, progress)
	if err != nil {
		return nil, err
	}
	// Something fails: the others must not wait for it within one transaction.
	careful = careful || b.stubborn >= stubbornAttempts
	if broken != nil && len(live) == 0 {
		return nil, broken
	}

	conn, err := w.pool.Acquire(ctx)
	if err != nil {
		return nil, fmt.Errorf("connect to database: %w", err)
	}
	defer conn.Release()
	progress()

	if b.presumed != nil {
		committed, err := b.record.committed(ctx, conn.Conn(), w.cfg.Schema, w.fence)
		if err != nil {
			_ = conn.Conn().Close(ctx)
			return nil, err
		}
		if committed {
			w.log.Info("batch was committed by an attempt whose answer got lost", zap.Int64("batch", b.record.batch))
			return b.presumed, nil
		}
		progress()
	}
	wait := w.cfg.lineLock
	if !careful {
		arrange(live)
	}
	for refused := 0; !careful; refused++ {
		err = w.insertAll(ctx, conn.Conn().PgConn(), b, live, o)
		if !w.uncopied(err, live) {
			break
		}
		if refused > 0 { // routes have messages in common: the next one would be refused as well
			uncopyAll(live)
		}
		progress()
	}
	failed := (*attemptError)(nil)
	if careful || errors.As(err, &failed) && (failed.verdict == verdictData || failed.verdict == verdictRoute) {
		progress()
		if failed != nil && waited(err) {
			w.tables.failed(failed.route, failed.err, true, began) // its time counts
		}
		if careful || failed.verdict == verdictRoute {
			wait = w.cfg.shortLock
		}
		is := &isolation{writer: w, conn: conn.Conn().PgConn(), progress: progress, batch: b, outcome: o, began: began, broken: broken}
		err = is.run(ctx, w.guard(wait), live)
	}
	if err != nil {
		refused := (*pgconn.PgError)(nil)
		ofRoute := errors.As(err, &failed) && failed.verdict == verdictRoute // no commit was sent
		if len(b.record.packetIDs) > 0 && !ofRoute && (b.presumed == nil || !errors.As(err, &refused)) {
			b.presumed = presume(b, live, o)
		}
		// Whatever state the connection is in, the next attempt begins on a fresh one.
		_ = conn.Conn().Close(ctx)
		return nil, err
	}
	w.note(b, live, o)
	progress()
	for _, in := range live {
		in.learn(o.tallies.of(in.plan.route.Name).duplicate > 0)
	}
	w.recount(ctx, conn.Conn(), b, live, o)
	return o, nil
}

// prepare makes the statements of all routes that are not parked, whose messages become letters of the outcome.
// careful says that the last attempt to write one of them did not succeed, or that its table cannot be looked at:
// broken is the first of these.
func (w *Writer) prepare(ctx context.Context, b *batch, o *outcome, progress func()) (live []*insertion, careful bool, broken, err error) {
	live = make([]*insertion, 0, len(b.groups))
	for i := range b.groups {
		g := &b.groups[i]
		p, parked, failing := w.tables.known(g.route)
		if p == nil && parked == "" {
			p, parked, err = w.tables.prepare(ctx, g.route)
			progress()
		}
		switch {
		case err != nil && classify(err) != verdictRoute:
			return nil, false, nil, &attemptError{verdict: verdictRetry, route: g.route, err: err}
		case err != nil:
			careful = true
			broken = cmp.Or(broken, error(&attemptError{verdict: verdictRoute, route: g.route, err: err}))
			err = nil
		case p == nil:
			o.letters = append(o.letters, b.refuse(g, g.units, ReasonTableUnusable, parked)...)
		default:
			careful = careful || failing
			in := w.insertion(g.route)
			in.prepare(p, g)
			in.failing = failing
			live = append(live, in)
		}
	}
	progress()
	return live, careful, broken, nil
}

// refusals are the letters of an attempt, behind those that the batch brought along: of rows that the
// database refused, and of routes that are parked.
func (o *outcome) refusals(b *batch) []deadLetter { return o.letters[len(b.letters):] }

// refused are the entries of a route of which an attempt made dead letters.
func (b *batch) refused(in *insertion, o *outcome) map[*Entry]bool {
	all := map[*Entry]bool{}
	refusals := o.refusals(b)
	for i := range refusals {
		if refusals[i].route == in.plan.route.Name {
			all[refusals[i].entry] = true
		}
	}
	return all
}

// note tells the tables what became of the routes that were written.
func (w *Writer) note(b *batch, live []*insertion, o *outcome) {
	refusals := o.refusals(b)
	for _, in := range live {
		route := in.plan.route
		parked, why, refused := false, "", 0
		for i := range refusals {
			if l := &refusals[i]; l.route == route.Name {
				switch l.reason {
				case ReasonTableUnusable:
					parked = true
				case ReasonDatabase:
					refused, why = refused+1, l.detail
				}
			}
		}
		if parked {
			continue
		}
		if refused > 0 && refused < len(b.groupOf(in).units) {
			why = ""
		}
		w.tables.committed(route, why)
	}
}

// presume is the outcome of an attempt, should it turn out to have been committed although its answer
// got lost: which rows were there before is not known any more, so all count as written.
func presume(b *batch, live []*insertion, o *outcome) *outcome {
	p := &outcome{tallies: tallies{}, letters: o.letters}
	for _, in := range live {
		t := p.tallies.of(in.plan.route.Name)
		refused := b.refused(in, o)
		for _, u := range b.groupOf(in).units {
			if !refused[&b.entries[u.entry]] {
				t.written++
				t.rows += uint64(len(u.rows))
			}
		}
	}
	return p
}

// bounded ends the context when no round trip has ended for the time of an attempt. An attempt with
// many bad messages takes many round trips, each of which is progress.
func (w *Writer) bounded(ctx context.Context) (_ context.Context, progress func(), cancel func()) {
	ctx, cancelCause := context.WithCancelCause(ctx)
	timer := time.AfterFunc(w.cfg.attemptTimeout, func() {
		cancelCause(fmt.Errorf("no answer for %v: %w", w.cfg.attemptTimeout, context.DeadlineExceeded))
	})
	progress = func() { timer.Reset(w.cfg.attemptTimeout); w.turned() }
	return ctx, progress, func() { timer.Stop(); cancelCause(nil) }
}

// guard is the statement that every transaction of the writer begins with.
func (w *Writer) guard(lockTimeout time.Duration) *statement {
	return guard(w.cfg, w.fence, lockTimeout)
}

// guard sets limits for this transaction alone, and checks the fence if there is one.
func guard(cfg Config, fence *Lease, lockTimeout time.Duration) *statement {
	s := &statement{
		// synchronous_commit=off would report commits that a crash of the server can still lose, and
		// an acknowledged message must not be among them. The keepalives make the server notice
		// within half a minute that this process is gone, so that locks do not outlive it.
		// A statement that takes too long ends before the attempt does, so that it is known which.
		sql: `select set_config('lock_timeout', $1, true), set_config('idle_in_transaction_session_timeout', $2, true),` +
			` set_config('statement_timeout', ($2::int / 2)::text, true),` +
			` set_config('synchronous_commit', case current_setting('synchronous_commit') when 'off' then 'local' else current_setting('synchronous_commit') end, true),` +
			` set_config('tcp_keepalives_idle', '15', true), set_config('tcp_keepalives_interval', '5', true), set_config('tcp_keepalives_count', '3', true)`,
		params: [][]byte{milliseconds(lockTimeout), milliseconds(cfg.attemptTimeout)},
		oids:   []uint32{pgtype.TextOID, pgtype.TextOID},
		text:   true,
	}
	if fence != nil {
		s.sql += ", " + pgx.Identifier{cfg.Schema, "fence"}.Sanitize() + "($3, $4, $5)"
		s.params = append(s.params, []byte(fence.ShareName), strconv.AppendInt(nil, int64(fence.Index), 10), strconv.AppendInt(nil, fence.Epoch, 10))
		s.oids = append(s.oids, pgtype.TextOID, pgtype.Int4OID, pgtype.Int8OID)
	}
	return s
}

// begin makes the statements that the batch's transaction begins with when all goes in one round trip: the
// guard, and the ledger, so that a batch that stands there already fails before it writes a row.
func (w *Writer) begin(r *record, lockTimeout time.Duration) []*statement {
	if w.fence == nil || len(r.packetIDs) == 0 {
		return []*statement{w.guard(lockTimeout)}
	}
	limit := func(d time.Duration) string { return "'" + string(milliseconds(d)) + "', " }
	params, oids := r.params(w.fence)
	first := &statement{
		sql: "select " + pgx.Identifier{w.cfg.Schema, "begin_batch"}.Sanitize() + "(" + limit(lockTimeout) + limit(w.cfg.attemptTimeout) + limit(w.cfg.attemptTimeout/2) +
			"$1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
		params: params, oids: oids,
	}
	return append([]*statement{first}, r.keeping(w.cfg.Schema, w.fence)...)
}

func milliseconds(d time.Duration) []byte { return strconv.AppendInt(nil, d.Milliseconds(), 10) }

// insertAll is the usual way: everything in one round trip.
func (w *Writer) insertAll(ctx context.Context, conn *pgconn.PgConn, b *batch, live []*insertion, o *outcome) error {
	statements := w.begin(&b.record, w.cfg.lineLock)
	owner := slices.Repeat([]*insertion{nil}, len(statements))
	var copied []*plan
	var copying, altered []*insertion
	for _, in := range live {
		in.forget() // what an attempt before was told
		if in.leader != nil {
			continue
		}
		for _, s := range in.parts {
			statements, owner = append(statements, &s.statement), append(owner, in)
		}
		if in.copying {
			copied, copying = append(copied, in.plan), append(copying, in)
		}
	}
	if len(copying) > 0 {
		check := unaltered(copied, func(position int) { altered = append(altered, copying[position]) })
		statements, owner = append(statements, check), append(owner, copying[0])
	}
	letters, err := insertDeadLetters(w.cfg.Schema, o.letters, b.cuts())
	if err != nil {
		return err
	}
	rows := len(statements)
	for _, s := range letters {
		statements, owner = append(statements, s), append(owner, nil)
	}
	failed, err := run(ctx, conn, statements)
	if err != nil {
		if len(altered) > 0 {
			return &attemptError{verdict: verdictRetry, altered: altered, err: err}
		}
		if failed == len(statements) && len(live) > 0 {
			// A deferred constraint speaks up at the commit; isolation finds whose it is.
			return judged(err, live[0], true)
		}
		if failed < len(statements) && owner[failed] != nil {
			return judged(err, owner[failed], false)
		}
		e := judged(err, nil, false)
		e.letter = rows <= failed && failed < len(statements)
		return e
	}
	for _, in := range live {
		if in.copying {
			in.share()
		}
	}
	for _, in := range live {
		w.count(o, in, len(in.units))
	}
	return nil
}

// uncopied prepares inserts for what could not be copied, and says whether that is to be tried at once:
// the keys of some rows are in the table, the table takes no COPY, or columns of it were altered, whether the route's the
// insert finds. Whatever else COPY was refused for, isolation finds with inserts.
func (w *Writer) uncopied(err error, live []*insertion) bool {
	failed, refused := (*attemptError)(nil), (*pgconn.PgError)(nil)
	if !errors.As(err, &failed) {
		return false
	}
	for _, in := range failed.altered {
		for _, member := range append(slices.Clone(in.others), in) {
			w.tables.lookAgain(member.plan.route)
			member.insert()
		}
	}
	if len(failed.altered) > 0 {
		return true
	}
	if failed.route == nil || !errors.As(err, &refused) {
		return false
	}
	i := slices.IndexFunc(live, func(in *insertion) bool { return in.plan.route == failed.route })
	if !live[i].copying {
		return false
	}
	refusal := append(slices.Clone(live[i].others), live[i]) // whose rows they were is not known
	// Whatever it was, the next attempts insert: what is said of an insert says more of the table. A locked partition
	// is the time-out of another transaction's row for COPY, which is waited for, and one of the table for an insert.
	for _, in := range refusal {
		in.refusedCopy()
	}
	switch refused.Code {
	case "0A000", "42809": // feature not supported, wrong object type
		for _, in := range refusal {
			w.tables.uncopied(in.plan.route)
		}
	case "23505": // unique violation
	default:
		return false
	}
	for _, in := range refusal {
		in.insert()
	}
	return true
}

// uncopyAll prepares inserts for all that were to be copied.
func uncopyAll(live []*insertion) {
	for _, in := range live {
		if in.copying {
			in.refusedCopy()
			in.insert()
		}
	}
}

// judged wraps an error of a statement with what it means. Only the statement of a route can be the
// fault of its data or its table; at the commit only data can.
func judged(err error, in *insertion, atCommit bool) *attemptError {
	e := &attemptError{verdict: classify(err), err: err}
	if in != nil {
		e.route = in.plan.route
		if !atCommit {
			e.err = fmt.Errorf("insert into %s for route %s: %w", in.plan.table, in.plan.route.Name, err)
		}
	}
	// At the commit a deferred trigger or constraint speaks: isolation has it speak at its statement.
	if atCommit && in != nil && e.verdict == verdictRoute {
		e.verdict = verdictData
	}
	isData := e.verdict == verdictData && in != nil
	isRoute := e.verdict == verdictRoute && in != nil && !atCommit
	if e.verdict != verdictFenced && !isData && !isRoute {
		e.verdict = verdictRetry
	}
	return e
}

func (w *Writer) count(o *outcome, in *insertion, messages int) {
	rows, written, vanished := in.result()
	t := o.tallies.of(in.plan.route.Name)
	t.rows += rows
	t.written += written
	t.duplicate += uint64(messages) - written - vanished
	if vanished > 0 {
		t.skip(SkipRefusedByTable, vanished)
	}
}
