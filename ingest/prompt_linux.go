package ingest

import (
	"net"
	"syscall"
)

// promptness has the kernel acknowledge what a TCP connection has received at once (TCP_QUICKACK), not with our
// next PUBACKs or after 40 ms. Brokers that leave Nagle's algorithm on, as Mosquitto does unless set_tcp_nodelay
// says otherwise, send nothing small while anything is unacknowledged: a message then comes with the
// acknowledgement of the batch before, and has waited for that before it begins to wait for its own.
//
// The zero value is for all other connections, which it leaves as they are.
type promptness struct{ raw syscall.RawConn }

func newPromptness(nc net.Conn) promptness { return promptness{rawTCP(nc)} }

// acknowledge is called after each read: the kernel goes back to its ways when we write.
func (p promptness) acknowledge() {
	if p.raw == nil {
		return
	}
	// Where the kernel refuses, messages come later.
	_ = p.raw.Control(func(fd uintptr) {
		_ = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, syscall.TCP_QUICKACK, 1)
	})
}

// rawTCP is the descriptor of a TCP connection, nil of any other.
func rawTCP(nc net.Conn) syscall.RawConn {
	tcp, ok := nc.(*net.TCPConn)
	if !ok {
		return nil
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return nil
	}
	return raw
}
