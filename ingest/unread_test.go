package ingest

import (
	"context"
	"encoding/binary"
	"net"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/packets"
)

// TestFewAcknowledgementsAreUnread: the broker has a long queue, of which Mosquitto before 2.0.13 sends all at once and reads
// hardly an acknowledgement meanwhile. The bridge is killed in the middle. What it had acknowledged and comes again
// must not be more than the delivery ledger remembers. A broker that keeps to Receive Maximum passes by itself.
func TestFewAcknowledgementsAreUnread(t *testing.T) {
	const total, ledger = 120_000, 32_767
	broker := startMosquitto(t, "log_type none\n")
	session := newRig(t, nil, broker.url())
	session.awaitState(StateSubscribed)
	session.close() // the broker keeps it
	publishAll(t, broker.addr(), total)

	life := func() (*rig, *prompter) {
		p := &prompter{acknowledged: make(map[int]bool), again: make(map[int]bool)}
		r := newRig(t, func(cfg *Config) {
			cfg.FewUnread, cfg.MaxInFlight, cfg.Deliver = true, 15_000, p.deliver
		}, broker.url())
		p.session = r.session
		return r, p
	}
	first, before := life()
	eventually(t, "half of the queue is acknowledged", func() bool { return before.acknowledge() >= total/2 })
	first.cancel() // closes the connection and says nothing, as a process that is killed
	<-first.session.done

	second, after := life()
	eventually(t, "the rest", func() bool {
		after.acknowledge()
		return len(before.acknowledged)+len(after.acknowledged) >= total && before.with(after) == total
	})
	second.close()
	unread := 0
	for number := range before.acknowledged {
		if after.acknowledged[number] {
			unread++
			if !after.again[number] {
				t.Fatalf("message %d came again without DUP", number)
			}
		}
	}
	t.Logf("%d acknowledged in the first life, %d of them unread", len(before.acknowledged), unread)
	if unread > ledger {
		t.Errorf("%d of %d acknowledged messages came again, the ledger remembers %d", unread, len(before.acknowledged), ledger)
	}
}

// prompter acknowledges what came whenever it is asked, as one batch after another is.
type prompter struct {
	session *Session

	mu   sync.Mutex
	came []Delivery

	// By the number in the payload.
	acknowledged, again map[int]bool
}

func (p *prompter) deliver(_ context.Context, d *Delivery) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.came = append(p.came, *d)
}

// acknowledge returns how many messages are acknowledged by now. An error is the end of the connection.
func (p *prompter) acknowledge() int {
	p.mu.Lock()
	came := p.came
	p.came = nil
	p.mu.Unlock()
	acks := make([]Ack, len(came))
	for i, d := range came {
		acks[i] = d.Ack()
		number, _ := strconv.Atoi(string(d.Message.Payload))
		p.acknowledged[number], p.again[number] = true, d.Dup
		p.session.cfg.Budget.Release(int64(d.Size))
	}
	_ = p.session.Acknowledge(acks)
	return len(p.acknowledged)
}

// with is how many messages either has acknowledged.
func (p *prompter) with(other *prompter) int {
	n := len(p.acknowledged)
	for number := range other.acknowledged {
		if !p.acknowledged[number] {
			n++
		}
	}
	return n
}

// publishAll publishes n numbered messages with QoS 1 and waits for the last PUBACK. One at a time, as paho does
// it, would take longer than the rest of the test.
func publishAll(t *testing.T, addr string, n int) {
	t.Helper()
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	if err := nc.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	connect := packets.NewControlPacket(packets.CONNECT)
	connect.Content.(*packets.Connect).ClientID = "flood"
	if _, err := connect.WriteTo(nc); err != nil {
		t.Fatal(err)
	}
	written := make(chan error, 1)
	go func() {
		var out []byte
		for i := range n {
			payload := strconv.Itoa(i)
			out = append(out, packets.PUBLISH<<4|1<<1, byte(2+3+2+1+len(payload)), 0, 3, 't', '/', 'x')
			out = binary.BigEndian.AppendUint16(out, uint16(i%65_535+1))
			out = append(append(out, 0 /* Property Length */), payload...)
			if len(out) > 64<<10 || i == n-1 {
				if _, err := nc.Write(out); err != nil {
					written <- err
					return
				}
				out = out[:0]
			}
		}
		written <- nil
	}()
	for acknowledged := 0; acknowledged < n; {
		packet, err := packets.ReadPacket(nc)
		if err != nil {
			t.Fatalf("after %d PUBACKs: %v", acknowledged, err)
		}
		if packet.Type == packets.PUBACK {
			acknowledged++
		}
	}
	if err := <-written; err != nil {
		t.Fatal(err)
	}
}
