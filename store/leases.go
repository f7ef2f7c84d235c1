package store

import (
	"context"
	"errors"
	"fmt"
	"maps"
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

// The causes of the end of a hold's context, besides [ErrFenced] and shutdown.
var (
	// ErrGivenUp: this replica hands the session to another one.
	ErrGivenUp = errors.New("session handed over to another replica")
	// ErrReassigned: the session is to be drained now, or is in use again after all. It is given up and
	// taken anew, by whichever replica comes first, with [Lease.Retiring] as it is meant now.
	ErrReassigned = errors.New("session taken out of use, or back into it")
)

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
	// ReachesBroker is asked before each heartbeat, which tells the other replicas; nil: not told, as is its answer
	// nil. The goroutine of Run calls it: it must not wait.
	ReachesBroker func() *bool
	Log           *zap.Logger
	Metrics       *Metrics // may be nil
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
	// Known says that a former owner left the session with the broker, which was to keep it. A broker
	// that says Session Present 0 has lost it, and what it held for it.
	Known bool
	// Retiring says that the session is beyond LeaseConfig.Sessions, or that [RequestDrain] has taken it
	// out of use: it is to be unsubscribed, drained and ended at the broker. Call [Leases.Ending] when
	// it is drained, and [Leases.Retired] when it is ended.
	Retiring bool
}

// LeaseStatus is how the sharing out of sessions stands.
type LeaseStatus struct {
	Owned         []int     // indices of the sessions that this process holds
	Replicas      int       // live ones of the share, this one included
	Sessions      []Session // of the share, by index
	InUse         int       // how many of them are shared out
	Retiring      []int     // out of use, or beyond BRIDGE_MQTT_SESSIONS, and not drained yet
	Drained       []int     // out of use since [RequestDrain], and drained; others could be in use
	BrokerReached bool      // a live other replica tells that it reaches the broker; false while LastError is set
	BrokerMissed  bool      // a live other replica tells that it does not; false while LastError is set
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
	Drain    bool // RequestDrain has taken it out of use
	Retired  bool // drained and ended at the broker
}

// Leases shares the sessions of a share out among the replicas.
//
// Every replica keeps its heartbeat in one row of the database, and looks at the sessions and at the
// heartbeats of the others as often. A free session is taken at once. One that has an owner is taken
// when the owner's heartbeat has stood still for a whole TTL, in which the observer's own went through
// without a gap. Heartbeats are only compared for equality, and the time is the observer's own,
// monotonic one: clocks that are wrong or jump, of the database or of any replica, move no session. Nor
// does an outage of the database: when it ends, the owners have renewed their heartbeats long before
// anybody has watched for a TTL.
//
// Nobody holds more than a fair share: sessions in use divided by live replicas, rounded up. A replica that
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
	pulses        map[string]pulse // of all replicas of the share, and of owners that are none
	reported      string           // the error that the log knows of
	returned      chan *holding
}

// pulse is the heartbeat of a replica as this one sees it.
type pulse struct {
	beat  time.Time // what the database has; only asked whether it is another one than before
	since time.Time // since when, by the clock of this process
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
	return &Leases{pool: pool, cfg: cfg, log: cfg.Log.Named("leases"), host: host, held: map[int]*holding{}, pulses: map[string]pulse{}, returned: make(chan *holding)}
}

// Run takes sessions and calls hold for each in a goroutine of its own. The context of hold ends with
// the cause [ErrGivenUp] when the session is handed over, with [ErrFenced] when another replica has
// taken it, and with the cause of ctx at shutdown; hold then finishes its work and returns. Until it
// has, the session stays this replica's (but for ErrFenced) and the heartbeat goes on. When hold
// returns for reasons of its own, the session is free for anybody.
//
// Run returns nil after ctx is done, all holds have returned and the sessions are released. It may then be called again.
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
			l.forget()
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
	err = Plain(err)
	l.mu.Lock()
	l.status.LastHeartbeat, l.status.LastTurn = l.lastHeartbeat, time.Now()
	l.status.LastError = ""
	if err != nil {
		l.status.LastError = err.Error()
		l.status.BrokerReached, l.status.BrokerMissed = false, false // nobody knows
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
	var reaches *bool
	if l.cfg.ReachesBroker != nil {
		reaches = l.cfg.ReachesBroker()
	}
	_, err := l.pool.Exec(db, `insert into `+l.table("replicas")+` as r (id, share_name, host, reaches_broker) values ($1, $2, $3, $4)
		on conflict (id) do update set heartbeat_at = now(), reaches_broker = excluded.reaches_broker`, l.cfg.Owner, l.cfg.ShareName, l.host, reaches)
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

// needed says whether a session takes part. One that does not is to be drained and ended.
func (l *Leases) needed(s *Session) bool { return s.Index < l.cfg.Sessions && !s.Drain }

// share compares what is held with what is fair.
func (l *Leases) share(db, ctx context.Context, hold func(context.Context, *Lease)) error {
	v, err := l.look(db)
	if err != nil {
		return err
	}
	if v.configured < l.cfg.Sessions {
		_, err := l.pool.Exec(db, `insert into `+l.table("sessions")+` (share_name, index, client_id)
			select $1, i, $2::text || '-' || i from generate_series(0, $3::int - 1) i on conflict do nothing`,
			l.cfg.ShareName, l.cfg.ClientIDPrefix, l.cfg.Sessions)
		if err != nil {
			return fmt.Errorf("create sessions: %w", err)
		}
		if v, err = l.look(db); err != nil {
			return err
		}
	}

	l.mu.Lock()
	l.tell(v)
	l.endChanged(v)
	mine, ending, last, retires := 0, 0, -1, false
	for index, h := range l.held {
		if h.ending {
			ending++
		}
		if h.lease.Retiring {
			retires = true
			continue
		}
		mine++
		last = max(last, index)
	}
	give := ctx.Err() == nil && mine > 0 && ending == 0 && v.free == 0 && surplus(l.cfg.Owner, v.inUse, v.counts)
	if give {
		l.log.Info("handing a session over", zap.Int("session", last), zap.Int("replicas", len(v.counts)))
		l.held[last].ending = true
		l.held[last].cancel(ErrGivenUp)
	}
	l.mu.Unlock()
	settled := !give && ending == 0 && ctx.Err() == nil
	if n := entitled(l.cfg.Owner, v.inUse, v.counts) - mine; n > 0 && settled {
		if err := l.claim(db, ctx, hold, v.dead, false, n); err != nil {
			return err
		}
	}
	if v.abandoned && !retires && ctx.Err() == nil { // one at a time, beside the fair share: it is soon over
		if err := l.claim(db, ctx, hold, v.dead, true, 1); err != nil {
			return err
		}
	}
	return l.bury(db, v.dead)
}

// tell notes what /health and the log are to know.
func (l *Leases) tell(v *view) {
	if !slices.Equal(v.retiring, l.status.Retiring) && len(v.retiring) > 0 {
		l.log.Info("sessions are to be drained and ended: beyond BRIDGE_MQTT_SESSIONS, or taken out of use by bridge sessions drain", zap.Ints("sessions", v.retiring))
	}
	if !slices.Equal(v.drained, l.status.Drained) && len(v.drained) > 0 {
		l.log.Info("sessions are out of use until bridge sessions drain --undo", zap.Ints("sessions", v.drained))
	}
	l.status.Sessions, l.status.Replicas, l.status.InUse = v.sessions, len(v.counts), v.inUse
	l.status.Retiring, l.status.Drained = v.retiring, v.drained
	l.status.BrokerReached, l.status.BrokerMissed = v.reached, v.missed
}

// endChanged ends the holds of sessions that somebody else has taken, and of those that are held for
// something else than they are needed for now.
func (l *Leases) endChanged(v *view) {
	for i := range v.sessions {
		s := &v.sessions[i]
		h := l.held[s.Index]
		switch {
		case h == nil || h.lost:
		case s.Owner != l.cfg.Owner || s.Epoch != h.lease.Epoch:
			l.log.Error("session is held by another replica, stopping to read it", zap.Int("session", s.Index), zap.String("owner", s.Owner), zap.Int64("epoch", s.Epoch))
			h.lost, h.ending = true, true
			h.cancel(ErrFenced)
		case !h.ending && h.lease.Retiring == l.needed(s):
			l.log.Info("giving a session up", zap.Int("session", s.Index), zap.Bool("to_be_drained", !h.lease.Retiring))
			h.ending = true
			h.cancel(ErrReassigned)
		}
	}
}

// entitled is how many of the sessions in use the owner may hold at present: the fair share rounded
// down, and one more only when every other one has that already.
func entitled(owner string, sessions int, counts map[string]int) int {
	floor := sessions / len(counts)
	if floor*len(counts) == sessions {
		return floor
	}
	for id, n := range counts {
		if id != owner && n < floor {
			return floor
		}
	}
	return floor + 1
}

// surplus says that the owner has to give one back: somebody holds less than the share rounded down,
// and nobody is richer than the owner.
func surplus(owner string, sessions int, counts map[string]int) bool {
	floor := sessions / len(counts)
	mine := counts[owner]
	ceil := (sessions + len(counts) - 1) / len(counts)
	poor := false
	for id, n := range counts {
		poor = poor || n < floor
		if n > mine || n == mine && id > owner {
			return false
		}
	}
	return mine > ceil || mine > floor && poor
}

// view is what the database says of the share.
type view struct {
	sessions   []Session
	counts     map[string]int // live replicas, with the sessions in use that they hold
	dead       []string
	configured int // sessions within LeaseConfig.Sessions
	inUse      int // of these
	free       int // of those in use: without a live owner
	retiring   []int
	drained    []int
	abandoned  bool // a session to be retired has no live owner but perhaps this process
	reached    bool // a live other replica tells that it reaches the broker
	missed     bool // one tells that it does not
}

// look reads the sessions of the share and its replicas.
func (l *Leases) look(db context.Context) (*view, error) {
	rows, err := l.pool.Query(db, `select id, heartbeat_at, reaches_broker from `+l.table("replicas")+` where share_name = $1`, l.cfg.ShareName)
	if err != nil {
		return nil, fmt.Errorf("look at replicas: %w", err)
	}
	beats, reaches := map[string]time.Time{}, map[string]*bool{}
	var id string
	var beat time.Time
	var reach *bool
	if _, err := pgx.ForEachRow(rows, []any{&id, &beat, &reach}, func() error { beats[id], reaches[id] = beat, reach; return nil }); err != nil {
		return nil, fmt.Errorf("look at replicas: %w", err)
	}
	rows, err = l.pool.Query(db, `select index, client_id, coalesce(owner, ''), epoch, drain_requested_at is not null, retired_at is not null
		from `+l.table("sessions")+` where share_name = $1 order by index`, l.cfg.ShareName)
	if err != nil {
		return nil, fmt.Errorf("look at sessions: %w", err)
	}
	v := &view{counts: map[string]int{l.cfg.Owner: 0}}
	v.sessions, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (s Session, err error) {
		err = row.Scan(&s.Index, &s.ClientID, &s.Owner, &s.Epoch, &s.Drain, &s.Retired)
		return s, err
	})
	if err != nil {
		return nil, fmt.Errorf("look at sessions: %w", err)
	}
	for _, s := range v.sessions { // an owner without a heartbeat is watched like one whose heartbeat stands still
		if _, known := beats[s.Owner]; s.Owner != "" && !known {
			beats[s.Owner] = time.Time{}
		}
	}
	v.dead = l.observe(beats, time.Now())
	for id := range beats {
		if slices.Contains(v.dead, id) {
			continue
		}
		v.counts[id] = 0
		if reach := reaches[id]; reach != nil && id != l.cfg.Owner {
			v.reached, v.missed = v.reached || *reach, v.missed || !*reach
		}
	}
	l.count(v)
	return v, nil
}

// observe compares heartbeats with those of the last look, and returns whose have stood still for a TTL
// that this process has watched without a gap.
func (l *Leases) observe(beats map[string]time.Time, now time.Time) (dead []string) {
	maps.DeleteFunc(l.pulses, func(id string, _ pulse) bool { _, still := beats[id]; return !still })
	for id, beat := range beats {
		p, known := l.pulses[id]
		if !known || !p.beat.Equal(beat) {
			p = pulse{beat, now}
			l.pulses[id] = p
		}
		watched := min(now.Sub(p.since), now.Sub(l.steadySince))
		if id != l.cfg.Owner && watched >= l.cfg.TTL {
			dead = append(dead, id)
		}
	}
	return dead
}

// count sums the sessions of a view up.
func (l *Leases) count(v *view) {
	for i := range v.sessions {
		s := &v.sessions[i]
		s.Orphaned = slices.Contains(v.dead, s.Owner)
		ownerless := s.Owner == "" || s.Orphaned
		if s.Index < l.cfg.Sessions {
			v.configured++
			if s.Drain && s.Retired {
				v.drained = append(v.drained, s.Index)
			}
		}
		switch {
		case !l.needed(s):
			if !s.Retired {
				v.retiring = append(v.retiring, s.Index)
				v.abandoned = v.abandoned || ownerless || s.Owner == l.cfg.Owner
			}
			continue
		case ownerless:
			v.free++
		default:
			v.counts[s.Owner]++
		}
		v.inUse++
	}
}

// claim takes up to n sessions that are needed, or, retiring, such as are not: free ones, those of dead
// owners, and ones that are ours although we do not hold them (the answer to a claim was lost).
func (l *Leases) claim(db, ctx context.Context, hold func(context.Context, *Lease), dead []string, retiring bool, n int) error {
	l.mu.Lock()
	held := make([]int32, 0, len(l.held))
	for index := range l.held {
		held = append(held, int32(index))
	}
	l.mu.Unlock()
	// A session whose former owner is in the middle of a commit is locked by its fence: it is passed
	// over and taken a heartbeat later, when that commit is visible.
	rows, err := l.pool.Query(db, `
		with candidate as (
			select s.index, s.kept and ($4 or s.client_id = $8::text || '-' || s.index) as kept
			from `+l.table("sessions")+` s
			where s.share_name = $1 and not s.index = any ($2::int[])
			  and (s.index >= $3 or s.drain_requested_at is not null) = $4 and not ($4 and s.retired_at is not null)
			  and (s.owner is null or s.owner = $5 or s.owner = any ($6::text[]))
			order by s.index limit $7 for update skip locked)
		update `+l.table("sessions")+` s
		set owner = $5, epoch = s.epoch + 1, acquired_at = now(),
		    client_id = case when $4 then s.client_id else $8::text || '-' || s.index end,
		    subscriptions = case when $4 then s.subscriptions else array(select distinct unnest(s.subscriptions || $9::text[]) order by 1) end,
		    kept = candidate.kept, retired_at = null
		from candidate where s.share_name = $1 and s.index = candidate.index
		returning s.index, s.client_id, s.epoch, s.share_name, s.subscriptions, s.kept`,
		l.cfg.ShareName, held, l.cfg.Sessions, retiring, l.cfg.Owner, append([]string{}, dead...), n, l.cfg.ClientIDPrefix, l.cfg.subscriptions())
	if err != nil {
		return fmt.Errorf("claim sessions: %w", err)
	}
	leases, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (*Lease, error) {
		lease := &Lease{Retiring: retiring}
		err := row.Scan(&lease.Index, &lease.ClientID, &lease.Epoch, &lease.ShareName, &lease.Subscriptions, &lease.Known)
		return lease, err
	})
	if err != nil {
		return fmt.Errorf("claim sessions: %w", err)
	}
	for _, lease := range leases {
		l.log.Info("session taken", zap.Int("session", lease.Index), zap.String("client_id", lease.ClientID), zap.Int64("epoch", lease.Epoch), zap.Bool("to_be_drained", retiring))
		l.start(ctx, lease, hold)
	}
	return nil
}

// bury removes the rows of dead replicas that own nothing any more. One that was merely cut off makes
// its row anew.
func (l *Leases) bury(db context.Context, dead []string) error {
	if len(dead) == 0 {
		return nil
	}
	_, err := l.pool.Exec(db, `delete from `+l.table("replicas")+` r where id = any ($1) and not exists (select from `+l.table("sessions")+` s where s.owner = r.id)`, dead)
	if err != nil {
		return fmt.Errorf("remove dead replicas: %w", err)
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

// Subscribed notes that the broker's session is subscribed to what is wanted and to nothing else. kept
// says whether the broker is to keep it while nobody is connected, for [Lease.Known] of the next owner. It waits
// at most LeaseConfig.TTL; [ErrFenced] says that the session has another owner.
func (l *Leases) Subscribed(ctx context.Context, lease *Lease, kept bool) error {
	return l.note(ctx, lease, "subscriptions = $4, kept = $5", l.cfg.subscriptions(), kept)
}

// Ending notes that the session is drained and about to be ended at the broker, so that nobody takes
// it for lost should this process not get as far as [Leases.Retired]. Waiting and errors as [Leases.Subscribed].
func (l *Leases) Ending(ctx context.Context, lease *Lease) error {
	return l.note(ctx, lease, "kept = false")
}

// Retired notes that the session has been drained and ended at the broker. Waiting and errors as [Leases.Subscribed].
func (l *Leases) Retired(ctx context.Context, lease *Lease) error {
	return l.note(ctx, lease, "subscriptions = '{}', kept = false, retired_at = now()")
}

// note changes the row of a session that is held; parameters of the change begin with $4.
func (l *Leases) note(ctx context.Context, lease *Lease, set string, values ...any) error {
	ctx, cancel := context.WithTimeout(ctx, l.cfg.TTL)
	defer cancel()
	tag, err := l.pool.Exec(ctx, "update "+l.table("sessions")+" set "+set+" where share_name = $1 and index = $2 and epoch = $3",
		append([]any{lease.ShareName, lease.Index, lease.Epoch}, values...)...)
	if err != nil {
		return fmt.Errorf("update session %d: %w", lease.Index, err)
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

// forget makes the next Run begin as the first one did.
func (l *Leases) forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.status = LeaseStatus{}
	l.steadySince, l.lastHeartbeat = time.Time{}, time.Time{}
	clear(l.pulses)
}

func (l *Leases) table(name string) string { return pgx.Identifier{l.cfg.Schema, name}.Sanitize() }
