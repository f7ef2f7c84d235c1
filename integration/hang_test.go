//go:build unix

package integration

import (
	"net/http"
	"testing"
)

// TestServersHang freezes the broker and then the database in mid-stream: connections stay open and
// nothing answers. Only the bridge's own questions can find that out. When the servers go on, so
// does everything else.
func TestServersHang(t *testing.T) {
	t.Parallel()
	s := newFragileScene(t)
	bridge := s.start(t, streamRoutes, map[string]string{"BRIDGE_MQTT_KEEPALIVE": "2s"})
	watchLaw(t, bridge)
	load := newStreamLoad(3000)
	devices := newPublisher(t, s.broker.URL(), "devices")
	stream := devices.startStream(t.Context(), t, load.messages, 500)

	stream.waitSent(t, 500)
	must(t, s.broker.Pause(t.Context()))
	eventually(t, "the keepalive finds the broker silent", func() (bool, string) { return notReady(t, bridge, "broker bridge-0") })
	must(t, s.broker.Resume(t.Context()))
	waitReady(t, bridge)

	stream.waitSent(t, 1500)
	must(t, s.server.Pause(t.Context()))
	eventually(t, "/readyz names the database", func() (bool, string) { return notReady(t, bridge, "database") })
	if status, body := page(t, bridge, "/livez"); status != http.StatusOK {
		t.Errorf("/livez with a database that hangs: %d %s", status, body)
	}
	must(t, s.server.Resume(t.Context()))
	stream.wait()

	load.waitAndCompare(t, s, false, bridge)
	waitReady(t, bridge)
}
