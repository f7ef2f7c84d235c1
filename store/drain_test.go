package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// states are the sessions of all shares with their states.
func states(t *testing.T, url string) string {
	t.Helper()
	all, err := ListSessions(t.Context(), connection(t, url), "bridge")
	if err != nil {
		t.Fatal(err)
	}
	var text []string
	for _, s := range all {
		text = append(text, fmt.Sprintf("%s-%d %s", s.ShareName, s.Index, s.State))
	}
	return strings.Join(text, ", ")
}

// TestDrain: a session that is taken out of use is given up, taken to be drained, and then left alone,
// over restarts as well, until it is put back. The fair share counts only what is in use.
func TestDrain(t *testing.T) {
	t.Parallel()
	url, pool := newDatabase(t)
	conn := connection(t, url)
	a, b := startReplica(t, pool, "a", 4), startReplica(t, pool, "b", 4)
	shared(t, []int{2, 2}, a, b)
	if before, err := RequestDrain(t.Context(), conn, "bridge", "share", 2, false); err != nil || before.State != SessionHeld || before.ClientID != "share-2" {
		t.Fatalf("%+v, %v", before, err)
	}
	retiring := func() *Lease {
		for _, r := range []*replica{a, b} {
			for _, lease := range r.leases.Owned() {
				if lease.Retiring {
					return lease
				}
			}
		}
		return nil
	}
	eventually(t, "somebody drains it", func() bool { return retiring() != nil })
	lease := retiring()
	if lease.Index != 2 || lease.Epoch < 2 {
		t.Errorf("lease %+v", lease)
	}
	if !slices.ContainsFunc(append(a.why(), b.why()...), func(err error) bool { return errors.Is(err, ErrReassigned) }) {
		t.Errorf("holds ended because of %v and %v", a.why(), b.why())
	}
	if s := states(t, url); s != "share-0 held, share-1 held, share-2 draining, share-3 held" {
		t.Error(s)
	}
	all, err := ListSessions(t.Context(), conn, "bridge")
	if err != nil || !all[2].AcquiredToDrain || all[1].AcquiredToDrain {
		t.Errorf("%+v, %v", all, err)
	}
	if before, err := RequestDrain(t.Context(), conn, "bridge", "share", 2, false); err != nil || before.State != SessionDraining {
		t.Errorf("a second request: %+v, %v", before, err)
	}
	if s := a.leases.Status(); s.InUse != 3 || !slices.Equal(s.Retiring, []int{2}) || len(s.Drained) != 0 {
		t.Errorf("status %+v", s)
	}
	// The service notes it when the broker has forgotten the session, and its hold returns.
	if err := a.leases.Retired(t.Context(), lease); err != nil {
		t.Fatal(err)
	}
	a.end()
	b.end()
	if s := states(t, url); s != "share-0 free, share-1 free, share-2 drained, share-3 free" {
		t.Error(s)
	}

	c := startReplica(t, pool, "c", 4)
	shared(t, []int{3}, c)
	beats(t, pool, "c", 5)
	if held := c.holds(); !slices.Equal(held, []int{0, 1, 3}) {
		t.Errorf("after a restart %v are held", held)
	}
	if s := c.leases.Status(); s.InUse != 3 || len(s.Retiring) != 0 || !slices.Equal(s.Drained, []int{2}) {
		t.Errorf("status %+v", s)
	}
	if before, err := RequestDrain(t.Context(), conn, "bridge", "share", 2, false); err != nil || before.State != SessionDrained {
		t.Errorf("a request after the end: %+v, %v", before, err)
	}
	if before, err := UndoDrain(t.Context(), conn, "bridge", "share", 2); err != nil || before.State != SessionDrained {
		t.Errorf("undo: %+v, %v", before, err)
	}
	shared(t, []int{4}, c)
	if epoch := value[int64](t, pool, `select epoch from bridge.sessions where index = 2`); epoch <= lease.Epoch {
		t.Errorf("epoch %d after %d", epoch, lease.Epoch)
	}
	if before, err := UndoDrain(t.Context(), conn, "bridge", "share", 2); err != nil || before.State != SessionHeld {
		t.Errorf("undo of a session in use: %+v, %v", before, err)
	}
}

// TestDrainIsUndoneHalfWay: the session comes back although it was being drained already.
func TestDrainIsUndoneHalfWay(t *testing.T) {
	t.Parallel()
	url, pool := newDatabase(t)
	conn := connection(t, url)
	a := startReplica(t, pool, "a", 2)
	shared(t, []int{2}, a)
	if _, err := RequestDrain(t.Context(), conn, "bridge", "share", 0, false); err != nil {
		t.Fatal(err)
	}
	drains := func() bool {
		return slices.ContainsFunc(a.leases.Owned(), func(l *Lease) bool { return l.Retiring })
	}
	eventually(t, "it is being drained", drains)
	if before, err := UndoDrain(t.Context(), conn, "bridge", "share", 0); err != nil || before.State != SessionDraining {
		t.Errorf("undo: %+v, %v", before, err)
	}
	eventually(t, "it is in use again", func() bool { return !drains() && len(a.holds()) == 2 })
}

// TestDrainIsRefused where it could only do harm or nothing at all.
func TestDrainIsRefused(t *testing.T) {
	t.Parallel()
	url, pool := newDatabase(t)
	conn := connection(t, url)
	drain := func(share string, index int, force bool) error {
		_, err := RequestDrain(t.Context(), conn, "bridge", share, index, force)
		return err
	}
	refused := func(err error, words string) {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("%v, want %q", err, words)
		}
	}
	refused(drain("share", 0, true), "no bridge has run with this schema yet")
	execute(t, pool, `insert into bridge.sessions (share_name, index, client_id, retired_at) values
		('share', 0, 'share-0', null), ('share', 1, 'share-1', null), ('share', 2, 'share-2', now()), ('other', 0, 'other-0', null)`)
	refused(drain("share", 3, false), "session 3 of share share: no such session: the indices of the share are 0, 1, 2")
	refused(drain("mine", 0, false), "no such share in this database, which has other, share; BRIDGE_MQTT_SHARE_NAME")
	refused(drain("share", 2, true), "beyond BRIDGE_MQTT_SESSIONS")
	if err := drain("share", 0, false); !errors.Is(err, ErrNoReplica) {
		t.Errorf("nobody could drain it: %v", err)
	}
	crashed(t, pool, "dead", time.Minute)
	if err := drain("share", 0, true); !errors.Is(err, ErrNoReplica) {
		t.Errorf("only a dead replica could: %v", err)
	}
	if _, err := UndoDrain(t.Context(), conn, "bridge", "share", 2); err == nil || !strings.Contains(err.Error(), "a greater number brings it back") {
		t.Errorf("undo of a retired session: %v", err)
	}
	if n := value[int](t, pool, `select count(*)::int from bridge.sessions where drain_requested_at is not null`); n != 0 {
		t.Errorf("%d requests although all were refused", n)
	}
	execute(t, pool, `insert into bridge.replicas (id, share_name, host) values ('live', 'share', 'h')`)
	if err := drain("share", 0, false); err != nil {
		t.Error(err)
	}
	if err := drain("share", 1, false); !errors.Is(err, ErrLastSession) {
		t.Errorf("the last one: %v", err)
	}
	if err := drain("share", 1, true); err != nil {
		t.Errorf("the last one, by force: %v", err)
	}
	if n := value[int](t, pool, `select count(*)::int from bridge.sessions where drain_requested_at is not null`); n != 2 {
		t.Errorf("%d requests", n)
	}
	if s := states(t, url); s != "other-0 free, share-0 draining, share-1 draining, share-2 retired" {
		t.Error(s)
	}
	// With nothing in use nobody holds anything, and nothing goes round in circles.
	a := startReplica(t, pool, "a", 2)
	beats(t, pool, "a", 3)
	if s := a.leases.Status(); s.InUse != 0 {
		t.Errorf("status %+v", s)
	}
}

// TestDrainOfTheLastTwoAtOnce: of two commands that take one each of the last two sessions, one is refused.
func TestDrainOfTheLastTwoAtOnce(t *testing.T) {
	t.Parallel()
	url, pool := newDatabase(t)
	execute(t, pool, `insert into bridge.sessions (share_name, index, client_id) values ('share', 0, 'share-0'), ('share', 1, 'share-1')`)
	execute(t, pool, `insert into bridge.replicas (id, share_name, host) values ('live', 'share', 'h')`)
	errs := make(chan error)
	for i := range 2 {
		conn := connection(t, url)
		go func() {
			_, err := RequestDrain(context.Background(), conn, "bridge", "share", i, false)
			errs <- err
		}()
	}
	refused := 0
	for range 2 {
		if err := <-errs; errors.Is(err, ErrLastSession) {
			refused++
		} else if err != nil {
			t.Error(err)
		}
	}
	if refused != 1 {
		t.Errorf("%d of two were refused", refused)
	}
}

// TestClocksMoveNothing: the clock of the database jumps an hour ahead and back under two replicas,
// between any two heartbeats.
func TestClocksMoveNothing(t *testing.T) {
	t.Parallel()
	url, pool := newDatabase(t)
	execute(t, pool, `create schema clock; create table clock.jump (by interval); insert into clock.jump values ('0');
		create function clock.now() returns timestamptz language sql as 'select pg_catalog.now() + by from clock.jump'`)
	jumping := func() string { return url + "?options=-c%20search_path%3Dclock,pg_catalog" }
	if strings.Contains(url, "?") {
		jumping = func() string { return url + "&options=-c%20search_path%3Dclock,pg_catalog" }
	}
	a, b := startReplica(t, newPool(t, jumping()), "a", 4), startReplica(t, newPool(t, jumping()), "b", 4)
	shared(t, []int{2, 2}, a, b)
	began := a.began() + b.began()
	heartbeats := func(owner string) time.Duration {
		return time.Duration(value[float64](t, pool, `select extract(epoch from heartbeat_at - now())::float8 from bridge.replicas where id = $1`, owner) * 1e9)
	}
	for _, jump := range []time.Duration{time.Hour, 0, -time.Hour, time.Hour} {
		execute(t, pool, `update clock.jump set by = $1 * interval '1 second'`, jump.Seconds())
		for _, owner := range []string{"a", "b"} {
			eventually(t, "the heartbeat has the new time", func() bool { return (heartbeats(owner) - jump).Abs() < 10*time.Minute })
		}
		time.Sleep(3 * testTTL)
	}
	if n := a.began() + b.began(); n != began {
		t.Errorf("%d sessions moved", n-began)
	}
	// A death is noticed all the same while the last heartbeat lies in the future.
	execute(t, pool, `update clock.jump set by = '-1 hour'`)
	crashed(t, pool, "dead", -time.Hour)
	execute(t, pool, `insert into bridge.sessions (share_name, index, client_id, owner) values ('share', 4, 'share-4', 'dead')`)
	eventually(t, "the orphan is found", func() bool {
		return slices.ContainsFunc(append(a.leases.Owned(), b.leases.Owned()...), func(l *Lease) bool { return l.Index == 4 })
	})
	eventually(t, "its owner is buried when it owns nothing", func() bool {
		return value[int](t, pool, `select count(*)::int from bridge.replicas where id = 'dead'`) == 0
	})
}

// TestObserve: whether a replica is dead, by what this process sees, and by nothing else.
func TestObserve(t *testing.T) {
	t.Parallel()
	start := time.Now()
	at := func(s int) time.Time { return start.Add(time.Duration(s) * time.Second) }
	far := func(hours int) time.Time { return time.Unix(0, 0).Add(time.Duration(hours) * time.Hour) }
	type look struct {
		at, steady int
		beat       time.Time // zero: an owner that has none
		dead       bool
	}
	for name, looks := range map[string][]look{
		"beating, in any century":            {{0, 0, far(1), false}, {4, 0, far(900000), false}, {8, 0, far(-9), false}, {12, 0, far(2), false}},
		"standing still":                     {{0, 0, far(1), false}, {4, 0, far(1), false}, {5, 0, far(1), true}, {6, 0, far(2), false}},
		"standing still in the future":       {{0, 0, far(900000), false}, {5, 0, far(900000), true}},
		"no heartbeat at all":                {{0, 0, time.Time{}, false}, {4, 0, time.Time{}, false}, {5, 0, time.Time{}, true}},
		"an outage in between":               {{0, 0, far(1), false}, {100, 100, far(1), false}, {101, 100, far(2), false}},
		"dead over an outage":                {{0, 0, far(1), false}, {100, 100, far(1), false}, {104, 100, far(1), false}, {105, 100, far(1), true}},
		"a clock that goes back to the same": {{0, 0, far(1), false}, {3, 0, far(2), false}, {6, 0, far(1), false}, {10, 0, far(1), false}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := NewLeases(nil, LeaseConfig{Owner: "me"})
			for i, k := range looks {
				l.steadySince = at(k.steady)
				dead := l.observe(map[string]time.Time{"other": k.beat, "me": far(1)}, at(k.at))
				if slices.Contains(dead, "me") || slices.Contains(dead, "other") != k.dead {
					t.Errorf("look %d: dead %v, want %v", i, dead, k.dead)
				}
			}
			if l.observe(nil, at(0)); len(l.pulses) != 0 {
				t.Errorf("%d replicas that are gone are remembered", len(l.pulses))
			}
		})
	}
}
