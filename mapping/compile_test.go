package mapping

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestDefaults(t *testing.T) {
	r := mustCompile(t)
	route := r.ByName("messages")
	if len(r.All()) != 1 || r.All()[0] != route || r.ByName("other") != nil || route.Keyed || route.Each {
		t.Fatalf("%+v", r.All())
	}
	want := Table{
		Name: "messages",
		Columns: []Column{
			{"device_id", "text", 25, true},
			{"time", "timestamptz", 1184, true},
			{"message_id", "uuid", 2950, true},
			{"received_at", "timestamptz", 1184, true},
			{"topic", "text", 25, true},
			{"payload", "jsonb", 3802, false},
			{"payload_bytes", "bytea", 17, false},
		},
		KeyColumns: []string{"device_id", "time", "message_id"},
		Partition:  PartitionDay,
	}
	if !reflect.DeepEqual(route.Table, want) {
		t.Errorf("table %+v, want %+v", route.Table, want)
	}
	if !slices.Equal(r.Filters(), []string{"#"}) || len(r.Warnings()) != 0 {
		t.Errorf("filters %q, warnings %q", r.Filters(), r.Warnings())
	}
}

func TestTables(t *testing.T) {
	for _, test := range []struct {
		config RouteConfig
		want   string // schema.name (columns) unique (key) partition retention keyed
	}{
		{
			RouteConfig{Table: "iot.readings", Time: "$.ts", Columns: "a:float8=$.a", Retention: "90d"},
			"iot.readings (+ a:float8:701 payload:jsonb:3802 payload_bytes:bytea:17) unique (device_id time message_id) day 2160h0m0s true",
		},
		{RouteConfig{Payload: "drop", Columns: "a:int4[]=$.a", Partition: "month"}, ".r (+ a:int4[]:1007) unique (device_id time message_id) month 0s false"},
		{RouteConfig{Format: "text", Key: "payload"}, ".r (+ payload_bytes:bytea:17) unique (device_id message_id) none 0s true"},
		{RouteConfig{Format: "raw", Key: "correlation_data", Partition: "none"}, ".r (+ payload_bytes:bytea:17) unique (device_id message_id) none 0s true"},
		{RouteConfig{Payload: "drop", Key: "$.id", Time: "$.ts", Partition: "week", Retention: "1w2d3h"}, ".r (+) unique (device_id time message_id) week 219h0m0s true"},
		{RouteConfig{Payload: "drop", Key: "delivery", Time: "$.ts"}, ".r (+) unique (device_id time message_id) day 0s false"},
		{RouteConfig{Payload: "drop", Time: "received_at"}, ".r (+) unique (device_id time message_id) day 0s false"},
		{RouteConfig{Payload: " drop ", Time: "$.ts ?? received_at", Partition: "none"}, ".r (+) unique (device_id time message_id) none 0s true"},
	} {
		test.config.Name, test.config.Topic = "r", "#"
		route := mustCompile(t, test.config).All()[0]
		table := &route.Table
		s := table.Schema + "." + table.Name + " (+"
		for _, c := range table.Columns[5:] {
			s += fmt.Sprintf(" %s:%s:%d", c.Name, c.Type, c.OID)
		}
		s += fmt.Sprintf(") unique (%s) %s %s %t", strings.Join(table.KeyColumns, " "), table.Partition, table.Retention, route.Keyed)
		if s != test.want {
			t.Errorf("%+v:\n%s, want\n%s", test.config, s, test.want)
		}
	}
}

// TestMistakes puts every mistake into a configuration of its own and wants it named.
func TestMistakes(t *testing.T) {
	for _, test := range []struct {
		config RouteConfig
		want   string
	}{
		{RouteConfig{Name: "Bad-Name"}, `BRIDGE_ROUTES: "Bad-Name": expected names of lower-case letters`},
		{RouteConfig{Topic: "-"}, `BRIDGE_ROUTE_R_TOPIC: is required`},
		{RouteConfig{Topic: "a/#/b ok"}, `BRIDGE_ROUTE_R_TOPIC: "a/#/b": # must be the last level`},
		{RouteConfig{Format: "xml"}, `BRIDGE_ROUTE_R_FORMAT: "xml": expected json, text or raw`},
		{RouteConfig{Format: "cbor"}, `BRIDGE_ROUTE_R_FORMAT: "cbor": is not supported by this version`},
		{RouteConfig{ProtoFile: "x"}, `BRIDGE_ROUTE_R_PROTO_FILE: "x": is for FORMAT=protobuf only`},
		{RouteConfig{ProtoMessage: "x"}, `BRIDGE_ROUTE_R_PROTO_MESSAGE: "x": is for FORMAT=protobuf only`},
		{RouteConfig{Latest: "now"}, `BRIDGE_ROUTE_R_LATEST: "now": is not supported by this version`},
		{RouteConfig{OnEmpty: "keep"}, `BRIDGE_ROUTE_R_ON_EMPTY: "keep": expected skip or store`},
		{RouteConfig{Retained: "yes"}, `BRIDGE_ROUTE_R_RETAINED: "yes": expected skip or store`},
		{RouteConfig{Payload: "all"}, `BRIDGE_ROUTE_R_PAYLOAD: "all": expected keep or drop or rest`},
		{RouteConfig{Payload: "rest", Format: "text"}, `BRIDGE_ROUTE_R_PAYLOAD: "rest": expected keep or drop`},
		{RouteConfig{Each: "$."}, `BRIDGE_ROUTE_R_EACH: "$.": character 3`},
		{RouteConfig{Each: "topic"}, `BRIDGE_ROUTE_R_EACH: "topic": expected a JSONPath`},
		{RouteConfig{Each: "$.a", Format: "raw"}, `BRIDGE_ROUTE_R_EACH: "$.a": needs FORMAT=json`},
		{RouteConfig{Device: "{id}"}, `BRIDGE_ROUTE_R_DEVICE: "{id}": no topic pattern of the route captures {id}`},
		{RouteConfig{Device: "$.a ?? received_at"}, `BRIDGE_ROUTE_R_DEVICE: "$.a ?? received_at": a device must not`},
		{RouteConfig{Device: "$.a", Format: "text"}, `BRIDGE_ROUTE_R_DEVICE: "$.a": JSONPath needs FORMAT=json`},
		{RouteConfig{Time: "@.ts"}, `BRIDGE_ROUTE_R_TIME: "@.ts": @ is an element of EACH, which is not set`},
		{RouteConfig{Time: "ts"}, `BRIDGE_ROUTE_R_TIME: "ts": character 1: expected an expression`},
		{RouteConfig{Time: "$.ts", TimeFormat: "fast"}, `BRIDGE_ROUTE_R_TIME_FORMAT: "fast": expected auto`},
		{RouteConfig{TimeFormat: "unix"}, `BRIDGE_ROUTE_R_TIME_FORMAT: "unix": has no effect without TIME`},
		{RouteConfig{TimeZone: "Nowhere"}, `BRIDGE_ROUTE_R_TIME_ZONE: "Nowhere": expected a time zone`},
		{RouteConfig{TimeZone: "Europe/Berlin", Columns: "a=$.a, b:timestamp=$.b, c:date=$.c"}, `BRIDGE_ROUTE_R_TIME_ZONE: "Europe/Berlin": has no effect without TIME or a column of type timestamptz`},
		{RouteConfig{TimeZone: "Europe/Berlin", Columns: "a:timestampz=$.a"}, `BRIDGE_ROUTE_R_COLUMNS: "a:timestampz=$.a": character 3`},
		{RouteConfig{Columns: "a:float8=$.a, b:flot=$.b"}, `BRIDGE_ROUTE_R_COLUMNS: "b:flot=$.b": character 17: column b: "flot" is no type`},
		{RouteConfig{Columns: "a:flot=$.a, b:float8=$.b\nc=topic"}, `BRIDGE_ROUTE_R_COLUMNS: "a:flot=$.a": character 3: column a: "flot" is no type`},
		{RouteConfig{Columns: "a=topic\nb=$.b c=$.c\nd=topic"}, `BRIDGE_ROUTE_R_COLUMNS: "b=$.b c=$.c": character 15: expected ?? or a comma, found 'c'`},
		{RouteConfig{Columns: "a=topic, a:numeric(10,2)=$['x,y'], b=topic"}, `BRIDGE_ROUTE_R_COLUMNS: "a:numeric(10,2)=$['x,y']": character 10: column a stands twice`},
		{RouteConfig{Columns: "a:float8=$.a", Format: "text"}, `BRIDGE_ROUTE_R_COLUMNS: "$.a": JSONPath needs FORMAT=json; with FORMAT=text write payload`},
		{RouteConfig{Columns: "a:int4='x'"}, `BRIDGE_ROUTE_R_COLUMNS: "a:int4 = 'x'": column a: 'x' cannot become int4: 'x' is no number`},
		{RouteConfig{Columns: "a:uuid=qos"}, `column a: qos cannot become uuid`},
		{RouteConfig{Columns: "a:float8=retain"}, `column a: retain cannot become float8`},
		{RouteConfig{Columns: "a:date=$.d ?? received_at"}, `cannot become date`},
		{RouteConfig{Key: "id"}, `BRIDGE_ROUTE_R_KEY: "id": character 1: expected an expression`},
		{RouteConfig{Key: "$.a, received_at"}, `BRIDGE_ROUTE_R_KEY: "received_at": the time of receipt differs`},
		{RouteConfig{Table: "Readings"}, `BRIDGE_ROUTE_R_TABLE: "Readings": expected a table name`},
		{RouteConfig{Table: strings.Repeat("t", 49)}, `at most 48 bytes`},
		{RouteConfig{Table: "pg_catalog.t"}, `BRIDGE_ROUTE_R_TABLE: "pg_catalog.t": expected a schema`},
		{RouteConfig{Table: "a.b.c"}, `BRIDGE_ROUTE_R_TABLE: "a.b.c": expected a table name`},
		{RouteConfig{Table: ".b"}, `BRIDGE_ROUTE_R_TABLE: ".b": expected a schema`},
		{RouteConfig{Partition: "hour"}, `BRIDGE_ROUTE_R_PARTITION: "hour": expected day or week or month or none`},
		{RouteConfig{Retention: "90 days"}, `BRIDGE_ROUTE_R_RETENTION: "90 days": expected a duration`},
		{RouteConfig{Retention: "0d"}, `BRIDGE_ROUTE_R_RETENTION: "0d": expected a duration`},
		{RouteConfig{Retention: "-5h"}, `BRIDGE_ROUTE_R_RETENTION: "-5h": expected a duration`},
		{RouteConfig{Retention: "99999w"}, `BRIDGE_ROUTE_R_RETENTION: "99999w": expected a duration`},
		{RouteConfig{Retention: "90d", Partition: "none"}, `BRIDGE_ROUTE_R_RETENTION: "90d": needs PARTITION=day`},
		{RouteConfig{Key: "$.id", Partition: "day"}, `BRIDGE_ROUTE_R_PARTITION: "day": KEY without TIME makes a table without partitions (the time of receipt differs with each delivery and cannot stand in a unique key): set TIME, or leave PARTITION out`},
		{RouteConfig{Key: "$.id", Retention: "90d"}, `BRIDGE_ROUTE_R_RETENTION: "90d": KEY without TIME makes a table without partitions (the time of receipt differs with each delivery and cannot stand in a unique key): set TIME, or leave RETENTION out`},
		{RouteConfig{Key: "dilivery", Retention: "90d", Partition: "day"}, `BRIDGE_ROUTE_R_KEY: "dilivery": character 1: expected an expression`},
		{RouteConfig{Key: "{x}", Retention: "90d"}, `BRIDGE_ROUTE_R_KEY: "{x}": no topic pattern of the route captures {x}`},
	} {
		if test.config.Name == "" {
			test.config.Name = "r"
		}
		switch test.config.Topic {
		case "":
			test.config.Topic = "a/{device_id}/#"
		case "-":
			test.config.Topic = " "
		}
		_, err := Compile([]RouteConfig{test.config})
		var mistake *ConfigError
		if err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "\n") || !errors.As(err, &mistake) {
			t.Errorf("%+v:\n%v, want\n%s", test.config, err, test.want)
		}
	}
}

func TestAllMistakesAtOnce(t *testing.T) {
	_, err := Compile([]RouteConfig{
		{Name: "a", Topic: "x/#/y a+", Format: "xml", Columns: "a=, b:foo=$.b", Time: "when", Retention: "soon"},
		{Name: "a", Topic: "x"},
		{Name: "b"},
		{Name: "none", Topic: "x"},
	})
	var joined interface{ Unwrap() []error }
	if !errors.As(err, &joined) || len(joined.Unwrap()) != 10 {
		t.Fatalf("%v", err)
	}
	for _, want := range []string{"A_TOPIC: \"x/#/y\"", "A_TOPIC: \"a+\"", "A_FORMAT", "A_COLUMNS: \"a=\"", "A_COLUMNS: \"b:foo=$.b\"", "A_TIME", "A_RETENTION", "BRIDGE_ROUTES: \"a\": this route stands twice", "B_TOPIC: is required", "BRIDGE_ROUTES: \"none\": expected another name"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%v lacks %s", err, want)
		}
	}
}

func TestRoutesThatShareATable(t *testing.T) {
	base := RouteConfig{Name: "a", Topic: "a/#", Table: "t", Time: "$.ts", Columns: "x:float8=$.x", Retention: "7d"}
	same := base
	same.Name, same.Topic, same.Columns, same.Payload = "b", "b/#", "y:text=$.y, x:double precision=$.z", "drop"
	mustCompile(t, base, same)
	elsewhere := RouteConfig{Name: "b", Topic: "b/#", Table: "s.t", Key: "$.id"}
	mustCompile(t, base, elsewhere)
	for _, test := range []struct {
		change func(c *RouteConfig)
		want   string
	}{
		{func(c *RouteConfig) { c.Columns = "x:float4=$.x" }, `BRIDGE_ROUTE_B_COLUMNS: "x:float4": route a, which shares table t, has x:float8`},
		{func(c *RouteConfig) { c.Partition = "week" }, `BRIDGE_ROUTE_B_PARTITION: "week": route a, which shares table t, has day`},
		{func(c *RouteConfig) { c.Retention = "" }, `BRIDGE_ROUTE_B_RETENTION: route a, which shares table t, has 7d, this one has none`},
		{
			func(c *RouteConfig) { c.Partition, c.Retention = "month", "12w" },
			"BRIDGE_ROUTE_B_PARTITION: \"month\": route a, which shares table t, has day\nBRIDGE_ROUTE_B_RETENTION: \"84d\": route a, which shares table t, has 7d",
		},
		{func(c *RouteConfig) { c.Retention = "12w36h" }, `BRIDGE_ROUTE_B_RETENTION: "85d12h": route a, which shares table t, has 7d`},
		{func(c *RouteConfig) { c.Key, c.Time, c.Retention = "$.id", "", "" }, `BRIDGE_ROUTE_B_KEY: route a, which shares table t, has rows unique by (device_id, time, message_id), this one by (device_id, message_id): both or neither need TIME`},
	} {
		other := same
		test.change(&other)
		if _, err := Compile([]RouteConfig{base, other}); err == nil || err.Error() != test.want {
			t.Errorf("%v, want %s", err, test.want)
		}
	}
	forever := same
	forever.Name, forever.Topic, forever.Retention = "c", "c/#", ""
	if _, err := Compile([]RouteConfig{forever, same}); err == nil || err.Error() != `BRIDGE_ROUTE_B_RETENTION: "7d": route c, which shares table t, has none` {
		t.Errorf("%v", err)
	}

	// A third route of the table, and a fourth: what each differs in is told once, and names the route that has it.
	third, fourth := same, same
	third.Name, third.Topic, third.Columns = "c", "c/#", "y:int4=$.y, z:int4=$.z"
	fourth.Name, fourth.Topic, fourth.Columns = "d", "d/#", "z:text=$.z, x:text=$.x"
	_, err := Compile([]RouteConfig{base, same, third, fourth})
	want := []string{
		`BRIDGE_ROUTE_C_COLUMNS: "y:int4": route b, which shares table t, has y:text`,
		`BRIDGE_ROUTE_D_COLUMNS: "z:text": route c, which shares table t, has z:int4`,
		`BRIDGE_ROUTE_D_COLUMNS: "x:text": route a, which shares table t, has x:float8`,
	}
	if err == nil || err.Error() != strings.Join(want, "\n") {
		t.Errorf("%v\nwant\n%s", err, strings.Join(want, "\n"))
	}
}

func TestWarnings(t *testing.T) {
	for _, test := range []struct {
		story   string
		configs []RouteConfig
		want    string // begins the only warning; none if empty
	}{
		{"filters that overlap in part", []RouteConfig{{Name: "one", Topic: "a/+/x"}, {Name: "two", Topic: "a/b/#"}}, "BRIDGE_ROUTE_ONE_TOPIC, BRIDGE_ROUTE_TWO_TOPIC: the filters a/+/x and a/b/# overlap, and neither holds all of the other: for a topic that both match, such as a/b/x,"},
		{"one filter within the other", []RouteConfig{{Name: "one", Topic: "a/#"}, {Name: "two", Topic: "a/b/x"}}, ""},
		{"an overlap within a cover", []RouteConfig{{Name: "one", Topic: "a/+/x"}, {Name: "two", Topic: "a/b/#"}, {Name: "all", Topic: "#"}}, ""},
		{"an overlap of several routes", []RouteConfig{{Name: "one", Topic: "a/+/x"}, {Name: "two", Topic: "a/b/#"}, {Name: "three", Topic: "a/c/x"}}, "BRIDGE_ROUTE_ONE_TOPIC, BRIDGE_ROUTE_THREE_TOPIC, BRIDGE_ROUTE_TWO_TOPIC: the filters a/+/x and a/b/# overlap"},
		{"an overlap within a route", []RouteConfig{{Name: "one", Topic: "a/+/x a/b/#"}}, "BRIDGE_ROUTE_ONE_TOPIC: the filters a/+/x and a/b/# overlap"},
		{"a filter behind a wider one", []RouteConfig{{Name: "one", Topic: "a/# a/{b}"}}, "BRIDGE_ROUTE_ONE_TOPIC: the filter a/+ has no effect, for a/# before it"},
		{"a narrow filter before", []RouteConfig{{Name: "one", Topic: "a/{b} a/#"}}, ""},
		{"a layout without offset", []RouteConfig{{Name: "one", Topic: "a", Time: "$.t", TimeFormat: "2006-01-02 15:04:05"}}, "BRIDGE_ROUTE_ONE_TIME_FORMAT: the layout has no offset and TIME_ZONE is not set: times are read as UTC"},
		{"the same with a zone", []RouteConfig{{Name: "one", Topic: "a", Time: "$.t", TimeFormat: "2006-01-02 15:04:05", TimeZone: "Europe/Berlin"}}, ""},
		{"the same with an offset", []RouteConfig{{Name: "one", Topic: "a", Time: "$.t", TimeFormat: "2006-01-02 15:04:05Z07:00"}}, ""},
		{"a time that may fall back", []RouteConfig{{Name: "one", Topic: "a", Time: "$.t ?? received_at"}}, "BRIDGE_ROUTE_ONE_TIME: where it falls back to received_at"},
		{"the receipt as time", []RouteConfig{{Name: "one", Topic: "a", Time: "received_at"}}, "BRIDGE_ROUTE_ONE_TIME: it is the time of receipt, which no second delivery repeats: KEY=auto means delivery"},
		{"elements keep their own payload", []RouteConfig{{Name: "one", Topic: "a", Each: "$.a"}}, "BRIDGE_ROUTE_ONE_PAYLOAD: with EACH the payload kept is the element; what stands beside the array"},
		{"a key that elements share", []RouteConfig{{Name: "one", Topic: "a", Each: "$.a", Key: "$.id", Payload: "drop", Columns: "v=@.v"}}, "BRIDGE_ROUTE_ONE_KEY: it names nothing of the element"},
		{"a comma in a filter", []RouteConfig{{Name: "one", Topic: "a,b/c"}}, "BRIDGE_ROUTE_ONE_TOPIC: the comma belongs to the filter a,b/c: several filters are separated by spaces"},
		{"nothing is kept", []RouteConfig{{Name: "one", Topic: "a", Payload: "drop"}}, "BRIDGE_ROUTE_ONE_PAYLOAD: drop without COLUMNS keeps nothing"},
	} {
		got := mustCompile(t, test.configs...).Warnings()
		if test.want == "" && len(got) != 0 || test.want != "" && (len(got) != 1 || !strings.HasPrefix(got[0], test.want) || strings.HasSuffix(got[0], ".")) {
			t.Errorf("%s: %q, want %q", test.story, got, test.want)
		}
	}
}

func TestNeedLedger(t *testing.T) {
	keyed := RouteConfig{Name: "keyed", Topic: "a", Time: "$.t"}
	for _, test := range []struct {
		story  string
		config RouteConfig
		want   bool
	}{
		{"an event time", RouteConfig{Time: "$.t"}, false},
		{"a key", RouteConfig{Key: "$.id"}, false},
		{"nothing", RouteConfig{}, true},
		{"a time, but no key wanted", RouteConfig{Time: "$.t", Key: "delivery"}, true},
		{"a time that may fall back", RouteConfig{Time: "$.t ?? received_at"}, true},
		{"a key beside it", RouteConfig{Time: "$.t ?? received_at", Key: "$.id"}, true},
	} {
		test.config.Name, test.config.Topic = "other", "b"
		if got := mustCompile(t, keyed, test.config).NeedLedger(); got != test.want {
			t.Errorf("%s: %t, want %t", test.story, got, test.want)
		}
	}
}

func TestParseRetention(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"90d": 90 * 24 * time.Hour, "12w": 12 * 7 * 24 * time.Hour, "36h": 36 * time.Hour, "1w1d1h1m": 193*time.Hour + time.Minute,
		"": 0, "d": 0, "x": 0, "1d1w": 0, "1d-1h": 0,
	} {
		if got, ok := parseRetention(text); got != want && ok || ok != (want > 0) {
			t.Errorf("%q is %s %t", text, got, ok)
		}
	}
}

func TestRetentionText(t *testing.T) {
	for text, want := range map[string]string{
		"84d": "84d", "12w": "84d", "36h": "1d12h", "1h": "1h", "90m": "1h30m", "10s": "10s", "1m10s": "1m10s", "1d1m": "1d1m", "1h10s": "1h0m10s",
	} {
		d, _ := parseRetention(text)
		if got := RetentionText(d); got != want {
			t.Errorf("%s is shown as %s, want %s", text, got, want)
		}
		if again, ok := parseRetention(want); !ok || again != d {
			t.Errorf("%s is read as %s, want %s", want, again, d)
		}
	}
	if got := RetentionText(0); got != "none" {
		t.Errorf("no retention is shown as %s", got)
	}
}

// TestNumbers: the order in which tables are written does not depend on that of the configuration, and more routes
// do not change it.
func TestNumbers(t *testing.T) {
	t.Parallel()
	order := func(names ...string) (sorted []string) {
		var configs []RouteConfig
		for _, name := range names {
			configs = append(configs, RouteConfig{Name: name, Topic: name + "/#", Table: map[string]string{"a": "z.t", "b": "t", "c": "t", "d": "s"}[name]})
		}
		routes, err := Compile(configs)
		if err != nil {
			t.Fatal(err)
		}
		sorted = make([]string, len(names))
		for _, route := range routes.All() {
			sorted[route.Number] = route.Name
		}
		return sorted
	}
	for _, test := range []struct{ names, want []string }{
		{[]string{"a", "b", "c", "d"}, []string{"d", "b", "c", "a"}},
		{[]string{"d", "c", "b", "a"}, []string{"d", "b", "c", "a"}},
		{[]string{"a", "c"}, []string{"c", "a"}},
	} {
		if got := order(test.names...); !slices.Equal(got, test.want) {
			t.Errorf("routes %v are written in the order %v, want %v", test.names, got, test.want)
		}
	}
}
