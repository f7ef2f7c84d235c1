package mapping

import (
	"strings"
	"testing"
	"time"
)

// receipt is when the messages of the tests arrive.
var receipt = time.Date(2026, 7, 8, 9, 10, 11, 121314000, time.UTC)

func mustCompile(t testing.TB, configs ...RouteConfig) *Routes {
	t.Helper()
	routes, err := Compile(configs)
	if err != nil {
		t.Fatalf("compile: %v", err)
	}
	return routes
}

func message(topic, payload string) *Message {
	return &Message{Topic: topic, Payload: []byte(payload), QoS: 1, ReceivedAt: receipt, Seed: 7}
}

// render writes outcomes as the stories of the tests tell them: rows without their ids, a skip, or
// a rejection.
func render(t testing.TB, outcomes []Outcome) string {
	t.Helper()
	var lines []string
	for _, o := range outcomes {
		switch {
		case o.Skip != "":
			lines = append(lines, "skip "+string(o.Skip))
		case o.Rejection != nil:
			lines = append(lines, string(o.Rejection.Reason)+": "+o.Rejection.Detail)
		}
		for i := range o.Rows {
			b, err := o.Route.Table.JSON(&o.Rows[i])
			if err != nil {
				t.Fatal(err)
			}
			lines = append(lines, string(b))
		}
	}
	return strings.Join(lines, "\n")
}

func TestFirst(t *testing.T) {
	r := mustCompile(t, RouteConfig{Name: "telemetry", Topic: "devices/{device_id}/telemetry", Time: "$.ts",
		Columns: "temperature:float8=$.temperature, humidity:float8=$.humidity, status:text=$.status, n:numeric=$.n"})
	t.Log(render(t, r.Map(message("devices/d1/telemetry", `{"ts":"2026-01-02T03:04:05.678Z","temperature":21.5,"humidity":40,"status":"ok","n":1.50}`), nil)))
	t.Log(render(t, mustCompile(t).Map(message("a/b", `{"ts":"2026-01-02T03:04:05.678Z"}`), nil)))
}

func BenchmarkMapJSON(b *testing.B) {
	r := mustCompile(b, RouteConfig{Name: "telemetry", Topic: "devices/{device_id}/telemetry", Time: "$.ts", Payload: "drop",
		Columns: "temperature:float8=$.temperature, humidity:float8=$.humidity, battery:int4=$.battery, status:text=$.status"})
	m := message("devices/d1/telemetry", `{"id":"01234567-89ab-cdef-0123-456789abcdef","ts":"2026-01-02T03:04:05.678Z","temperature":21.53,"humidity":40.1,"battery":87,"status":"ok"}`)
	b.ReportAllocs()
	var out []Outcome
	for b.Loop() {
		out = r.Map(m, out[:0])
	}
	if len(out) != 1 || out[0].Rows == nil {
		b.Fatal(render(b, out))
	}
}
