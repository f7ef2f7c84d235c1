package mapping

import (
	"strings"
	"testing"
	"time"
)

func TestTimes(t *testing.T) {
	const moment = "2026-01-02T03:04:05.678901Z"
	for _, test := range []struct{ format, zone, raw, want string }{
		{"", "", `"2026-01-02T03:04:05.678901Z"`, moment},
		{"", "", `"2026-01-02T03:04:05.678901999Z"`, moment},
		{"", "", `"2026-01-02t05:04:05.678901+02:00"`, moment},
		{"", "", `"2026-01-01 22:04:05.678901-0500"`, moment},
		{"", "", `"2026-01-02T05:04:05.678901+02"`, moment},
		{"", "Europe/Berlin", `"2026-01-02T04:04:05.678901"`, moment},
		{"", "Europe/Berlin", `"2026-07-02T04:04:05"`, "2026-07-02T02:04:05.000000Z"},
		{"", "", `"2026-12-31T23:59:60Z"`, "2027-01-01T00:00:00.000000Z"},
		{"", "", `1767323045`, "2026-01-02T03:04:05.000000Z"},
		{"", "", `1767323045.678901`, moment},
		{"", "", `1.767323045678901e9`, moment},
		{"", "", `1767323045678.901`, moment},
		{"", "", `1767323045678901`, moment},
		{"", "", `1767323045678901999`, moment},
		{"", "", `"1767323045678901999"`, moment},
		{"", "", `0`, "1970-01-01T00:00:00.000000Z"},
		{"", "", `-0.0000005`, "1969-12-31T23:59:59.999999Z"},
		{"", "", `-86400`, "1969-12-31T00:00:00.000000Z"},
		{"", "", `99999999999`, "5138-11-16T09:46:39.000000Z"},
		{"", "", `"0001-01-01T00:00:00Z"`, "0001-01-01T00:00:00.000000Z"},
		{"", "", `"9999-12-31T23:59:59.999999Z"`, "9999-12-31T23:59:59.999999Z"},
		{"rfc3339", "", `"2026-01-02T03:04:05.678901Z"`, moment},
		{"unix", "", `"1767323045.678901"`, moment},
		{"unix", "", `253402300799`, "9999-12-31T23:59:59.000000Z"},
		{"unix_ms", "", `1767323045678.901`, moment},
		{"unix_ms", "", `1000`, "1970-01-01T00:00:01.000000Z"},
		{"unix_us", "", `1767323045678901`, moment},
		{"unix_ns", "", `1767323045678901000`, moment},
		{"02.01.2006 15:04:05", "", `"02.01.2026 03:04:05"`, "2026-01-02T03:04:05.000000Z"},
		{"02.01.2006 15:04:05", "Asia/Kolkata", `"02.01.2026 08:34:05"`, "2026-01-02T03:04:05.000000Z"},
		{"20060102150405", "", `20260102030405`, "2026-01-02T03:04:05.000000Z"},
		{"2006-01-02 15:04:05 -0700", "Europe/Berlin", `"2026-01-02 05:04:05 +0200"`, "2026-01-02T03:04:05.000000Z"},

		{"", "", `"2026-01-02T03:04:05"`, "! has no offset"},
		{"", "", `"2026-02-30T03:04:05Z"`, "! is no time"},
		{"", "", `"2026-01-02T24:00:00Z"`, "! is no time"},
		{"", "", `"2026-01-02T03:04:05.Z"`, "! is no time"},
		{"", "", `"2026-01-02T03:04:05+24:00"`, "! is no time"},
		{"", "", `"2026-01-02T03:04:05+1"`, "! is no time"},
		{"", "", `"2026-01-02T03:04:05 UTC"`, "! is no time"},
		{"", "", `"2026-01-02T03:04:05+0x:00"`, "! is no time"},
		{"", "", `"0001-01-01T00:00:00+01:00"`, "! lies outside"},
		{"", "", `"9999-12-31T23:59:59-01:00"`, "! lies outside"},
		{"", "Asia/Kolkata", `"0001-01-01T00:00:00"`, "! lies outside"},
		{"", "", `1e25`, "! lies outside"},
		{"", "", `"soon"`, "! is no time"},
		{"", "", `{}`, "! is no time"},
		{"", "", `"\ud800"`, "! is no time"},
		{"rfc3339", "", `"2026-01-02T03:04:05+0200"`, "! is no RFC 3339"},
		{"rfc3339", "", `1767323045`, "! is no RFC 3339"},
		{"unix", "", `"2026-01-02T03:04:05Z"`, "! is no number"},
		{"unix", "", `253402300800`, "! lies outside"},
		{"unix_ms", "", `-99999999999999999999`, "! lies outside"},
		{"02.01.2006", "", `"2026-01-02"`, "! is no time in the layout"},
	} {
		c, err := newClock(test.format, test.zone)
		if err != nil {
			t.Errorf("%s %s: %v", test.format, test.zone, err)
			continue
		}
		micros, why := c.parse(rawValue(test.raw))
		got := string(appendStamp(nil, micros))
		if why != "" {
			got = "! " + why
		}
		if got != test.want && (test.want[0] != '!' || !strings.HasPrefix(got, test.want)) {
			t.Errorf("%s %s %s became %s, want %s", test.format, test.zone, test.raw, got, test.want)
		}
	}
}

func TestClockMistakes(t *testing.T) {
	for _, test := range []struct{ format, zone, want string }{
		{"iso", "", "expected auto, rfc3339"},
		{"15:04:05", "", "with year, month and day"},
		{"2006", "", "with year, month and day"},
		{"2006-01-02 15:04:05 MST", "", "ambiguous"},
		{"", "Mars/Olympus", "IANA"},
		{"", "Local", "IANA"},
	} {
		if _, err := newClock(test.format, test.zone); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%q %q: %v, want %q", test.format, test.zone, err, test.want)
		}
	}
}

// FuzzStamp compares stamps with those that the standard library reads and writes. The library
// alone takes hours of one digit, commas and offsets of sixty minutes.
func FuzzStamp(f *testing.F) {
	for _, seed := range []string{"2026-01-02T03:04:05Z", "0001-01-01T00:00:00.000001+23:59", "2000-02-29T23:59:59.999999999-00:30", "2026-01-02T03:04:05+00:60"} {
		f.Add(seed, int64(1767323045_678901234), int16(-90))
	}
	f.Fuzz(func(t *testing.T, s string, nanos int64, offset int16) {
		check := func(s string, want time.Time) {
			if got, ok := readStamp(s); ok && got.micros != want.UnixMicro()-postgresEpoch*second {
				t.Fatalf("%q became %s", s, appendStamp(nil, got.micros))
			}
		}
		if want, err := time.Parse(time.RFC3339Nano, s); err == nil {
			check(s, want)
		}
		want := time.Unix(0, nanos).In(time.FixedZone("", int(offset)%1440*60))
		s = want.Format(time.RFC3339Nano)
		if _, ok := readStamp(s); !ok {
			t.Fatalf("%q is not read", s)
		}
		check(s, want)
	})
}
