package mapping

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"
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

// TestMap tells what becomes of messages: the row from the column topic on, unless it says more.
func TestMap(t *testing.T) {
	deep := strings.Repeat("[", 513) + strings.Repeat("]", 513)
	for _, test := range []struct {
		story          string
		config         RouteConfig
		topic, payload string
		want           string
	}{
		{
			"the example of the contract",
			RouteConfig{
				Topic: "devices/{device_id}/telemetry", Time: "$.ts",
				Columns: "temperature:float8=$.temperature, humidity:float8=$.humidity, status:text=$.status",
			},
			"devices/d1/telemetry", `{"ts":"2026-01-02T03:04:05.678+01:00","temperature":21.5,"humidity":40,"status":"ok"}`,
			`{"device_id":"d1","time":"2026-01-02T02:04:05.678000Z",…"received_at":"2026-07-08T09:10:11.121314Z","topic":"devices/d1/telemetry",` +
				`"temperature":21.5,"humidity":40,"status":"ok","payload":{"ts":"2026-01-02T03:04:05.678+01:00","temperature":21.5,"humidity":40,"status":"ok"},"payload_bytes":null}`,
		},
		{"no settings at all", RouteConfig{}, "a/b", ` {"v": 1} `, `{"device_id":"b","time":"2026-07-08T09:10:11.121314Z",…"topic":"a/b","payload":{"v":1},"payload_bytes":null}`},
		{"one level is the device itself", RouteConfig{Payload: "drop"}, "a", `1`, `{"device_id":"a",…"topic":"a"}`},
		{"an empty second level names no device", RouteConfig{Payload: "drop"}, "a//b", `1`, `{"device_id":"a//b",…"topic":"a//b"}`},
		{
			"every source",
			RouteConfig{
				Topic: "{site}/+/{rest...}", Payload: "drop", Device: "user['device id']",
				Columns: "a={site},b={rest},c=topic[2],d=topic[-1],e=topic[9],f=topic,g=$.a['b c'][-1].d,h=user.x,i=content_type,j=correlation_data,k=qos,l=retain,m=received_at,n=payload,o='it''s',p=42,q=-1.5,r=true,s=topic[-9],t:text=user.none ?? $.none ?? $.null ?? $.a['b c'][0]",
			},
			"s/t/u/v", `{"a":{"b c":[null,0,{"d":"deep"}]},"null":null}`,
			`{"device_id":"dev 1",…"topic":"s/t/u/v","a":"s","b":"u/v","c":"t","d":"v","e":null,"f":"s/t/u/v","g":"deep","h":"first","i":"application/json","j":"\\x00ff","k":1,"l":false,` +
				`"m":"2026-07-08T09:10:11.121314Z","n":{"a":{"b c":[null,0,{"d":"deep"}]},"null":null},"o":"it's","p":42,"q":-1.5,"r":true,"s":null,"t":null}`,
		},
		{
			"numbers lose nothing",
			RouteConfig{Payload: "drop", Columns: "a:int8=$.a,b:numeric=$.b,c:jsonb=$.b,d:text=$.b"},
			"a", `{"a":9223372036854775807,"b":123456789012345678901234567890.123456789}`,
			`…"a":9223372036854775807,"b":123456789012345678901234567890.123456789,"c":123456789012345678901234567890.123456789,"d":"123456789012345678901234567890.123456789"}`,
		},
		{"of equal names the last counts", RouteConfig{Payload: "drop", Columns: "a=$.a,b=$.o.b,c=$.o.c"}, "a", `{"a":1,"o":{"b":1},"a":2,"\u006f":{"c":2}}`, `…"a":2,"b":null,"c":2}`},
		{"indexes count from either end", RouteConfig{Payload: "drop", Columns: "a=$[0],b=$[-1],c=$[1],d=$[-2],e=$[2],f=$[-3]"}, "a", `[1,2]`, `…"a":1,"b":2,"c":2,"d":1,"e":null,"f":null}`},
		{"members of no object", RouteConfig{Payload: "drop", Columns: "a=$.a,b=$[0],c=$"}, "a", `7`, `…"a":null,"b":null,"c":7}`},
		{"a member name that is no text", RouteConfig{Payload: "drop", Columns: "a=$.a"}, "a", `{"\ud800":1,"a":2}`, `…"a":2}`},

		{"a text payload", RouteConfig{Format: "text", Columns: "value:float8=payload"}, "a", "21.5\n", `…"value":21.5,"payload_bytes":"\\x32312e350a"}`},
		{"a raw payload", RouteConfig{Format: "raw", Columns: "value=payload"}, "a", "\x00\xff", `…"value":"\\x00ff","payload_bytes":"\\x00ff"}`},
		{"a text payload that is no text", RouteConfig{Format: "text"}, "a", "a\xff", `invalid_utf8: the payload is not UTF-8`},
		{"a text payload with NUL", RouteConfig{Format: "text"}, "a", "a\x00", `invalid_utf8: the payload holds the character NUL`},
		{"a text payload of another type", RouteConfig{Format: "text", Columns: "value:float8=payload"}, "a", "warm", `invalid_value: column value:float8 = payload: 'warm' is no number`},

		{"broken JSON", RouteConfig{Columns: "a=$.a"}, "a", `{"a":1,}`, `invalid_payload: the payload is not JSON: byte 8: invalid character '}' looking for beginning of object key string`},
		{"JSON and more", RouteConfig{Columns: "a=$.a"}, "a", `{} x`, `invalid_payload: the payload is not JSON: byte 4: invalid character 'x' after top-level value`},
		{"JSON that is not UTF-8", RouteConfig{Columns: "a=$.a"}, "a", "\"\xff\"", `invalid_utf8: the payload is not UTF-8`},
		{"white space only", RouteConfig{Columns: "a=$.a"}, "a", ` `, `invalid_payload: the payload is not JSON: byte 1: unexpected end of JSON input`},
		{"too deep", RouteConfig{Columns: "a=$.a"}, "a", deep, `invalid_payload: the payload nests deeper than 512 levels`},
		{"no JSON where none is asked for", RouteConfig{}, "a", "ON", `…"payload":null,"payload_bytes":"\\x4f4e"}`},
		{"no text either", RouteConfig{}, "a", "\xff\x00", `…"payload":null,"payload_bytes":"\\xff00"}`},
		{"no JSON to leave a rest of", RouteConfig{Payload: "rest"}, "a", "ON", `invalid_payload: the payload is not JSON: byte 1: invalid character 'O' looking for beginning of value`},
		{"as deep as may be", RouteConfig{Payload: "drop"}, "a", deep[1:1025], `…"topic":"a"}`},
		{"brackets in texts do not nest", RouteConfig{Payload: "drop"}, "a", `["\"` + deep + `",{"a":[]}]`, `…"topic":"a"}`},

		{"a value of the wrong type", RouteConfig{Columns: "n:int8=$.n"}, "a", `{"n":21.5}`, `invalid_value: column n:int8 = $.n: 21.5 is no whole number`},
		{
			"a value too long to show",
			RouteConfig{Columns: "n:int8=$.n"},
			"a", `{"n":"` + strings.Repeat("ä", 100) + `"}`,
			`invalid_value: column n:int8 = $.n: "` + strings.Repeat("ä", 38) + `… is no number`,
		},
		{"NUL in a text column", RouteConfig{Columns: "s:text=$.s"}, "a", `{"s":"a\u0000b"}`, `invalid_utf8: column s:text = $.s: "a\u0000b" holds the character NUL`},
		{"NUL in a kept payload", RouteConfig{}, "a", `{"s":"\u0000"}`, `…"payload":null,"payload_bytes":"\\x7b2273223a225c7530303030227d"}`},
		{"a number only bytes can hold", RouteConfig{}, "a", `[1e999999]`, `…"payload":null,"payload_bytes":"\\x5b31653939393939395d"}`},
		{"a large exponent is fine", RouteConfig{}, "a", `{"x1e5":[1e400,-2.5E-7]}`, `…"payload":{"x1e5":[1e400,-2.5E-7]},"payload_bytes":null}`},
		{"escapes of texts are fine", RouteConfig{}, "a", `["\ud83d\ude00\u00e9"]`, `…"payload":["\ud83d\ude00\u00e9"],"payload_bytes":null}`},

		{"a device of the payload", RouteConfig{Payload: "drop", Device: "$.id"}, "a", `{"id":17}`, `{"device_id":"17",…"topic":"a"}`},
		{"no device", RouteConfig{Device: "$.id"}, "a", `{}`, `invalid_device: DEVICE = $.id: selects nothing`},
		{"an empty device", RouteConfig{Device: "$.id"}, "a", `{"id":""}`, `invalid_device: DEVICE = $.id: is empty`},
		{"a device that is no scalar", RouteConfig{Device: "$.id"}, "a", `{"id":[1]}`, `invalid_device: DEVICE = $.id: selects no single value: [1]`},
		{"a device that is no text", RouteConfig{Device: "$.id"}, "a", `{"id":"\ud800"}`, `invalid_device: DEVICE = $.id: "\ud800" holds an unpaired surrogate`},
		{
			"a device that is too long",
			RouteConfig{Topic: "{device_id}"},
			strings.Repeat("d", 1025), `1`,
			`invalid_device: DEVICE = {device_id}: '` + strings.Repeat("d", 77) + `…' is longer than 1024 bytes`,
		},

		{"no time", RouteConfig{Time: "$.ts"}, "a", `{}`, `invalid_time: TIME = $.ts: selects nothing`},
		{"a time that is none", RouteConfig{Time: "$.ts"}, "a", `{"ts":"noon"}`, `invalid_time: TIME = $.ts: "noon" is no time: neither RFC 3339 nor a Unix time`},
		{"a time that falls back", RouteConfig{Time: "$.ts ?? received_at", Payload: "drop"}, "a", `{}`, `{"device_id":"a","time":"2026-07-08T09:10:11.121314Z",…"topic":"a"}`},
		{"no key", RouteConfig{Key: "$.id"}, "a", `{}`, `invalid_key: KEY = $.id: selects nothing`},
		{"a key beyond all numbers", RouteConfig{Key: "$.id"}, "a", `{"id":1e99999999999}`, `invalid_key: KEY = $.id: 1e99999999999 is no value that tells messages apart`},

		{
			"what is left of the payload",
			RouteConfig{Payload: "rest", Time: "$.ts", Device: "$.dev.id", Columns: "a=$.a, b=$.b.c, d=$.list[0]"},
			"a",
			`{"ts":1, "dev":{"id":"x"}, "a":1, "b":{"c":2,"d":3}, "e":[4], "list":[5,6], "o":{}}`,
			`…"a":1,"b":2,"d":5,"payload":{"b":{"d":3},"e":[4],"list":[5,6],"o":{}},"payload_bytes":null}`,
		},
		{"nothing is left", RouteConfig{Payload: "rest", Columns: "a=$.a"}, "a", `{"a":1}`, `…"a":1,"payload":null,"payload_bytes":null}`},
		{"only what was taken goes", RouteConfig{Payload: "rest", Columns: "a=$.a ?? $.b"}, "a", `{"b":1,"a":2}`, `…"a":2,"payload":{"b":1},"payload_bytes":null}`},
		{"all is taken", RouteConfig{Payload: "rest", Columns: "a=payload"}, "a", `{"b":1}`, `…"a":{"b":1},"payload":null,"payload_bytes":null}`},
		{"what is left of no object", RouteConfig{Payload: "rest", Columns: "a=$.a"}, "a", `[1]`, `…"a":null,"payload":[1],"payload_bytes":null}`},
		{"what is left only bytes can hold", RouteConfig{Payload: "rest", Columns: "a=$.a"}, "a", `{"a":1,"b":"\u0000"}`, `…"a":1,"payload":null,"payload_bytes":"\\x7b2262223a225c7530303030227d"}`},

		{
			"each element a row",
			RouteConfig{Each: "$.r", Columns: "g=$.g, v:float8=@.v, w=@"},
			"a", `{"g":"x","r":[{"v":1},{"v":2.5}]}`,
			`…"g":"x","v":1,"w":{"v":1},"payload":{"v":1},"payload_bytes":null}` + "\n" + `…"g":"x","v":2.5,"w":{"v":2.5},"payload":{"v":2.5},"payload_bytes":null}`,
		},
		{
			"what is left of elements",
			RouteConfig{Each: "$", Payload: "rest", Columns: "v=@.v"},
			"a", `[{"v":1,"x":2},{"v":3},{"x":4}]`,
			`…"v":1,"payload":{"x":2},"payload_bytes":null}` + "\n" + `…"v":3,"payload":null,"payload_bytes":null}` + "\n" + `…"v":null,"payload":{"x":4},"payload_bytes":null}`,
		},
		{"one bad element spoils all", RouteConfig{Each: "$", Columns: "v:int4=@.v"}, "a", `[{"v":1},{"v":"x"}]`, `invalid_value: element 1: column v:int4 = @.v: "x" is no number`},
		{"no elements", RouteConfig{Each: "$.r"}, "a", `{"r":[]}`, `skip no_rows`},
		{"elements of no array", RouteConfig{Each: "$.r"}, "a", `{"r":{}}`, `invalid_each: EACH = $.r selects no array: {}`},
		{"elements of nothing", RouteConfig{Each: "$.r"}, "a", `{}`, `invalid_each: EACH = $.r selects no array: nothing`},
		{"too many bytes of elements", RouteConfig{Each: "$", Payload: "drop", Device: "'d'"}, strings.Repeat("t", 65535), "[" + strings.Repeat("0,", 2000) + "0]", `invalid_each: EACH = $ gives rows of more than 67108864 bytes together`},
		{"too many elements", RouteConfig{Each: "$", Payload: "drop"}, "a", "[" + strings.Repeat("0,", 65536) + "0]", `invalid_each: EACH = $ selects more than 65536 elements`},

		{"an empty payload", RouteConfig{}, "a", ``, `skip empty`},
		{
			"an empty payload that counts",
			RouteConfig{OnEmpty: "store", Time: "$.ts", Columns: "a=$.a, b=topic, c=payload"},
			"x/y", ``,
			`{"device_id":"y","time":"2026-07-08T09:10:11.121314Z",…"topic":"x/y","a":null,"b":"x/y","c":null,"payload":null,"payload_bytes":"\\x"}`,
		},
		{"an empty text", RouteConfig{OnEmpty: "store", Format: "text", Columns: "a:float8=payload"}, "x/y", ``, `…"a":null,"payload_bytes":"\\x"}`},
		{"an empty payload with elements and a key", RouteConfig{OnEmpty: "store", Payload: "drop", Each: "$.r", Key: "@.id", Columns: "a=@.a"}, "x/y", ``, `…"a":null}`},
		{"an empty payload without its device", RouteConfig{OnEmpty: "store", Device: "$.id"}, "x/y", ``, `invalid_device: DEVICE = $.id: selects nothing`},

		{"a topic that is no text", RouteConfig{}, "a\xff", `1`, `invalid_utf8: the topic is not UTF-8`},
		{"a topic nobody wants", RouteConfig{Topic: "b"}, "a", `1`, ``},
	} {
		test.config.Name = "r"
		if test.config.Topic == "" {
			test.config.Topic = "#"
		}
		m := message(test.topic, test.payload)
		m.ContentType = "application/json"
		m.CorrelationData = []byte{0, 255}
		m.UserProperties = []UserProperty{{"x", "first"}, {"x", "second"}, {"device id", "dev 1"}}
		got := strings.Split(render(t, mustCompile(t, test.config).Map(m, nil)), "\n")
		want := strings.Split(test.want, "\n")
		if len(got) != len(want) {
			t.Errorf("%s: %q, want %q", test.story, got, want)
			continue
		}
		for i := range want {
			// A … stands for what the story leaves out.
			before, after, _ := strings.Cut(want[i], "…\"")
			if whole := got[i] == want[i]; !whole && (after == "" || !strings.HasPrefix(got[i], before) || !strings.HasSuffix(got[i], after)) {
				t.Errorf("%s:\n%s, want\n%s", test.story, got[i], want[i])
			}
		}
	}
}

func TestRetained(t *testing.T) {
	m := message("a", `1`)
	m.Retain = true
	r := mustCompile(t, RouteConfig{Name: "skip", Topic: "#"}, RouteConfig{Name: "store", Topic: "#", Retained: "store", Payload: "drop", Columns: "r=retain"})
	out := r.Map(m, nil)
	if len(out) != 2 || out[0].Skip != SkipRetained || len(out[1].Rows) != 1 || !strings.HasSuffix(render(t, out), `"r":true}`) {
		t.Errorf("%s", render(t, out))
	}
}

// TestUnlikeMessages checks sources that most messages lack.
func TestUnlikeMessages(t *testing.T) {
	r := mustCompile(t, RouteConfig{Name: "r", Topic: "#", Payload: "drop", Columns: "a=content_type, b=correlation_data, c=user.x"})
	if got := render(t, r.Map(message("a", "1"), nil)); !strings.HasSuffix(got, `"a":null,"b":null,"c":null}`) {
		t.Error(got)
	}
	m := message("a", "1")
	m.UserProperties = []UserProperty{{"x", "\xff"}}
	if got := render(t, r.Map(m, nil)); got != "invalid_utf8: column c:text = user.x: '\uFFFD' is not UTF-8" {
		t.Error(got)
	}
	m.ReceivedAt = time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC)
	if got := render(t, r.Map(m, nil)); got != "invalid_time: the time of receipt lies outside the years 1 to 9999" {
		t.Error(got)
	}
}

// TestRowsKeepNothingOfTheMessage overwrites the payload after mapping.
func TestRowsKeepNothingOfTheMessage(t *testing.T) {
	r := mustCompile(t, RouteConfig{Name: "r", Topic: "#", Device: "$.id", Columns: "s:text=$.s"})
	m := message("a", `{"id":"device","s":"text"}`)
	out := r.Map(m, nil)
	before := render(t, out)
	clear(m.Payload)
	if after := render(t, out); after != before || out[0].Rows[0].DeviceID != "device" {
		t.Errorf("the row was\n%s and became\n%s", before, after)
	}
}

// TestMapConcurrently maps on many goroutines what was mapped on one.
func TestMapConcurrently(t *testing.T) {
	r := mustCompile(t, RouteConfig{Name: "a", Topic: "#", Time: "$.ts", Each: "$.r", Columns: "v=@.v"}, RouteConfig{Name: "b", Topic: "+/#", Payload: "rest", Columns: "r=$.r"})
	var (
		messages []*Message
		want     []string
	)
	for i := range 20 {
		m := message(fmt.Sprint("a/", i), fmt.Sprintf(`{"ts":%d,"r":[{"v":%d},{"v":0}]}`, i, i))
		messages = append(messages, m)
		want = append(want, render(t, r.Map(m, nil)))
	}
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			for range 50 {
				for i, m := range messages {
					if got := render(t, r.Map(m, nil)); got != want[i] {
						t.Errorf("%s, want %s", got, want[i])
					}
				}
			}
		})
	}
	group.Wait()
}

func TestJSONRefusesForeignRows(t *testing.T) {
	r := mustCompile(t, RouteConfig{Name: "r", Topic: "#", Columns: "a:numeric=$.a, b:text[]=$.b, c:inet=$.c, d:jsonb=$.d"})
	row := onlyRow(t, r, message("a", `{"a":1.5,"b":["x"],"c":"10.0.0.0/8","d":1}`))
	table := &r.All()[0].Table
	for n := range row.Fields {
		if _, err := table.JSON(&Row{Fields: row.Fields[:n]}); err == nil {
			t.Fatalf("%d of %d bytes were taken for a row", n, len(row.Fields))
		}
	}
	if _, err := table.JSON(&Row{Fields: append(slices.Clone(row.Fields), 0)}); err == nil {
		t.Error("a byte too many was taken")
	}
	for i := range row.Fields { // no byte may make it panic
		fields := slices.Clone(row.Fields)
		fields[i] ^= 0xff
		_, _ = table.JSON(&Row{Fields: fields})
	}
	other := Table{Name: "t", Columns: []Column{{OID: 1}}}
	if _, err := other.JSON(row); err == nil {
		t.Error("a type nobody knows was rendered")
	}
}

// FuzzMap maps any bytes by every kind of route.
func FuzzMap(f *testing.F) {
	for _, seed := range []string{`{"ts":1767323045.5,"a":"x","r":[{"v":1}]}`, `[1,2]`, "21.5", "", "\xff\x00", `{"a":"\ud800","r":[{"v":"\u0000"}]}`, `{"a":{"a":1},"a":1e999}`} {
		f.Add("x/y/z", []byte(seed))
	}
	r := mustCompile(f,
		RouteConfig{Name: "a", Topic: "#", OnEmpty: "store"},
		RouteConfig{Name: "b", Topic: "{a}/# #", Time: "$.ts", Columns: "a:text=$.a, b:float8=$.a.b, c:jsonb=$.c ?? $.a, d:numeric(10,2)=$.ts, e:text[]=$.r, f={a}, g:uuid=$.a, h:inet=$.a, i:date=$.a, j:bytea=$.a", Payload: "rest"},
		RouteConfig{Name: "c", Topic: "#", Each: "$.r", Key: "@.v, $.a", Columns: "v:int8=@.v, w:bool=@['w'][0], x:timestamptz=@.v, y:numeric=@.v, z:float4=@.v", Payload: "rest"},
		RouteConfig{Name: "d", Topic: "#", Format: "text", Columns: "v=payload, w:jsonb=payload, x:timestamp=payload"},
		RouteConfig{Name: "e", Topic: "#", Format: "raw", Columns: "v=payload, w:text=payload"},
		RouteConfig{Name: "f", Topic: "#", Device: "$.a", Time: "$.ts ?? received_at", Key: "payload"},
	)
	f.Fuzz(func(t *testing.T, topic string, payload []byte) {
		if topic == "" {
			return
		}
		m := message(topic, string(payload))
		before := bytes.Clone(payload)
		out := r.Map(m, nil)
		if !bytes.Equal(before, m.Payload) {
			t.Fatal("the payload was changed")
		}
		if !strings.HasPrefix(topic, "$") && len(out) != len(r.All()) {
			t.Fatalf("%d outcomes", len(out))
		}
		for _, o := range out {
			kinds := 0
			for _, is := range []bool{len(o.Rows) > 0, o.Skip != "", o.Rejection != nil} {
				if is {
					kinds++
				}
			}
			if kinds != 1 {
				t.Fatalf("route %s: %+v", o.Route.Name, o)
			}
			if o.Rejection != nil {
				d := o.Rejection.Detail
				if d == "" || len(d) > MaxDetail || !utf8.ValidString(d) || strings.ContainsAny(d, "\x00\n") || o.Rejection.Reason == "" {
					t.Fatalf("route %s: rejection %+v", o.Route.Name, o.Rejection)
				}
			}
			for i := range o.Rows {
				b, err := o.Route.Table.JSON(&o.Rows[i])
				if err != nil || !json.Valid(b) {
					t.Fatalf("route %s: row %s: %v", o.Route.Name, b, err)
				}
				if id := o.Rows[i].MessageID; id[8]>>6 != 2 || o.Rows[i].DeviceID == "" || len(o.Rows[i].DeviceID) > maxDevice {
					t.Fatalf("route %s: id %x, device %q", o.Route.Name, id, o.Rows[i].DeviceID)
				}
			}
		}
		if again := render(t, r.Map(m, nil)); again != render(t, out) {
			t.Fatalf("mapped again: %s", again)
		}
		if json.Valid(payload) != (checkJSON(string(payload)).why == "") && utf8.Valid(payload) && !tooDeep(string(payload)) {
			t.Fatalf("JSON or not: %q", payload)
		}
	})
}

func TestRefuseCopy(t *testing.T) {
	t.Parallel()
	routes, err := Compile([]RouteConfig{{Name: "all", Topic: "#"}, {Name: "a", Topic: "a/+"}})
	if err != nil {
		t.Fatal(err)
	}
	why := &Rejection{Reason: ReasonTooLarge}
	for topic, want := range map[string]int{"a/b": 2, "b": 1, "$SYS/x": 0} {
		got := routes.RefuseCopy(&Message{Topic: topic, Payload: []byte("{}")}, nil, why, nil)
		if len(got) != want {
			t.Errorf("%s: %d outcomes, want %d", topic, len(got), want)
		}
		for _, o := range got {
			if o.Rejection != why || o.Rows != nil || o.Skip != "" || o.Route == nil {
				t.Errorf("%s: %+v", topic, o)
			}
		}
	}
}
