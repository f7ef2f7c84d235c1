//go:build unix

package integration

import (
	"net/http"
	"testing"
	"time"

	"github.com/mqttpg/bridge/integration/provider"
)

// TestDatabaseDownForAMinute takes the database away for a minute at 500 messages per second. The
// broker link does not notice, memory does not grow with the outage, the process is alive but not
// ready, and afterwards everything is there. With -short the outage lasts 15 seconds.
func TestDatabaseDownForAMinute(t *testing.T) {
	t.Parallel()
	outage, rate := time.Minute, 500
	if testing.Short() {
		outage = 15 * time.Second
	}
	seconds := int(outage / time.Second)
	s := newFragileScene(t)
	bridge := s.start(t, merge(streamRoutes, map[string]string{"BRIDGE_MQTT_KEEPALIVE": "5s"}))
	watchLaw(t, bridge)
	load := newStreamLoad(rate * (seconds + 10))
	devices := newPublisher(t, s.broker.URL(), "devices")
	stream := devices.startStream(t.Context(), t, load.messages, rate)
	stream.waitSent(t, rate*5)

	must(t, s.server.Stop(t.Context()))
	eventually(t, "/readyz names the database", func() (bool, string) { return notReady(t, bridge, "database") })
	early := residentBytes(t, bridge)
	for sent := rate * 6; sent < rate*(seconds+5); sent += rate * 5 {
		stream.waitSent(t, sent)
		if status, body := page(t, bridge, "/livez"); status != http.StatusOK {
			t.Errorf("/livez with the database down: %d %s", status, body)
		}
		if ok, state := notReady(t, bridge, "database"); !ok {
			t.Errorf("/readyz with the database down: %s", state)
		}
	}
	late := residentBytes(t, bridge)
	// The window of 2000 small messages may fill up, and the runtime keeps what it has; the tens
	// of thousands of messages published meanwhile must stay with the broker.
	const leeway = 48 << 20
	if late > early+leeway {
		t.Errorf("resident memory grew from %d to %d bytes while the database was down", early, late)
	}
	must(t, s.server.Start(t.Context()))
	stream.wait()

	load.waitAndCompare(t, s, true, bridge)
	waitReady(t, bridge)
	m := scrape(t, bridge)
	if reconnects := m.sum("bridge_mqtt_reconnects_total"); reconnects != 0 {
		t.Errorf("%v reconnects to the broker because of the database", reconnects)
	}
	if n := connects(t, s.broker, "bridge-0"); n != 1 {
		t.Errorf("the broker saw %d connects instead of 1", n)
	}
}

// residentBytes is the resident memory of a bridge.
func residentBytes(t *testing.T, bridge *provider.Bridge) int64 {
	t.Helper()
	if rss := scrape(t, bridge).sum("process_resident_memory_bytes"); rss > 0 {
		return int64(rss)
	}
	t.Fatal("no process_resident_memory_bytes in /metrics")
	return 0
}
