package ingest

import (
	"crypto/tls"
	"io"
	"net"
	"syscall"
	"testing"
	"time"
)

// acknowledgesAtOnce says whether the kernel sends its next TCP acknowledgement without waiting for our own bytes.
func acknowledgesAtOnce(t *testing.T, c *net.TCPConn) bool {
	t.Helper()
	return socketOption(t, c, syscall.IPPROTO_TCP, syscall.TCP_QUICKACK) == 1
}

func socketOption(t *testing.T, c *net.TCPConn, level, option int) int {
	t.Helper()
	n := 0
	raw, err := c.SyscallConn()
	if err == nil {
		_ = raw.Control(func(fd uintptr) { n, err = syscall.GetsockoptInt(int(fd), level, option) })
	}
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// dialogue has the kernel see that we answer what we read, so that it saves acknowledgements for our answers.
func dialogue(t *testing.T, ours, theirs *net.TCPConn) {
	t.Helper()
	p := make([]byte, 100)
	for range 1000 {
		if _, err := io.WriteString(theirs, "message"); err != nil {
			t.Fatal(err)
		}
		for _, step := range []func() (int, error){
			func() (int, error) { return ours.Read(p) },
			func() (int, error) { return io.WriteString(ours, "answer") },
			func() (int, error) { return theirs.Read(p) },
		} {
			if _, err := step(); err != nil {
				t.Fatal(err)
			}
		}
		if !acknowledgesAtOnce(t, ours) {
			return
		}
	}
	t.Fatal("the kernel never delays an acknowledgement")
}

func TestPromptness(t *testing.T) {
	ours, theirs := tcpPair(t)
	for name, nc := range map[string]net.Conn{"TCP": ours, "TLS": tls.Client(ours, &tls.Config{MinVersion: tls.VersionTLS12})} {
		dialogue(t, ours, theirs)
		newPromptness(socket(nc)).acknowledge()
		if !acknowledgesAtOnce(t, ours) {
			t.Errorf("%s: acknowledgements wait for our answers", name)
		}
	}
	pipe, _ := net.Pipe()
	newPromptness(socket(pipe)).acknowledge() // what is no TCP is left alone
}

// TestSlowMessagesAreAcknowledgedAtOnce: a broker with Nagle's algorithm must not wait for our next PUBACKs; one
// that sends thousands a second may, for it sends full segments.
func TestSlowMessagesAreAcknowledgedAtOnce(t *testing.T) {
	for _, tt := range []struct {
		rate float64
		want bool
	}{{0, true}, {1000, true}, {gatherAbove, false}, {100_000, false}} {
		ours, theirs := tcpPair(t)
		dialogue(t, ours, theirs)
		c := newConn(newIdleRig(t, nil, "mqtt://test").session, ours)
		c.pace.rate, c.pace.since = tt.rate, time.Now().Add(time.Hour) // it is not measured anew
		c.pace.behind = true                                           // and there is no pause
		if _, err := io.WriteString(theirs, "more"); err != nil {
			t.Fatal(err)
		}
		if _, err := (watchedReader{c}).Read(make([]byte, 100)); err != nil {
			t.Fatal(err)
		}
		if got := acknowledgesAtOnce(t, ours); got != tt.want {
			t.Errorf("at %g messages a second: at once %t, want %t", tt.rate, got, tt.want)
		}
	}
}
