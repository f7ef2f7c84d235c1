//go:build unix

package integration

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/mqttpg/bridge/integration/provider"
)

// patience is how long a scenario waits for something to come about before it gives up. It says
// nothing about how fast the bridge is: a busy build machine takes its time.
const patience = 2 * time.Minute

// scene is what a scenario plays on: a broker of its own, and a database.
type scene struct {
	broker   *provider.Broker
	server   *provider.Database // of its own where the scenario means to stop it
	database string             // URL of the scenario's own database
}

// newScene starts a broker and makes an empty database on the server that all scenarios share.
func newScene(t *testing.T) *scene {
	t.Helper()
	return &scene{
		broker:   provider.StartBroker(t, provider.BrokerConfig{}),
		database: provider.SharedDatabase(t).Fresh(t),
	}
}

// newFragileScene has a database server of its own, for scenarios that take it away.
func newFragileScene(t *testing.T) *scene {
	t.Helper()
	server := provider.StartDatabase(t, provider.DatabaseConfig{})
	return &scene{
		broker:   provider.StartBroker(t, provider.BrokerConfig{}),
		server:   server,
		database: server.Fresh(t),
	}
}

// launch starts a bridge between the scene's broker and database and does not wait for anything.
// Variables of env win over those of the scene.
func (s *scene) launch(t *testing.T, env ...map[string]string) *provider.Bridge {
	t.Helper()
	own := map[string]string{"BRIDGE_DATABASE_URL": s.database}
	if s.broker != nil {
		own["BRIDGE_MQTT_URLS"] = s.broker.URL()
	}
	return provider.StartBridge(t, merge(append([]map[string]string{own}, env...)...))
}

// start starts a bridge and returns when it is ready.
func (s *scene) start(t *testing.T, env ...map[string]string) *provider.Bridge {
	t.Helper()
	bridge := s.launch(t, env...)
	waitReady(t, bridge)
	return bridge
}

// merge joins environments; later ones win.
func merge(environments ...map[string]string) map[string]string {
	all := map[string]string{}
	for _, environment := range environments {
		maps.Copy(all, environment)
	}
	return all
}

// must ends the test at an error of what the scenario itself does.
func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func waitReady(t *testing.T, bridge *provider.Bridge) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	must(t, bridge.WaitReady(ctx))
}

// terminate sends SIGTERM and fails the test unless the bridge exits with 0.
func terminate(t *testing.T, bridge *provider.Bridge) {
	t.Helper()
	must(t, bridge.Term())
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	code, err := bridge.Wait(ctx)
	must(t, err)
	if code != 0 {
		t.Errorf("exit code %d after SIGTERM", code)
	}
}

// eventually waits until come says yes, and otherwise fails the test with the last state.
func eventually(t *testing.T, what string, come func() (bool, string)) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		ok, state := come()
		if ok {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("waited %v in vain until %s; the last state: %s", patience, what, state)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// page asks a running bridge for a page. A bridge that does not answer has status 0.
func page(t *testing.T, bridge *provider.Bridge, path string) (status int, body string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	defer cancel()
	status, text, err := bridge.Get(ctx, path)
	if err != nil {
		return 0, err.Error()
	}
	return status, string(text)
}

// notReady says whether /readyz answers 503 with all the words in its reasons.
func notReady(t *testing.T, bridge *provider.Bridge, words ...string) (bool, string) {
	t.Helper()
	status, body := page(t, bridge, "/readyz")
	return status == http.StatusServiceUnavailable && containsAll(body, words...), fmt.Sprintf("/readyz: %d %s", status, body)
}

// containsAll ignores case: it looks for what a person would look for.
func containsAll(text string, words ...string) bool {
	text = strings.ToLower(text)
	for _, word := range words {
		if !strings.Contains(text, strings.ToLower(word)) {
			return false
		}
	}
	return true
}

// waitSettled waits until every route has received at least what was sent to it, and has settled
// all it received.
func waitSettled(t *testing.T, bridge *provider.Bridge, received map[string]int) {
	t.Helper()
	eventually(t, "every message is received and settled", func() (bool, string) {
		m := scrape(t, bridge)
		done, state := true, ""
		for route, n := range received {
			c := m.route(route)
			if int(c.received) < n || c.inFlight > 0 {
				done = false
				state += fmt.Sprintf("route %s: %d sent, %s\n", route, n, c)
			}
		}
		return done, state
	})
}

// waitQuiet waits until a bridge has nothing in flight and has received nothing new for a while:
// whatever the broker meant to send again has been sent.
func waitQuiet(t *testing.T, bridge *provider.Bridge) {
	t.Helper()
	const beats = 50
	quiet, before := 0, -1.0
	eventually(t, "the bridge has nothing left to do", func() (bool, string) {
		m := scrape(t, bridge)
		received, inFlight := m.sum("bridge_messages_received_total"), m.sum("bridge_messages_in_flight")
		if received != before || inFlight != 0 {
			quiet, before = 0, received
		}
		quiet++
		return quiet > beats, fmt.Sprintf("received %v, in flight %v", received, inFlight)
	})
}

// connects counts how often a client id was let in, by the broker's log.
func connects(t *testing.T, broker *provider.Broker, clientID string) int {
	t.Helper()
	return strings.Count(broker.Logs(t.Context()), " as "+clientID+" (")
}
