package mapping

import (
	"fmt"
	"strings"
	"testing"
)

func TestParseColumns(t *testing.T) {
	columns, errs := parseColumns(`
		temperature:float8 = $.temperature,
		amount : numeric( 10 , 2 )=$['a, b'][0] ?? 'x,''y', tags:text[]=$.tags
		at:Timestamp  with time zone = received_at
		name:character varying(20)={name}
		n:INTEGER=42, raw = $.raw, site={site}, corr=correlation_data, q=qos, r=retain, rec=received_at,
		body=payload, flag=true, i=1, big=5000000000, huge=9223372036854775808, f=1.5, s='s', u=user.u, c=content_type, e=@.x, l=topic[1],
	`, formatJSON)
	if errs != nil {
		t.Fatal(errs)
	}
	var got []string
	for _, c := range columns {
		got = append(got, fmt.Sprintf("%s:%s=%s", c.name, c.typ.name, c.from.text))
	}
	want := `temperature:float8=$.temperature amount:numeric(10,2)=$['a, b'][0] ?? 'x,''y' tags:text[]=$.tags ` +
		`at:timestamptz=received_at name:varchar(20)={name} n:int4=42 raw:jsonb=$.raw site:text={site} corr:bytea=correlation_data ` +
		`q:int2=qos r:bool=retain rec:timestamptz=received_at body:jsonb=payload flag:bool=true i:int4=1 big:int8=5000000000 ` +
		`huge:numeric=9223372036854775808 f:numeric=1.5 s:text='s' u:text=user.u c:text=content_type e:jsonb=@.x l:text=topic[1]`
	if s := strings.Join(got, " "); s != want {
		t.Errorf("got\n%s\nwant\n%s", s, want)
	}
	for f, want := range map[format]string{formatText: "text", formatRaw: "bytea", formatJSON: "jsonb"} {
		if columns, errs := parseColumns("p=payload", f); errs != nil || columns[0].typ.name != want {
			t.Errorf("payload is %v with FORMAT=%s: %v", columns, f, errs)
		}
	}
}

func TestParseColumnsWithoutColon(t *testing.T) {
	for text, want := range map[string]string{
		"temperature float8 = $.t":      "character 13: column temperature: expected a colon before the type: temperature:float8 = …",
		"x numeric(10, 2) = $.x":        "column x: expected a colon before the type: x:numeric(10,2) = …",
		"x flota8 = $.x":                "expected = and an expression for column x, found 'f'",
		"x":                             "expected = and an expression for column x, but the text ends",
		"x, y = $.y":                    "expected = and an expression for column x, found ','",
		"at timestamp with time zone=1": "column at: expected a colon before the type: at:timestamptz = …",
	} {
		columns, errs := parseColumns(text+"\nlast = 1", formatJSON)
		if len(errs) != 1 || !strings.Contains(errs[0].Error(), strings.Replace(want, "but the text ends", "found", 1)) {
			t.Errorf("%s: %v, want %s", text, errs, want)
		}
		if len(columns) == 0 || columns[len(columns)-1].name != "last" {
			t.Errorf("%s: what follows is lost: %v", text, columns)
		}
	}
}

func TestParseColumnsTellsEveryMistake(t *testing.T) {
	_, errs := parseColumns("a=$.a, Temp=$.t, b:floot=$.b, c:text $.c\nd:text=, e=$.a ?? 'x', a=$.b, time:text=$.t, xmin=1, "+
		"v:varchar(0)=$.v, n:numeric(3,4)=$.n, i:int4(3)=$.i, w:varchar(x=$.w, z=$.z", formatJSON)
	want := []string{
		`character 8: column "Temp": expected lower-case letters`,
		`character 20: column b: "floot" is no type the bridge can write; expected bool, int2`,
		"character 33: column c: \"text $.c\" is no type",
		"character 49: expected an expression",
		"column e: the alternatives of $.a ?? 'x' differ in type; expected e:type = …",
		"column a stands twice",
		"column time belongs to the bridge",
		"column xmin belongs to PostgreSQL",
		"expected varchar(n) with n",
		"expected numeric(p) or numeric(p,s)",
		"expected int4 without parentheses",
		"expected varchar(n) with n",
	}
	for i, err := range errs {
		if i >= len(want) || !strings.Contains(err.Error(), want[i]) {
			t.Errorf("mistake %d: %v", i, err)
		}
	}
	if len(errs) != len(want) {
		t.Errorf("%d mistakes, want %d", len(errs), len(want))
	}
}

func FuzzParseColumns(f *testing.F) {
	for _, seed := range []string{"a:float8=$.a, b=topic", "a:numeric(10,2)=$['a,b']\nb:text[]=@.x", "a:=", "a='b", "x:timestamp with time zone=received_at ?? '2026'"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		columns, errs := parseColumns(text, formatJSON)
		if errs != nil {
			return
		}
		var lines []string
		for _, c := range columns {
			lines = append(lines, c.name+":"+c.typ.name+"="+c.from.text)
		}
		again, errs := parseColumns(strings.Join(lines, "\n"), formatJSON)
		if errs != nil || len(again) != len(columns) {
			t.Fatalf("%q was read as %q, which is refused: %v", text, lines, errs)
		}
		for i := range again {
			if again[i].typ != columns[i].typ || describe(again[i].from) != describe(columns[i].from) {
				t.Fatalf("%q: column %s was read in two ways", text, again[i].name)
			}
		}
	})
}
