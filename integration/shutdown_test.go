//go:build unix

package integration

import "testing"

// TestGracefulStop stops and starts the bridge under load with SIGTERM. It exits 0 each time,
// nothing is missing, and nothing is doubled even where nothing but the delivery tells two
// messages apart: the broker has every acknowledgement before the connection closes.
func TestGracefulStop(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	bridge := s.start(t, streamRoutes)
	load := newStreamLoad(6000)
	devices := newPublisher(t, s.broker.URL(), "devices")
	stream := devices.startStream(t.Context(), t, load.messages, 1000)
	for stop := range 4 {
		stream.waitSent(t, 1000+stop*1200)
		terminate(t, bridge)
		must(t, bridge.Start(t.Context()))
		waitReady(t, bridge)
	}
	stream.wait()
	load.waitAndCompare(t, s, true, bridge)
}
