//go:build unix

package integration

import (
	"fmt"
	"strings"
	"testing"

	"github.com/mqttpg/bridge/integration/provider"
)

// TestDrainUnderLoad takes one of three sessions out of use while messages flow, and puts it back.
// Nothing is missing and nothing is there twice; meanwhile the broker knows nothing of the session,
// through a restart of the bridges as well.
func TestDrainUnderLoad(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	env := merge(streamRoutes, map[string]string{"BRIDGE_MQTT_SESSIONS": "3", "BRIDGE_MQTT_CLIENT_ID_PREFIX": "drained"})
	first, second := s.launch(t, env), s.launch(t, env)
	bridges := []*provider.Bridge{first, second}
	own := func(sessions float64) {
		t.Helper()
		eventually(t, fmt.Sprintf("both bridges together own %v sessions", sessions), func() (bool, string) {
			one, other := sessionsOwned(t, first), sessionsOwned(t, second)
			return one+other == sessions && one >= 1 && other >= 1, fmt.Sprintf("they own %v and %v", one, other)
		})
	}
	own(3)
	for _, bridge := range bridges {
		waitReady(t, bridge)
		watchLaw(t, bridge)
	}
	command := merge(env, map[string]string{"BRIDGE_DATABASE_URL": s.database})

	load := newStreamLoad(15000)
	devices := newPublisher(t, s.broker.URL(), "devices")
	stream := devices.startStream(t.Context(), t, load.messages, 800)
	stream.waitSent(t, 2000)
	code, stdout, stderr := provider.RunBridge(t, command, nil, "sessions", "drain", "1")
	t.Logf("$ bridge sessions drain 1\n%s%s", stdout, stderr)
	if code != 0 || !strings.Contains(stdout, "drained-1: drained after ") {
		t.Errorf("exit code %d", code)
	}
	_, stdout, _ = provider.RunBridge(t, command, nil, "sessions", "list")
	t.Logf("$ bridge sessions list\n%s", stdout)
	own(2)
	forgotten := connects(t, s.broker, "drained-1")
	stream.waitSent(t, 6000)
	for _, bridge := range bridges { // a restart does not bring it back
		terminate(t, bridge)
		must(t, bridge.Start(t.Context()))
	}
	own(2)
	for _, bridge := range bridges {
		waitReady(t, bridge)
	}
	if n := connects(t, s.broker, "drained-1"); n != forgotten {
		t.Errorf("%d connections of a session that is out of use", n-forgotten)
	}
	stream.waitSent(t, 11000)
	if code, stdout, stderr := provider.RunBridge(t, command, nil, "sessions", "drain", "--undo", "1"); code != 0 {
		t.Errorf("undo: exit code %d, %s%s", code, stdout, stderr)
	}
	own(3)
	eventually(t, "the session is connected again", func() (bool, string) {
		n := connects(t, s.broker, "drained-1")
		return n > forgotten, fmt.Sprintf("%d connections", n)
	})
	if !strings.Contains(lastConnect(t, s.broker, "drained-1"), "c0") {
		t.Error("the bridge did not ask for the session that the broker may have")
	}
	if present := lastConnack(t, s.broker, "drained-1"); present != "0" {
		t.Errorf("the broker still had the session: session present %q", present)
	}
	stream.wait()
	load.waitAndCompare(t, s, true, bridges...)
}

// TestDrainOfAHaltedOwner asks for the session of a bridge that is halted with messages in its hands.
// Whoever waits is told that the request stands; another bridge takes the session when its owner counts
// as dead, and drains it.
func TestDrainOfAHaltedOwner(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	env := merge(streamRoutes, map[string]string{"BRIDGE_MQTT_SESSIONS": "2", "BRIDGE_DATABASE_URL": s.database})
	halted, other := s.start(t, env), s.launch(t, env)
	eventually(t, "each bridge owns one session", func() (bool, string) {
		one, two := sessionsOwned(t, halted), sessionsOwned(t, other)
		return one == 1 && two == 1, fmt.Sprintf("they own %v and %v", one, two)
	})
	waitReady(t, other)
	// The one that was there first has given the last session away.
	load := newStreamLoad(9000)
	stream := newPublisher(t, s.broker.URL(), "devices").startStream(t.Context(), t, load.messages, 500)
	stream.waitSent(t, 2000)
	must(t, halted.Pause())
	code, stdout, stderr := provider.RunBridge(t, env, nil, "sessions", "drain", "0", "--timeout", "1s")
	t.Logf("$ bridge sessions drain 0 --timeout 1s\n%s%s", stdout, stderr)
	if code != 1 || !strings.Contains(stderr, "not drained within 1s") || !strings.Contains(stderr, "the request stands") {
		t.Errorf("exit code %d", code)
	}
	code, stdout, stderr = provider.RunBridge(t, env, nil, "sessions", "drain", "0")
	t.Logf("$ bridge sessions drain 0\n%s%s", stdout, stderr)
	if code != 0 {
		t.Errorf("exit code %d", code)
	}
	stream.waitSent(t, 7000)
	must(t, halted.Resume())
	eventually(t, "the halted bridge owns nothing any more", func() (bool, string) {
		owned := sessionsOwned(t, halted)
		return owned == 0, fmt.Sprintf("it owns %v", owned)
	})
	stream.wait()
	load.waitAndCompare(t, s, true, halted, other)
	if got := tableRows(t, s.database, `select index from bridge.sessions where owner is not null`); got["1"] != 1 || len(got) != 1 {
		t.Errorf("held: %v", got)
	}
}

// lastConnect is the broker's log line of the last time a client id was let in: "c0" says Clean Start 0.
func lastConnect(t *testing.T, broker *provider.Broker, clientID string) string {
	t.Helper()
	log := broker.Logs(t.Context())
	_, line, _ := strings.Cut(log[max(0, strings.LastIndex(log, " as "+clientID+" (")):], "(")
	line, _, _ = strings.Cut(line, ")")
	return line
}

// lastConnack is the Session Present of the broker's last CONNACK to a client id.
func lastConnack(t *testing.T, broker *provider.Broker, clientID string) string {
	t.Helper()
	log := broker.Logs(t.Context())
	_, line, _ := strings.Cut(log[max(0, strings.LastIndex(log, "Sending CONNACK to "+clientID+" (")):], "(")
	present, _, _ := strings.Cut(line, ",")
	return present
}
