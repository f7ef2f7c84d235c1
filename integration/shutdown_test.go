//go:build unix

package integration

import (
	"testing"

	"github.com/mqttpg/bridge/integration/provider"
)

// TestGracefulStop stops the bridge with SIGTERM again and again while it works off a backlog, its
// window full. It exits 0 each time, nothing is missing, and nothing is doubled even where nothing
// but the delivery tells two messages apart: what was committed is acknowledged, and the broker has
// seen so, before the connection closes.
func TestGracefulStop(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	// Small batches: many stops fall into the middle of a commit.
	bridge := s.start(t, streamRoutes, map[string]string{"BRIDGE_BATCH_MAX_MESSAGES": "20", "BRIDGE_MQTT_RECEIVE_MAXIMUM": "500"})
	terminate(t, bridge)
	load := newStreamLoad(12_000)
	newPublisher(t, s.broker.URL(), "devices").sendAll(t.Context(), t, load.messages)

	stops := 0
	for complete := false; !complete; complete, _ = load.arrived(t, s) {
		must(t, bridge.Start(t.Context()))
		waitWritten(t, bridge)
		terminate(t, bridge)
		stops++
	}
	if stops < 3 {
		t.Errorf("the backlog was worked off in %d lives: too few stops fell into it", stops)
	}
	must(t, bridge.Start(t.Context()))
	waitReady(t, bridge)
	load.waitAndCompare(t, s, true, bridge)
}

// waitWritten returns as soon as the bridge has written anything since its start.
func waitWritten(t *testing.T, bridge *provider.Bridge) {
	t.Helper()
	eventually(t, "the bridge writes", func() (bool, string) {
		m, err := tryScrape(t.Context(), bridge)
		if err != nil {
			return false, err.Error()
		}
		return m.sum("bridge_messages_written_total") > 0, "nothing written"
	})
}
