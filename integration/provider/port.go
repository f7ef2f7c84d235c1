//go:build unix

package provider

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"sync"
)

var (
	portsMu sync.Mutex
	ports   = map[int]bool{} // handed out by this test binary
)

// reservePort returns a loopback port that nobody listens on, for a server that keeps it while it
// is down.
//
// It lies below the range that the kernel takes ports for outgoing connections from. In there, a
// client that tries to reconnect to a server that is down would sooner or later be given the
// server's own port, and the server could not bind it again, or, worse, the client would be
// connected to itself.
func reservePort() (int, error) {
	portsMu.Lock()
	defer portsMu.Unlock()
	low := 32768 // Linux's default; other systems begin at 49152
	if data, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range"); err == nil {
		_, _ = fmt.Sscan(string(data), &low)
	}
	const lowest = 10000
	if low <= lowest+1000 {
		return 0, fmt.Errorf("the kernel hands out ports from %d on, which leaves no room for servers below", low)
	}
	for range 1000 {
		port := lowest + rand.IntN(low-lowest)
		if ports[port] {
			continue
		}
		listener, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err != nil {
			continue
		}
		_ = listener.Close() // a listener that never accepted leaves nothing behind
		ports[port] = true
		return port, nil
	}
	return 0, errors.New("no free loopback port found in 1000 tries")
}
