package mapping

import (
	"bytes"
	"fmt"
	"strings"
	"sync"
	"testing"
)

// arenaRoute keeps the payload, so that it stands in the fields of its rows.
func arenaRoute(t testing.TB) *Routes {
	return mustCompile(t, RouteConfig{Name: "r", Topic: "d/{device_id}", Table: "r", Format: "text"})
}

// receive puts a message into an arena, as who reads from the broker does.
func receive(a *Arena, topic, payload string) *Message {
	frame := a.Bytes(len(topic) + len(payload))
	copy(frame, topic+payload)
	m := a.Message()
	*m = *message(topic, "")
	m.Payload = frame[len(topic):]
	return m
}

func TestArenaIsEmptiedWhereNothingIsHeld(t *testing.T) {
	routes := arenaRoute(t)
	current, a := (*Arena)(nil).Next(10)
	if a == nil || current != a {
		t.Fatalf("%p and %p", current, a)
	}
	m := receive(a, "d/one", "payload")
	a.Hold()
	out := routes.MapCopy(m, nil, a)
	row := &out[0].Rows[0]
	if row.DeviceID != "one" || !bytes.Contains(row.Fields, []byte("payload")) {
		t.Fatalf("row %+v", row)
	}
	payload, device, fields := m.Payload, row.DeviceID, row.Fields
	if current, next := a.Next(10); current != a || next != a || string(payload) != "payload" {
		t.Fatalf("the next message came to %p instead of %p, and the last one is %q", next, a, payload)
	}
	a.Release(1)
	if string(payload) != "payload" { // what is released may be read by who fills, until the next
		t.Errorf("overwritten at once: %q", payload)
	}
	if _, next := a.Next(10); next != a {
		t.Errorf("an arena that nobody holds is left for %p", next)
	}
	// Whoever still used the message would be found out.
	if string(payload) == "payload" || device == "one" || bytes.Contains(fields, []byte("payload")) || m.Topic != "" || row.Fields != nil || out[0].Route != nil {
		t.Errorf("still there: %q %q %q %+v %+v", payload, device, fields, m, out)
	}
}

func TestArenaThatIsFullIsLeft(t *testing.T) {
	for _, size := range []int{0, 100, maxArenaMessage} {
		var current, first *Arena
		var kept []*Message
		for i := 0; ; i++ {
			var a *Arena
			current, a = current.Next(size)
			if first == nil {
				first = a
			}
			if a != first {
				break
			}
			a.Hold()
			m := receive(a, fmt.Sprintf("d/%d", i), "")
			m.Payload = bytes.Repeat([]byte{'x'}, size)
			copy(a.Bytes(size), m.Payload)
			kept = append(kept, m)
		}
		for i, m := range kept {
			if m.Topic != fmt.Sprintf("d/%d", i) {
				t.Fatalf("size %d: message %d became %+v", size, i, m)
			}
		}
		if n := len(kept); n > arenaMessages || n < min(arenaMessages, arenaBytes/(size+1)-1) {
			t.Errorf("%d messages of %d bytes in one arena", n, size)
		}
		if first.held.Load() != int64(len(kept)) {
			t.Errorf("size %d: held %d times, by %d messages", size, first.held.Load(), len(kept))
		}
		first.Release(len(kept)) // by others, after it was left
		if kept[0].Topic != "" {
			t.Errorf("size %d: not overwritten", size)
		}
	}
}

func TestArenaOfLargeMessages(t *testing.T) {
	routes := arenaRoute(t)
	current, a := (*Arena)(nil).Next(maxArenaMessage + 1)
	if current != nil || a != nil {
		t.Fatal("a large message got an arena")
	}
	a.Hold()
	m := receive(a, "d/large", strings.Repeat("x", maxArenaMessage))
	out := routes.MapCopy(m, nil, a)
	a.Release(1)
	if len(out) != 1 || out[0].Rows[0].DeviceID != "large" || cap(m.Payload) != len(m.Payload) {
		t.Errorf("outcomes %+v", out)
	}
	// Rows beyond the room of the arena are allocated.
	each := mustCompile(t, RouteConfig{Name: "r", Topic: "d/{device_id}", Table: "r", Each: "$", Columns: "v:int4=@"})
	_, a = current.Next(2000)
	a.Hold()
	m = receive(a, "d/many", "["+strings.Repeat("1,", 999)+"1]")
	out = each.MapCopy(m, nil, a)
	if len(out) != 1 || len(out[0].Rows) != 1000 {
		t.Fatalf("outcomes %+v", out)
	}
	if got, want := render(t, out), render(t, each.Map(m, nil)); got != want {
		t.Errorf("in the arena\n%s\nelsewhere\n%s", got, want)
	}
}

func TestArenaReleasedTooOften(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("went unnoticed")
		}
	}()
	_, a := (*Arena)(nil).Next(1)
	a.held.Store(0) // who fills it has left it, and all is released
	a.Release(1)
}

// TestArenaUnderWay: messages are settled in batches by another goroutine, and none changes before.
func TestArenaUnderWay(t *testing.T) {
	routes := arenaRoute(t)
	type entry struct {
		arena *Arena
		m     *Message
		out   []Outcome
		want  string
	}
	line := make(chan entry, 600)
	var settling sync.WaitGroup
	settling.Go(func() {
		for e := range line {
			row := &e.out[0].Rows[0]
			if string(e.m.Payload) != e.want || e.m.Topic != "d/"+e.want || row.DeviceID != e.want || !bytes.Contains(row.Fields, []byte(e.want)) {
				t.Errorf("message %s became %+v %+v", e.want, e.m, row)
			}
			e.arena.Release(1)
		}
	})
	var current, a *Arena
	for i := range 20_000 {
		want := fmt.Sprintf("%0*d", 1+i%500, i)
		if i%997 == 0 {
			want = strings.Repeat("9", maxDevice) // and pause, so that all is settled
			for len(line) > 0 {
				continue
			}
		}
		current, a = current.Next(2*len(want) + 2)
		a.Hold()
		m := receive(a, "d/"+want, want)
		line <- entry{a, m, routes.MapCopy(m, nil, a), want}
	}
	close(line)
	settling.Wait()
}
