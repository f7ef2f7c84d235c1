package ingest

import (
	"net"
	"syscall"
	"unsafe"
)

// gatherBytes is from how many bytes on the kernel wakes a reader that lets them gather: a read's worth
// of what a fast broker sends in a pause. It leaves the size of the receive buffer alone.
const gatherBytes = 64 << 10

// gatherer reads a TCP connection that is left alone for a moment now and then. The runtime watches
// every connection all the time, and would wake for each segment although nobody waits for it; so
// meanwhile the kernel is told to speak up for many bytes only (SO_RCVLOWAT).
//
// The zero value is for all other connections, which it leaves as they are.
type gatherer struct {
	raw   syscall.RawConn
	quiet bool // nobody may wait for the connection now
}

func newGatherer(nc net.Conn) gatherer { return gatherer{raw: rawTCP(nc)} }

// begin is called before a moment in which the connection is left alone.
func (g *gatherer) begin() {
	if !g.quiet {
		g.quiet = g.wakeAt(gatherBytes)
	}
}

// read takes what is there without waiting, if begin was called before. 0 is no more than that there was nothing
// to take: who then waits sees what it is about.
func (g *gatherer) read(p []byte) (n int) {
	if !g.quiet {
		return 0
	}
	err := g.raw.Read(func(fd uintptr) bool {
		// Not syscall.Read: it tells the runtime, whose monitor then wakes for a millisecond, every 20 µs, lest
		// the call block. This one cannot, the descriptor is non-blocking.
		got, _, errno := syscall.RawSyscall(syscall.SYS_READ, fd, uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)))
		if errno == 0 {
			n = int(got)
		}
		return true
	})
	if err != nil {
		return 0
	}
	return n
}

// end is called before somebody waits for the connection, and says whether that is possible.
func (g *gatherer) end() bool {
	if g.quiet {
		g.quiet = !g.wakeAt(1)
	}
	return !g.quiet
}

// wakeAt says whether the kernel wakes at n bytes from now on.
func (g *gatherer) wakeAt(n int) bool {
	if g.raw == nil {
		return false
	}
	var refused error
	err := g.raw.Control(func(fd uintptr) {
		refused = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVLOWAT, n)
	})
	return err == nil && refused == nil
}
