package ingest

import (
	"crypto/tls"
	"fmt"
	"net"
	"syscall"
	"testing"
)

// sendBuffer is what the kernel keeps at most of what we write.
func sendBuffer(t *testing.T, c *net.TCPConn) int {
	t.Helper()
	n := 0
	raw, err := c.SyscallConn()
	if err == nil {
		_ = raw.Control(func(fd uintptr) { n, err = syscall.GetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_SNDBUF) })
	}
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestFewUnread: what the broker has not read of our acknowledgements fills a small buffer of the kernel.
func TestFewUnread(t *testing.T) {
	for _, fewUnread := range []bool{false, true} {
		for _, scheme := range []string{"mqtt", "mqtts"} {
			t.Run(fmt.Sprintf("%s %t", scheme, fewUnread), func(t *testing.T) {
				ours, _ := tcpPair(t)
				var nc net.Conn = ours
				if scheme == "mqtts" {
					nc = tls.Client(ours, &tls.Config{MinVersion: tls.VersionTLS12})
				}
				r := newIdleRig(t, func(cfg *Config) { cfg.FewUnread = fewUnread }, "mqtt://test")
				newConn(r.session, nc)
				if n := sendBuffer(t, ours); n <= 2*unreadBytes != fewUnread {
					t.Errorf("the kernel keeps %d bytes", n)
				}
			})
		}
	}
}
