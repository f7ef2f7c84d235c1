package ingest

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// tcpPair is a connection over loopback, with both ends.
func tcpPair(t *testing.T) (ours, theirs *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	nc, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	peer, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = nc.Close(), peer.Close() })
	return nc.(*net.TCPConn), peer.(*net.TCPConn)
}

func lowWaterMark(t *testing.T, c *net.TCPConn) (n int) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) { n, err = syscall.GetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVLOWAT) }); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestGatherer(t *testing.T) {
	ours, theirs := tcpPair(t)
	g := newGatherer(ours)
	p := make([]byte, 100)
	write := func(s string) {
		t.Helper()
		if _, err := io.WriteString(theirs, s); err != nil {
			t.Error(err)
		}
	}
	write("early")
	if n := g.read(p); n != 0 {
		t.Errorf("%d bytes without a pause", n)
	}
	g.begin()
	if n := lowWaterMark(t, ours); n != gatherBytes {
		t.Errorf("the kernel wakes at %d bytes", n)
	}
	eventually(t, "what came early", func() bool { n := g.read(p); return string(p[:n]) == "early" })
	if n := g.read(p); n != 0 {
		t.Errorf("%d bytes out of nothing", n)
	}
	if !g.end() || lowWaterMark(t, ours) != 1 {
		t.Errorf("after the end the kernel wakes at %d bytes", lowWaterMark(t, ours))
	}
	go write("x")
	if n, err := ours.Read(p); n != 1 || err != nil {
		t.Errorf("read %d, %v", n, err)
	}
	g.begin()
	if err := theirs.Close(); err != nil {
		t.Fatal(err)
	}
	if n := g.read(p); n != 0 || !g.end() {
		t.Error("the end of the stream is not for the gatherer to tell")
	}
	if _, err := ours.Read(p); !errors.Is(err, io.EOF) {
		t.Errorf("read: %v", err)
	}
	g.begin()
	_ = ours.Close()
	if g.read(p) != 0 || g.end() {
		t.Error("a closed socket is waited for")
	}
	none := newGatherer(&net.UnixConn{})
	if none.begin(); none.read(p) != 0 || !none.end() {
		t.Error("a connection of another kind was touched")
	}
}

// TestGatheringLosesNothing: bursts faster than the threshold, each followed by silence, in which the last
// message must be delivered although the kernel has been told to wait for many.
func TestGatheringLosesNothing(t *testing.T) {
	const bursts, each = 8, 3000
	ours, theirs := tcpPair(t)
	var n atomic.Int64
	var wrong atomic.Bool
	var s *Session
	s = newIdleRig(t, func(cfg *Config) {
		cfg.Deliver = func(_ context.Context, d *Delivery) {
			if int64(d.PacketID) != n.Load()%65535+1 {
				wrong.Store(true)
			}
			d.Arena.Release(1)
			s.cfg.Budget.Release(int64(d.Size))
			n.Add(1)
		}
	}, "mqtt://test").session
	c := newConn(s, ours)
	c.generation.Store(1)
	ended := make(chan error, 1)
	go func() {
		_, err := c.Read(make([]byte, 1))
		ended <- err
	}()
	said := telemetry(bursts * each)
	per := strings.Count(string(said), "devices/") / bursts
	if per != each {
		t.Fatal(per)
	}
	sent := 0
	for burst := range bursts {
		for end := (burst + 1) * each; sent < end; sent++ {
			size := 2 + int(said[1])
			if said[1] >= 0x80 {
				size = 3 + int(said[1]&0x7F) + int(said[2])<<7
			}
			if _, err := theirs.Write(said[:size]); err != nil {
				t.Fatal(err)
			}
			said = said[size:]
			if sent%20 == 0 {
				time.Sleep(time.Millisecond) // some 15 000 a second, one at a time
			}
		}
		eventually(t, "the last of a burst", func() bool { return n.Load() == int64(sent) })
	}
	if wrong.Load() {
		t.Error("not in the order of receipt")
	}
	if err := theirs.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		if !errors.Is(err, io.EOF) {
			t.Errorf("read: %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Error("the end of the stream is not seen")
	}
}
