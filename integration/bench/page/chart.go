package page

import (
	"fmt"
	"html"
	"math"
	"strings"
)

// Chart is a plot of lines over two axes.
type Chart struct {
	Title string
	X, Y  Axis
	Lines []Line
	Bands []Band
	Wide  bool // takes the room of one and a half
}

// Axis of a chart. Its range is that of the data; one that is not logarithmic begins at 0.
type Axis struct {
	Label string
	Log   bool   // zero and negative values stand at its lower end
	Ticks []Tick // nil: round figures
}

// Tick is a labelled place on an axis.
type Tick struct {
	At    float64
	Label string
}

// Line is a series of marks, joined in their order.
type Line struct {
	Name  string
	Marks []Mark
	Plain bool // without dots, for many marks
}

// Mark is a point with its spread; Low and High are 0 when there is none.
type Mark struct {
	X, Y, Low, High float64
}

// Band is a stretch of the X axis that something is said of.
type Band struct {
	From, To float64
	Label    string
}

// Bars is a plot of horizontal bars that are made of parts.
type Bars struct {
	Title, Unit string
	Parts       []string
	Bars        []Bar
}

// Bar has a value for each part.
type Bar struct {
	Label  string
	Values []float64
}

// Size of one chart, and the margins around its axes.
const (
	usualWidth, height = 460, 320
	left, right        = 66, 26
	head, bottom       = 24, 46
)

// colours are of middle lightness, so that they can be told from a white and from a black ground.
var colours = []string{"#3b82c4", "#e0812f", "#3f9e63", "#c9504c", "#8b68c8", "#8a8a8a", "#b59a1f", "#2aa5a0"}

// frame writes the head of an image. Text and grid follow the theme of the reader.
func frame(out *strings.Builder, w, h int, title string) {
	fmt.Fprintf(out, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %[1]d %[2]d" width="%[1]d" height="%[2]d" role="img" font-family="system-ui, sans-serif" font-size="12">
<title>%[3]s</title>
<style>
text { fill: #24292f } .grid { stroke: #d0d7de } .axis { stroke: #57606a } .band { fill: #d0d7de; opacity: .45 }
@media (prefers-color-scheme: dark) { text { fill: #d7dde4 } .grid { stroke: #3b434c } .axis { stroke: #9aa4ae } .band { fill: #3b434c } }
</style>
`, w, h, html.EscapeString(title))
}

// SVG draws charts beside one another.
func SVG(charts ...Chart) string {
	var out strings.Builder
	titles, sum := make([]string, len(charts)), 0
	for i := range charts {
		titles[i] = charts[i].Title
		sum += charts[i].width()
	}
	frame(&out, sum, height, strings.Join(titles, "; "))
	x := 0
	for i := range charts {
		fmt.Fprintf(&out, "<g transform=\"translate(%d 0)\">\n", x)
		charts[i].draw(&out)
		out.WriteString("</g>\n")
		x += charts[i].width()
	}
	out.WriteString("</svg>\n")
	return out.String()
}

func (c *Chart) width() int {
	if c.Wide {
		return usualWidth * 3 / 2
	}
	return usualWidth
}

func (c *Chart) draw(out *strings.Builder) {
	width, names := c.width(), make([]string, len(c.Lines))
	for i, line := range c.Lines {
		names[i] = line.Name
	}
	top := head + legend(out, names, left, width-right) + 12
	var xs, ys []float64
	for _, line := range c.Lines {
		for _, m := range line.Marks {
			xs = append(xs, m.X)
			ys = append(ys, m.Y)
			if m.High > 0 {
				ys = append(ys, m.Low, m.High)
			}
		}
	}
	for _, b := range c.Bands {
		xs = append(xs, b.From, b.To)
	}
	x, y := c.X.scale(xs), c.Y.scale(ys)
	px := func(v float64) float64 { return left + x.place(v)*float64(width-left-right) }
	py := func(v float64) float64 { return height - bottom - y.place(v)*float64(height-top-bottom) }

	fmt.Fprintf(out, "<text x=\"%d\" y=\"18\" font-size=\"14\" font-weight=\"600\">%s</text>\n", left, html.EscapeString(c.Title))
	for _, b := range c.Bands {
		fmt.Fprintf(out, "<rect class=\"band\" x=\"%.1f\" y=\"%d\" width=\"%.1f\" height=\"%d\"/>\n", px(b.From), top, px(b.To)-px(b.From), height-top-bottom)
		fmt.Fprintf(out, "<text x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%s</text>\n", (px(b.From)+px(b.To))/2, top+14, html.EscapeString(b.Label))
	}
	for _, t := range y.ticks {
		fmt.Fprintf(out, "<line class=\"grid\" x1=\"%d\" x2=\"%d\" y1=\"%.1f\" y2=\"%.1[3]f\"/>\n", left, width-right, py(t.At))
		fmt.Fprintf(out, "<text x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%s</text>\n", left-6, py(t.At)+4, html.EscapeString(t.Label))
	}
	for _, t := range x.ticks {
		fmt.Fprintf(out, "<line class=\"axis\" x1=\"%.1f\" x2=\"%.1[1]f\" y1=\"%d\" y2=\"%d\"/>\n", px(t.At), height-bottom, height-bottom+4)
		fmt.Fprintf(out, "<text x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%s</text>\n", px(t.At), height-bottom+17, html.EscapeString(t.Label))
	}
	fmt.Fprintf(out, "<path class=\"axis\" fill=\"none\" d=\"M%d %d V%d H%d\"/>\n", left, top, height-bottom, width-right)
	fmt.Fprintf(out, "<text x=\"%d\" y=\"%d\" text-anchor=\"middle\">%s</text>\n", (left+width-right)/2, height-8, html.EscapeString(c.X.Label))
	fmt.Fprintf(out, "<text transform=\"translate(14 %d) rotate(-90)\" text-anchor=\"middle\">%s</text>\n", (top+height-bottom)/2, html.EscapeString(c.Y.Label))

	for i, line := range c.Lines {
		colour := colours[i%len(colours)]
		var path strings.Builder
		for j, m := range line.Marks {
			fmt.Fprintf(&path, "%c%.1f %.1f", "ML"[min(j, 1)], px(m.X), py(m.Y))
			if m.High > 0 {
				fmt.Fprintf(out, "<line stroke=\"%s\" stroke-width=\"1.5\" opacity=\".6\" x1=\"%.1f\" x2=\"%.1[2]f\" y1=\"%.1f\" y2=\"%.1f\"/>\n", colour, px(m.X), py(m.Low), py(m.High))
			}
			if !line.Plain {
				fmt.Fprintf(out, "<circle fill=\"%s\" cx=\"%.1f\" cy=\"%.1f\" r=\"3.5\"/>\n", colour, px(m.X), py(m.Y))
			}
		}
		fmt.Fprintf(out, "<path fill=\"none\" stroke=\"%s\" stroke-width=\"2\" d=\"%s\"/>\n", colour, path.String())
	}
}

// legend writes names with their colours below the heading, in as many lines as it takes, and returns their
// height.
func legend(out *strings.Builder, names []string, from, to int) int {
	if len(names) == 0 || len(names) == 1 && names[0] == "" {
		return 0
	}
	const line = 18
	x, y := from, head+line-2
	for i, name := range names {
		room := 32 + 7*len([]rune(name))
		if x > from && x+room > to {
			x, y = from, y+line
		}
		fmt.Fprintf(out, "<rect fill=\"%s\" x=\"%d\" y=\"%d\" width=\"12\" height=\"4\" rx=\"2\"/>\n", colours[i%len(colours)], x, y-6)
		fmt.Fprintf(out, "<text x=\"%d\" y=\"%d\">%s</text>\n", x+17, y, html.EscapeString(name))
		x += room
	}
	return y + 2 - head
}

// scale maps values to places from 0 to 1.
type scale struct {
	log      bool
	from, to float64
	ticks    []Tick
}

func (a Axis) scale(values []float64) scale {
	s := scale{log: a.Log}
	least, most := math.Inf(1), math.Inf(-1)
	for _, v := range values {
		if math.IsNaN(v) || a.Log && v <= 0 {
			continue
		}
		least, most = min(least, v), max(most, v)
	}
	if math.IsInf(least, 0) {
		least, most = 1, 10
	}
	if a.Log {
		s.logarithmic(least, most)
	} else {
		s.linear(most)
	}
	if a.Ticks != nil {
		s.around(a.Ticks, least, most)
	}
	return s
}

// linear makes about five steps of 1, 2 or 5 times a power of ten from 0 on.
func (s *scale) linear(most float64) {
	if most <= 0 {
		most = 1
	}
	step := math.Pow(10, math.Floor(math.Log10(most/4)))
	for _, factor := range []float64{1, 2, 5, 10} {
		if most <= 5*step*factor {
			step *= factor
			break
		}
	}
	steps := int(math.Ceil(most/step - 1e-9))
	for i := range steps + 1 {
		s.ticks = append(s.ticks, Tick{float64(i) * step, Short(float64(i) * step)})
	}
	s.to = float64(steps) * step
}

// logarithmic makes a step of every power of ten, of 2 and 5 times one too if there are few.
func (s *scale) logarithmic(least, most float64) {
	first, last := math.Floor(math.Log10(least)+1e-9), math.Ceil(math.Log10(most)-1e-9)
	if last <= first {
		last = first + 1
	}
	s.from, s.to = math.Pow(10, first), math.Pow(10, last)
	factors := []float64{1}
	if last-first <= 2 {
		factors = []float64{1, 2, 5}
	}
	for exponent := first; exponent <= last; exponent++ {
		for _, factor := range factors {
			if at := factor * math.Pow(10, exponent); at <= s.to*1.001 {
				s.ticks = append(s.ticks, Tick{at, Short(at)})
			}
		}
	}
}

// around takes given ticks and leaves a little room on both sides of them and of the data.
func (s *scale) around(ticks []Tick, least, most float64) {
	for _, t := range ticks {
		least, most = min(least, t.At), max(most, t.At)
	}
	const room = 0.05
	s.ticks = ticks
	if s.log {
		stretch := math.Pow(max(most/least, 1.1), room)
		s.from, s.to = least/stretch, most*stretch
	} else {
		stretch := max(most-least, 0.1) * room
		s.from, s.to = least-stretch, most+stretch
	}
}

func (s *scale) place(v float64) float64 {
	if !s.log {
		return (v - s.from) / (s.to - s.from)
	}
	return math.Log(max(v, s.from)/s.from) / math.Log(s.to/s.from)
}

// SVG draws the bars, the first one on top.
func (b *Bars) SVG() string {
	const w, row, label, end, top = 760, 26, 240, 60, 58
	most := 0.0
	for _, bar := range b.Bars {
		sum := 0.0
		for _, v := range bar.Values {
			sum += v
		}
		most = max(most, sum)
	}
	var s scale
	s.linear(most)
	h := top + row*len(b.Bars) + bottom
	px := func(v float64) float64 { return label + s.place(v)*(w-label-end) }
	var out strings.Builder
	frame(&out, w, h, b.Title)
	fmt.Fprintf(&out, "<text x=\"%d\" y=\"18\" font-size=\"14\" font-weight=\"600\">%s</text>\n", label, html.EscapeString(b.Title))
	legend(&out, b.Parts, label, w)
	for _, t := range s.ticks {
		fmt.Fprintf(&out, "<line class=\"grid\" x1=\"%.1f\" x2=\"%.1[1]f\" y1=\"%d\" y2=\"%d\"/>\n", px(t.At), top-4, h-bottom)
		fmt.Fprintf(&out, "<text x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%s</text>\n", px(t.At), h-bottom+17, t.Label)
	}
	for i, bar := range b.Bars {
		y, sum := top+i*row, 0.0
		fmt.Fprintf(&out, "<text x=\"%d\" y=\"%d\" text-anchor=\"end\">%s</text>\n", label-8, y+row/2+2, html.EscapeString(bar.Label))
		for j, v := range bar.Values {
			fmt.Fprintf(&out, "<rect fill=\"%s\" x=\"%.1f\" y=\"%d\" width=\"%.1f\" height=\"%d\"/>\n", colours[j%len(colours)], px(sum), y+2, px(sum+v)-px(sum), row-8)
			sum += v
		}
		fmt.Fprintf(&out, "<text x=\"%.1f\" y=\"%d\">%s</text>\n", px(sum)+6, y+row/2+2, Number(sum))
	}
	fmt.Fprintf(&out, "<path class=\"axis\" fill=\"none\" d=\"M%d %d V%d H%d\"/>\n", label, top-4, h-bottom, w-end)
	fmt.Fprintf(&out, "<text x=\"%d\" y=\"%d\" text-anchor=\"middle\">%s</text>\n</svg>\n", (label+w-end)/2, h-8, html.EscapeString(b.Unit))
	return out.String()
}
