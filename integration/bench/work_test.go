//go:build linux

package bench

import (
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// Work is what is published, the same for every system: JSON of one device after the other, at QoS 1.
type Work struct {
	Messages int
	Devices  int       // devices the messages are spread over
	Sites    int       // first topic levels that the devices are spread over; 0 is 1
	Size     int       // bytes of a payload; 0 is 140, the usual one
	First    time.Time // event time of message 0
	Step     time.Duration
}

// deviceStep leads through all devices in no order that an index would like: it has no divisor in common
// with any number of devices used here.
const deviceStep = 7919

func (w *Work) device(n int) int { return n * deviceStep % w.Devices }

// Topic is the Topic Name of message n: site, device and the word telemetry.
func (w *Work) Topic(n int) string {
	d := w.device(n)
	return fmt.Sprintf("s%03d/d%07d/telemetry", d%max(w.Sites, 1), d)
}

// Time is the event time of message n.
func (w *Work) Time(n int) time.Time { return w.First.Add(time.Duration(n) * w.Step) }

// usualSize is what the usual payload has.
const usualSize = 140

const payloadLayout = "2006-01-02T15:04:05.000Z"

// AppendPayload appends the payload of message n, which differs from all others. The usual one has an
// id in which n can be read again; a smaller one has only time and temperature; a larger one has
// padding that no column takes.
func (w *Work) AppendPayload(b []byte, n int) []byte {
	at, begin, size := w.Time(n).UTC(), len(b), w.Size
	if size == 0 {
		size = usualSize
	}
	if size < usualSize {
		b = fmt.Appendf(b, `{"ts":%d,"temperature":%d.%d`, at.UnixMicro(), 10+n%30, n/30%10)
		b = append(b, strings.Repeat(" ", max(0, begin+size-1-len(b)))...)
		return append(b, '}')
	}
	b = append(b, `{"id":"`...)
	b = appendID(b, at, n)
	b = append(b, `","ts":"`...)
	b = at.AppendFormat(b, payloadLayout)
	b = append(b, `","temperature":`...)
	b = append(b, '1'+byte(n%3), '0'+byte(n/3%10), '.', '0'+byte(n/30%10))
	b = append(b, `,"humidity":`...)
	b = append(b, '4'+byte(n/7%3), '0'+byte(n/21%10), '.', '0'+byte(n/210%10))
	b = append(b, `,"battery":3.`...)
	b = append(b, '0'+byte(n/11%10))
	b = append(b, `,"status":"ok"`...)
	if room := begin + size - 1 - len(b); room > 0 {
		const field = `,"pad":""`
		b = append(b, field[:len(field)-1]...)
		b = append(b, strings.Repeat("x", max(0, room-len(field)))...)
		b = append(b, '"')
	}
	return append(b, '}')
}

// appendID appends a UUIDv7 of the event time that holds n in its last 48 bits.
func appendID(b []byte, at time.Time, n int) []byte {
	ms := at.UnixMilli()
	raw := [16]byte{
		byte(ms >> 40), byte(ms >> 32), byte(ms >> 24), byte(ms >> 16), byte(ms >> 8), byte(ms), 0x70, 0, 0x80, 0,
		byte(n >> 40), byte(n >> 32), byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n),
	}
	b = hex.AppendEncode(b, raw[0:4])
	for _, part := range [][]byte{raw[4:6], raw[6:8], raw[8:10], raw[10:16]} {
		b = append(b, '-')
		b = hex.AppendEncode(b, part)
	}
	return b
}

// drainWork is a backlog of today, a message each millisecond, so that a thousand devices report once a
// second each.
func drainWork(messages, devices int) Work {
	now := time.Now().UTC()
	first := now.Add(-time.Duration(messages) * time.Millisecond)
	if midnight := now.Truncate(24 * time.Hour); first.Before(midnight) {
		first = midnight // the history of one day stands in one partition
	}
	return Work{Messages: messages, Devices: devices, First: first, Step: time.Millisecond}
}

func TestPayload(t *testing.T) {
	for _, size := range []int{0, 50, 140, 1024, 65536} {
		w := drainWork(100_000, 1000)
		w.Size = size
		seen := map[string]bool{}
		for n := range 100_000 {
			if n >= 300 && n < 99_000 {
				continue
			}
			payload := string(w.AppendPayload(nil, n))
			want := size
			if want == 0 {
				want = usualSize
			}
			if len(payload) != want {
				t.Fatalf("size %d: %d bytes: %s", size, len(payload), payload)
			}
			if seen[payload] {
				t.Fatalf("size %d: message %d equals another", size, n)
			}
			seen[payload] = true
		}
	}
}

func TestEveryDeviceHasItsTurn(t *testing.T) {
	for _, devices := range []int{10, 1000, 100_000} {
		w := Work{Devices: devices, Sites: 10}
		topics := make([]string, devices)
		for n := range topics {
			topics[n] = w.Topic(n)
		}
		slices.Sort(topics)
		if got := len(slices.Compact(topics)); got != devices {
			t.Errorf("%d topics of %d devices", got, devices)
		}
	}
}
