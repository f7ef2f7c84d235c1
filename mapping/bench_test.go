package mapping

import (
	"fmt"
	"strings"
	"testing"
)

// The message that the drain is measured with, and one of 4 KiB that holds the same members among others.
const shortPayload = `{"id":"01234567-89ab-4def-8123-456789abcdef","ts":"2026-01-02T03:04:05.678Z","temperature":21.53,"humidity":40.10,"battery":3.7,"status":"ok"}`

func longPayload() string {
	var b strings.Builder
	b.WriteString(shortPayload[:len(shortPayload)-1])
	for i := 0; b.Len() < 4000; i++ {
		fmt.Fprintf(&b, `, "sensor_%d": {"value": %d.25, "unit": "kPa", "flags": [true, null, "a\nb"]}`, i, i)
	}
	b.WriteByte('}')
	return b.String()
}

// BenchmarkMap makes rows of a message for each of so many routes that want it.
func BenchmarkMap(b *testing.B) {
	for _, payload := range []struct{ name, text string }{{"140B", shortPayload}, {"4KiB", longPayload()}} {
		for _, routes := range []int{1, 2, 5} {
			b.Run(fmt.Sprintf("%s/routes=%d", payload.name, routes), func(b *testing.B) {
				var configs []RouteConfig
				for i := range routes {
					configs = append(configs, RouteConfig{
						Name: fmt.Sprint("telemetry", i), Topic: "devices/{device_id}/telemetry", Time: "$.ts", Payload: "drop",
						Columns: "msg:uuid=$.id, temperature:float8=$.temperature, humidity:float8=$.humidity, battery:float8=$.battery, status:text=$.status",
					})
				}
				r := mustCompile(b, configs...)
				m := message("devices/d123/telemetry", payload.text)
				b.SetBytes(int64(len(payload.text)))
				b.ReportAllocs()
				var out []Outcome
				var current, a *Arena
				for b.Loop() {
					current, a = current.Next(len(payload.text))
					out = r.MapCopy(m, nil, a)
				}
				if len(out) != routes || out[routes-1].Rows == nil {
					b.Fatal(render(b, out))
				}
			})
		}
	}
}

// BenchmarkMapEach makes a row of each of a hundred elements.
func BenchmarkMapEach(b *testing.B) {
	r := mustCompile(b, RouteConfig{
		Name: "readings", Topic: "devices/{device_id}/readings", Each: "$.readings", Time: "@.ts", Payload: "rest", Columns: "v:float8=@.v",
	})
	m := message("devices/d123/readings", `{"readings":[`+strings.Repeat(`{"ts":"2026-01-02T03:04:05.678Z","v":21.5,"unit":"C"},`, 99)+`{"ts":1767323045.678,"v":1}]}`)
	b.SetBytes(int64(len(m.Payload)))
	b.ReportAllocs()
	var out []Outcome
	var current, a *Arena
	for b.Loop() {
		current, a = current.Next(len(m.Payload))
		out = r.MapCopy(m, nil, a)
	}
	if len(out) != 1 || len(out[0].Rows) != 100 {
		b.Fatal(render(b, out))
	}
}
