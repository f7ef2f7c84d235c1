package mapping

import (
	"encoding/binary"
	"strconv"
)

// decimal is a number as it was written: exact, whatever its length.
type decimal struct {
	neg         bool
	whole, frac string // digits before and behind the point
	exp         int    // power of ten to multiply by
}

// Limits of PostgreSQL's numeric: base-10000 digits before the point, decimal digits behind it.
const (
	maxNumericWeight = 1<<15 - 1
	maxNumericScale  = 1<<14 - 1

	// maxExponent is where PostgreSQL stops reading exponents, even of zero.
	maxExponent = 1<<30 - 1
)

// shortNumber reads a number of few digits without an exponent, as nearly all are: a whole number below
// 2^53, to be divided by ten to the places. It is not ok for others, and for what is no number.
func shortNumber(s string) (neg bool, whole uint64, places int, ok bool) {
	if s != "" && s[0] == '-' {
		neg, s = true, s[1:]
	}
	if len(s) > 16 { // 15 digits and a point
		return neg, 0, 0, false
	}
	point := -1
	for i := range len(s) {
		switch c := s[i]; {
		case isDigit(c):
			whole = whole*10 + uint64(c-'0')
		case c == '.' && point < 0:
			point = i
		default:
			return neg, 0, 0, false
		}
	}
	switch {
	case point < 0:
		return neg, whole, 0, s != "" && len(s) < 16
	default:
		return neg, whole, len(s) - 1 - point, len(s) > 1
	}
}

// tens are powers of ten, each of them exact.
var tens = [...]float64{1, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15}

// parseDecimal reads a number: digits with a point among, before or behind them, a sign and an
// exponent as one likes. Names such as NaN are no numbers.
func parseDecimal(s string) (d decimal, ok bool) {
	if s != "" && (s[0] == '-' || s[0] == '+') {
		d.neg = s[0] == '-'
		s = s[1:]
	}
	i := countDigits(s)
	d.whole, s = s[:i], s[i:]
	if s != "" && s[0] == '.' {
		i = countDigits(s[1:])
		d.frac, s = s[1:1+i], s[1+i:]
	}
	if d.whole == "" && d.frac == "" {
		return d, false
	}
	if s == "" {
		return d, true
	}
	if s[0]|0x20 != 'e' {
		return d, false
	}
	exp, err := strconv.ParseInt(s[1:], 10, 32)
	d.exp = int(exp)
	return d, err == nil && exp < maxExponent && exp > -maxExponent
}

func countDigits(s string) int {
	for i := range len(s) {
		if !isDigit(s[i]) {
			return i
		}
	}
	return len(s)
}

// digit is the i-th of all digits.
func (d *decimal) digit(i int) int {
	if i < len(d.whole) {
		return int(d.whole[i] - '0')
	}
	return int(d.frac[i-len(d.whole)] - '0')
}

// significant bounds the digits from the first to the last that is not zero; first equals last for
// zero.
func (d *decimal) significant() (first, last int) {
	last = len(d.whole) + len(d.frac)
	for first < last && d.digit(first) == 0 {
		first++
	}
	for last > first && d.digit(last-1) == 0 {
		last--
	}
	return first, last
}

// point is how many of all digits stand before the decimal point; it may lie outside them.
func (d *decimal) point() int { return len(d.whole) + d.exp }

// scale is the number of digits behind the point as written, trailing zeros included.
func (d *decimal) scale() int { return max(0, len(d.frac)-d.exp) }

// scaled is the number times ten to the k, truncated toward zero. It is not ok beyond an int64, and
// exact if no digit was dropped.
func (d *decimal) scaled(k int) (n int64, exact, ok bool) {
	first, last := d.significant()
	point := d.point() + k
	if first == last || point <= first {
		return 0, first == last, true
	}
	if point-first > 19 {
		return 0, false, false
	}
	var u uint64
	for i := first; i < point; i++ {
		u *= 10
		if i < last {
			u += uint64(d.digit(i))
		}
	}
	exact = last <= point
	switch {
	case d.neg && u <= 1<<63:
		return -int64(u), exact, true
	case !d.neg && u < 1<<63:
		return int64(u), exact, true
	}
	return 0, false, false
}

// weight is the base-10000 place of the digit with index i.
func (d *decimal) weight(i int) int { return (d.point() - 1 - i) >> 2 }

// fitsNumeric reports whether PostgreSQL's numeric can hold the number as written.
func (d *decimal) fitsNumeric() bool {
	first, last := d.significant()
	return d.scale() <= maxNumericScale && (first == last || d.weight(first) <= maxNumericWeight)
}

// appendNumeric appends the binary form of numeric, with the given number of digits behind the
// point. The number must fit and lose no digit by it.
func (d *decimal) appendNumeric(dst []byte, scale int) []byte {
	first, last := d.significant()
	if first == last {
		return binary.BigEndian.AppendUint64(dst, uint64(scale)) // no digits, weight 0, positive
	}
	top, bottom := d.weight(first), d.weight(last-1)
	var sign uint16
	if d.neg {
		sign = 0x4000
	}
	dst = binary.BigEndian.AppendUint16(dst, uint16(top-bottom+1))
	dst = binary.BigEndian.AppendUint16(dst, uint16(int16(top)))
	dst = binary.BigEndian.AppendUint16(dst, sign)
	dst = binary.BigEndian.AppendUint16(dst, uint16(scale))
	for place := top; place >= bottom; place-- {
		group := 0
		for i := d.point() - 4 - 4*place; i < d.point()-4*place; i++ {
			group *= 10
			if i >= first && i < last {
				group += d.digit(i)
			}
		}
		dst = binary.BigEndian.AppendUint16(dst, uint16(group))
	}
	return dst
}
