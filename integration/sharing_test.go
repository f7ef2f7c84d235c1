//go:build unix

package integration

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/mqttpg/bridge/integration/provider"
)

// TestTwoBridgesShare runs two bridges on two sessions of one share. Both consume, together they
// write every message once; then one leaves and the other takes its session over with all that is
// queued in it.
func TestTwoBridgesShare(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	env := merge(streamRoutes, map[string]string{"BRIDGE_MQTT_SESSIONS": "2"})
	first, second := s.launch(t, env), s.launch(t, env)
	bridges := []*provider.Bridge{first, second}
	eventually(t, "each bridge owns one session", func() (bool, string) {
		one, other := sessionsOwned(t, first), sessionsOwned(t, second)
		return one == 1 && other == 1, fmt.Sprintf("they own %v and %v", one, other)
	})
	for _, bridge := range bridges {
		waitReady(t, bridge)
		watchLaw(t, bridge)
	}

	load := newStreamLoad(6000)
	devices := newPublisher(t, s.broker.URL(), "devices")
	stream := devices.startStream(t.Context(), t, load.messages, 800)
	stream.waitSent(t, 3000)
	for i, bridge := range bridges {
		if received := receivedByAll(t, bridge); received == 0 {
			t.Errorf("bridge %d consumed nothing of 3000 messages", i)
		}
	}

	terminate(t, first)
	eventually(t, "the other bridge owns both sessions", func() (bool, string) {
		owned := sessionsOwned(t, second)
		return owned == 2, fmt.Sprintf("it owns %v", owned)
	})
	stream.wait()
	// Nobody died here and no commit was left in doubt: even the route without keys holds every
	// message once.
	load.waitAndCompare(t, s, true, second)
}

// sessionsOwned is how many sessions a bridge holds, -1 when it does not answer.
func sessionsOwned(t *testing.T, bridge *provider.Bridge) float64 {
	t.Helper()
	m, err := tryScrape(t.Context(), bridge)
	if err != nil {
		return -1
	}
	return m.sum("bridge_sessions_owned")
}

// receivedByAll is how many messages all routes of a bridge received.
func receivedByAll(t *testing.T, bridge *provider.Bridge) float64 {
	t.Helper()
	return scrape(t, bridge).sum("bridge_messages_received_total")
}

// TestSameClientIDTwice lets two bridges that know nothing of each other, since each has a
// database of its own, use the same client id. It must not become a reconnect war, and it must be
// said.
func TestSameClientIDTwice(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	other := provider.SharedDatabase(t).Fresh(t)
	first := s.start(t, streamRoutes)
	second := s.launch(t, streamRoutes, map[string]string{"BRIDGE_DATABASE_URL": other})

	began := time.Now()
	eventually(t, "both bridges name the client id as the trouble, and what may be behind it", func() (bool, string) {
		var states string
		for _, bridge := range []*provider.Bridge{first, second} {
			_, body := page(t, bridge, "/health")
			if !containsAll(body, "probably another client uses client id bridge-0", "two releases with one share name, or a stuck old replica") || containsAll(body, `"status": "ok"`) {
				states += body
			}
		}
		return states == "", states
	})
	const handful = 6
	quarrel := connects(t, s.broker, "bridge-0")
	t.Logf("named after %s and %d connections", time.Since(began).Round(100*time.Millisecond), quarrel)
	if quarrel > 1+handful {
		t.Errorf("%d connections until both knew", quarrel)
	}
	time.Sleep(time.Minute) // what counts is what happens while nobody does anything
	attempts := connects(t, s.broker, "bridge-0") - quarrel
	t.Logf("%d connections in the minute after that", attempts)
	if attempts > handful {
		t.Errorf("%d connections in a minute, at most %d are a quarrel kept in bounds", attempts, handful)
	}
	counted := 0.0
	for _, bridge := range []*provider.Bridge{first, second} {
		for _, reason := range []string{"contested", "taken_over"} { // depends on whether the broker says why
			counted += scrape(t, bridge).sum("bridge_mqtt_reconnects_total", "session", "bridge-0", "reason", reason)
		}
		if !strings.Contains(bridge.Logs(), "probably another client uses client id bridge-0") {
			t.Error("a log does not name it")
		}
	}
	if counted == 0 {
		t.Error("no reconnection is counted as contested")
	}
}
