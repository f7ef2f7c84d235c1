package store

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.uber.org/zap"
)

// defaultTTL is LeaseConfig.TTL where it is not set. Operators cannot set it, so that every process of a
// database has the same.
const defaultTTL = 5 * time.Second

// ErrGivenUp is the cause of a hold's context when this replica hands the session to another one.
var ErrGivenUp = errors.New("session handed over to another replica")

// LeaseConfig is what the leases are told. A duration that is zero takes its default.
type LeaseConfig struct {
	Schema         string        // default bridge
	ShareName      string        // whose sessions are shared out
	ClientIDPrefix string        // client ids are <prefix>-<index>; default the share name
	Sessions       int           // how many; default 1
	Subscriptions  []string      // what a session is to be subscribed to, as the broker sees it
	Owner          string        // id of this process, never used by another one
	Heartbeat      time.Duration // default 1 s
	TTL            time.Duration // a replica without a heartbeat for so long is dead; default 5 s
	Log            *zap.Logger
	Metrics        *Metrics // may be nil
}

// Lease is the right to one MQTT session. Batches are fenced with it.
type Lease struct {
	Index     int
	ClientID  string
	Epoch     int64 // fencing epoch: greater than that of every former owner
	ShareName string

	// Subscriptions is all that the broker's session may be subscribed to: what former owners wanted and
	// what this one does. Call [Leases.Subscribed] when the difference is mended.
	Subscriptions []string
	// Retiring says that the session is beyond LeaseConfig.Sessions: it is to be unsubscribed, drained and
	// ended at the broker. Call [Leases.Retired] then.
	Retiring bool
}

// LeaseStatus is how the sharing out of sessions stands.
type LeaseStatus struct {
	Owned         []int     // indices of the sessions that this process holds
	Replicas      int       // live ones of the share, this one included
	Sessions      []Session // of the share, by index
	Retiring      []int     // sessions of an earlier, larger BRIDGE_MQTT_SESSIONS that are not drained yet
	LastHeartbeat time.Time // zero: none yet
	LastTurn      time.Time // when the loop last showed life, with or without a heartbeat; zero: it has not begun
	LastError     string    // since LastHeartbeat; empty: none
}

// Session is one session of the share as the database has it.
type Session struct {
	Index    int
	ClientID string
	Owner    string // replica; empty: free
	Epoch    int64
	Orphaned bool // the owner is dead
	Retired  bool // drained and ended at the broker
}

// Leases shares the sessions of a share out among the replicas.
//
// Every replica keeps its heartbeat in one row of the database and looks at the sessions as often. The
// clock is always the database's. A free session is taken at once; one whose owner is dead only by a
// replica whose own heartbeat has gone through without a gap for a whole TTL. So an outage of the
// database moves no session: when it ends, all heartbeats are old, but the owners have renewed theirs
// long before anybody may take.
//
// Nobody holds more than a fair share: sessions divided by live replicas, rounded up. A replica that
// holds more than the share rounded down gives one back while another one holds less than that, one
// session at a time and the richest replica first. That state is reached in finitely many steps and
// then nothing moves.
type Leases struct {
	pool *pgxpool.Pool
	cfg  LeaseConfig
	log  *zap.Logger
	host string

	mu     sync.Mutex
	held   map[int]*holding
	status LeaseStatus

	steadySince   time.Time // start of the present row of heartbeats without a gap
	lastHeartbeat time.Time
	reported      string // the error that the log knows of
	returned      chan *holding
}

type holding struct {
	lease  *Lease
	cancel context.CancelCauseFunc
	ending bool // its context is cancelled, hold has not returned
	lost   bool // somebody else owns it
}

// NewLeases returns leases that are not running yet.
func NewLeases(pool *pgxpool.Pool, cfg LeaseConfig) *Leases {
	if cfg.Schema == "" {
		cfg.Schema = "bridge"
	}
	if cfg.ClientIDPrefix == "" {
		cfg.ClientIDPrefix = cfg.ShareName
	}
	cfg.Sessions = max(1, cfg.Sessions)
	if cfg.Heartbeat <= 0 {
		cfg.Heartbeat = time.Second
	}
	if cfg.TTL <= 0 {
		cfg.TTL = defaultTTL
	}
	if cfg.Log == nil {
		cfg.Log = zap.NewNop()
	}
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	return &Leases{pool: pool, cfg: cfg, log: cfg.Log.Named("leases"), host: host, held: map[int]*holding{}, returned: make(chan *holding)}
}

// Run takes sessions and calls hold for each in a goroutine of its own. The context of hold ends with
// the cause [ErrGivenUp] when the session is handed over, with [ErrFenced] when another replica has
// taken it, and with the cause of ctx at shutdown; hold then finishes its work and returns. Until it
// has, the session stays this replica's (but for ErrFenced) and the heartbeat goes on. When hold
// returns for reasons of its own, the session is free for anybody.
//
// Run returns nil after ctx is done, all holds have returned and the sessions are released.
func (l *Leases) Run(ctx context.Context, hold func(ctx context.Context, lease *Lease)) error {
	// The database is used until the last hold has returned, beyond the end of ctx.
	db := context.WithoutCancel(ctx)
	tick := time.NewTicker(l.cfg.Heartbeat)
	defer tick.Stop()
	stopping := ctx.Done()
	l.turn(db, ctx, hold)
	for {
		select {
		case <-stopping:
			stopping = nil
			l.endAll(context.Cause(ctx))
		case h := <-l.returned:
			l.release(db, h)
		case <-tick.C:
			l.turn(db, ctx, hold)
		}
		if stopping == nil && len(l.held) == 0 { // only this goroutine changes held
			l.leave(db)
			return nil
		}
	}
}

// Owned returns the leases that this process holds, by index. Those being handed over are included
// until hold has returned.
func (l *Leases) Owned() []*Lease {
	l.mu.Lock()
	defer l.mu.Unlock()
	owned := make([]*Lease, 0, len(l.held))
	for _, index := range slices.Sorted(maps.Keys(l.held)) {
		owned = append(owned, l.held[index].lease)
	}
	return owned
}

// Status says how the sharing out of sessions stands.
func (l *Leases) Status() LeaseStatus {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.status
	s.Owned = slices.Sorted(maps.Keys(l.held))
	return s
}

// turn is one heartbeat and what follows from it.
func (l *Leases) turn(db, ctx context.Context, hold func(context.Context, *Lease)) {
	// A turn that hangs must end in time for the next one to renew before others may take.
	db, cancel := context.WithTimeout(db, l.cfg.TTL/2)
	defer cancel()
	err := l.heartbeat(db)
	if err == nil {
		err = l.share(db, ctx, hold)
	}
	l.mu.Lock()
	l.status.LastHeartbeat, l.status.LastTurn = l.lastHeartbeat, time.Now()
	l.status.LastError = ""
	if err != nil {
		l.status.LastError = err.Error()
	}
	l.mu.Unlock()
	switch {
	case err != nil && l.reported == "":
		l.log.Warn("leases not renewed; sessions are kept, nobody can take them without the database", zap.Error(err))
		l.reported = err.Error()
	case err == nil && l.reported != "":
		l.log.Info("leases renewed again")
		l.reported = ""
	}
}

func (l *Leases) heartbeat(db context.Context) error {
	_, err := l.pool.Exec(db, `insert into `+l.table("replicas")+` as r (id, share_name, host) values ($1, $2, $3)
		on conflict (id) do update set heartbeat_at = now()`, l.cfg.Owner, l.cfg.ShareName, l.host)
	now := time.Now()
	if err != nil {
		l.steadySince = time.Time{}
		return fmt.Errorf("heartbeat: %w", err)
	}
	if l.steadySince.IsZero() || now.Sub(l.lastHeartbeat) >= l.cfg.TTL {
		l.steadySince = now
	}
	l.lastHeartbeat = now
	return nil
}

// share compares what is held with what is fair.
func (l *Leases) share(db, ctx context.Context, hold func(context.Context, *Lease)) error {
	sessions, replicas, err := l.look(db)
	if err != nil {
		return err
	}
	have := 0
	var retiring []int
	abandoned := false // a session to be retired has no owner
	for _, s := range sessions {
		switch {
		case s.Index < l.cfg.Sessions:
			have++
		case !s.Retired:
			retiring = append(retiring, s.Index)
			abandoned = abandoned || s.Owner == "" || s.Orphaned || s.Owner == l.cfg.Owner
		}
	}
	if have < l.cfg.Sessions {
		_, err := l.pool.Exec(db, `insert into `+l.table("sessions")+` (share_name, index, client_id)
			select $1, i, $2::text || '-' || i from generate_series(0, $3::int - 1) i on conflict do nothing`,
			l.cfg.ShareName, l.cfg.ClientIDPrefix, l.cfg.Sessions)
		if err != nil {
			return fmt.Errorf("create sessions: %w", err)
		}
		if sessions, replicas, err = l.look(db); err != nil {
			return err
		}
	}

	l.mu.Lock()
	if !slices.Equal(retiring, l.status.Retiring) && len(retiring) > 0 {
		l.log.Info("sessions beyond BRIDGE_MQTT_SESSIONS are to be drained and ended", zap.Ints("sessions", retiring))
	}
	l.status.Sessions, l.status.Replicas, l.status.Retiring = sessions, len(replicas), retiring
	counts := map[string]int{}
	for id := range replicas {
		counts[id] = 0
	}
	free := 0
	for _, s := range sessions {
		if h := l.held[s.Index]; h != nil && !h.lost && (s.Owner != l.cfg.Owner || s.Epoch != h.lease.Epoch) {
			l.log.Error("session is held by another replica, stopping to read it", zap.Int("session", s.Index), zap.String("owner", s.Owner), zap.Int64("epoch", s.Epoch))
			h.lost, h.ending = true, true
			h.cancel(ErrFenced)
		}
		if s.Index >= l.cfg.Sessions {
			continue
		}
		if s.Owner == "" || s.Orphaned {
			free++
		} else {
			counts[s.Owner]++
		}
	}
	mine, ending, last, retires := 0, 0, -1, false
	for index, h := range l.held {
		if h.lease.Retiring {
			retires = true
			continue
		}
		mine++
		last = max(last, index)
		if h.ending {
			ending++
		}
	}
	give := ctx.Err() == nil && mine > 0 && ending == 0 && free == 0 && l.surplus(counts)
	if give {
		l.log.Info("handing a session over", zap.Int("session", last), zap.Int("replicas", len(replicas)))
		l.held[last].ending = true
		l.held[last].cancel(ErrGivenUp)
	}
	l.mu.Unlock()
	settled := !give && ending == 0 && ctx.Err() == nil
	if n := l.entitled(counts) - mine; n > 0 && settled {
		if err := l.claim(db, ctx, hold, 0, l.cfg.Sessions, n); err != nil {
			return err
		}
	}
	if abandoned && !retires && ctx.Err() == nil { // one at a time, beside the fair share: it is soon over
		return l.claim(db, ctx, hold, l.cfg.Sessions, math.MaxInt32, 1)
	}
	return nil
}

// entitled is how many sessions this replica may hold at present: the fair share rounded down, and
// one more only when every other one has that already.
func (l *Leases) entitled(counts map[string]int) int {
	floor := l.cfg.Sessions / len(counts)
	if floor*len(counts) == l.cfg.Sessions {
		return floor
	}
	for id, n := range counts {
		if id != l.cfg.Owner && n < floor {
			return floor
		}
	}
	return floor + 1
}

// surplus says that this replica has to give one back: somebody holds less than the share rounded
// down, and nobody is richer than this replica.
func (l *Leases) surplus(counts map[string]int) bool {
	floor := l.cfg.Sessions / len(counts)
	mine := counts[l.cfg.Owner]
	ceil := (l.cfg.Sessions + len(counts) - 1) / len(counts)
	poor := false
	for id, n := range counts {
		poor = poor || n < floor
		if n > mine || n == mine && id > l.cfg.Owner {
			return false
		}
	}
	return mine > ceil || mine > floor && poor
}

// look reads the sessions of the share and its live replicas.
func (l *Leases) look(db context.Context) ([]Session, map[string]bool, error) {
	rows, err := l.pool.Query(db, `select id from `+l.table("replicas")+` where share_name = $1 and heartbeat_at > now() - $2 * interval '1 second'`,
		l.cfg.ShareName, l.cfg.TTL.Seconds())
	if err != nil {
		return nil, nil, fmt.Errorf("look at replicas: %w", err)
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, nil, fmt.Errorf("look at replicas: %w", err)
	}
	live := map[string]bool{l.cfg.Owner: true}
	for _, id := range ids {
		live[id] = true
	}
	rows, err = l.pool.Query(db, `select index, client_id, coalesce(owner, ''), epoch, retired_at is not null from `+l.table("sessions")+` where share_name = $1 order by index`, l.cfg.ShareName)
	if err != nil {
		return nil, nil, fmt.Errorf("look at sessions: %w", err)
	}
	sessions, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (s Session, err error) {
		err = row.Scan(&s.Index, &s.ClientID, &s.Owner, &s.Epoch, &s.Retired)
		s.Orphaned = s.Owner != "" && !live[s.Owner]
		return s, err
	})
	if err != nil {
		return nil, nil, fmt.Errorf("look at sessions: %w", err)
	}
	return sessions, live, nil
}

// claim takes up to n sessions with an index from first up to but without end: free ones, orphaned ones when our own heartbeat has been steady, and
// ones that are ours although we do not hold them (the answer to a claim was lost).
func (l *Leases) claim(db, ctx context.Context, hold func(context.Context, *Lease), first, end, n int) error {
	l.mu.Lock()
	held := make([]int32, 0, len(l.held))
	for index := range l.held {
		held = append(held, int32(index))
	}
	l.mu.Unlock()
	steady := time.Since(l.steadySince) >= l.cfg.TTL
	// A session whose former owner is in the middle of a commit is locked by its fence: it is passed
	// over and taken a heartbeat later, when that commit is visible.
	rows, err := l.pool.Query(db, `
		with candidate as (
			select s.index from `+l.table("sessions")+` s
			where s.share_name = $1 and s.index >= $9 and s.index < $2 and (s.index < $10 or s.retired_at is null) and not s.index = any ($3::int[])
			  and (s.owner is null or s.owner = $4 or $5 and not exists (
			       select from `+l.table("replicas")+` r where r.id = s.owner and r.heartbeat_at > now() - $6 * interval '1 second'))
			order by s.index limit $7 for update skip locked)
		update `+l.table("sessions")+` s
		set owner = $4, epoch = s.epoch + 1, acquired_at = now(),
		    client_id = case when s.index < $10 then $8::text || '-' || s.index else s.client_id end,
		    subscriptions = case when s.index < $10 then array(select distinct unnest(s.subscriptions || $11::text[]) order by 1) else s.subscriptions end,
		    retired_at = null
		from candidate where s.share_name = $1 and s.index = candidate.index
		returning s.index, s.client_id, s.epoch, s.share_name, s.subscriptions`,
		l.cfg.ShareName, end, held, l.cfg.Owner, steady, l.cfg.TTL.Seconds(), n, l.cfg.ClientIDPrefix, first, l.cfg.Sessions, l.cfg.subscriptions())
	if err != nil {
		return fmt.Errorf("claim sessions: %w", err)
	}
	leases, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (*Lease, error) {
		lease := &Lease{}
		err := row.Scan(&lease.Index, &lease.ClientID, &lease.Epoch, &lease.ShareName, &lease.Subscriptions)
		lease.Retiring = lease.Index >= l.cfg.Sessions
		return lease, err
	})
	if err != nil {
		return fmt.Errorf("claim sessions: %w", err)
	}
	for _, lease := range leases {
		l.log.Info("session taken", zap.Int("session", lease.Index), zap.String("client_id", lease.ClientID), zap.Int64("epoch", lease.Epoch))
		l.start(ctx, lease, hold)
	}
	return nil
}

func (l *Leases) start(ctx context.Context, lease *Lease, hold func(context.Context, *Lease)) {
	ctx, cancel := context.WithCancelCause(ctx)
	h := &holding{lease: lease, cancel: cancel}
	l.mu.Lock()
	l.held[lease.Index] = h
	owned := len(l.held)
	l.mu.Unlock()
	l.cfg.Metrics.setOwned(owned)
	go func() {
		hold(ctx, lease)
		l.returned <- h
	}()
}

// Confirmed returns an error when the heartbeat is so old that another replica may have taken the
// sessions of this one. Work may go on, for the fence guards every commit, but not start anew.
func (l *Leases) Confirmed() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if age := time.Since(l.status.LastHeartbeat); age >= l.cfg.TTL {
		return fmt.Errorf("no heartbeat for %s: another replica may have the session", age.Round(time.Second))
	}
	return nil
}

// Subscribed notes that the broker's session is subscribed to what is wanted and to nothing else.
func (l *Leases) Subscribed(ctx context.Context, lease *Lease) error {
	return l.note(ctx, lease, "subscriptions = $4", l.cfg.subscriptions())
}

// Retired notes that the session has been drained and ended at the broker.
func (l *Leases) Retired(ctx context.Context, lease *Lease) error {
	return l.note(ctx, lease, "subscriptions = $4, retired_at = now()", []string{})
}

// note changes the row of a session that is held.
func (l *Leases) note(ctx context.Context, lease *Lease, set string, subscriptions []string) error {
	ctx, cancel := context.WithTimeout(ctx, l.cfg.TTL)
	defer cancel()
	tag, err := l.pool.Exec(ctx, "update "+l.table("sessions")+" set "+set+" where share_name = $1 and index = $2 and epoch = $3",
		lease.ShareName, lease.Index, lease.Epoch, subscriptions)
	if err != nil {
		return fmt.Errorf("note subscriptions of session %d: %w", lease.Index, err)
	}
	if tag.RowsAffected() == 0 {
		return ErrFenced
	}
	return nil
}

// subscriptions is never null for the database.
func (cfg *LeaseConfig) subscriptions() []string { return append([]string{}, cfg.Subscriptions...) }

// release frees a session whose hold has returned. When the database cannot be told, the session is
// free when our replica row is old, or taken again by ourselves.
func (l *Leases) release(db context.Context, h *holding) {
	h.cancel(nil)
	l.mu.Lock()
	delete(l.held, h.lease.Index)
	owned, lost := len(l.held), h.lost
	l.mu.Unlock()
	l.cfg.Metrics.setOwned(owned)
	if lost {
		return
	}
	db, cancel := context.WithTimeout(db, l.cfg.TTL/2)
	defer cancel()
	_, err := l.pool.Exec(db, `update `+l.table("sessions")+` set owner = null where share_name = $1 and index = $2 and owner = $3 and epoch = $4`,
		l.cfg.ShareName, h.lease.Index, l.cfg.Owner, h.lease.Epoch)
	if err != nil {
		l.log.Warn("session not released; it is free for others when this replica's heartbeat is old", zap.Int("session", h.lease.Index), zap.Error(err))
		return
	}
	l.log.Info("session released", zap.Int("session", h.lease.Index))
}

func (l *Leases) endAll(cause error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, h := range l.held {
		h.ending = true
		h.cancel(cause)
	}
}

// leave removes the row of this replica, and those of replicas that died long ago.
func (l *Leases) leave(db context.Context) {
	db, cancel := context.WithTimeout(db, l.cfg.TTL/2)
	defer cancel()
	_, err := l.pool.Exec(db, `delete from `+l.table("replicas")+` where id = $1 or heartbeat_at < now() - interval '1 day'`, l.cfg.Owner)
	if err != nil {
		l.log.Warn("replica row not removed", zap.Error(err))
	}
}

func (l *Leases) table(name string) string { return pgx.Identifier{l.cfg.Schema, name}.Sanitize() }
