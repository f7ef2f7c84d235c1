package main

import (
	"errors"
	"fmt"
	"iter"
	"math"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// setting is the value of one variable. envconfig stops at the first value it cannot decode; a
// setting therefore keeps its mistake to itself, so that all of them can be reported at once.
type setting[T any, F format[T]] struct {
	value   T
	text    string // as written
	mistake string // what was expected instead; empty: none
}

// format reads values of one kind.
type format[T any] interface {
	kind() string                 // for people
	parse(text string) (T, error) // the error says what was expected
}

// Decode implements envconfig.Decoder. It never fails: see setting.
//
//nolint:unparam // the interface wants an error
func (s *setting[T, F]) Decode(text string) error {
	var how F
	value, err := how.parse(strings.TrimSpace(text))
	s.value, s.text, s.mistake = value, text, ""
	if err != nil {
		s.mistake = err.Error()
	}
	return nil
}

func (s *setting[T, F]) described() (kind, text, mistake string) {
	var how F
	return how.kind(), s.text, s.mistake
}

// described is what a setting of any kind tells of itself.
type described interface {
	described() (kind, text, mistake string)
}

type (
	text      = setting[string, textFormat]
	integer   = setting[int, integerFormat]
	limit     = setting[*int, limitFormat]
	duration  = setting[time.Duration, durationFormat]
	size      = setting[int, sizeFormat]
	names     = setting[[]string, namesFormat]
	addresses = setting[[]*url.URL, addressesFormat]
)

type textFormat struct{}

func (textFormat) kind() string                      { return "text" }
func (textFormat) parse(text string) (string, error) { return text, nil }

type integerFormat struct{}

func (integerFormat) kind() string { return "integer" }

func (integerFormat) parse(text string) (int, error) {
	n, err := strconv.Atoi(text)
	if err != nil {
		return 0, errors.New("expected a whole number")
	}
	return n, nil
}

type limitFormat struct{}

func (limitFormat) kind() string { return "integer" }

// parse returns nil where nothing is said.
func (limitFormat) parse(text string) (*int, error) {
	if text == "" {
		return nil, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 0 {
		return nil, errors.New("expected a whole number from 0")
	}
	return &n, nil
}

type durationFormat struct{}

func (durationFormat) kind() string { return "duration" }

func (durationFormat) parse(text string) (time.Duration, error) {
	d, err := time.ParseDuration(text)
	switch {
	case err != nil:
		return 0, errors.New("expected a duration such as 15s, 5m or 24h")
	case d < 0:
		return 0, errors.New("expected a duration that is not negative")
	}
	return d, nil
}

type sizeFormat struct{}

func (sizeFormat) kind() string { return "size" }

// sizeUnits are the binary units, the longer names first.
var sizeUnits = []struct {
	name  string
	bytes int
}{{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"B", 1}}

func (sizeFormat) parse(text string) (int, error) {
	expected := errors.New("expected a size in bytes such as 65536, 512KiB, 256MiB or 2GiB")
	number, unit := text, 1
	for _, u := range sizeUnits {
		if rest, ok := strings.CutSuffix(text, u.name); ok {
			number, unit = strings.TrimSpace(rest), u.bytes
			break
		}
	}
	n, err := strconv.Atoi(number)
	if err != nil || n < 0 || n > math.MaxInt/unit {
		return 0, expected
	}
	return n * unit, nil
}

type namesFormat struct{}

func (namesFormat) kind() string { return "list of names" }

// parse returns the names that are right even if others are not, and a line for each that is not.
func (namesFormat) parse(text string) ([]string, error) {
	var list []string
	var mistakes []error
	for name := range partsOf(text) {
		switch {
		case !routeName(name):
			reason := fmt.Sprintf("expected names of lower-case letters, digits and _, beginning with a letter; %q is none", name)
			if meant := meantName(name); meant != "" {
				reason += "; did you mean " + meant + "?"
			}
			mistakes = append(mistakes, errors.New(reason))
		case slices.Contains(list, name):
			mistakes = append(mistakes, fmt.Errorf("expected each name once; %q comes twice", name))
		default:
			list = append(list, name)
		}
	}
	return list, errors.Join(mistakes...)
}

// partsOf are the parts of a comma list that are not empty.
func partsOf(text string) iter.Seq[string] {
	return func(yield func(string) bool) {
		for part := range strings.SplitSeq(text, ",") {
			if name := strings.TrimSpace(part); name != "" && !yield(name) {
				return
			}
		}
	}
}

// meantNames are the names that the wrong ones of a list seem to mean, whose variables are somebody's
// intention and no misspelling.
func meantNames(text string) []string {
	var list []string
	for name := range partsOf(text) {
		if meant := meantName(name); !routeName(name) && meant != "" {
			list = append(list, meant)
		}
	}
	return list
}

// meantName is the name of a route that comes nearest to one that is none; empty if nothing does.
func meantName(name string) string {
	meant := strings.Map(func(c rune) rune {
		switch {
		case c >= 'A' && c <= 'Z':
			return c - 'A' + 'a'
		case c >= 'a' && c <= 'z' || c >= '0' && c <= '9':
			return c
		}
		return '_'
	}, name)
	if !routeName(meant) {
		return ""
	}
	return meant
}

func routeName(name string) bool {
	for i, c := range name {
		if letter := c >= 'a' && c <= 'z'; !letter && (i == 0 || c != '_' && (c < '0' || c > '9')) {
			return false
		}
	}
	return name != ""
}

type addressesFormat struct{}

func (addressesFormat) kind() string { return "list of URLs" }

// schemes are those of broker URLs.
var schemes = []string{"mqtt", "mqtts", "ws", "wss", "tcp", "ssl", "tls"}

// parse never repeats a URL in its error: it may hold a password. Each wrong one has a line.
func (addressesFormat) parse(text string) ([]*url.URL, error) {
	var list []*url.URL
	var mistakes []error
	number := 0
	for part := range partsOf(text) {
		number++
		u, err := url.Parse(part)
		switch {
		case err != nil || u.Host == "" || u.Hostname() == "":
			err = fmt.Errorf("expected URLs such as mqtt://broker:1883; number %d is none", number)
		case !slices.Contains(schemes, strings.ToLower(u.Scheme)):
			err = fmt.Errorf("expected a URL with one of the schemes %s; number %d has %q", strings.Join(schemes, ", "), number, u.Scheme)
		case u.Port() != "":
			if n, bad := strconv.Atoi(u.Port()); bad != nil || n < 1 || n > math.MaxUint16 {
				err = fmt.Errorf("expected a port from 1 to 65535; URL number %d has %s", number, u.Port())
			}
		}
		if err != nil {
			mistakes = append(mistakes, err)
			continue
		}
		list = append(list, u)
	}
	if number == 0 {
		return nil, errors.New("expected at least one URL such as mqtt://broker:1883")
	}
	return list, errors.Join(mistakes...)
}
