package ingest

import (
	"crypto/tls"
	"net"
	"syscall"
	"testing"
)

// TestHeavyAcknowledgementsDoNotGather: our own kernel keeps only a few of them.
func TestHeavyAcknowledgementsDoNotGather(t *testing.T) {
	ours, _ := tcpPair(t)
	for name, nc := range map[string]net.Conn{"TCP": ours, "TLS": tls.Client(ours, &tls.Config{MinVersion: tls.VersionTLS12})} {
		r := newIdleRig(t, func(cfg *Config) { cfg.FewUnread = true }, "mqtt://test")
		c := newConn(r.session, nc)
		if before := sendBuffer(t, ours); c.weighs() || sendBuffer(t, ours) != before {
			t.Errorf("%s: acknowledgements are heavy from the start", name)
		}
		c.inFlight.Charge(int64(r.session.cfg.ReceiveMaximum) + 1)
		if !c.weighs() || sendBuffer(t, ours) != 2*heavyBuffer {
			t.Errorf("%s: the kernel keeps %d bytes", name, sendBuffer(t, ours))
		}
		if err := ours.SetWriteBuffer(1 << 20); err != nil {
			t.Fatal(err)
		}
	}
}

// sendBuffer is what the kernel keeps at most of what we write.
func sendBuffer(t *testing.T, c *net.TCPConn) int {
	t.Helper()
	return socketOption(t, c, syscall.SOL_SOCKET, syscall.SO_SNDBUF)
}
