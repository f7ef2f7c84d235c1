//go:build unix

package integration

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/mqttpg/bridge/integration/provider"
)

// leaseTTL is how long a heartbeat must stand still until its replica counts as dead.
const leaseTTL = 5 * time.Second

// standing is who holds which session since when, and how often the broker has let each in.
func standing(t *testing.T, s *scene) string {
	t.Helper()
	owners := tableRows(t, s.database, `select string_agg(concat_ws(' ', index, owner, epoch), ', ' order by index) from bridge.sessions`)
	text := fmt.Sprint(owners)
	for i := range 4 {
		text += fmt.Sprintf("; bridge-%d connected %d times", i, connects(t, s.broker, fmt.Sprintf("bridge-%d", i)))
	}
	return text
}

// TestOutageMovesNoSession takes the database away from two bridges with two sessions each, for much
// longer than a dead bridge keeps its sessions: once it is down, and once it hangs. Nobody loses a
// session, and the broker sees nothing of it.
func TestOutageMovesNoSession(t *testing.T) {
	t.Parallel()
	s := newFragileScene(t)
	env := merge(streamRoutes, map[string]string{"BRIDGE_MQTT_SESSIONS": "4"})
	bridges := []*provider.Bridge{s.launch(t, env), s.launch(t, env)}
	eventually(t, "each bridge owns two sessions", func() (bool, string) {
		one, other := sessionsOwned(t, bridges[0]), sessionsOwned(t, bridges[1])
		return one == 2 && other == 2, fmt.Sprintf("they own %v and %v", one, other)
	})
	for _, bridge := range bridges {
		waitReady(t, bridge)
	}
	before := standing(t, s)
	for name, outage := range map[string]struct{ begin, end func() error }{
		"down":    {func() error { return s.server.Stop(t.Context()) }, func() error { return s.server.Start(t.Context()) }},
		"hanging": {func() error { return s.server.Pause(t.Context()) }, func() error { return s.server.Resume(t.Context()) }},
	} {
		must(t, outage.begin())
		for _, bridge := range bridges {
			eventually(t, "/readyz names the database", func() (bool, string) { return notReady(t, bridge, "database") })
		}
		time.Sleep(3 * leaseTTL)
		must(t, outage.end())
		for _, bridge := range bridges {
			waitReady(t, bridge)
		}
		time.Sleep(2 * leaseTTL) // what would move would move now
		if after := standing(t, s); after != before {
			t.Errorf("a database that is %s moved sessions:\n%s\n%s", name, before, after)
		}
	}
}

// TestOrphansAreTakenOver kills one of two bridges in mid-stream. The other takes its sessions, and
// gives them back when it returns.
func TestOrphansAreTakenOver(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	env := merge(streamRoutes, map[string]string{"BRIDGE_MQTT_SESSIONS": "4"})
	one, other := s.launch(t, env), s.launch(t, env)
	own := func(one, other *provider.Bridge, n, m float64) {
		t.Helper()
		eventually(t, fmt.Sprintf("the bridges own %v and %v sessions", n, m), func() (bool, string) {
			a, b := sessionsOwned(t, one), sessionsOwned(t, other)
			return a == n && b == m, fmt.Sprintf("they own %v and %v", a, b)
		})
	}
	own(one, other, 2, 2)
	waitReady(t, one)
	waitReady(t, other)
	load := newStreamLoad(9000)
	stream := newPublisher(t, s.broker.URL(), "devices").startStream(t.Context(), t, load.messages, 500)
	stream.waitSent(t, 2000)
	must(t, one.Kill(t.Context()))
	killed := time.Now()
	own(one, other, -1, 4)
	t.Logf("the orphans were taken %s after the kill", time.Since(killed).Round(100*time.Millisecond))
	waitReady(t, other)
	t.Logf("and read %s after it", time.Since(killed).Round(100*time.Millisecond))
	must(t, one.Start(t.Context()))
	own(one, other, 2, 2)
	stream.wait()
	load.waitAndCompare(t, s, true, one, other)
}

// TestPausedOwnerIsFenced halts the owner of a session in mid-stream until another bridge has taken it,
// and lets it go on with all that it had read. What it still tries to write is refused.
func TestPausedOwnerIsFenced(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	one := s.start(t, streamRoutes)
	other := s.start(t, streamRoutes)
	load := newStreamLoad(12000)
	stream := newPublisher(t, s.broker.URL(), "devices").startStream(t.Context(), t, load.messages, 500)
	owner, standby := one, other
	for round := range 2 {
		stream.waitSent(t, 2000+4000*round)
		must(t, owner.Pause())
		eventually(t, "the standby has the session", func() (bool, string) {
			owned := sessionsOwned(t, standby)
			return owned == 1, fmt.Sprintf("it owns %v", owned)
		})
		waitReady(t, standby)
		must(t, owner.Resume())
		eventually(t, "the old owner knows that it is none any more", func() (bool, string) {
			owned := sessionsOwned(t, owner)
			return owned == 0, fmt.Sprintf("it owns %v", owned)
		})
		if !strings.Contains(owner.Logs(), "is no longer held") && !strings.Contains(owner.Logs(), "held by another replica") {
			t.Error("nothing in its log says why")
		}
		owner, standby = standby, owner
	}
	stream.wait()
	load.waitAndCompare(t, s, true, one, other)
}

// TestExclusiveStandby: of two bridges with plain subscriptions one reads, and the other one takes over
// when it dies and when it leaves.
func TestExclusiveStandby(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	env := merge(streamRoutes, map[string]string{"BRIDGE_MQTT_MODE": "exclusive"})
	active := s.start(t, env)
	standby := s.start(t, env)
	if status, body := page(t, standby, "/readyz"); status != 200 || !containsAll(body, "hot standby") {
		t.Errorf("the second bridge says %d %s", status, body)
	}
	load := newStreamLoad(9000)
	stream := newPublisher(t, s.broker.URL(), "devices").startStream(t.Context(), t, load.messages, 500)
	takesOver := func(bridge *provider.Bridge) {
		t.Helper()
		eventually(t, "the standby reads", func() (bool, string) {
			owned := sessionsOwned(t, bridge)
			return owned == 1, fmt.Sprintf("it owns %v sessions", owned)
		})
		waitReady(t, bridge)
	}
	stream.waitSent(t, 2000)
	must(t, active.Kill(t.Context()))
	takesOver(standby)
	must(t, active.Start(t.Context()))
	waitReady(t, active)
	stream.waitSent(t, 7000)
	terminate(t, standby)
	takesOver(active)
	stream.wait()
	load.waitAndCompare(t, s, true, active)
	if owned := sessionsOwned(t, active); owned != 1 {
		t.Errorf("it owns %v sessions", owned)
	}
}
