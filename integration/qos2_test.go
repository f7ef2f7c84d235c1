//go:build unix

package integration

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// Control packets of a QoS 2 delivery, by the upper half of their first byte.
const (
	packetPubrec  = 5
	packetPubrel  = 6
	packetPubcomp = 7
)

// packetRelay stands between a bridge and its broker. It passes whole packets on, sees each before it
// leaves, and can swallow those of one kind.
type packetRelay struct {
	listener net.Listener
	target   string
	see      func(kind byte) // called for each packet, in its turn; may be nil

	mu        sync.Mutex
	swallow   byte // kind; 0: none
	swallowed int
	conns     []net.Conn
	serving   sync.WaitGroup
}

func startPacketRelay(t *testing.T, target string, see func(kind byte)) *packetRelay {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	r := &packetRelay{listener: l, target: target, see: see}
	r.serving.Go(r.serve)
	t.Cleanup(func() {
		_ = l.Close() // the test is over
		r.cut()
		r.serving.Wait()
	})
	return r
}

func (r *packetRelay) url() string { return "mqtt://" + r.listener.Addr().String() }

func (r *packetRelay) serve() {
	for {
		in, err := r.listener.Accept()
		if err != nil {
			return
		}
		out, err := net.Dial("tcp", r.target)
		if err != nil {
			_ = in.Close() // the bridge comes back
			continue
		}
		r.mu.Lock()
		r.conns = append(r.conns, in, out)
		r.mu.Unlock()
		r.serving.Go(func() { r.pass(out, in) })
		r.serving.Go(func() { r.pass(in, out) })
	}
}

// pass hands packets on until either side ends.
func (r *packetRelay) pass(dst, src net.Conn) {
	defer dst.Close()
	defer src.Close()
	reader := bufio.NewReader(src)
	for {
		packet, err := readPacket(reader)
		if err != nil {
			return
		}
		kind := packet[0] >> 4
		if r.see != nil {
			r.see(kind)
		}
		r.mu.Lock()
		drop := kind == r.swallow
		if drop {
			r.swallowed++
		}
		r.mu.Unlock()
		if drop {
			continue
		}
		if _, err := dst.Write(packet); err != nil {
			return
		}
	}
}

// readPacket reads one control packet as it is.
func readPacket(r *bufio.Reader) ([]byte, error) {
	first, err := r.ReadByte()
	if err != nil {
		return nil, err
	}
	length, err := binary.ReadUvarint(r) // Remaining Length is written the same way
	if err != nil {
		return nil, err
	}
	if length > 1<<20 {
		return nil, errors.New("packet too large for this test")
	}
	packet := binary.AppendUvarint([]byte{first}, length)
	whole := append(packet, make([]byte, length)...)
	_, err = io.ReadFull(r, whole[len(packet):])
	return whole, err
}

// drop swallows packets of one kind from now on, 0 being none.
func (r *packetRelay) drop(kind byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.swallow = kind
}

func (r *packetRelay) dropped() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.swallowed
}

// cut ends all connections.
func (r *packetRelay) cut() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.conns {
		_ = c.Close() // it may have ended by itself
	}
	r.conns = nil
}

// equalReadings are n messages of QoS 2 that nothing tells apart.
func equalReadings(n int) []message {
	messages := make([]message, n)
	for i := range messages {
		messages[i] = message{qos: 2, topic: "stream/dev/raw", payload: []byte("42")}
	}
	return messages
}

// waitReadings waits for n readings at least.
func waitReadings(t *testing.T, s *scene, n int) {
	t.Helper()
	eventually(t, "every reading is in its table", func() (bool, string) {
		got := tableRows(t, s.database, fmt.Sprintf(`select count(*) >= %d, count(*) from raw`, n))
		for row := range got {
			return strings.HasPrefix(row, "t"), row
		}
		return false, "no answer"
	})
}

// TestQoS2LostPackets loses each packet of a QoS 2 delivery behind PUBLISH, and then the bridge or the
// connection. What the broker repeats, PUBLISH or PUBREL, makes no second row, and holds nothing up.
func TestQoS2LostPackets(t *testing.T) {
	t.Parallel()
	const window = 50
	for _, lost := range []struct {
		name   string
		kind   byte
		repeat int // PUBLISHes that the broker has to repeat
	}{
		{"PUBREC", packetPubrec, window},
		{"PUBREL", packetPubrel, 0},
		{"PUBCOMP", packetPubcomp, 0},
	} {
		for _, end := range []string{"kill", "cut"} {
			t.Run(lost.name+" and "+end, func(t *testing.T) {
				t.Parallel()
				s := newScene(t)
				db, err := pgx.Connect(t.Context(), s.database)
				must(t, err)
				t.Cleanup(func() { _ = db.Close(context.Background()) }) // nothing was written
				var mu sync.Mutex
				receipts, early := 0, 0
				relay := startPacketRelay(t, s.broker.Addr(""), func(kind byte) {
					if kind != packetPubrec {
						return
					}
					// PUBREC takes the responsibility [MQTT-4.3.3-8]: its row is committed.
					mu.Lock()
					defer mu.Unlock()
					receipts++
					committed := 0
					if err := db.QueryRow(context.Background(), `select count(*) from raw`).Scan(&committed); err != nil || committed < min(receipts, window) {
						early++
					}
				})
				bridge := s.start(t, streamRoutes, map[string]string{
					"BRIDGE_MQTT_URLS": relay.url(), "BRIDGE_MQTT_QOS": "2", "BRIDGE_MQTT_RECEIVE_MAXIMUM": fmt.Sprint(window),
				})
				device := newPublisher(t, s.broker.URL(), "device")
				relay.drop(lost.kind)
				device.sendAll(t.Context(), t, equalReadings(window))
				eventually(t, "every "+lost.name+" is lost", func() (bool, string) {
					return relay.dropped() >= window, fmt.Sprint(relay.dropped())
				})
				sameRows(t, "raw", rows{line(window): 1}, tableRows(t, s.database, `select count(*) from raw`))
				before := scrape(t, bridge).route("raw")

				if end == "kill" {
					must(t, bridge.Kill(t.Context()))
					before = routeCounts{}
					relay.drop(0)
					must(t, bridge.Start(t.Context()))
				} else {
					relay.drop(0)
					relay.cut()
				}
				waitReady(t, bridge)
				device.sendAll(t.Context(), t, equalReadings(4*window)) // more than would fit into the window
				waitReadings(t, s, 5*window)
				waitQuiet(t, bridge)
				sameRows(t, "raw", rows{line(5 * window): 1}, tableRows(t, s.database, `select count(*) from raw`))
				after := scrape(t, bridge).route("raw")
				if n := int(after.duplicate - before.duplicate); n != lost.repeat {
					t.Errorf("%d redeliveries, want %d", n, lost.repeat)
				}
				if n := int(after.received - before.received); n != 4*window+lost.repeat {
					t.Errorf("%d messages received, want %d", n, 4*window+lost.repeat)
				}
				mu.Lock()
				defer mu.Unlock()
				if early > 0 || receipts == 0 {
					t.Errorf("%d of %d PUBRECs came before their row was committed", early, receipts)
				}
			})
		}
	}
}

// TestQoS2ThroughKills kills the bridge at random moments while devices publish equal readings with
// QoS 2.
func TestQoS2ThroughKills(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	s := newScene(t)
	bridge := s.start(t, streamRoutes, map[string]string{"BRIDGE_MQTT_QOS": "2"})
	const readings = 6000
	device := newPublisher(t, s.broker.URL(), "device")
	stream := device.startStream(t.Context(), t, equalReadings(readings), 250)
	kills := 0
	for !stream.over() {
		eventually(t, "the bridge is in mid-stream", func() (bool, string) {
			written := scrape(t, bridge).sum("bridge_messages_written_total")
			return written > 0 || stream.over(), fmt.Sprintf("%v messages written", written)
		})
		time.Sleep(time.Duration(random.IntN(int(300 * time.Millisecond))))
		must(t, bridge.Kill(t.Context()))
		kills++
		must(t, bridge.Start(t.Context()))
		waitReady(t, bridge)
	}
	t.Logf("%d kills", kills)
	if kills < 2 {
		t.Errorf("the bridge was killed only %d times", kills)
	}
	waitReadings(t, s, readings)
	waitQuiet(t, bridge)
	sameRows(t, "raw", rows{line(readings): 1}, tableRows(t, s.database, `select count(*) from raw`))
	if n := device.repeated.Load(); n != 0 {
		t.Errorf("the device has repeated %d messages: the count proves nothing", n)
	}
}
