//go:build linux

package bench

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mqttpg/bridge/integration/provider"
)

// publisher sends PUBLISH packets at QoS 1 over one connection and counts the PUBACKs. It speaks MQTT
// 3.1.1, whose PUBACK has always four bytes, and leaves out everything that would cost the CPUs it shares
// with those who are measured.
type publisher struct {
	conn   net.Conn
	buffer []byte
	sent   int

	mu     sync.Mutex
	change sync.Cond
	acked  int
	err    error // of the reading side
	done   chan struct{}
}

// window is the most publications that wait for their PUBACK.
const window = 10_000

// brokerPatience is how long a broker may take for a window of acknowledgements.
const brokerPatience = time.Minute

// connectPublisher connects with a clean session.
func connectPublisher(ctx context.Context, address, clientID string) (*publisher, error) {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("connect to the broker: %w", err)
	}
	p := &publisher{conn: conn, done: make(chan struct{})}
	p.change.L = &p.mu
	const protocol = "\x00\x04MQTT\x04\x02\x00\x00" // level 4, Clean Session, no Keep Alive
	packet := append([]byte{0x10, byte(len(protocol) + 2 + len(clientID))}, protocol...)
	packet = binary.BigEndian.AppendUint16(packet, uint16(len(clientID)))
	packet = append(packet, clientID...)
	var connack [4]byte
	if _, err = conn.Write(packet); err == nil {
		_, err = io.ReadFull(conn, connack[:])
	}
	if err == nil && (connack[0] != 0x20 || connack[3] != 0) {
		err = fmt.Errorf("the broker answers %x to CONNECT", connack)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("connect to the broker: %w", err), conn.Close())
	}
	go p.countAcknowledgements()
	return p, nil
}

// gathering is for how long PUBACKs gather before they are counted: at a low rate each would wake this process.
const gathering = 5 * time.Millisecond

func (p *publisher) countAcknowledgements() {
	defer close(p.done)
	buffer, rest := make([]byte, 64<<10), 0
	for {
		n, err := p.conn.Read(buffer)
		rest += n
		p.mu.Lock()
		p.acked += rest / 4
		p.err = err
		p.mu.Unlock()
		p.change.Signal()
		rest %= 4
		if err != nil {
			return
		}
		time.Sleep(gathering)
	}
}

// close ends the connection.
func (p *publisher) close() error {
	_, err := p.conn.Write([]byte{0xe0, 0}) // DISCONNECT
	err = errors.Join(err, p.conn.Close())
	<-p.done
	return err
}

// await returns when at most so many publications wait for their PUBACK.
func (p *publisher) await(most int) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.sent-p.acked <= most {
		return nil
	}
	_ = p.conn.SetReadDeadline(time.Now().Add(brokerPatience))
	defer func() { _ = p.conn.SetReadDeadline(time.Time{}) }()
	for p.sent-p.acked > most {
		if p.err != nil {
			return fmt.Errorf("wait for PUBACK: %w", p.err)
		}
		p.change.Wait()
	}
	return nil
}

// append encodes a PUBLISH into the buffer.
func (p *publisher) append(w *Work, n int) {
	topic := w.Topic(n)
	size := w.Size
	if size == 0 {
		size = usualSize
	}
	b := append(p.buffer, 0x32) // PUBLISH, QoS 1
	b = binary.AppendUvarint(b, uint64(2+len(topic)+2+size))
	b = binary.BigEndian.AppendUint16(b, uint16(len(topic)))
	b = append(b, topic...)
	b = binary.BigEndian.AppendUint16(b, uint16(p.sent%65_535+1))
	p.buffer = w.AppendPayload(b, n)
	p.sent++
}

func (p *publisher) flush() error {
	if len(p.buffer) == 0 {
		return nil
	}
	_, err := p.conn.Write(p.buffer)
	p.buffer = p.buffer[:0]
	if err != nil {
		return fmt.Errorf("publish: %w", err)
	}
	return nil
}

// publish sends messages from, inclusive, to, exclusive, as fast as the broker takes them, and returns
// when it has acknowledged all.
func (p *publisher) publish(w *Work, from, to int) error {
	for n := from; n < to; n++ {
		p.append(w, n)
		if len(p.buffer) >= 32<<10 {
			if err := p.flush(); err != nil {
				return err
			}
			if err := p.await(window); err != nil {
				return err
			}
		}
	}
	if err := p.flush(); err != nil {
		return err
	}
	return p.await(0)
}

// tick is how often a paced publisher looks what is due: a burst is no longer than this.
const tick = 500 * time.Microsecond

// pace sends messages from, inclusive, to, exclusive, each when its event time has come, and does not wait for the
// last PUBACKs, so that another call may go on in time. If it is held up, what became due meanwhile goes out at once; the event
// time stays the one of the schedule, so that a delay is never hidden. It returns the longest delay.
func (p *publisher) pace(ctx context.Context, w *Work, from, to int) (late time.Duration, err error) {
	// Not time.Sleep: the runtime's timers have the resolution of the network poller, a millisecond.
	for n := from; n < to; {
		if wait := time.Until(w.Time(n)); wait > 0 {
			if err := ctx.Err(); err != nil {
				return late, err
			}
			rest := unix.NsecToTimespec(int64(max(wait, tick)))
			_ = unix.Nanosleep(&rest, nil) // a signal shortens it: then it is not yet time
			continue
		}
		now := time.Now()
		late = max(late, now.Sub(w.Time(n)))
		for n < to && !w.Time(n).After(now) && len(p.buffer) < 32<<10 {
			p.append(w, n)
			n++
		}
		if err := p.flush(); err != nil {
			return late, err
		}
		if err := p.await(window); err != nil {
			return late, err
		}
	}
	return late, nil
}

// publishBacklog publishes all messages as fast as it goes.
func publishBacklog(t *testing.T, address string, w *Work) {
	t.Helper()
	p, err := connectPublisher(t.Context(), address, "publisher")
	must(t, err)
	must(t, p.publish(w, 0, w.Messages))
	must(t, p.close())
}

func TestPublisherSaysWhatIsWrong(t *testing.T) {
	broker := provider.StartBroker(t, provider.BrokerConfig{Conf: []string{"allow_anonymous false"}})
	if _, err := connectPublisher(t.Context(), broker.Addr(""), "x"); err == nil || !strings.Contains(err.Error(), "20020005") {
		t.Errorf("got %v", err)
	}
}

// must ends the test at an error of the measurement itself.
func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
