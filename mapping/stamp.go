package mapping

import (
	"errors"
	"strings"
	"time"
)

// Times are microseconds since 2000-01-01 00:00 UTC, as PostgreSQL keeps them. Digits behind the
// microsecond are dropped, toward the past, so that a reading never moves into the future.
const (
	postgresEpoch = 946684800 // 2000-01-01 00:00 UTC in seconds of Unix time
	second        = 1_000_000
	day           = 86400 * second

	minMicros = -63082281600 * second   // 0001-01-01 00:00 UTC
	maxMicros = 252455616000*second - 1 // 9999-12-31 23:59:59.999999 UTC
	stampForm = "2006-01-02T15:04:05.000000Z07:00"
)

// clock reads times as TIME_FORMAT and TIME_ZONE say.
type clock struct {
	format string // auto, rfc3339, unix, unix_ms, unix_us, unix_ns, or a Go layout
	form   clockForm
	zone   *time.Location
}

// clockForm is what kind of format a clock has.
type clockForm uint8

const (
	formAuto clockForm = iota
	formRFC3339
	formUnix
	formLayout
)

// unixDigits are the decimal digits from the unit of a Unix time to the microsecond.
var unixDigits = map[string]int{"unix": 6, "unix_ms": 3, "unix_us": 0, "unix_ns": -3}

// parse reads a time. What it says of a value that is none begins with a verb.
func (c *clock) parse(v value) (micros int64, why string) {
	if v.kind == kindInstant {
		return v.micros, ""
	}
	if v.kind != kindText && v.kind != kindNumber {
		return 0, "is no time"
	}
	text := strings.TrimSpace(v.str)
	switch c.form {
	case formAuto:
		return c.auto(v.kind, text)
	case formUnix:
		d, ok := parseDecimal(text)
		if !ok {
			return 0, "is no number, which TIME_FORMAT=" + c.format + " asks for"
		}
		return unixTime(&d, unixDigits[c.format])
	case formRFC3339:
		if v.kind == kindText {
			if s, ok := readStamp(text); ok && s.zoned == zoneRFC3339 {
				return inRange(s.micros)
			}
		}
		return 0, "is no RFC 3339 time such as 2026-01-31T23:59:59Z"
	}
	t, err := time.ParseInLocation(c.format, text, c.location())
	if err != nil {
		return 0, "is no time in the layout " + cut(c.format, 40)
	}
	return fromTime(t)
}

// auto tells Unix times from stamps, and their units by magnitude: seconds reach to the year 5138
// and the other units as far, back to 1973 and forth.
func (c *clock) auto(k kind, text string) (int64, string) {
	if k == kindText { // no stamp is a number
		if s, ok := readStamp(text); ok {
			switch {
			case s.zoned != zoneNone:
				return inRange(s.micros)
			case c.zone == nil:
				return 0, "has no offset from UTC; TIME_ZONE says where such times are from"
			}
			return fromTime(inZone(s.micros, c.zone))
		}
	}
	d, ok := parseDecimal(text)
	if !ok {
		return 0, "is no time: neither RFC 3339 nor a Unix time"
	}
	first, last := d.significant()
	places := d.point() - first // digits before the point
	switch {
	case first == last || places <= 11:
		return unixTime(&d, 6)
	case places <= 14:
		return unixTime(&d, 3)
	case places <= 17:
		return unixTime(&d, 0)
	default:
		return unixTime(&d, -3)
	}
}

func (c *clock) location() *time.Location {
	if c.zone == nil {
		return time.UTC
	}
	return c.zone
}

// unixTime converts a Unix time whose unit is ten to the digits microseconds.
func unixTime(d *decimal, digits int) (int64, string) {
	n, exact, ok := d.scaled(digits)
	if !ok || n > maxMicros+postgresEpoch*second || n < minMicros+postgresEpoch*second {
		return 0, outOfRange
	}
	if d.neg && !exact {
		n--
	}
	return inRange(n - postgresEpoch*second)
}

const outOfRange = "lies outside the years 1 to 9999"

func inRange(micros int64) (int64, string) {
	if micros < minMicros || micros > maxMicros {
		return 0, outOfRange
	}
	return micros, ""
}

// fromTime converts a time.Time.
func fromTime(t time.Time) (int64, string) {
	if s := t.Unix() - postgresEpoch; s < minMicros/second || s > maxMicros/second {
		return 0, outOfRange
	}
	return t.UnixMicro() - postgresEpoch*second, ""
}

func toTime(micros int64) time.Time {
	return time.UnixMicro(micros + postgresEpoch*second).UTC()
}

// appendStamp appends a time as RFC 3339 with microseconds in UTC.
func appendStamp(dst []byte, micros int64) []byte {
	return toTime(micros).AppendFormat(dst, stampForm)
}

// inZone gives the instant at which clocks of the zone show what local shows in UTC. Of a time that
// a change of the clocks repeats or leaves out, it is one of the two possible instants.
func inZone(local int64, zone *time.Location) time.Time {
	t := toTime(local)
	return time.Date(t.Year(), t.Month(), t.Day(), t.Hour(), t.Minute(), t.Second(), t.Nanosecond(), zone)
}

// stamp is a time read from text; micros is UTC if it had an offset, else what the clock showed.
type stamp struct {
	micros int64
	zoned  zoning
}

type zoning uint8

const (
	zoneNone    zoning = iota
	zoneRFC3339        // Z or ±hh:mm
	zoneShort          // ±hhmm or ±hh, as ISO 8601 has it
)

// readStamp reads 2026-01-31T23:59:59.123456+01:00 and its relatives: T may be a blank, the
// fraction and the offset may lack.
func readStamp(s string) (stamp, bool) {
	if len(s) < len("2026-01-31T23:59:59") || s[10]|0x20 != 't' && s[10] != ' ' || s[13] != ':' || s[16] != ':' {
		return stamp{}, false
	}
	days, ok := readDate(s[:10])
	hour, ok1 := number2(s[11:])
	minute, ok2 := number2(s[14:])
	sec, ok3 := number2(s[17:])
	// A leap second, 60, becomes the first second of the next minute, as in PostgreSQL.
	if !ok || !ok1 || !ok2 || !ok3 || hour > 23 || minute > 59 || sec > 60 {
		return stamp{}, false
	}
	t := stamp{micros: int64(days)*day + int64(hour*3600+minute*60+sec)*second}
	s = s[19:]
	if s != "" && s[0] == '.' {
		n := countDigits(s[1:])
		if n == 0 {
			return stamp{}, false
		}
		for i, unit := 1, int64(second/10); i <= n && unit > 0; i, unit = i+1, unit/10 {
			t.micros += int64(s[i]-'0') * unit
		}
		s = s[1+n:]
	}
	if s == "" {
		return t, true
	}
	offset, zoned, ok := readOffset(s)
	t.micros -= offset
	t.zoned = zoned
	return t, ok
}

// readOffset reads Z, ±hh:mm, ±hhmm or ±hh.
func readOffset(s string) (micros int64, zoned zoning, ok bool) {
	if s == "Z" || s == "z" {
		return 0, zoneRFC3339, true
	}
	if s[0] != '+' && s[0] != '-' {
		return 0, 0, false
	}
	var minute int
	hour, ok := number2(s[1:])
	zoned = zoneShort
	switch {
	case len(s) == 6 && s[3] == ':':
		zoned = zoneRFC3339
		minute, ok = number2(s[4:])
	case len(s) == 5:
		minute, ok = number2(s[3:])
	case len(s) != 3:
		return 0, 0, false
	}
	if _, hours := number2(s[1:]); !ok || !hours || hour > 23 || minute > 59 {
		return 0, 0, false
	}
	micros = int64(hour*3600+minute*60) * second
	if s[0] == '-' {
		micros = -micros
	}
	return micros, zoned, true
}

// readDate reads 2026-01-31 as days since 2000-01-01.
func readDate(s string) (days int, ok bool) {
	if len(s) != 10 || s[4] != '-' || s[7] != '-' {
		return 0, false
	}
	century, ok1 := number2(s)
	year, ok2 := number2(s[2:])
	month, ok3 := number2(s[5:])
	dom, ok4 := number2(s[8:])
	year += 100 * century
	if !ok1 || !ok2 || !ok3 || !ok4 || year == 0 || month < 1 || month > 12 || dom < 1 || dom > monthDays(year, month) {
		return 0, false
	}
	return daysSinceEpoch(year, month, dom), true
}

func monthDays(year, month int) int {
	switch month {
	case 2:
		if year%4 == 0 && (year%100 != 0 || year%400 == 0) {
			return 29
		}
		return 28
	case 4, 6, 9, 11:
		return 30
	}
	return 31
}

// daysSinceEpoch counts in years that begin with March, so that the leap day comes last.
func daysSinceEpoch(year, month, dom int) int {
	if month < 3 {
		year--
		month += 12
	}
	return year*365 + year/4 - year/100 + year/400 + (153*(month-3)+2)/5 + dom - 1 - 730425
}

// number2 reads two digits.
func number2(s string) (int, bool) {
	if len(s) < 2 || !isDigit(s[0]) || !isDigit(s[1]) {
		return 0, false
	}
	return int(s[0]-'0')*10 + int(s[1]-'0'), true
}

// newClock compiles TIME_FORMAT and TIME_ZONE.
func newClock(format, zone string) (clock, error) {
	c := clock{format: format}
	if format == "" {
		c.format = "auto"
	}
	if zone != "" {
		location, err := time.LoadLocation(zone)
		if err != nil || zone == "Local" {
			return c, errZone
		}
		c.zone = location
	}
	if _, unix := unixDigits[c.format]; unix {
		c.form = formUnix
		return c, nil
	}
	switch c.format {
	case "auto":
		return c, nil
	case "rfc3339":
		c.form = formRFC3339
		return c, nil
	}
	c.form = formLayout
	return c, c.checkLayout()
}

// errZone is the mistake of TIME_ZONE, not of TIME_FORMAT.
var errZone = errors.New("expected a time zone of the IANA database such as Europe/Berlin")

// checkLayout refuses layouts that could not name an instant.
func (c *clock) checkLayout() error {
	probe := time.Date(2031, 11, 22, 13, 14, 15, 0, time.FixedZone("", 2*3600))
	back, err := time.Parse(c.format, probe.Format(c.format))
	switch {
	case strings.Contains(c.format, "MST"):
		return errors.New("zone abbreviations (MST) are ambiguous: expected an offset such as -07:00")
	case err != nil || back.Year() != probe.Year() || back.YearDay() != probe.YearDay():
		return errors.New("expected auto, rfc3339, unix, unix_ms, unix_us, unix_ns or a Go layout with year, month and day such as 2006-01-02 15:04:05")
	}
	return nil
}

// zoneless reports whether the layout has no offset, so that TIME_ZONE, or UTC, decides.
func (c *clock) zoneless() bool {
	if c.form != formLayout {
		return false
	}
	probe := time.Date(2031, 11, 22, 13, 0, 0, 0, time.FixedZone("", 2*3600))
	back, err := time.Parse(c.format, probe.Format(c.format))
	_, offset := back.Zone()
	return err == nil && offset == 0
}
