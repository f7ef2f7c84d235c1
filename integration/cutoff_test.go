//go:build unix

package integration

import (
	"fmt"
	"os"
	"strings"
	"testing"

	toxiproxy "github.com/Shopify/toxiproxy/v2"
	"github.com/rs/zerolog"
)

// long skips a test that waits for minutes, unless `make faults` runs it.
func long(t *testing.T) {
	t.Helper()
	if os.Getenv("FAULTS_MINUTES") == "" {
		t.Skip("it waits for the true times, a minute and more: make faults runs it; cmd/bridge has connections that end, with shorter times, but none that fall silent")
	}
}

// TestCutOffBridge: nothing comes through any more between one of two bridges and the broker, while messages flow. The other
// one takes its sessions over, with all that waits in them, and gives it a share again when its way is mended.
func TestCutOffBridge(t *testing.T) {
	long(t)
	t.Parallel()
	s := newScene(t)
	zerolog.SetGlobalLevel(zerolog.Disabled) // toxics log to a logger of their own
	link := toxiproxy.NewProxy(toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop()), "broker", "127.0.0.1:0", s.broker.Addr(""))
	must(t, link.Start())
	t.Cleanup(link.Stop)
	env := merge(streamRoutes, map[string]string{
		"BRIDGE_MQTT_SESSIONS": "4", "BRIDGE_MQTT_KEEPALIVE": "2s",
		"BRIDGE_MQTT_COMMON_SESSIONS": "on", // it is one broker behind two addresses
	})
	healthy := s.start(t, env)
	cut := s.launch(t, env, map[string]string{"BRIDGE_MQTT_URLS": "mqtt://" + link.Listen})
	own := func(n, m float64) {
		t.Helper()
		eventually(t, fmt.Sprintf("the bridges own %v and %v sessions", n, m), func() (bool, string) {
			a, b := sessionsOwned(t, cut), sessionsOwned(t, healthy)
			return a == n && b == m, fmt.Sprintf("they own %v and %v", a, b)
		})
	}
	own(2, 2)
	waitReady(t, cut)
	load := newStreamLoad(12000)
	stream := newPublisher(t, s.broker.URL(), "devices").startStream(t.Context(), t, load.messages, 150)
	stream.waitSent(t, 500)
	for _, direction := range []string{"upstream", "downstream"} {
		_, err := link.Toxics.AddToxicJson(strings.NewReader(`{"type": "timeout", "stream": "` + direction + `", "attributes": {"timeout": 0}}`))
		must(t, err)
	}
	own(0, 4)
	waitReady(t, healthy)
	eventually(t, "the bridge that is cut off says why it has nothing", func() (bool, string) {
		return notReady(t, cut, "stands back, for other replicas do the work: broker: mqtt://"+link.Listen)
	})
	if log := cut.Logs(); strings.Count(log, "giving all sessions up") != 1 || strings.Contains(log, "without being drained") {
		t.Error("it has not said once that it gives its sessions up, or could not drain them")
	}
	link.Toxics.ResetToxics(t.Context())
	own(2, 2)
	waitReady(t, cut)
	stream.wait()
	load.waitAndCompare(t, s, true, cut, healthy)
	terminate(t, cut)
	terminate(t, healthy)
}

// TestSilentBrokerMovesNoSession halts the broker for longer than it takes to be cut off. Two bridges notice it at different
// times, and neither may believe that the other one is better off.
func TestSilentBrokerMovesNoSession(t *testing.T) {
	long(t)
	t.Parallel()
	s := newScene(t)
	env := merge(streamRoutes, map[string]string{"BRIDGE_MQTT_SESSIONS": "4"})
	one, other := s.start(t, env), s.launch(t, env)
	eventually(t, "each bridge owns two sessions", func() (bool, string) {
		a, b := sessionsOwned(t, one), sessionsOwned(t, other)
		return a == 2 && b == 2, fmt.Sprintf("they own %v and %v", a, b)
	})
	waitReady(t, other)
	holders := func() string {
		return fmt.Sprint(tableRows(t, s.database, `select string_agg(concat_ws(' ', index, owner, epoch), ', ' order by index) from bridge.sessions`))
	}
	before := holders()
	must(t, s.broker.Pause(t.Context()))
	eventually(t, "both have noticed it, and some time has passed", func() (bool, string) {
		got := tableRows(t, s.database, `select bool_and(reaches_broker is false) and min(heartbeat_at - acquired) > interval '75 s'
			from bridge.replicas, (select max(acquired_at) as acquired from bridge.sessions) s`)
		return got["t"] == 1, fmt.Sprint(got)
	})
	must(t, s.broker.Resume(t.Context()))
	waitReady(t, one)
	waitReady(t, other)
	if after := holders(); after != before {
		t.Errorf("sessions moved:\n%s\n%s", before, after)
	}
}
