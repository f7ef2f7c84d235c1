package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap/zaptest"
)

// replica is one process that takes part in a share, as far as leases go.
type replica struct {
	t      *testing.T
	leases *Leases
	stop   context.CancelCauseFunc
	ended  chan struct{}

	reaches atomic.Pointer[bool] // whether it reaches the broker; nil: it does not tell

	mu      sync.Mutex
	holding map[int]int64 // index to epoch
	causes  []error       // why holds ended
	taken   int           // how many holds began
	linger  time.Duration // how long a hold works on after its context ended
	ending  int           // holds whose context has ended
	most    int           // of ending, at any time
}

const testTTL = 600 * time.Millisecond

func startReplica(t *testing.T, pool *pgxpool.Pool, name string, sessions int) *replica {
	t.Helper()
	return startReplicaWith(t, pool, name, sessions, testTTL)
}

func startReplicaWith(t *testing.T, pool *pgxpool.Pool, name string, sessions int, ttl time.Duration) *replica {
	t.Helper()
	r := &replica{t: t, holding: map[int]int64{}, ended: make(chan struct{})}
	r.leases = NewLeases(pool, LeaseConfig{
		ShareName: "share", Sessions: sessions, Owner: name, Heartbeat: 40 * time.Millisecond, TTL: ttl, ReachesBroker: r.reaches.Load,
		Log: zaptest.NewLogger(t).Named(name), Metrics: NewMetrics(prometheus.NewRegistry()),
	})
	ctx, cancel := context.WithCancelCause(context.Background())
	r.stop = cancel
	go func() {
		defer close(r.ended)
		if err := r.leases.Run(ctx, r.hold); err != nil {
			t.Errorf("run: %v", err)
		}
	}()
	t.Cleanup(r.end)
	return r
}

func (r *replica) hold(ctx context.Context, lease *Lease) {
	r.mu.Lock()
	r.holding[lease.Index] = lease.Epoch
	r.taken++
	r.mu.Unlock()
	<-ctx.Done()
	r.mu.Lock()
	r.ending++
	r.most = max(r.most, r.ending)
	linger := r.linger
	r.mu.Unlock()
	time.Sleep(linger)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ending--
	delete(r.holding, lease.Index)
	r.causes = append(r.causes, context.Cause(ctx))
}

func (r *replica) end() {
	r.stop(nil)
	<-r.ended
}

func (r *replica) holds() []int {
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []int
	for index := range r.holding {
		all = append(all, index)
	}
	slices.Sort(all)
	return all
}

func (r *replica) began() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.taken
}

func (r *replica) why() []error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.causes)
}

// shared waits until the replicas hold so many sessions, all of them different.
func shared(t *testing.T, counts []int, replicas ...*replica) {
	t.Helper()
	eventually(t, fmt.Sprintf("sessions are shared %v", counts), func() bool {
		var got []int
		seen := map[int]bool{}
		for _, r := range replicas {
			held := r.holds()
			got = append(got, len(held))
			for _, index := range held {
				seen[index] = true
			}
		}
		sum := 0
		for _, n := range got {
			sum += n
		}
		slices.Sort(got)
		return slices.Equal(got, counts) && len(seen) == sum
	})
}

// beats waits for so many heartbeats of a replica.
func beats(t *testing.T, pool *pgxpool.Pool, owner string, n int) {
	t.Helper()
	var last time.Time
	for range n + 1 {
		eventually(t, "another heartbeat of "+owner, func() bool {
			at := value[time.Time](t, pool, `select coalesce(max(heartbeat_at), 'epoch') from bridge.replicas where id = $1`, owner)
			defer func() { last = at }()
			return at.After(last) && at.Year() > 2000
		})
	}
}

func TestOneReplicaHoldsAll(t *testing.T) {
	t.Parallel()
	_, pool := newDatabase(t)
	a := startReplica(t, pool, "a", 3)
	shared(t, []int{3}, a)
	if got := list[string](t, pool, `select share_name || ' ' || index || ' ' || client_id || ' ' || owner || ' ' || epoch from bridge.sessions order by index`); !slices.Equal(got,
		[]string{"share 0 share-0 a 1", "share 1 share-1 a 1", "share 2 share-2 a 1"}) {
		t.Errorf("sessions %q", got)
	}
	if s := a.leases.Status(); !slices.Equal(s.Owned, []int{0, 1, 2}) || s.Replicas != 1 || s.LastHeartbeat.IsZero() || s.LastTurn.Before(s.LastHeartbeat) || s.LastError != "" {
		t.Errorf("status %+v", s)
	}
	a.end()
	if n := value[int](t, pool, `select count(*)::int from bridge.sessions where owner is not null`); n != 0 {
		t.Errorf("%d sessions not released", n)
	}
	if n := value[int](t, pool, `select count(*)::int from bridge.replicas`); n != 0 {
		t.Errorf("%d replica rows left behind", n)
	}
	for _, cause := range a.why() {
		if !errors.Is(cause, context.Canceled) {
			t.Errorf("a hold ended because of %v", cause)
		}
	}
	b := startReplica(t, pool, "b", 3)
	shared(t, []int{3}, b)
	if n := value[int](t, pool, `select min(epoch)::int from bridge.sessions`); n != 2 {
		t.Errorf("epoch %d after a second owner, want 2", n)
	}
}

// TestFairShare lets replicas join and leave, and looks that nothing moves without need.
func TestFairShare(t *testing.T) {
	t.Parallel()
	_, pool := newDatabase(t)
	a := startReplica(t, pool, "a", 5)
	shared(t, []int{5}, a)
	b := startReplica(t, pool, "b", 5)
	shared(t, []int{2, 3}, a, b)
	for _, cause := range a.why() {
		if !errors.Is(cause, ErrGivenUp) {
			t.Errorf("a hold ended because of %v, want ErrGivenUp", cause)
		}
	}
	c := startReplica(t, pool, "c", 5)
	shared(t, []int{1, 2, 2}, a, b, c)
	began := a.began() + b.began() + c.began()
	beats(t, pool, "a", 20)
	if n := a.began() + b.began() + c.began(); n != began {
		t.Errorf("%d sessions moved although nothing had changed", n-began)
	}
	b.end()
	shared(t, []int{2, 3}, a, c)
	c.end()
	shared(t, []int{5}, a)
}

// TestHotStandby: more replicas than sessions.
func TestHotStandby(t *testing.T) {
	t.Parallel()
	_, pool := newDatabase(t)
	a := startReplica(t, pool, "a", 1)
	shared(t, []int{1}, a)
	b := startReplica(t, pool, "b", 1)
	beats(t, pool, "b", 10)
	shared(t, []int{0, 1}, b, a)
	if a.began() != 1 || b.began() != 0 {
		t.Errorf("the session moved: %d and %d holds began", a.began(), b.began())
	}
	a.end()
	shared(t, []int{1}, b)
}

// tells makes the replica say whether it reaches the broker.
func (r *replica) tells(reaches bool) { r.reaches.Store(&reaches) }

// TestReplicasTellOfTheBroker: each knows of the live others whether they reach the broker, and nothing of what it told itself.
func TestReplicasTellOfTheBroker(t *testing.T) {
	t.Parallel()
	url, pool := newDatabase(t)
	own := newPool(t, url)
	a, b, c := startReplica(t, pool, "a", 1), startReplica(t, own, "b", 1), startReplica(t, pool, "c", 1)
	told := func() string {
		return value[string](t, pool, `select string_agg(id || ' ' || coalesce(reaches_broker::text, 'null'), ', ' order by id) from bridge.replicas where id <> 'dead'`)
	}
	knows := func(r *replica, reached, missed bool) {
		t.Helper()
		eventually(t, fmt.Sprintf("of the others is known: one reaches the broker %t, one does not %t", reached, missed), func() bool {
			s := r.leases.Status()
			return s.Replicas >= 3 && s.BrokerReached == reached && s.BrokerMissed == missed
		})
	}
	knows(b, false, false)
	if got := told(); got != "a null, b null, c null" {
		t.Errorf("told: %s", got)
	}
	a.tells(true)
	knows(b, true, false)
	knows(a, false, false)
	a.tells(false)
	knows(b, false, true)
	knows(a, false, false)
	c.tells(true)
	knows(b, true, true)
	if got := told(); got != "a false, b null, c true" {
		t.Errorf("told: %s", got)
	}
	c.reaches.Store(nil)
	a.reaches.Store(nil)
	knows(b, false, false)

	// One that is dead and cannot be removed: it owns a session that nobody takes any more.
	execute(t, pool, `insert into bridge.sessions (share_name, index, client_id, owner, epoch, retired_at) values ('share', 9, 'share-9', 'dead', 4, now())`)
	execute(t, pool, `insert into bridge.replicas (id, share_name, host, reaches_broker) values ('dead', 'share', 'h', true)`)
	knows(b, true, false)
	knows(b, false, false)
	if n := value[int](t, pool, `select count(*)::int from bridge.replicas where id = 'dead'`); n != 1 {
		t.Error("the dead replica's row is gone")
	}

	// Without the database nothing is known.
	a.tells(true)
	c.tells(false)
	knows(b, true, true)
	release := takeAll(t, own)
	eventually(t, "b is without the database", func() bool { return b.leases.Status().LastError != "" })
	if s := b.leases.Status(); s.BrokerReached || s.BrokerMissed {
		t.Errorf("it knows %+v", s)
	}
	release()
	knows(b, true, true)
}

// TestRunsAgain: leases that were left know nothing of the time before, and can be taken up again.
func TestRunsAgain(t *testing.T) {
	t.Parallel()
	_, pool := newDatabase(t)
	a := startReplica(t, pool, "a", 2)
	shared(t, []int{2}, a)
	a.end()
	if s := a.leases.Status(); len(s.Owned) > 0 || s.Replicas != 0 || !s.LastTurn.IsZero() || !s.LastHeartbeat.IsZero() {
		t.Errorf("status after the end: %+v", s)
	}
	b := startReplica(t, pool, "b", 2)
	shared(t, []int{2}, b)
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- a.leases.Run(ctx, a.hold) }()
	shared(t, []int{1, 1}, a, b)
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	shared(t, []int{2}, b)
}

// crashed is a replica that died without a word some time ago.
func crashed(t *testing.T, pool *pgxpool.Pool, name string, ago time.Duration) {
	t.Helper()
	execute(t, pool, `insert into bridge.replicas (id, share_name, host, heartbeat_at) values ($1, 'share', 'h', now() - $2 * interval '1 second')`, name, ago.Seconds())
}

// TestOwnersRenewFirst is the end of an outage as a replica sees it that is back before the others: all
// heartbeats are old, and it must not take what an owner is about to renew.
func TestOwnersRenewFirst(t *testing.T) {
	t.Parallel()
	_, pool := newDatabase(t)
	crashed(t, pool, "owner", time.Hour)
	execute(t, pool, `insert into bridge.sessions (share_name, index, client_id, owner, epoch) values ('share', 0, 'share-0', 'owner', 4)`)
	a := startReplicaWith(t, pool, "a", 1, 10*time.Second)
	beats(t, pool, "a", 3)
	execute(t, pool, `update bridge.replicas set heartbeat_at = now() + interval '1 hour' where id = 'owner'`)
	beats(t, pool, "a", 3)
	if n := a.began(); n != 0 {
		t.Error("the session was taken before its owner could renew")
	}
}

// TestSessionsAreHandedOverOneByOne, however long each takes.
func TestSessionsAreHandedOverOneByOne(t *testing.T) {
	t.Parallel()
	_, pool := newDatabase(t)
	a := startReplica(t, pool, "a", 6)
	a.mu.Lock()
	a.linger = 150 * time.Millisecond
	a.mu.Unlock()
	shared(t, []int{6}, a)
	b := startReplica(t, pool, "b", 6)
	shared(t, []int{3, 3}, a, b)
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.most != 1 {
		t.Errorf("%d sessions were handed over at once", a.most)
	}
}

func TestOrphansAreTakenOver(t *testing.T) {
	t.Parallel()
	_, pool := newDatabase(t)
	crashed(t, pool, "dead", 0)
	execute(t, pool, `insert into bridge.sessions (share_name, index, client_id, owner, epoch) values ('share', 0, 'share-0', 'dead', 4), ('share', 1, 'share-1', 'gone', 9)`)
	a := startReplica(t, pool, "a", 2)
	shared(t, []int{2}, a)
	if got := list[int64](t, pool, `select epoch from bridge.sessions order by index`); !slices.Equal(got, []int64{5, 10}) {
		t.Errorf("epochs %v, want 5 and 10", got)
	}
}

// TestStalledReplicaIsReplaced stops the heartbeat of a replica that believes it is alive.
func TestStalledReplicaIsReplaced(t *testing.T) {
	t.Parallel()
	url, pool := newDatabase(t)
	own := newPool(t, url)
	a := startReplica(t, own, "a", 2)
	shared(t, []int{2}, a)
	b := startReplica(t, pool, "b", 2)
	shared(t, []int{1, 1}, a, b)
	// All connections of a stay taken: it cannot reach the database, others can.
	release := takeAll(t, own)
	eventually(t, "b takes over", func() bool { return len(b.holds()) == 2 })
	if n := len(a.holds()); n != 1 {
		t.Errorf("a gave up by itself: it holds %d", n)
	}
	release()
	eventually(t, "a notices that it was replaced", func() bool {
		return slices.ContainsFunc(a.why(), func(err error) bool { return errors.Is(err, ErrFenced) })
	})
	shared(t, []int{1, 1}, a, b)
}

// TestOutageMovesNothing stops the database for much longer than the TTL.
func TestOutageMovesNothing(t *testing.T) {
	t.Parallel()
	server, pool := ownServer(t)
	a, b := startReplica(t, pool, "a", 4), startReplica(t, newPool(t, server.URL("postgres")), "b", 4)
	shared(t, []int{2, 2}, a, b)
	began := a.began() + b.began()
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "both notice", func() bool { return a.leases.Status().LastError != "" && b.leases.Status().LastError != "" })
	time.Sleep(2 * testTTL)
	if len(a.holds()) != 2 || len(b.holds()) != 2 {
		t.Errorf("sessions were given up without a database: %v %v", a.holds(), b.holds())
	}
	if err := server.Restart(context.Background()); err != nil {
		t.Fatal(err)
	}
	beats(t, pool, "a", 5)
	beats(t, pool, "b", 30)
	if n := a.began() + b.began(); n != began {
		t.Errorf("%d sessions moved", n-began)
	}
}

// TestHeartbeatGoesOnWhileHoldsFinish: a long drain at shutdown must not look like a death.
func TestHeartbeatGoesOnWhileHoldsFinish(t *testing.T) {
	t.Parallel()
	_, pool := newDatabase(t)
	a := startReplica(t, pool, "a", 1)
	shared(t, []int{1}, a)
	a.mu.Lock()
	a.linger = 3 * testTTL
	a.mu.Unlock()
	b := startReplica(t, pool, "b", 1)
	beats(t, pool, "b", 2)
	a.stop(errors.New("shutdown"))
	shared(t, []int{1}, b)
	if n := len(a.holds()); n != 0 {
		t.Errorf("b took the session while a was still finishing")
	}
	if n := value[int](t, pool, `select epoch::int from bridge.sessions`); n != 2 {
		t.Errorf("epoch %d, want 2", n)
	}
}

// TestHoldThatReturnsFreesTheSession, and the next heartbeat takes it again with a new epoch.
func TestHoldThatReturnsFreesTheSession(t *testing.T) {
	t.Parallel()
	_, pool := newDatabase(t)
	leases := NewLeases(pool, LeaseConfig{ShareName: "share", Owner: "a", Heartbeat: 20 * time.Millisecond, TTL: testTTL, Log: zaptest.NewLogger(t)})
	ctx, cancel := context.WithCancel(context.Background())
	var mu sync.Mutex
	var epochs []int64
	ended := make(chan error, 1)
	go func() {
		ended <- leases.Run(ctx, func(_ context.Context, lease *Lease) {
			mu.Lock()
			epochs = append(epochs, lease.Epoch)
			mu.Unlock()
		})
	}()
	eventually(t, "three holds", func() bool { mu.Lock(); defer mu.Unlock(); return len(epochs) >= 3 })
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	mu.Lock()
	defer mu.Unlock()
	if !slices.Equal(epochs[:3], []int64{1, 2, 3}) {
		t.Errorf("epochs %v, want 1 2 3", epochs)
	}
}

// TestClaimWaitsForTheLastCommit: a session whose former owner is inside a transaction is not taken.
func TestClaimWaitsForTheLastCommit(t *testing.T) {
	t.Parallel()
	_, pool := newDatabase(t)
	execute(t, pool, `insert into bridge.sessions (share_name, index, client_id, owner, epoch) values ('share', 0, 'share-0', null, 1)`)
	tx, err := pool.Begin(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.Background()) }()
	if _, err := tx.Exec(context.Background(), `select bridge.fence('share', 0, 1)`); err != nil {
		t.Fatal(err)
	}
	a := startReplica(t, pool, "a", 1)
	beats(t, pool, "a", 5)
	if n := a.began(); n != 0 {
		t.Error("the session was taken in the middle of its former owner's commit")
	}
	if err := tx.Commit(context.Background()); err != nil {
		t.Fatal(err)
	}
	shared(t, []int{1}, a)
}

// TestRetiring: sessions beyond the configured number are taken one at a time, whatever the fair share,
// and are left alone when they are retired.
func TestRetiring(t *testing.T) {
	t.Parallel()
	_, pool := newDatabase(t)
	execute(t, pool, `insert into bridge.sessions (share_name, index, client_id, epoch, subscriptions) values
		('share', 7, 'old-7', 3, '{$share/share/a/#}'), ('share', 8, 'share-8', 1, '{}'), ('other', 9, 'other-9', 0, '{}')`)
	a := startReplica(t, pool, "a", 2)
	shared(t, []int{3}, a)
	var retiring *Lease
	for _, lease := range a.leases.Owned() {
		if lease.Retiring {
			retiring = lease
		}
	}
	if retiring == nil || retiring.Index != 7 || retiring.ClientID != "old-7" || retiring.Epoch != 4 || !slices.Equal(retiring.Subscriptions, []string{"$share/share/a/#"}) {
		t.Fatalf("retiring %+v", retiring)
	}
	if s := a.leases.Status(); !slices.Equal(s.Retiring, []int{7, 8}) {
		t.Errorf("to be retired: %v", s.Retiring)
	}
	if err := a.leases.Retired(t.Context(), retiring); err != nil {
		t.Fatal(err)
	}
	if err := a.leases.Retired(t.Context(), &Lease{ShareName: "share", Index: 8, Epoch: 99}); !errors.Is(err, ErrFenced) {
		t.Errorf("a session of another epoch: %v", err)
	}
	a.end()
	b := startReplica(t, pool, "b", 2)
	eventually(t, "the other one is taken", func() bool {
		return slices.ContainsFunc(b.leases.Owned(), func(l *Lease) bool { return l.Index == 8 && l.Retiring })
	})
	beats(t, pool, "b", 5)
	if slices.ContainsFunc(b.leases.Owned(), func(l *Lease) bool { return l.Index == 7 }) {
		t.Error("a retired session was taken again")
	}
	if n := value[int](t, pool, `select count(*)::int from bridge.sessions where share_name = 'other' and epoch = 0 and owner is null`); n != 1 {
		t.Error("a session of another share was touched")
	}
	b.end()

	c := startReplica(t, pool, "c", 8) // the number is raised again
	shared(t, []int{9}, c)
	if n := value[int](t, pool, `select count(*)::int from bridge.sessions where index = 7 and retired_at is null and epoch = 5 and client_id = 'share-7'`); n != 1 {
		t.Error("the session is not in use again, with a greater epoch")
	}
}

// TestSubscriptionsAddUp: until the difference is mended, the database knows of all that the broker's
// session may be subscribed to.
func TestSubscriptionsAddUp(t *testing.T) {
	t.Parallel()
	_, pool := newDatabase(t)
	execute(t, pool, `insert into bridge.sessions (share_name, index, client_id, subscriptions) values ('share', 0, 'share-0', '{b,a}')`)
	l := NewLeases(pool, LeaseConfig{ShareName: "share", Owner: "a", Subscriptions: []string{"c", "b"}, Heartbeat: 40 * time.Millisecond, TTL: testTTL})
	ctx, stop := context.WithCancel(t.Context())
	stored := func() string {
		return value[string](t, pool, `select array_to_string(subscriptions, ' ') from bridge.sessions`)
	}
	err := l.Run(ctx, func(ctx context.Context, lease *Lease) {
		defer stop()
		if !slices.Equal(lease.Subscriptions, []string{"a", "b", "c"}) || stored() != "a b c" {
			t.Errorf("lease %v, stored %s", lease.Subscriptions, stored())
		}
		if err := l.Subscribed(ctx, lease, true); err != nil {
			t.Error(err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := stored(); got != "c b" {
		t.Errorf("stored %s", got)
	}
}

// TestKnownSession: the next owner of a session knows whether the broker is to have it, and takes none
// for lost that the broker never had or was to forget.
func TestKnownSession(t *testing.T) {
	t.Parallel()
	_, pool := newDatabase(t)
	note := func(*Leases, *Lease) error { return nil }
	for _, step := range []struct {
		name   string
		prefix string
		before string
		do     func(*Leases, *Lease) error
		known  bool // the lease, when it is taken
	}{
		{name: "brand-new", do: note},
		{name: "connections were begun, none was accepted", before: `update bridge.sessions set connections = 5`, do: note},
		{name: "still brand-new", do: func(l *Leases, lease *Lease) error { return l.Subscribed(t.Context(), lease, true) }},
		{name: "left with the broker", do: note, known: true},
		{name: "left again, by an owner that did not get to connect", known: true, do: func(l *Leases, lease *Lease) error { return l.Subscribed(t.Context(), lease, false) }},
		{name: "with Session Expiry 0", do: func(l *Leases, lease *Lease) error { return l.Subscribed(t.Context(), lease, true) }},
		{name: "another client id is another session", prefix: "other", do: note},
		{name: "and the old one does not come back to mind", do: func(l *Leases, lease *Lease) error { return l.Subscribed(t.Context(), lease, true) }},
		{name: "taken out of use", before: `update bridge.sessions set drain_requested_at = now()`, known: true, do: func(l *Leases, lease *Lease) error { return l.Ending(t.Context(), lease) }},
		{name: "drained, and perhaps ended", do: func(l *Leases, lease *Lease) error { return l.Retired(t.Context(), lease) }},
		{name: "in use again", before: `update bridge.sessions set drain_requested_at = null`, do: note},
		{name: "in use again, but not connected yet", do: func(l *Leases, lease *Lease) error { return l.Subscribed(t.Context(), lease, true) }},
		{name: "taken out of use again", before: `update bridge.sessions set drain_requested_at = now()`, known: true, do: func(l *Leases, lease *Lease) error { return l.Retired(t.Context(), lease) }},
		{name: "retired without a word before", before: `update bridge.sessions set drain_requested_at = null`, do: note},
	} {
		if step.before != "" {
			execute(t, pool, step.before)
		}
		l := NewLeases(pool, LeaseConfig{ShareName: "share", ClientIDPrefix: step.prefix, Owner: "a", Heartbeat: 20 * time.Millisecond, TTL: testTTL})
		ctx, stop := context.WithCancel(t.Context())
		var once sync.Once
		err := l.Run(ctx, func(_ context.Context, lease *Lease) {
			once.Do(func() {
				defer stop()
				if lease.Known != step.known {
					t.Errorf("%s: known %v, want %v", step.name, lease.Known, step.known)
				}
				if err := step.do(l, lease); err != nil {
					t.Errorf("%s: %v", step.name, err)
				}
			})
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// TestShares checks the arithmetic of fair shares for every small state.
func TestShares(t *testing.T) {
	t.Parallel()
	for sessions := range 6 {
		for replicas := 1; replicas <= 4; replicas++ {
			counts := map[string]int{}
			for i := range replicas {
				counts[string(rune('a'+i))] = 0
			}
			counts["a"] = sessions // the worst state: one holds everything
			free, moves := 0, 0
			for moved := true; moved; moves++ {
				moved = false
				for id := range counts {
					if n := min(free, entitled(id, sessions, counts)-counts[id]); n > 0 {
						counts[id] += n
						free -= n
						moved = true
					} else if free == 0 && surplus(id, sessions, counts) {
						counts[id]--
						free++
						moved = true
					}
				}
				if moves > 100 {
					t.Fatalf("%d sessions, %d replicas: never at rest: %v", sessions, replicas, counts)
				}
			}
			for id, n := range counts {
				if floor := sessions / replicas; free != 0 || n < floor || n > floor+1 {
					t.Errorf("%d sessions, %d replicas: %s holds %d, %d are free", sessions, replicas, id, n, free)
				}
			}
		}
	}
}

// TestConfirmed: who is cut off from the database may not be sure of its sessions.
func TestConfirmed(t *testing.T) {
	t.Parallel()
	_, pool := newDatabase(t)
	l := NewLeases(pool, LeaseConfig{ShareName: "share", Owner: "a", Heartbeat: 20 * time.Millisecond, TTL: testTTL})
	if err := l.Confirmed(); err == nil {
		t.Error("confirmed before the first heartbeat")
	}
	ctx, stop := context.WithCancel(t.Context())
	err := l.Run(ctx, func(_ context.Context, _ *Lease) {
		defer stop()
		eventually(t, "confirmed", func() bool { return l.Confirmed() == nil })
		execute(t, pool, `alter table bridge.replicas rename to gone`) // from here on no heartbeat succeeds
		eventually(t, "not confirmed any more", func() bool { return l.Confirmed() != nil })
		execute(t, pool, `alter table bridge.gone rename to replicas`)
		eventually(t, "confirmed again", func() bool { return l.Confirmed() == nil })
	})
	if err != nil {
		t.Fatal(err)
	}
}

// takeAll takes all connections of a pool: who has it cannot reach the database, while others can.
func takeAll(t *testing.T, pool *pgxpool.Pool) (release func()) {
	t.Helper()
	var taken []*pgxpool.Conn
	for range pool.Config().MaxConns {
		conn, err := pool.Acquire(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		taken = append(taken, conn)
	}
	return func() {
		for _, conn := range taken {
			conn.Release()
		}
	}
}
