//go:build linux

package bench

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"github.com/mqttpg/bridge/integration/provider"
)

// Protocol levels of CONNECT.
const (
	mqtt311 = 4
	mqtt5   = 5
)

// connectSubscriber connects to a session that outlives its connections, and makes it if there is none. A
// window of 0 is the greatest possible. MQTT 3.1.1 knows none.
func connectSubscriber(ctx context.Context, address, clientID string, level byte, window uint16) (net.Conn, error) {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("connect to the broker: %w", err)
	}
	body := append([]byte("\x00\x04MQTT"), level, 0, 0, 0) // neither Clean Start nor Keep Alive
	if level == mqtt5 {
		properties := binary.BigEndian.AppendUint32([]byte{0x11}, uint32(time.Hour/time.Second)) // Session Expiry Interval
		if window > 0 {
			properties = binary.BigEndian.AppendUint16(append(properties, 0x21), window) // Receive Maximum
		}
		body = append(append(body, byte(len(properties))), properties...)
	}
	connack, err := ask(conn, 0x10, appendString(body, clientID))
	if err == nil && (len(connack) < 2 || connack[1] != 0) {
		err = fmt.Errorf("CONNACK %x", connack)
	}
	if err != nil {
		_ = conn.Close() // the first error is the one
		return nil, fmt.Errorf("connect to the broker: %w", err)
	}
	return conn, nil
}

// makeSession leaves a session with a subscription at QoS 1 behind.
func makeSession(t *testing.T, address, clientID, filter string, level byte) {
	t.Helper()
	conn, err := connectSubscriber(t.Context(), address, clientID, level, 0)
	must(t, err)
	body := []byte{0, 1} // Packet Identifier
	if level == mqtt5 {
		body = append(body, 0) // no properties
	}
	suback, err := ask(conn, 0x82, append(appendString(body, filter), 1))
	must(t, err)
	if len(suback) == 0 || suback[len(suback)-1] != 1 {
		t.Fatalf("the broker answers %x to SUBSCRIBE", suback)
	}
	_, err = conn.Write([]byte{0xe0, 0}) // DISCONNECT
	must(t, err)
	must(t, conn.Close())
}

// ask sends a packet and returns the body of the answer. Nothing else must be on its way.
func ask(conn net.Conn, kind byte, body []byte) ([]byte, error) {
	packet := append(binary.AppendUvarint([]byte{kind}, uint64(len(body))), body...)
	if _, err := conn.Write(packet); err != nil {
		return nil, err
	}
	var header [2]byte // no more: what comes behind the answer is for others to read
	if _, err := io.ReadFull(conn, header[:]); err != nil {
		return nil, err
	}
	if header[1] > 127 {
		return nil, fmt.Errorf("an answer %x of more than 127 bytes", header[0])
	}
	answer := make([]byte, header[1])
	_, err := io.ReadFull(conn, answer)
	return answer, err
}

func appendString(b []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint16(b, uint16(len(s))), s...)
}

// take reads PUBLISH packets at QoS 1 until n have come and acknowledges them, so many in one write, or what is
// left of n. Before that it says how many came; who is told may wait. It looks at nothing but their Packet
// Identifiers, and returns when the broker has seen all acknowledgements: Mosquitto 2.0.11 sends on without
// them, and would be left with a third of its work.
func take(conn net.Conn, n, many int, came func(int)) error {
	const publish = 3
	buffer, have := make([]byte, 256<<10), 0
	var pubacks []byte
	for n > 0 {
		got, err := conn.Read(buffer[have:])
		if err != nil {
			return fmt.Errorf("read from the broker: %w", err)
		}
		have += got
		at, taken := 0, 0
		for at < have {
			length, bytes := binary.Uvarint(buffer[at+1 : have])
			body := at + 1 + bytes
			end := body + int(length)
			if bytes <= 0 || end > have {
				break
			}
			if buffer[at]>>4 == publish {
				id := body + 2 + int(binary.BigEndian.Uint16(buffer[body:]))
				pubacks = append(pubacks, 0x40, 2, buffer[id], buffer[id+1])
				taken++
			}
			at = end
		}
		have = copy(buffer, buffer[at:have])
		if taken == 0 {
			continue
		}
		n -= taken
		came(taken)
		if len(pubacks) < 4*many && n > 0 {
			continue
		}
		if _, err := conn.Write(pubacks); err != nil {
			return fmt.Errorf("acknowledge: %w", err)
		}
		pubacks = pubacks[:0]
	}
	if _, err := ask(conn, 0xc0, nil); err != nil { // PINGREQ is answered after what came before it
		return fmt.Errorf("acknowledge: %w", err)
	}
	return nil
}

// TestTake drains a session and finds it empty afterwards.
func TestTake(t *testing.T) {
	broker := provider.StartBroker(t, provider.BrokerConfig{Conf: brokerSettings})
	for _, level := range []byte{mqtt311, mqtt5} {
		name := fmt.Sprint("level ", level)
		makeSession(t, broker.Addr(""), name, "+/+/telemetry", level)
		work := drainWork(3000, 10)
		publishBacklog(t, broker.Addr(""), &work)
		for _, want := range []int{3000, 1} {
			conn, err := connectSubscriber(t.Context(), broker.Addr(""), name, level, 100)
			must(t, err)
			came := 0
			if want == 1 { // what is new is all there is
				publishBacklog(t, broker.Addr(""), &Work{Messages: 1, Devices: 1})
			}
			must(t, take(conn, want, 30, func(n int) { came += n }))
			if came != want {
				t.Errorf("%s: %d messages came, not %d", name, came, want)
			}
			must(t, conn.Close())
		}
	}
}
