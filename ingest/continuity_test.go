package ingest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cespare/xxhash/v2"
	"github.com/eclipse/paho.golang/packets"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

// TestAnotherBrokerIsAnotherIncarnation: packet identifiers of one broker mean nothing to another,
// though both have a session for the client id; those of a cluster do.
func TestAnotherBrokerIsAnotherIncarnation(t *testing.T) {
	for _, common := range []bool{false, true} {
		t.Run(fmt.Sprintf("common sessions %t", common), func(t *testing.T) {
			one, other := startMosquitto(t, ""), startMosquitto(t, "")
			visit := func(m *mosquitto) { // leaves a session behind
				r := newRig(t, nil, m.url())
				r.awaitState(StateSubscribed)
				r.close()
			}
			visit(one)
			visit(other)
			r := newRig(t, func(cfg *Config) { cfg.CommonSessions, cfg.Filters = common, []string{"u/#", "t/#"} }, one.url(), other.url())
			r.autoAck = true
			r.awaitState(StateSubscribed)
			newClient(t, one.url(), "publisher").publish("t/x", "a", 1)
			first := r.received(1)[0]
			one.stop()
			eventually(t, "the session is with the other broker", func() bool {
				st := r.session.Status()
				return st.State == StateSubscribed && st.URL == other.url() && st.SessionPresent
			})
			newClient(t, other.url(), "publisher").publish("t/x", "b", 1)
			second := r.received(2)[1]
			want := first.Incarnation + 1
			if common {
				want = first.Incarnation
			}
			if second.Incarnation != want || (first.Broker == second.Broker) != common || second.Attempt != first.Attempt+1 {
				t.Errorf("incarnation %d, %s, attempt %d; then %d, %s, attempt %d",
					first.Incarnation, first.Broker, first.Attempt, second.Incarnation, second.Broker, second.Attempt)
			}
		})
	}
}

// TestConfirmed: a connection is told of before CONNECT, and the broker's having seen an
// acknowledgement after it.
func TestConfirmed(t *testing.T) {
	broker := startMosquitto(t, "")
	var mu sync.Mutex
	var begun, confirmed []uint64
	connects := func() int { return strings.Count(broker.log.String(), "as "+testClientID) }
	r := newRig(t, func(cfg *Config) {
		cfg.BeginConnection = func(_ context.Context, attempt uint64) error {
			mu.Lock()
			defer mu.Unlock()
			if connects() != len(begun) {
				t.Error("connected before it was told")
			}
			begun = append(begun, attempt)
			return errors.New("the database is away") // the connection is made all the same
		}
		cfg.Confirmed = func(number uint64) {
			mu.Lock()
			defer mu.Unlock()
			confirmed = append(confirmed, number)
		}
	}, broker.url())
	r.awaitState(StateSubscribed)
	publisher := newClient(t, broker.url(), "publisher")
	for n := range uint64(5) {
		publisher.publish("t/x", "21.5", 1)
		d := r.received(int(n) + 1)[n]
		ack := d.Ack()
		ack.Number = n + 1
		if err := r.session.Acknowledge([]Ack{ack}); err != nil {
			t.Fatal(err)
		}
		stale := ack
		stale.Connection, stale.Number = 99, 100
		if err := r.session.Acknowledge([]Ack{stale}); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the broker has seen it", func() bool {
			mu.Lock()
			defer mu.Unlock()
			return len(confirmed) > 0 && confirmed[len(confirmed)-1] == n+1
		})
	}
	mu.Lock()
	defer mu.Unlock()
	if len(begun) != 1 || begun[0] != 1 {
		t.Errorf("told of connections %v", begun)
	}
}

// largePublish is a PUBLISH above the limits of these tests.
func largePublish(qos byte, properties, payload []byte) (packet []byte, remaining int) {
	body := []byte{0, 3, 't', '/', 'x'}
	if qos > 0 {
		body = append(body, 0, 7)
	}
	body = appendVarint(body, len(properties))
	body = append(append(body, properties...), payload...)
	return append(appendVarint([]byte{0x30 | qos<<1}, len(body)), body...), len(body)
}

func appendVarint(b []byte, n int) []byte {
	for ; n >= 0x80; n >>= 7 {
		b = append(b, byte(n)|0x80)
	}
	return append(b, byte(n))
}

func userProperties(bytes int) []byte {
	var b []byte
	for len(b) < bytes {
		b = append(b, propUser, 0, 1, 'n', 0xff, 0xff)
		b = append(b, strings.Repeat("v", 0xffff)...)
	}
	return b
}

func TestTooLargeIsReadThrough(t *testing.T) {
	const limit = 100_000
	random := rand.New(rand.NewPCG(1, 2))
	payload := make([]byte, 3*limit)
	for i := 0; i < len(payload); i += 8 {
		binary.LittleEndian.PutUint64(payload[i:], random.Uint64())
	}
	for _, tt := range []struct {
		name                string
		properties, payload []byte
		kept, userProps     int
	}{
		{"payload", nil, payload, keptPayload, 0},
		{"payload and properties", userProperties(70_000), payload, keptPayload, 2},
		{"properties beyond what is kept", userProperties(keptProperties), []byte("short"), 5, 0},
		{"properties beyond what is kept, and no payload", userProperties(keptProperties), nil, 0, 0},
	} {
		for qos := range byte(3) {
			t.Run(fmt.Sprintf("%s, QoS %d", tt.name, qos), func(t *testing.T) {
				r := newIdleRig(t, func(cfg *Config) { cfg.MaxMessageBytes = limit }, "mqtt://test")
				packet, size := largePublish(qos, tt.properties, tt.payload)
				small := unhex(t, "32 07 0001 't' 0008 00 01")
				_, _, _, err := feed(t, r, random, bytes.Join([][]byte{unhex(t, connack), packet, small}, nil))
				if !errors.Is(err, io.EOF) {
					t.Fatal(err)
				}
				got := r.received(2)
				d := got[0]
				if d.Cut == nil || d.Cut.Size != size || d.Cut.Hash != xxhash.Sum64(tt.payload) {
					t.Fatalf("cut %+v, want size %d", d.Cut, size)
				}
				if !bytes.Equal(d.Message.Payload, tt.payload[:tt.kept]) || len(d.Message.UserProperties) != tt.userProps || d.Message.Topic != "t/x" {
					t.Errorf("%d bytes and %d user properties are kept, topic %s", len(d.Message.Payload), len(d.Message.UserProperties), d.Message.Topic)
				}
				if got[1].Cut != nil || got[1].PacketID != 8 {
					t.Errorf("what follows is %+v", got[1])
				}
				if used := r.session.cfg.Budget.Used(); used != int64(d.Size+got[1].Size) || d.Size > cutBytes {
					t.Errorf("%d bytes of the budget are taken, by messages of %d and %d", used, d.Size, got[1].Size)
				}
			})
		}
	}
	t.Run("the limit itself is held", func(t *testing.T) {
		r := newIdleRig(t, func(cfg *Config) { cfg.MaxMessageBytes = limit }, "mqtt://test")
		packet, size := largePublish(1, nil, payload[:limit-8])
		if size != limit {
			t.Fatal(size)
		}
		_, _, _, _ = feed(t, r, nil, append(unhex(t, connack), packet...))
		if d := r.received(1)[0]; d.Cut != nil || len(d.Message.Payload) != limit-8 {
			t.Errorf("%+v", d.Cut)
		}
	})
	t.Run("cut off and malformed", func(t *testing.T) {
		packet, _ := largePublish(1, userProperties(70_000), payload)
		for name, said := range map[string][]byte{
			"cut off in the payload":    packet[:len(packet)-5],
			"cut off in the properties": packet[:1000],
			"topic beyond the packet":   append(appendVarint([]byte{0x32}, limit+1), append([]byte{0xff, 0xff}, payload[:limit-1]...)...),
			"properties beyond it":      append(appendVarint([]byte{0x32}, limit+1), append([]byte{0, 1, 't', 0, 7, 0xff, 0xff, 0xff, 0x7f}, payload[:limit-8]...)...),
			"length of properties":      append(appendVarint([]byte{0x32}, limit+1), append([]byte{0, 1, 't', 0, 7, 0xff, 0xff, 0xff, 0xff}, payload[:limit-8]...)...),
		} {
			r := newIdleRig(t, func(cfg *Config) { cfg.MaxMessageBytes = limit }, "mqtt://test")
			_, _, _, err := feed(t, r, nil, append(unhex(t, connack), said...))
			if err == nil || errors.Is(err, io.EOF) || len(r.all()) != 0 || r.session.cfg.Budget.Used() != 0 {
				t.Errorf("%s: %v, %d deliveries, %d bytes taken", name, err, len(r.all()), r.session.cfg.Budget.Used())
			}
		}
	})
}

// TestOverrunOfReceiveMaximum: a broker sends a hundred times the Receive Maximum while nothing can be
// committed, as Mosquitto before 2.0.13 does. Memory stays in the budget, PINGREQs go on, what was
// held back arrives in the end; only QoS 0 is dropped, and counted.
func TestOverrunOfReceiveMaximum(t *testing.T) {
	const receiveMaximum, size, limit = 20, 2000, 400_000
	peer := newOverrunner(t)
	r := newRig(t, func(cfg *Config) {
		cfg.ReceiveMaximum, cfg.KeepAlive, cfg.Budget = receiveMaximum, time.Second, NewBudget(limit)
	}, "mqtt://"+peer.addr)
	const total = 100 * receiveMaximum
	peer.flood(total, size)
	eventually(t, "the reader waits", func() bool { return r.session.Status().Paused })
	held := len(r.all())
	if used := r.session.cfg.Budget.Used(); used > limit || held >= total/2 || held < 10 {
		t.Fatalf("%d messages held, %d bytes of %d", held, used, limit)
	}
	pings := peer.pings.Load()
	eventually(t, "PINGREQs go on", func() bool { return peer.pings.Load() >= pings+3 })
	if st := r.session.Status(); st.Reconnects != 0 || st.PingTimeouts != 0 || len(r.all()) != held {
		t.Errorf("%+v with %d deliveries", st, len(r.all()))
	}
	// The database is back.
	done, qos0 := 0, 0
	for done-qos0 < total { // each is settled when it arrives
		all := r.all()
		if len(all) == done {
			time.Sleep(time.Millisecond)
			continue
		}
		for _, d := range all[done:] {
			if d.Message.QoS == 0 {
				qos0++
			} else if want := uint16(done - qos0 + 1); d.PacketID != want {
				t.Fatalf("packet identifier %d, want %d", d.PacketID, want)
			}
			done++
			r.settle(d)
		}
	}
	eventually(t, "every QoS 0 message is accounted for", func() bool {
		qos0 = 0
		for _, d := range r.all() {
			if d.Message.QoS == 0 {
				qos0++
			}
		}
		dropped := int(testutil.ToFloat64(r.session.cfg.Metrics.dropped.WithLabelValues(dropBudget)))
		return qos0+dropped == total/10
	})
	if r.session.Status().Reconnects != 0 {
		t.Error("reconnected")
	}
}

// TestMaxInFlight: the same broker, but with a bound on what is in flight. It is held back at the bound,
// not before; QoS 0 in front of that comes through; each acknowledgement lets one more in.
func TestMaxInFlight(t *testing.T) {
	const receiveMaximum, limit, total = 20, 50, 500
	start := func(t *testing.T, qos byte) (*overrunner, *rig) {
		peer := newOverrunner(t)
		r := newRig(t, func(cfg *Config) {
			cfg.ReceiveMaximum, cfg.MaxInFlight, cfg.KeepAlive = receiveMaximum, limit, time.Second
		}, "mqtt://"+peer.addr)
		peer.qos = qos
		peer.flood(total, 10)
		return peer, r
	}
	// held waits for the reader to wait, and returns what came with QoS 1 and 2.
	held := func(t *testing.T, r *rig, want int) (got []*Delivery) {
		t.Helper()
		eventually(t, "the reader waits", func() bool {
			r.session.mu.Lock()
			c := r.session.conn
			r.session.mu.Unlock()
			if c == nil {
				return false
			}
			c.inFlight.mu.Lock()
			defer c.inFlight.mu.Unlock()
			return len(c.inFlight.waiters) == 1
		})
		if got = r.withQoS(); len(got) != want {
			t.Fatalf("%d messages with QoS 1 or 2, want %d", len(got), want)
		}
		return got
	}
	for qos := byte(1); qos <= 2; qos++ {
		t.Run(fmt.Sprintf("QoS %d", qos), func(t *testing.T) {
			peer, r := start(t, qos)
			got := held(t, r, limit)
			if n := len(r.all()) - len(got); n != limit/10 {
				t.Errorf("%d messages with QoS 0 came through", n)
			}
			pings := peer.pings.Load()
			eventually(t, "PINGREQs go on", func() bool { return peer.pings.Load() >= pings+3 })
			if st := r.session.Status(); st.Reconnects != 0 || st.PingTimeouts != 0 || st.Paused || len(r.all()) != limit+limit/10 {
				t.Errorf("%+v with %d deliveries", st, len(r.all()))
			}
			for done := 0; done < total; {
				if got = r.withQoS()[done:]; len(got) == 0 {
					time.Sleep(time.Millisecond)
				}
				if len(got) > limit {
					t.Fatalf("%d messages in flight", len(got))
				}
				for i, d := range got {
					if d.PacketID != uint16(done+i+1) {
						t.Fatalf("packet identifier %d, want %d", d.PacketID, done+i+1)
					}
				}
				r.settle(got...)
				done += len(got)
			}
			if r.session.Status().Reconnects != 0 {
				t.Error("reconnected")
			}
		})
	}
	t.Run("nothing more is taken", func(t *testing.T) {
		_, r := start(t, 1)
		got := held(t, r, limit)
		r.session.StopTaking() // must let go of the reader, or Close finds no PINGRESP
		r.settle(got...)
		r.close()
		if n := len(r.withQoS()); n != limit {
			t.Errorf("%d messages with QoS 1, want %d", n, limit)
		}
		qos0 := int64(len(r.all()) - limit)
		if n := r.session.cfg.Budget.Used(); n != qos0*(overheadBytes+7) {
			t.Errorf("%d bytes of the budget are held, with %d messages of QoS 0", n, qos0)
		}
	})
	t.Run("cut off", func(t *testing.T) {
		_, r := start(t, 1)
		held(t, r, limit)
		r.cancel()
		if err := <-r.ran; !errors.Is(err, context.Canceled) {
			t.Errorf("run: %v", err)
		}
		if n := r.session.cfg.Budget.Used(); n != r.charged() {
			t.Errorf("%d bytes of the budget are held, by deliveries of %d", n, r.charged())
		}
	})
	t.Run("a new connection begins at nothing", func(t *testing.T) {
		peer, r := start(t, 1)
		held(t, r, limit)
		peer.drop()
		peer.flood(total, 10)
		eventually(t, "as many again", func() bool { return len(r.withQoS()) == 2*limit })
		held(t, r, 2*limit)
	})
}

// overrunner is a broker that accepts a session and sends whatever it likes.
type overrunner struct {
	t     *testing.T
	addr  string
	ready chan net.Conn
	qos   byte // of the flood; 0 stands for 1
	pings atomic.Int64
	write sync.Mutex

	flooded net.Conn
}

func newOverrunner(t *testing.T) *overrunner {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	o := &overrunner{t: t, addr: l.Addr().String(), ready: make(chan net.Conn, 1)}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() { o.serve(nc) })
		}
	})
	t.Cleanup(func() { _ = l.Close(); serving.Wait() })
	return o
}

func (o *overrunner) serve(nc net.Conn) {
	defer nc.Close()
	say := func(b ...byte) {
		o.write.Lock()
		defer o.write.Unlock()
		_, _ = nc.Write(b)
	}
	for {
		p, err := packets.ReadPacket(nc)
		if err != nil {
			return
		}
		switch c := p.Content.(type) {
		case *packets.Connect:
			say(packets.CONNACK<<4, 3, 0, 0, 0)
		case *packets.Subscribe:
			say(packets.SUBACK<<4, 4, byte(c.PacketID>>8), byte(c.PacketID), 0, 1)
			o.ready <- nc
		case *packets.Pingreq:
			o.pings.Add(1)
			go say(packets.PINGRESP<<4, 0) // while the peer does not read, it waits behind the flood
		case *packets.Disconnect:
			return
		}
	}
}

// drop ends the connection that is being flooded.
func (o *overrunner) drop() { _ = o.flooded.Close() }

// flood sends n messages, and one of QoS 0 with every tenth, on the next connection.
func (o *overrunner) flood(n, size int) {
	nc := <-o.ready
	o.flooded = nc
	payload := make([]byte, size)
	go func() {
		first := packets.PUBLISH<<4 | max(1, o.qos)<<1
		for i := range n {
			body := append([]byte{0, 3, 't', '/', 'x', byte((i + 1) >> 8), byte(i + 1), 0}, payload...)
			packet := append(appendVarint([]byte{first}, len(body)), body...)
			if i%10 == 0 {
				packet = append(packet, 0x30, 7, 0, 3, 't', '/', 'x', 0, '0')
			}
			o.write.Lock()
			_, err := nc.Write(packet)
			o.write.Unlock()
			if err != nil {
				return
			}
		}
	}()
}
