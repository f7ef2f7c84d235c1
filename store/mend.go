package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/mqttpg/bridge/mapping"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
)

const (
	// mendSample is how many parked messages, the newest, have to be written, or refused for their
	// own values, before a route is well again. One could be an exception.
	mendSample = 20
	// mendBatch is how many dead letters are replayed in one transaction: the line writes into the
	// same table.
	mendBatch = 500
	// mendRound is how many times that a route replays before it is the next one's turn.
	mendRound = 20
	// mendMisses is how many transactions in a row may fail before the rest is left for later.
	mendMisses = 3
	// mostCounted is how far the parked messages of a route are counted, every few seconds.
	mostCounted = 10_000
)

// ever is after everything.
var ever = time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)

// mendAll tries the routes that fail, and replays the messages that were parked, by this process or
// another, as soon as their table can be written, until ctx is done. It stands beside the line: nothing
// waits for it.
func (t *Tables) mendAll(ctx context.Context) {
	ticker := time.NewTicker(t.cfg.mendEvery)
	defer ticker.Stop()
	reported := ""
	for {
		more, err := t.mendDue(ctx)
		if ctx.Err() != nil {
			return
		}
		err = Plain(err)
		if text := fmt.Sprint(err); err != nil && text != reported {
			t.log.Warn("parked messages not replayed, trying again", zap.Error(err))
			reported = text
		} else if err == nil {
			reported = ""
		}
		if more {
			continue
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// mendDue tries what is due, and says whether a route has still letters to replay.
func (t *Tables) mendDue(ctx context.Context) (more bool, err error) {
	waiting, err := t.parkedLetters(ctx)
	errs := []error{err}
	for _, route := range t.routes.All() {
		t.mu.Lock()
		s := t.state(route)
		if err == nil {
			s.waiting = waiting[route.Name]
		}
		// While a failing route holds the line, the line tries it.
		failing := s.parked || s.reason != "" && !time.Now().Before(s.parkAt)
		due := !time.Now().Before(s.mendAt)
		t.mu.Unlock()
		if !due || !failing && waiting[route.Name] == 0 {
			continue
		}
		rest, err := t.mend(ctx, route, failing)
		if err != nil {
			errs = append(errs, fmt.Errorf("mend route %s: %w", route.Name, err))
		}
		more = more || rest && err == nil
	}
	return more, errors.Join(errs...)
}

// parkedLetters returns how many messages of each route wait parked, of all processes, at most mostCounted.
func (t *Tables) parkedLetters(ctx context.Context) (map[string]uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, t.cfg.attemptTimeout)
	defer cancel()
	var names []string
	for _, route := range t.routes.All() {
		names = append(names, route.Name)
	}
	rows, err := t.pool.Query(ctx, "select r, (select count(*) from (select from "+letterTable(t.cfg.Schema)+
		" where route = r and reason = '"+string(ReasonTableUnusable)+"' and replayed_at is null limit "+strconv.Itoa(mostCounted)+") l)"+
		" from unnest($1::text[]) r", names)
	if err != nil {
		return nil, fmt.Errorf("look for parked messages: %w", err)
	}
	waiting := map[string]uint64{}
	var name string
	var n int64
	if _, err := pgx.ForEachRow(rows, []any{&name, &n}, func() error { waiting[name] = uint64(n); return nil }); err != nil {
		return nil, fmt.Errorf("look for parked messages: %w", err)
	}
	return waiting, nil
}

// Parking is what a route has in dead letters for its table's sake.
type Parking struct {
	Parked   bool   // new messages become dead letters
	Waiting  uint64 // dead letters of all processes, as last counted; 10,000 means so many or more
	Replayed uint64 // dead letters that this process has written by itself
}

// Parking returns the state of the parking of every route, by its name.
func (t *Tables) Parking() map[string]Parking {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := make(map[string]Parking, len(t.states))
	for route, s := range t.states {
		all[route.Name] = Parking{Parked: s.parked, Waiting: s.waiting, Replayed: s.replayed}
	}
	return all
}

// mend makes a failing route well again if its table can be written, and then replays its parked
// messages: more says that some are left to do at once.
func (t *Tables) mend(ctx context.Context, route *mapping.Route, failing bool) (more bool, err error) {
	t.mu.Lock()
	p := t.state(route).plan
	t.mu.Unlock()
	if p == nil {
		if err := t.ensureRoute(ctx, route, true, newSurvey(t.pool, t.cfg.Schema)); err != nil {
			t.later(route, nil)
			if classify(err) == verdictRoute {
				return false, nil // noted as the route's
			}
			return false, err
		}
		t.mu.Lock()
		p = t.state(route).plan
		t.mu.Unlock()
	}
	r := newReplay(t, LetterFilter{Route: route.Name, Reason: string(ReasonTableUnusable), Waiting: true}, t.cfg.shortLock, 1)
	r.unattended, r.plans[route] = true, p
	r.cfg.MaxMessages = min(r.cfg.MaxMessages, mendBatch)
	defer t.tell(route, r)
	if failing {
		switch why, err := r.sample(ctx, p); {
		case err != nil:
			t.later(route, nil)
			return false, err
		case why != nil:
			t.later(route, why)
			return false, nil
		}
		t.succeeded(route)
	}
	t.mu.Lock()
	behind := t.state(route).mendBehind
	t.mu.Unlock()
	next, missed, more, err := r.round(ctx, behind)
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.state(route)
	s.mendBehind = next
	if missed {
		t.mendRarer(s)
	}
	return more, err
}

// mendRarer puts off the next try of a route that has been in vain or has not lasted. Called with mu
// held.
func (t *Tables) mendRarer(s *tableState) {
	const rarest = 12
	s.mendWait = min(max(t.cfg.mendEvery, 2*s.mendWait), rarest*t.cfg.mendEvery)
	s.mendAt = time.Now().Add(s.mendWait)
}

// later leaves a route alone until the next try. why is what its table said; nil: nothing new.
func (t *Tables) later(route *mapping.Route, why error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.state(route)
	s.mendAt = time.Now().Add(max(s.mendWait, t.cfg.mendEvery) / 2) // the ticker adds its part
	if why == nil || s.reason == "" {
		return
	}
	s.reason = why.Error()
	if !waited(why) {
		s.plan = nil
	}
}

// tell counts and logs what was replayed.
func (t *Tables) tell(route *mapping.Route, r *replay) {
	if r.result.Replayed == 0 {
		return
	}
	t.mu.Lock()
	t.state(route).replayed += uint64(r.result.Replayed)
	t.mu.Unlock()
	t.log.Info("parked messages replayed", zap.String("route", route.Name), zap.Int("messages", r.result.Replayed), zap.Int("rows", r.result.Rows))
}

// sample replays the newest parked messages in one transaction. why says that the table cannot be
// written. Where there are none, the table is asked to take nothing.
func (r *replay) sample(ctx context.Context, p *plan) (why, err error) {
	page, err := r.page(ctx, ever, nil, "id desc limit "+strconv.Itoa(mendSample))
	if err != nil {
		return nil, err
	}
	if len(page) > 0 {
		slices.Reverse(page) // all replays lock in the same order
		switch _, _, err := r.some(ctx, page, false); {
		case unusable(err):
			return err, nil
		case err != nil:
			return nil, err
		case r.result.Replayed > 0 || r.result.StillWaiting() > 0:
			return nil, nil
		}
		// Others have all of them.
	}
	return r.ask(ctx, p)
}

// ask tries to insert no row.
func (r *replay) ask(ctx context.Context, p *plan) (why, err error) {
	conn, err := r.pool.Acquire(ctx)
	if err != nil {
		return nil, fmt.Errorf("connect to database: %w", err)
	}
	defer conn.Release()
	ctx, cancel := context.WithTimeout(ctx, r.cfg.attemptTimeout)
	defer cancel()
	_, err = run(ctx, conn.Conn().PgConn(), []*statement{guard(r.cfg, nil, r.lockTimeout), p.nothing()})
	if err != nil && classify(err) == verdictRoute {
		return fmt.Errorf("insert into %s for route %s: %w", p.table, p.route.Name, err), nil
	}
	return nil, err
}

// round replays parked messages in the order of receipt, from the one behind an id on; nil: from the first.
// missed says that some could not be, and should be left alone for a while; more, that there are others.
// The next round begins behind next: letters that the table refuses, while it takes others, hold up
// nobody.
func (r *replay) round(ctx context.Context, behind any) (next any, missed, more bool, err error) {
	claims, err := r.page(ctx, ever, behind, "id limit "+strconv.Itoa(mendRound*mendBatch))
	if err != nil {
		return behind, false, false, err
	}
	if more = len(claims) == mendRound*mendBatch; more {
		next = claims[len(claims)-1].id
	}
	size := mendBatch
	for misses := 0; len(claims) > 0; {
		batch := claims[:min(size, len(claims))]
		n, _, err := r.some(ctx, batch, false)
		why := (*unusableError)(nil)
		switch {
		case err == nil:
			claims, misses = claims[n:], 0
			continue
		case size > 1 && tooMuch(err):
			size = 1 // one of them is more than the server can bear: each alone
			continue
		case tooMuch(err):
			if err := r.blame(ctx, batch[0], err); err != nil {
				return behind, true, false, err
			}
		case !errors.As(err, &why):
			return behind, true, false, err
		}
		claims, missed, misses = claims[len(batch):], true, misses+1
		if misses == mendMisses {
			if next = nil; why != nil && why.ofRows {
				next = batch[len(batch)-1].id
			}
			break
		}
	}
	return next, missed, more && !missed, nil
}

func unusable(err error) bool { return errors.As(err, new(*unusableError)) }

// blame notes that a letter was tried alone in vain. After some tries it is left to people.
func (r *replay) blame(ctx context.Context, c claim, err error) error {
	const tries = 5
	_, err = r.pool.Exec(ctx, "update "+letterTable(r.cfg.Schema)+" set attempts = attempts + 1, detail = $2,"+
		" reason = case when attempts + 1 >= $3 then $4 else reason end where id = $1 and replayed_at is null",
		pgtype.UUID{Bytes: c.id, Valid: true}, databaseDetail(err), tries, string(ReasonDatabase))
	if err != nil {
		return fmt.Errorf("note a replay in vain: %w", err)
	}
	return nil
}

var (
	descReplayed = prometheus.NewDesc("bridge_dead_letters_replayed_total", "Parked messages that were written by themselves after their table was mended.", []string{"route"}, nil)
	descWaiting  = prometheus.NewDesc("bridge_dead_letters_waiting", "Parked messages, of all replicas, that wait for their table to be mended; counted up to 10000.", []string{"route"}, nil)
	descFailing  = prometheus.NewDesc("bridge_route_failing", "1 while the table of a route cannot be written, or refuses every message.", []string{"route"}, nil)
)

// Describe implements [prometheus.Collector].
func (t *Tables) Describe(ch chan<- *prometheus.Desc) {
	ch <- descReplayed
	ch <- descWaiting
	ch <- descFailing
}

// Collect implements [prometheus.Collector].
func (t *Tables) Collect(ch chan<- prometheus.Metric) {
	failing, parking := t.Failing(), t.Parking()
	for _, route := range t.routes.All() {
		_, fails := failing[route.Name]
		p := parking[route.Name]
		ch <- prometheus.MustNewConstMetric(descReplayed, prometheus.CounterValue, float64(p.Replayed), route.Name)
		ch <- prometheus.MustNewConstMetric(descWaiting, prometheus.GaugeValue, float64(p.Waiting), route.Name)
		ch <- prometheus.MustNewConstMetric(descFailing, prometheus.GaugeValue, float64(boolByte(fails)), route.Name)
	}
}
