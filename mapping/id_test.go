package mapping

import (
	"fmt"
	"testing"
	"time"
)

func onlyRow(t testing.TB, r *Routes, m *Message) *Row {
	t.Helper()
	out := r.Map(m, nil)
	if len(out) != 1 || len(out[0].Rows) != 1 {
		t.Fatalf("expected one row, got %s", render(t, out))
	}
	return &out[0].Rows[0]
}

func uuid(id [16]byte) string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", id[:4], id[4:6], id[6:8], id[8:10], id[10:])
}

// TestGoldenIDs holds the ids of messages for ever. If it fails, the change would write the
// history of every installation a second time: undo it.
func TestGoldenIDs(t *testing.T) {
	const payload = `{"ts":1767323045.678,"id":"r-17","seq":10,"items":[{"v":1},{"v":1}]}`
	for _, test := range []struct {
		story  string
		config RouteConfig
		want   []string
	}{
		{"an event time", RouteConfig{Time: "$.ts"}, []string{"019b7ca9-8f2e-8c9c-8d43-79710bcfeca2"}},
		{"elements of a message with an event time", RouteConfig{Time: "$.ts", Each: "$.items"}, []string{"019b7ca9-8f2e-8049-b2db-5c12fb8cdcb7", "019b7ca9-8f2e-8d96-a1ac-c59dd654d7e6"}},
		{"a key without a time", RouteConfig{Key: "$.id, $.seq"}, []string{"8748b96a-12ab-83f5-b525-59b5dfcbe4d0"}},
		{"a key and a time", RouteConfig{Key: "$.id, $.seq", Time: "$.ts"}, []string{"019b7ca9-8f2e-8748-b96a-12abd3f53525"}},
		{"every kind of key value", RouteConfig{Key: "$.id, -1.50, true, correlation_data, $.items, topic"}, []string{"38333199-751f-842d-9a7c-2f7b1f36bcbc"}},
		{"nothing that repeats", RouteConfig{}, []string{"019f40fd-edb1-7eb0-9a6e-bbfcf8b18114"}},
		{"delivery though there is a time", RouteConfig{Time: "$.ts", Key: "delivery"}, []string{"019f40fd-edb1-7eb0-9a6e-bbfcf8b18114"}},
		{"delivery of elements", RouteConfig{Key: "delivery", Each: "$.items"}, []string{"019f40fd-edb1-7eb0-9a6e-bbfcf8b18114", "019f40fd-edb1-79cd-8a84-96285331d058"}},
	} {
		test.config.Name, test.config.Topic = "golden", "#"
		m := message("a/b", payload)
		m.CorrelationData = []byte{0, 255}
		var got []string
		for _, o := range mustCompile(t, test.config).Map(m, nil) {
			for i := range o.Rows {
				got = append(got, uuid(o.Rows[i].MessageID))
			}
		}
		if fmt.Sprint(got) != fmt.Sprint(test.want) {
			t.Errorf("%s: %q, want %q", test.story, got, test.want)
		}
	}
}

// TestIdentity tells which messages are the same and which are not.
func TestIdentity(t *testing.T) {
	base := func() *Message { return message("a/b", `{"ts":"2026-01-02T03:04:05Z","k":1,"v":2}`) }
	for _, test := range []struct {
		story  string
		config RouteConfig
		change func(m *Message)
		same   bool
	}{
		{"a second delivery with event time", RouteConfig{Time: "$.ts"}, func(m *Message) { m.Seed, m.ReceivedAt, m.QoS = 9, receipt.Add(time.Hour), 2 }, true},
		{"user properties do not count", RouteConfig{Time: "$.ts"}, func(m *Message) { m.UserProperties = []UserProperty{{"a", "b"}} }, true},
		{"another payload", RouteConfig{Time: "$.ts"}, func(m *Message) { m.Payload = []byte(`{"ts":"2026-01-02T03:04:05Z","k":1,"v":3}`) }, false},
		{"another topic", RouteConfig{Time: "$.ts"}, func(m *Message) { m.Topic = "a/c" }, false},
		{"a second delivery without event time", RouteConfig{}, func(m *Message) { m.Seed = 8 }, false},
		{"a replay without event time", RouteConfig{}, func(*Message) {}, true},
		{"a second delivery with a key", RouteConfig{Key: "$.k"}, func(m *Message) { m.Seed, m.ReceivedAt = 9, receipt.Add(time.Hour) }, true},
		{"the same key in another payload", RouteConfig{Key: "$.k"}, func(m *Message) { m.Payload = []byte(`{"k":1.0}`) }, true},
		{"the same number with an exponent", RouteConfig{Key: "$.k"}, func(m *Message) { m.Payload = []byte(`{"k":0.10e1}`) }, true},
		{"a text is no number", RouteConfig{Key: "$.k"}, func(m *Message) { m.Payload = []byte(`{"k":"1"}`) }, false},
		{"ten is not one", RouteConfig{Key: "$.k"}, func(m *Message) { m.Payload = []byte(`{"k":10}`) }, false},
		{"minus one is not one", RouteConfig{Key: "$.k"}, func(m *Message) { m.Payload = []byte(`{"k":-1}`) }, false},
		{"true is not one", RouteConfig{Key: "$.k"}, func(m *Message) { m.Payload = []byte(`{"k":true}`) }, false},
		{"zero is not one", RouteConfig{Key: "$.k"}, func(m *Message) { m.Payload = []byte(`{"k":0}`) }, false},
		{"a time that fell back to the receipt", RouteConfig{Time: "$.t ?? received_at"}, func(m *Message) { m.Seed = 8 }, false},
	} {
		test.config.Name, test.config.Topic = "r", "#"
		r := mustCompile(t, test.config)
		changed := base()
		test.change(changed)
		a, b := onlyRow(t, r, base()), onlyRow(t, r, changed)
		if (a.MessageID == b.MessageID) != test.same {
			t.Errorf("%s: same id %t, want %t", test.story, !test.same, test.same)
		}
	}
}

func TestIDsAreUUIDs(t *testing.T) {
	early := message("a/b", `{"ts":"1960-01-01T00:00:00Z"}`)
	timed := RouteConfig{Name: "r", Topic: "#", Time: "$.ts"}
	for _, test := range []struct {
		config  RouteConfig
		m       *Message
		version byte
	}{
		{timed, early, 8},
		{RouteConfig{Name: "r", Topic: "#"}, early, 7},
		{RouteConfig{Name: "r", Topic: "#", Key: "$.ts"}, early, 8},
	} {
		id := onlyRow(t, mustCompile(t, test.config), test.m).MessageID
		if id[6]>>4 != test.version || id[8]>>6 != 2 {
			t.Errorf("%s: version %d, variant %d", uuid(id), id[6]>>4, id[8]>>6)
		}
	}
	r := mustCompile(t, timed)
	a := onlyRow(t, r, message("a/b", `{"ts":"2026-01-02T03:04:05.001Z"}`)).MessageID
	b := onlyRow(t, r, message("a/b", `{"ts":"2026-01-02T03:04:05.002Z"}`)).MessageID
	if string(a[:6]) >= string(b[:6]) {
		t.Errorf("ids %s and %s do not ascend with their times", uuid(a), uuid(b))
	}
}
