package ingest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"github.com/eclipse/paho.golang/packets"
	"github.com/mqttpg/bridge/mapping"
)

// stream is a peer that says prepared bytes and remembers what it was told. It cuts what it says
// into pieces of random size.
type stream struct {
	net.Conn
	in  *bytes.Reader
	rnd *rand.Rand
	eof error

	mu     sync.Mutex
	out    bytes.Buffer
	writes int
	closed bool
}

func (s *stream) Read(p []byte) (int, error) {
	if s.rnd != nil && len(p) > 1 {
		p = p[:1+s.rnd.IntN(min(len(p), 50))]
	}
	n, err := s.in.Read(p)
	if errors.Is(err, io.EOF) {
		err = s.eof
	}
	return n, err
}

func (s *stream) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.writes++
	return s.out.Write(p)
}

func (s *stream) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	return nil
}

func (s *stream) SetWriteDeadline(time.Time) error { return nil }

func (s *stream) told() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return fmt.Sprintf("%x", s.out.Bytes())
}

const connack = "20 03 00 00 00"

// feed makes a connection on which the broker says the bytes given, and reads it to its end.
// It returns what passed through to paho.
func feed(t *testing.T, r *rig, rnd *rand.Rand, said []byte) (*conn, *stream, []byte, error) {
	t.Helper()
	raw := &stream{in: bytes.NewReader(said), rnd: rnd, eof: io.EOF}
	c := newConn(r.session, raw)
	r.session.mu.Lock()
	r.session.conn = c
	r.session.mu.Unlock()
	var passed bytes.Buffer
	for {
		p := make([]byte, 7)
		if rnd != nil {
			p = p[:1+rnd.IntN(7)]
		}
		n, err := c.Read(p)
		passed.Write(p[:n])
		if err != nil {
			return c, raw, passed.Bytes(), err
		}
	}
}

func TestConnTakesPublishOutOfTheStream(t *testing.T) {
	suback := "90 04 0001 00 01"
	pingresp := "d0 00"
	puback := "40 02 0007"
	publish := func(i int, qos int) string {
		if qos == 0 {
			return fmt.Sprintf("30 05 0001 't' 00 %02x", i)
		}
		return fmt.Sprintf("%02x 07 0001 't' %04x 00 %02x", 0x30|qos<<1, i+1, i)
	}
	var said, passes string
	said, passes = connack+suback, connack+suback
	for i := range 200 {
		said += publish(i, i%3)
		switch i % 5 {
		case 1:
			said, passes = said+pingresp, passes+pingresp
		case 3:
			said, passes = said+puback, passes+puback
		case 4:
			said += "62 02" + fmt.Sprintf("%04x", i) // PUBREL
		}
	}
	for seed := range uint64(50) {
		r := newIdleRig(t, nil, "mqtt://test")
		var rnd *rand.Rand
		if seed > 0 { // 0: everything at once
			rnd = rand.New(rand.NewPCG(seed, seed))
		}
		c, raw, passed, err := feed(t, r, rnd, unhex(t, said))
		if !errors.Is(err, io.EOF) || !errors.Is(context.Cause(c.ctx), io.EOF) {
			t.Fatalf("seed %d: end %v, cause %v", seed, err, context.Cause(c.ctx))
		}
		if want := unhex(t, passes); !bytes.Equal(passed, want) {
			t.Fatalf("seed %d: to paho went\n% x, want\n% x", seed, passed, want)
		}
		got := r.received(200)
		for i, d := range got {
			if d.Message.Payload[0] != byte(i) || int(d.Message.QoS) != i%3 || d.Connection != 1 {
				t.Fatalf("seed %d: delivery %d is %+v", seed, i, d)
			}
		}
		var pubcomps strings.Builder
		for i := 4; i < 200; i += 5 {
			fmt.Fprintf(&pubcomps, "7002%04x", i)
		}
		if raw.told() != pubcomps.String() {
			t.Fatalf("seed %d: PUBCOMPs %s", seed, raw.told())
		}
		if seed == 0 && raw.writes != 1 {
			t.Errorf("%d writes for PUBRELs that came together", raw.writes)
		}
	}
}

func TestConnRefuses(t *testing.T) {
	tests := map[string]struct {
		said string
		told string // "" = nothing
		text string
	}{
		"PUBLISH before CONNACK [MQTT-3.2.0-1]": {"30 04 0001 't' 00", "e00182", "before CONNACK"},
		"a second CONNACK [MQTT-3.2.0-2]":       {connack + connack, "e00182", "second CONNACK"},
		"CONNACK cannot be read":                {"20 05 00 00 02 ff 00", "e00181", "CONNACK"},
		"CONNACK of MQTT 3.1.1":                 {"20 02 00 01", "", "does not speak MQTT 5"},
		"QoS 3":                                 {connack + "36 06 0001 't' 0001 00", "e00181", "QoS 3"},
		"a topic alias":                         {connack + "30 07 0001 't' 03 23 0001", "e00194", "Topic Alias"},
		"a malformed PUBLISH":                   {connack + "30 03 0001 't'", "e00181", "Property Length"},
		"a protocol error":                      {connack + "30 03 0000 00", "e00182", "neither"},
		"PUBREL flags [MQTT-3.6.1-1]":           {connack + "60 02 0001", "e00181", "PUBREL"},
		"PUBREL too short":                      {connack + "62 01 00", "e00181", "PUBREL"},
		"Remaining Length of five bytes":        {connack + "30 ffffffff01", "e00181", "four bytes"},
		// paho calls an authentication handler that is not there, and the process is gone.
		"an Authentication Method, though none was asked for": {"20 07 00 00 04 15 0001 'a'", "e00182", "Authentication Method"},
		"Receive Maximum 0, MQTT 5 section 3.2.2.3.3":         {"20 06 00 00 03 21 0000", "e00182", "Receive Maximum"},
		// paho answers a PUBREC on a connection that it may just have dropped, and the process is gone.
		"PUBREC, though nothing was published with QoS 2":  {connack + "50 02 0001", "e00182", "type 5"},
		"PUBCOMP, though nothing was published with QoS 2": {connack + "70 02 0001", "e00182", "type 7"},
		"AUTH without an Authentication Method":            {connack + "f0 00", "e00182", "type 15"},
		"AUTH before CONNACK":                              {"f0 02 18 00", "e00182", "type 15"},
		"a packet that only clients send":                  {connack + "c0 00", "e00182", "type 12"},
		"a packet type that does not exist":                {connack + "00 00", "e00182", "type 0"},
		"an enormous SUBACK":                               {connack + "90 ffffff7f", "e00195", "packet too large"},
		"an enormous CONNACK":                              {"20 ffffff7f", "e00195", "packet too large"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			r := newIdleRig(t, nil, "mqtt://test")
			c, raw, _, err := feed(t, r, nil, unhex(t, test.said))
			if err == nil || !strings.Contains(err.Error(), test.text) {
				t.Errorf("error %v", err)
			}
			if raw.told() != test.told {
				t.Errorf("the broker was told %q", raw.told())
			}
			if context.Cause(c.ctx) == nil {
				t.Error("the connection's context goes on")
			}
			if used, inFlight := r.session.cfg.Budget.Used(), c.inFlight.Used(); used != 0 || inFlight != 0 || len(r.all()) != 0 {
				t.Errorf("%d bytes held, %d in flight, %d delivered", used, inFlight, len(r.all()))
			}
		})
	}
}

func TestConnEndsWithinAPacket(t *testing.T) {
	whole := unhex(t, connack+"32 08 0001 't' 0001 00 'xy' 62 02 0001 90 04 0001 00 01 e0 00")
	r := newIdleRig(t, nil, "mqtt://test")
	boundaries := map[int]bool{0: true, 5: true, 15: true, 19: true, 25: true, 27: true}
	for n := range whole {
		_, _, _, err := feed(t, r, nil, whole[:n])
		want := io.ErrUnexpectedEOF
		if boundaries[n] {
			want = io.EOF
		}
		if !errors.Is(err, want) {
			t.Errorf("cut at %d: %v, want %v", n, err, want)
		}
		for _, d := range r.all() {
			r.session.cfg.Budget.Release(int64(d.Size))
		}
		r.forget()
		if used := r.session.cfg.Budget.Used(); used != 0 {
			t.Fatalf("cut at %d: %d bytes held", n, used)
		}
	}
}

func TestConnNotesServerDisconnect(t *testing.T) {
	tests := map[string]struct {
		said   string
		code   byte
		reason string
	}{
		"with a reason":            {"e0 08 8e 06 1f 0003 'bye'", 0x8E, "bye"},
		"a code alone":             {"e0 01 8b", 0x8B, ""},
		"nothing":                  {"e0 00", 0, ""},
		"a code, broken otherwise": {"e0 02 8e 7f", 0x8E, ""},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			c, _, passed, _ := feed(t, newIdleRig(t, nil, "mqtt://test"), nil, unhex(t, connack+test.said))
			var end *disconnectError
			if !errors.As(context.Cause(c.ctx), &end) {
				t.Fatalf("cause %v", context.Cause(c.ctx))
			}
			if end.code != test.code || !strings.HasPrefix(end.reason, test.reason) {
				t.Errorf("got %+v", end)
			}
			if want := unhex(t, connack+test.said); !bytes.Equal(passed, want) {
				t.Errorf("to paho went % x", passed)
			}
		})
	}
}

func TestAcknowledgementsLeaveInOneWrite(t *testing.T) {
	r := newIdleRig(t, nil, "mqtt://test")
	c, raw, _, _ := feed(t, r, nil, unhex(t, connack))
	// feed has read to the end; a connection that goes on is needed
	c.ctx, c.cancel = context.WithCancelCause(context.Background())
	defer c.cancel(nil)
	var acks []Ack
	var want strings.Builder
	c.inFlight.Charge(2000)
	left := int64(2000)
	for i := range 2000 {
		a := Ack{Connection: 1, PacketID: uint16(i + 1), QoS: byte(i % 3)}
		if i%7 == 0 {
			a.Connection = 0 // a connection that was
		} else if a.QoS > 0 {
			fmt.Fprintf(&want, "%02x02%04x", 0x30+0x10*int(a.QoS), i+1)
			left--
		}
		acks = append(acks, a)
	}
	if err := r.session.Acknowledge(acks); err != nil {
		t.Fatal(err)
	}
	if raw.told() != want.String() || raw.writes != 1 {
		t.Errorf("%d writes, right bytes: %v", raw.writes, raw.told() == want.String())
	}
	if got := c.inFlight.Used(); got != left {
		t.Errorf("%d messages in flight, want %d", got, left)
	}
	if err := r.session.Acknowledge([]Ack{{Connection: 2, PacketID: 1, QoS: 1}}); err != nil || raw.writes != 1 {
		t.Errorf("a stale acknowledgement: err %v, %d writes", err, raw.writes)
	}
}

// A broker that exceeds Receive Maximum gets long acknowledgements where the ledger is needed, and nobody else.
func TestHeavyAcknowledgements(t *testing.T) {
	for _, tt := range []struct {
		name      string
		fewUnread bool
		inFlight  int64
		most      int
		qos       byte
		connack   string
		came      int // while a PINGREQ is not answered
		want      int // bytes
	}{
		{"the broker keeps to Receive Maximum", true, 2000, 15000, 1, connack, 2000, 4},
		{"it exceeds Receive Maximum", true, 2001, 15000, 1, connack, 0, heavyBytes},
		{"it does, as the database keeps up", true, 2000, 15000, 1, connack, 2001, heavyBytes},
		{"it does, and rows have keys", false, 2001, 15000, 1, connack, 2001, 4},
		{"it could not be seen", true, 2000, 2000, 1, connack, 0, heavyBytes},
		{"nor with QoS 2", true, 2000, 15000, 2, connack, 0, heavyBytes},
		{"Maximum Packet Size 65", true, 2001, 15000, 1, "20 08 00 00 05 27 00 00 00 41", 0, heavyBytes},
		{"Maximum Packet Size 40", true, 2001, 15000, 1, "20 08 00 00 05 27 00 00 00 28", 0, 40},
		{"Maximum Packet Size 18", true, 2001, 15000, 1, "20 08 00 00 05 27 00 00 00 12", 0, 18},
		{"Maximum Packet Size 17, too small for a User Property", true, 2001, 15000, 1, "20 08 00 00 05 27 00 00 00 11", 0, 4},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newIdleRig(t, func(cfg *Config) {
				cfg.FewUnread, cfg.ReceiveMaximum, cfg.MaxInFlight, cfg.QoS = tt.fewUnread, 2000, tt.most, tt.qos
			}, "mqtt://test")
			c, raw, _, _ := feed(t, r, nil, unhex(t, tt.connack))
			c.ctx, c.cancel = context.WithCancelCause(context.Background()) // feed has read to the end
			defer c.cancel(nil)
			c.inFlight.Charge(tt.inFlight)
			c.asked.Store(1)
			for range tt.came {
				c.count(1)
				c.count(0)
			}
			// What is in flight next is no more than Receive Maximum, and the acknowledgements stay as they are.
			for batch := range 2 {
				var acks []Ack
				for i := range 1000 {
					acks = append(acks, Ack{Connection: 1, PacketID: uint16(1000*batch + i + 1), QoS: byte(1 + i%2)})
				}
				if err := r.session.Acknowledge(acks); err != nil {
					t.Fatal(err)
				}
			}
			if got := c.inFlight.Used(); got != tt.inFlight-2000 {
				t.Errorf("%d in flight", got)
			}
			if n := raw.out.Len(); n != 2000*tt.want {
				t.Fatalf("%d bytes, want %d", n, 2000*tt.want)
			}
			for i := range 2000 {
				packet, err := packets.ReadPacket(&raw.out)
				if err != nil {
					t.Fatal(err)
				}
				var id uint16
				var code byte
				switch p := packet.Content.(type) {
				case *packets.Puback:
					id, code = p.PacketID, p.ReasonCode
				case *packets.Pubrec:
					id, code = p.PacketID, p.ReasonCode
				}
				if packet.Type != packets.PUBACK+byte(i%2) || int(id) != i+1 || code != packets.PubackSuccess {
					t.Fatalf("acknowledgement %d: type %d, packet identifier %d, code %d", i, packet.Type, id, code)
				}
			}
		})
	}
}

// paho writes a packet in pieces; the broker must get it in one, and nothing in between.
func TestPacketsLeaveInOneWrite(t *testing.T) {
	r := newIdleRig(t, nil, "mqtt://test")
	raw := &stream{in: bytes.NewReader(nil)}
	c := newConn(r.session, raw)
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			p := packets.Publish{Topic: "topic", Payload: bytes.Repeat([]byte{byte(i)}, 100), Properties: &packets.Properties{}}
			if _, err := p.WriteTo(c); err != nil {
				t.Error(err)
			}
			if _, err := c.ping(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if raw.writes != 100 {
		t.Errorf("%d writes", raw.writes)
	}
	for rest := bytes.NewReader(raw.out.Bytes()); rest.Len() > 0; {
		if _, err := packets.ReadPacket(rest); err != nil {
			t.Fatal(err)
		}
	}
	big := packets.Publish{Topic: "topic", Payload: make([]byte, 1<<20), Properties: &packets.Properties{}}
	if _, err := big.WriteTo(c); err != nil {
		t.Error(err)
	}
	if cap(c.out) > readBufferSize {
		t.Errorf("%d bytes are kept for a packet once large", cap(c.out))
	}
}

// TestReceiveMaximumIsSeenBetweenPings: what comes is counted from one PINGREQ to its PINGRESP alone.
func TestReceiveMaximumIsSeenBetweenPings(t *testing.T) {
	r := newIdleRig(t, func(cfg *Config) { cfg.ReceiveMaximum, cfg.Confirmed = 10, func(uint64) {} }, "mqtt://test")
	c, _, _, _ := feed(t, r, nil, unhex(t, connack))
	c.ctx, c.cancel = context.WithCancelCause(context.Background()) // feed has read to the end
	defer c.cancel(nil)
	come := func(n int) {
		for range n {
			c.count(1)
		}
	}
	batch := func() {
		t.Helper()
		c.inFlight.Charge(1)
		if err := r.session.Acknowledge([]Ack{{Connection: 1, PacketID: 1, QoS: 1, Number: 1}}); err != nil {
			t.Fatal(err)
		}
	}
	pong := func() {
		t.Helper()
		if err := c.note(packets.PINGRESP, nil, nil); err != nil {
			t.Fatal(err)
		}
	}
	come(100) // nothing is asked
	for range 3 {
		batch()
		come(10)
		batch() // one PINGREQ at a time
		pong()
		come(100)
	}
	if c.exceeds.Load() {
		t.Error("a broker that keeps to Receive Maximum passes for one that does not")
	}
	batch()
	come(11)
	if !c.exceeds.Load() {
		t.Error("it is not seen")
	}
}

// TestHeavyWriteIsPatient: to wait for the broker is its purpose.
func TestHeavyWriteIsPatient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newIdleRig(t, func(cfg *Config) { cfg.FewUnread = true }, "mqtt://test")
		ours, theirs := net.Pipe()
		defer theirs.Close()
		c := newConn(r.session, ours)
		c.generation.Store(1)
		c.inFlight.Charge(int64(r.session.cfg.ReceiveMaximum) + 1)
		r.session.conn = c
		go func() {
			time.Sleep(heavyTimeout - time.Second)
			_, _ = io.ReadFull(theirs, make([]byte, heavyBytes))
		}()
		if err := r.session.Acknowledge([]Ack{{Connection: 1, PacketID: 1, QoS: 1}}); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		if err := r.session.Acknowledge([]Ack{{Connection: 1, PacketID: 1, QoS: 1}}); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("error %v", err)
		}
		if d := time.Since(start); d != heavyTimeout {
			t.Errorf("after %s", d)
		}
	})
}

// TestNobodyWaitsForAHeavyWrite longer than need be: it may take minutes.
func TestNobodyWaitsForAHeavyWrite(t *testing.T) {
	// stalled is a connection on which somebody writes what nobody reads.
	stalled := func(t *testing.T) *conn {
		ours, theirs := net.Pipe()
		c := newConn(newIdleRig(t, nil, "mqtt://test").session, ours)
		c.writePatience = heavyTimeout
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			_ = c.write([]byte("long"))
		}()
		if _, err := theirs.Read(make([]byte, 1)); err != nil { // it is being written
			t.Fatal(err)
		}
		t.Cleanup(func() {
			c.fail(errLeft)
			theirs.Close()
			<-ended
		})
		return c
	}
	t.Run("the barrier heeds its context", func(t *testing.T) {
		c := stalled(t)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- c.barrier(ctx) }()
		cancel()
		if err := <-ended; !errors.Is(err, errTakesNothing) || !errors.Is(c.cause(), errTakesNothing) {
			t.Errorf("error %v, cause %v", err, c.cause())
		}
	})
	t.Run("a packet that breaks the protocol is the cause", func(t *testing.T) {
		c, unlawful := stalled(t), protocolError("PUBLISH of a kind that there is not")
		if err := c.refuse(unlawful); !errors.Is(err, unlawful) || !errors.Is(c.cause(), unlawful) {
			t.Errorf("error %v, cause %v", err, c.cause())
		}
	})
	t.Run("the reader counts as waiting", func(t *testing.T) {
		c := stalled(t)
		c.completed = []byte{packets.PUBCOMP << 4, 2, 0, 1}
		ended := make(chan error)
		go func() { ended <- c.writeCompleted() }()
		eventually(t, "answers that cannot be seen are not waited for", c.keepAlive.isPaused)
		c.fail(errLeft)
		if err := <-ended; !errors.Is(err, errLeft) || c.keepAlive.isPaused() {
			t.Errorf("the reader goes on after %v, paused %t", err, c.keepAlive.isPaused())
		}
	})
}

func (k *keepAlive) isPaused() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.paused
}

func TestStalledWriteEndsTheConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newIdleRig(t, nil, "mqtt://test")
		ours, theirs := net.Pipe() // nobody reads
		defer theirs.Close()
		c := newConn(r.session, ours)
		c.generation.Store(1)
		c.inFlight.Charge(1)
		r.session.conn = c
		start := time.Now()
		err := r.session.Acknowledge([]Ack{{Connection: 1, PacketID: 1, QoS: 1}})
		var failed *writeError
		if !errors.As(err, &failed) || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("err %v", err)
		}
		if d := time.Since(start); d != writeTimeout {
			t.Errorf("after %s", d)
		}
		if !errors.As(context.Cause(c.ctx), &failed) {
			t.Errorf("cause %v", context.Cause(c.ctx))
		}
		if err := r.session.Acknowledge([]Ack{{Connection: 1, PacketID: 1, QoS: 1}}); err != nil {
			t.Errorf("after the end: %v", err)
		}
		c.Lock()
		if _, err := c.Write([]byte{0xC0, 0}); !errors.As(err, &failed) {
			t.Errorf("write after the end: %v", err)
		}
		c.Unlock()
	})
}

func TestCloseEndsTheContextAtOnce(t *testing.T) {
	r := newIdleRig(t, nil, "mqtt://test")
	raw := &stream{in: bytes.NewReader(nil)}
	c := newConn(r.session, raw)
	if err := c.Close(); err != nil || !raw.closed {
		t.Errorf("closed %v, err %v", raw.closed, err)
	}
	if !errors.Is(c.cause(), errLibrary) {
		t.Errorf("cause %v", context.Cause(c.ctx))
	}
}

// halfStream has a side to close, as TCP has.
type halfStream struct {
	net.Conn
	halfClosed chan struct{}
}

func (s *halfStream) CloseWrite() error { close(s.halfClosed); return nil }

func TestLeavingLetsTheBrokerCloseFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, brokerCloses := range []bool{true, false} {
			r := newIdleRig(t, nil, "mqtt://test")
			ours, theirs := net.Pipe()
			c := newConn(r.session, &halfStream{ours, make(chan struct{})})
			c.generation.Store(1)
			go func() { _, _ = io.Copy(io.Discard, c) }()
			c.leaving.Store(true)
			start := time.Now()
			go func() {
				<-c.raw.(*halfStream).halfClosed
				// Still on the way when we left: not for us any more.
				_, _ = theirs.Write(unhex(t, "30 05 0001 't' 00 'x' 32 08 0001 't' 0001 00 'xy' d0 00"))
				if brokerCloses {
					theirs.Close()
				}
			}()
			if err := c.Close(); err != nil {
				t.Error(err)
			}
			want := lingerTimeout
			if brokerCloses {
				want = 0
			}
			if d := time.Since(start); d != want {
				t.Errorf("broker closes %v: took %s", brokerCloses, d)
			}
			if !errors.Is(c.cause(), errLeft) || len(r.all()) != 0 || r.session.cfg.Budget.Used() != 0 {
				t.Errorf("cause %v, %d delivered", context.Cause(c.ctx), len(r.all()))
			}
			theirs.Close()
		}
	})
}

// pipeRig has the test in the broker's place.
type pipeRig struct {
	*rig
	c      *conn
	broker net.Conn
	ended  chan error
}

func newPipeRig(t *testing.T, change func(*Config)) *pipeRig {
	r := &pipeRig{rig: newIdleRig(t, change, "mqtt://test"), ended: make(chan error, 1)}
	ours, theirs := net.Pipe()
	r.c, r.broker = newConn(r.session, ours), theirs
	r.session.conn = r.c
	go func() {
		_, err := io.Copy(io.Discard, r.c)
		r.ended <- err
	}()
	r.say(connack)
	return r
}

func (r *pipeRig) say(bytes string) {
	r.t.Helper()
	if _, err := r.broker.Write(unhex(r.t, bytes)); err != nil {
		r.t.Error(err)
	}
}

func (r *pipeRig) end() error {
	r.broker.Close()
	return <-r.ended
}

// TestDeliveredMessageIsLetGo: a connection keeps nothing of a large message until the next one comes.
func TestDeliveredMessageIsLetGo(t *testing.T) {
	for name, limit := range map[string]int{"whole": 0, "beyond the limit": 10_000} {
		t.Run(name, func(t *testing.T) {
			gone := make(chan struct{})
			r := newPipeRig(t, func(cfg *Config) {
				cfg.MaxMessageBytes = limit
				cfg.Deliver = func(_ context.Context, d *Delivery) {
					runtime.AddCleanup(d.Message, func(struct{}) { close(gone) }, struct{}{})
				}
			})
			const payload = 20_000 // and 6 bytes before it
			r.say("32 a69c01 0001 't' 0001 00 '" + strings.Repeat("x", payload) + "'")
			kept := true
			for deadline := time.Now().Add(time.Minute); kept && time.Now().Before(deadline); {
				runtime.GC()
				select {
				case <-gone:
					kept = false
				case <-time.After(time.Millisecond):
				}
			}
			if kept {
				t.Error("the connection keeps the message")
			}
			_ = r.end()
		})
	}
}

func TestBudgetPausesQoS1AndDropsQoS0(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newPipeRig(t, func(cfg *Config) { cfg.Budget = NewBudget(2 * (overheadBytes + 100)) })
		one := "32 07 0001 't' %04x 00 'x'"
		r.say(fmt.Sprintf(one+one, 1, 2))
		synctest.Wait()
		r.received(2)
		r.say("30 05 0001 't' 00 'x'") // QoS 0: dropped, and the next read goes on
		synctest.Wait()
		if n := r.metric("bridge_messages_dropped_total"); n != 1 || len(r.all()) != 2 || r.session.Status().Paused {
			t.Fatalf("dropped %v, delivered %d, paused %v", n, len(r.all()), r.session.Status().Paused)
		}
		go r.say(fmt.Sprintf(one, 3))
		synctest.Wait()
		if !r.session.Status().Paused || len(r.all()) != 2 {
			t.Fatalf("paused %v, delivered %d", r.session.Status().Paused, len(r.all()))
		}
		r.session.cfg.Budget.Release(int64(r.all()[0].Size))
		synctest.Wait()
		if r.session.Status().Paused || len(r.all()) != 3 {
			t.Fatalf("after release: paused %v, delivered %d", r.session.Status().Paused, len(r.all()))
		}
		// Paused again, and the connection ends: nothing may be left taken.
		go r.say(fmt.Sprintf(one, 4))
		synctest.Wait()
		cause := errors.New("test")
		r.c.fail(cause)
		if err := <-r.ended; !errors.Is(err, cause) {
			t.Errorf("read ended with %v", err)
		}
		r.broker.Close()
		for _, d := range r.all()[1:] {
			r.session.cfg.Budget.Release(int64(d.Size))
		}
		if used := r.session.cfg.Budget.Used(); used != 0 {
			t.Errorf("%d bytes held", used)
		}
	})
}

// PUBRELs that came before a message which waits for the budget must not wait with it.
func TestPubcompDoesNotWaitForTheBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newPipeRig(t, func(cfg *Config) { cfg.Budget = NewBudget(1) })
		r.session.cfg.Budget.TryAcquire(1)
		go r.say("62 02 0009 32 07 0001 't' 0001 00 'x'")
		got := make([]byte, 4)
		if _, err := io.ReadFull(r.broker, got); err != nil || fmt.Sprintf("%x", got) != "70020009" {
			t.Errorf("got %x, err %v", got, err)
		}
		r.c.fail(errLeft)
		if err := <-r.ended; !errors.Is(err, errLeft) {
			t.Errorf("read ended with %v", err)
		}
		r.broker.Close()
	})
}

// The packet behind a PUBREL may be long on its way.
func TestPubcompDoesNotWaitForTheNextPacket(t *testing.T) {
	for _, next := range []string{"30", "32 07 0001 't'", "90 04 00", "60"} {
		synctest.Test(t, func(t *testing.T) {
			r := newPipeRig(t, nil)
			r.say("62 02 0009" + next)
			synctest.Wait()
			_ = r.broker.SetReadDeadline(time.Now().Add(time.Minute))
			got := make([]byte, 4)
			if _, err := io.ReadFull(r.broker, got); err != nil || fmt.Sprintf("%x", got) != "70020009" {
				t.Errorf("before the rest of %s: got %x, err %v", next, got, err)
			}
			if err := r.end(); !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("read ended with %v", err)
			}
		})
	}
}

// A frame larger than the whole budget is delivered, alone.
func TestOversizedMessageIsAdmittedAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newPipeRig(t, func(cfg *Config) { cfg.Budget = NewBudget(1000) })
		r.say("32 07 0001 't' 0001 00 'x'")
		synctest.Wait()
		small := r.received(1)[0]
		frame := append(unhex(t, "0001 't' 0002 00"), bytes.Repeat([]byte("y"), 100_000)...)
		go func() {
			_, _ = r.broker.Write(append(fixedHeader(0x32, len(frame)), frame...))
		}()
		synctest.Wait()
		if !r.session.Status().Paused {
			t.Error("not paused while the budget is in use")
		}
		r.session.cfg.Budget.Release(int64(small.Size))
		synctest.Wait()
		large := r.received(2)[1]
		if len(large.Message.Payload) != 100_000 || large.Size < 100_000 || r.session.cfg.Budget.Used() != int64(large.Size) {
			t.Errorf("%d bytes of payload, size %d", len(large.Message.Payload), large.Size)
		}
		_ = r.end()
	})
}

// The length field is the broker's word. Nothing may be allocated before the budget allows it.
// An empty user property is five bytes of a packet and many times that in memory.
func TestUserPropertiesWeighOnTheBudget(t *testing.T) {
	r := newIdleRig(t, nil, "mqtt://test")
	frame := unhex(t, "0001 't'")
	properties := bytes.Repeat([]byte{propUser, 0, 0, 0, 0}, 1000)
	frame = append(frame, byte(len(properties)&0x7F|0x80), byte(len(properties)>>7))
	frame = append(frame, properties...)
	said := append(unhex(t, connack), fixedHeader(packets.PUBLISH<<4, len(frame))...)
	if _, _, _, err := feed(t, r, nil, append(said, frame...)); !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	d := r.received(1)[0]
	if least := len(frame) + 1000*int(unsafe.Sizeof(mapping.UserProperty{})); d.Size < least || r.session.cfg.Budget.Used() != int64(d.Size) {
		t.Errorf("%d bytes held for a delivery of %d bytes, which takes %d at least", r.session.cfg.Budget.Used(), d.Size, least)
	}
}

func TestNothingIsAllocatedBeforeTheBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newPipeRig(t, func(cfg *Config) { cfg.Budget = NewBudget(1000) })
		r.session.cfg.Budget.TryAcquire(1)
		r.say("32 ffffff7f") // 268435455 bytes to come
		synctest.Wait()
		if !r.session.Status().Paused || r.session.cfg.Budget.Used() != 1 {
			t.Errorf("paused %v, used %d", r.session.Status().Paused, r.session.cfg.Budget.Used())
		}
		r.c.fail(errLeft)
		if err := <-r.ended; !errors.Is(err, errLeft) {
			t.Errorf("read ended with %v", err)
		}
		r.broker.Close()
	})
}

func TestStopTaking(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newPipeRig(t, func(cfg *Config) { cfg.Budget = NewBudget(2*overheadBytes + 12) }) // one of QoS 1 and one of QoS 0
		r.say("32 07 0001 't' 0001 00 'x'")
		go r.say("32 07 0001 't' 0002 00 'x'") // does not fit: waits
		synctest.Wait()
		if !r.session.Status().Paused {
			t.Fatal("not paused")
		}
		r.session.StopTaking() // releases the reader as well
		synctest.Wait()
		r.say("34 07 0001 't' 0003 00 'x'")
		r.say("30 05 0001 't' 00 '0'")
		synctest.Wait()
		got := r.received(2)
		if got[0].PacketID != 1 || got[1].Message.QoS != 0 {
			t.Errorf("delivered %+v", got)
		}
		if used := r.session.cfg.Budget.Used(); used != int64(got[0].Size+got[1].Size) {
			t.Errorf("%d bytes held", used)
		}
		if err := r.end(); err != nil { // io.Copy takes the end of the stream for success
			t.Error(err)
		}
	})
}

func TestGenerationRisesWithEachConnack(t *testing.T) {
	r := newIdleRig(t, nil, "mqtt://test")
	for want := range uint64(3) {
		_, _, _, _ = feed(t, r, nil, unhex(t, connack+"32 07 0001 't' 0001 00 'x'"))
		if got := r.all()[want].Connection; got != want+1 {
			t.Errorf("connection %d, want %d", got, want+1)
		}
	}
	_, _, _, _ = feed(t, r, nil, unhex(t, "20 03 00 87 00")) // refused: no connection
	_, _, _, _ = feed(t, r, nil, unhex(t, "20 03 01 00 00"))
	if st := r.session.Status(); r.session.generation != 4 || st.Reconnects != 3 || st.SessionsLost != 2 || !st.SessionPresent {
		t.Errorf("generation %d, status %+v", r.session.generation, st)
	}
	if n := r.metric("bridge_mqtt_session_lost_total"); n != 2 {
		t.Errorf("session_lost %v", n)
	}
}

func TestGranted(t *testing.T) {
	r := newIdleRig(t, nil, "mqtt://test")
	_, _, _, _ = feed(t, r, nil, unhex(t, connack))
	if g, want := r.session.Status().Granted, (Granted{time.Hour, 65535, 2, 0, true, true, true, true, r.session.cfg.KeepAlive}); g != want {
		t.Errorf("defaults: %+v", g)
	}
	_, _, _, _ = feed(t, r, nil, unhex(t, "20 1d 00 00 1a 13 0007 11 0000003c 21 0005 24 01 25 00 27 00001000 28 00 29 00 2a 00"))
	if g, want := r.session.Status().Granted, (Granted{time.Minute, 5, 1, 4096, false, false, false, false, 7 * time.Second}); g != want {
		t.Errorf("granted: %+v", g)
	}
	if n := r.tellings("the broker keeps a session for 1m0s without a connection, 1h0m0s was asked for"); n != 1 {
		t.Error("the shorter session expiry goes unmentioned")
	}
}

func TestRestOfNetConn(t *testing.T) {
	ours, theirs := net.Pipe()
	defer theirs.Close()
	c := newConn(newIdleRig(t, nil, "mqtt://test").session, ours)
	defer c.Close()
	if c.LocalAddr().Network() != "pipe" || c.RemoteAddr().Network() != "pipe" {
		t.Error("addresses")
	}
	past := time.Now().Add(-time.Second)
	if err := errors.Join(c.SetDeadline(past), c.SetReadDeadline(past), c.SetWriteDeadline(past)); err != nil {
		t.Error(err)
	}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read after the deadline: %v", err)
	}
}

// TestStampsKeepTheOrder: messages of one read, of reads within a microsecond, and after the clock was set.
func TestStampsKeepTheOrder(t *testing.T) {
	read := time.Date(2026, 11, 29, 12, 0, 0, 1500, time.FixedZone("", 3600))
	at := func(micros int) time.Time {
		return read.UTC().Truncate(time.Microsecond).Add(time.Duration(micros) * time.Microsecond)
	}
	var c conn
	for i, test := range []struct {
		read time.Time
		want time.Time
	}{
		{read, at(0)},
		{read, at(1)},
		{read, at(2)},
		{read.Add(time.Microsecond), at(3)},
		{read.Add(time.Millisecond), at(1000)},
		{read.Add(-time.Millisecond), at(1001)}, // a little back: the order is worth more
		{read.Add(-time.Hour), at(-3_600_000_000)},
		{read.Add(-time.Hour), at(-3_600_000_000 + 1)},
	} {
		c.readAt = test.read
		if got := c.stamp(); !got.Equal(test.want) || got.Location() != time.UTC {
			t.Errorf("message %d: %v, want %v", i, got, test.want)
		}
	}
}
