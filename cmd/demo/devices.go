//go:build unix

package main

import (
	"encoding/json"
	"fmt"
	"math"
	"time"
)

// fate is what must become of a message: the four ways of the bridge.
type fate int

const (
	written fate = iota
	duplicate
	deadLettered
	skipped
)

// publication is one message of a device, with what the demonstration expects of it.
type publication struct {
	route   string
	topic   string
	payload []byte
	retain  bool
	fate    fate
	rows    int // when written
}

// device publishes again and again: next gives the messages of its n-th turn, from 0.
type device struct {
	id     string
	period time.Duration
	next   func(n int, now time.Time) []publication
}

// devices is the dozen of the demonstration. Most behave; sensor-5, sensor-6, meter-4 and door-2
// are the kind that every fleet has.
func devices() []device {
	var all []device
	for i := 1; i <= 6; i++ {
		all = append(all, sensor(i))
	}
	for i := 1; i <= 4; i++ {
		all = append(all, meter(i))
	}
	for i := 1; i <= 2; i++ {
		all = append(all, door(i))
	}
	return all
}

// sensor sends climate with time stamps, and says that it is online. Sensor 5 sends words and zero
// bytes where values belong, sensor 6 cuts its JSON short, and sensor 3 sends some messages twice.
func sensor(i int) device {
	id := fmt.Sprintf("sensor-%d", i)
	return device{id: id, period: 400 * time.Millisecond, next: func(n int, now time.Time) []publication {
		var out []publication
		if n%25 == 0 {
			out = append(out, status(id, true))
		}
		if i == 2 && n%25 == 12 {
			out = append(out, status(id, false))
		}
		payload := encode(map[string]any{
			"ts":          now.UTC().Format("2006-01-02T15:04:05.000Z07:00"),
			"temperature": wave(21, 3, n, i),
			"humidity":    wave(48, 9, n, i+3),
			"state":       "ok",
		})
		message := publication{route: "telemetry", topic: "devices/" + id + "/telemetry", payload: payload, fate: written, rows: 1}
		switch {
		case i == 3 && n%10 == 4:
			again := message
			again.fate, again.rows = duplicate, 0
			return append(out, message, again)
		case i == 5 && n%10 == 3:
			message.payload = encode(map[string]any{"ts": now.UTC(), "temperature": "warm", "humidity": 50})
			message.fate, message.rows = deadLettered, 0
		case i == 5 && n%10 == 8:
			message.payload = encode(map[string]any{"ts": now.UTC(), "temperature": 20.5, "state": "o\x00k"})
			message.fate, message.rows = deadLettered, 0
		case i == 6 && n%10 == 5:
			message.payload = payload[:len(payload)/2]
			message.fate, message.rows = deadLettered, 0
		}
		return append(out, message)
	}}
}

// status is the retained state of a device; the empty payload clears it.
func status(id string, online bool) publication {
	p := publication{route: "status", topic: "devices/" + id + "/status", retain: true, fate: skipped}
	if online {
		p.payload = encode(map[string]any{"online": true, "firmware": "1.4.2"})
		p.fate, p.rows = written, 1
	}
	return p
}

// meter sends bare numbers, the same one again and again when nothing changes. Meter 4 sometimes
// has none, or one with a zero byte behind it.
func meter(i int) device {
	id := fmt.Sprintf("meter-%d", i)
	return device{id: id, period: 500 * time.Millisecond, next: func(n int, _ time.Time) []publication {
		power := publication{
			route: "readings", topic: "readings/" + id + "/power",
			payload: fmt.Appendf(nil, "%.0f", math.Round(wave(230, 2, n/8, i))), fate: written, rows: 1,
		}
		voltage := publication{
			route: "readings", topic: "readings/" + id + "/voltage",
			payload: fmt.Appendf(nil, "%.1f", wave(229, 4, n, i)), fate: written, rows: 1,
		}
		switch {
		case i == 4 && n%10 == 2:
			voltage.payload, voltage.fate, voltage.rows = []byte("n/a"), deadLettered, 0
		case i == 4 && n%10 == 7:
			voltage.payload, voltage.fate, voltage.rows = append(voltage.payload, 0), deadLettered, 0
		}
		return []publication{power, voltage}
	}}
}

// door collects events and sends them together, sometimes none. Door 2 at times sends an object
// where the list belongs.
func door(i int) device {
	id := fmt.Sprintf("door-%d", i)
	kinds := []string{"opened", "closed", "knocked"}
	return device{id: id, period: 1200 * time.Millisecond, next: func(n int, now time.Time) []publication {
		p := publication{route: "events", topic: "devices/" + id + "/events"}
		if i == 2 && n%5 == 3 {
			p.payload, p.fate = encode(map[string]any{"events": map[string]any{"kind": "opened"}}), deadLettered
			return []publication{p}
		}
		count := (n + i) % 4
		events := make([]map[string]any, count)
		for k := range events {
			events[k] = map[string]any{
				"kind":  kinds[(n+k)%len(kinds)],
				"level": k + 1,
				"at":    now.Add(time.Duration(k-count) * 100 * time.Millisecond).UTC().Format(time.RFC3339Nano),
			}
		}
		p.payload = encode(map[string]any{"events": events})
		p.fate, p.rows = written, count
		if count == 0 {
			p.fate = skipped
		}
		return []publication{p}
	}}
}

// wave is a value that changes as weather does, with one decimal.
func wave(middle, height float64, n, phase int) float64 {
	v := middle + height*math.Sin(float64(n)/15+float64(phase))
	return math.Round(v*10) / 10
}

func encode(v any) []byte {
	payload, err := json.Marshal(v)
	if err != nil {
		panic(err) // maps of constants and finite numbers: they always marshal
	}
	return payload
}
