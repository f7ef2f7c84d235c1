//go:build unix

package main

import (
	"fmt"
	"io"
	"net/url"
	"strings"
	"text/tabwriter"
	"time"
)

// introduce tells how to look at everything from another terminal.
func introduce(out io.Writer, b *bridge, db *database) {
	fmt.Fprintf(out, "\nLook for yourself, in another terminal:\n\n  %s\n  curl -s %s/health\n  curl -s '%s/readyz?verbose'\n", db.psql, b.url, b.url)
	fmt.Fprint(out, "\nThe bridge runs with this environment:\n\n")
	for _, s := range b.settings {
		s.value = withoutPassword(s)
		fmt.Fprintln(out, "  "+s.exportLine())
	}
	fmt.Fprintln(out)
}

// withoutPassword hides the password of a database that is not the demonstration's own.
func withoutPassword(s setting) string {
	if s.name != "BRIDGE_DATABASE_URL" {
		return s.value
	}
	u, err := url.Parse(s.value)
	if err != nil || !strings.Contains(s.value, "://") {
		return "(as given)" // the key=value form may hold a password anywhere
	}
	return u.Redacted()
}

func writeReport(out io.Writer, elapsed time.Duration, published map[string]tally, v view) {
	elapsed = elapsed.Round(time.Second)
	fmt.Fprintf(out, "── %02d:%02d  broker %s, database %s %s\n", int(elapsed.Minutes()), int(elapsed.Seconds())%60,
		brokerState(v), upOrDown(v.database), strings.Repeat("─", 30))
	table := newTable(out)
	fmt.Fprintln(table, "route     \tpublished\treceived\twritten\tduplicate\tdead letters\tskipped\tin flight\trows in table\t")
	for _, route := range routeNames {
		c := v.counts[route]
		fmt.Fprintf(table, "%-10s\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t\n", route, published[route].published,
			c.received, c.written, c.duplicate, c.deadLettered, c.skipped, c.inFlight, v.stored[route].rows)
	}
	_ = table.Flush() // a terminal that went away is noticed elsewhere
	fmt.Fprintln(out)
	left := newLeftTable(out)
	for _, l := range v.latest {
		fmt.Fprintf(left, "  %s\t%s\t%s ago\t\n", l.device, l.values, age(l.age))
	}
	_ = left.Flush()
	if len(v.letters) > 0 {
		fmt.Fprintln(out, "  newest dead letters")
		for _, d := range v.letters {
			fmt.Fprintf(left, "  %s\t%s\t%s\n", d.route, d.reason, short(d.detail, 90))
		}
		_ = left.Flush()
	}
	fmt.Fprintln(out)
}

func newTable(out io.Writer) *tabwriter.Writer {
	return tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
}

func newLeftTable(out io.Writer) *tabwriter.Writer {
	return tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
}

func brokerState(v view) string {
	if !v.connected {
		return "down"
	}
	if v.rtt == 0 {
		return "up"
	}
	return fmt.Sprintf("up (ping %.1f ms)", float64(v.rtt.Microseconds())/1000)
}

func upOrDown(up bool) string {
	if up {
		return "up"
	}
	return "down"
}

func age(d time.Duration) string {
	return fmt.Sprintf("%.1f s", max(d, 0).Seconds())
}

// short cuts a text that is too long for a line, on a character's border.
func short(text string, limit int) string {
	text = strings.Join(strings.Fields(text), " ")
	runes := []rune(text)
	if len(runes) <= limit {
		return text
	}
	return string(runes[:limit-1]) + "…"
}

// compare returns a sentence for everything that is not as it must be.
func compare(published map[string]tally, counted map[string]counts, stored map[string]storage) []string {
	var mistakes []string
	for _, route := range routeNames {
		p, c, s := published[route], counted[route], stored[route]
		expect := func(what string, got, want int) {
			if got != want {
				mistakes = append(mistakes, fmt.Sprintf("%s: %d %s, expected %d", route, got, what, want))
			}
		}
		expect("messages received", c.received, p.published)
		expect("messages written", c.written, p.written)
		expect("duplicates recognised", c.duplicate, p.duplicate)
		expect("messages dead-lettered", c.deadLettered, p.deadLettered)
		expect("messages skipped", c.skipped, p.skipped)
		expect("rows in the table", s.rows, p.rows)
		expect("dead letters in the table", s.deadLetters, p.deadLettered)
		if !c.lawHolds() {
			mistakes = append(mistakes, fmt.Sprintf("%s: received %d is not the sum of %+v", route, c.received, c))
		}
	}
	return mistakes
}

func writeSummary(out io.Writer, published map[string]tally, counted map[string]counts, stored map[string]storage, mistakes []string) {
	fmt.Fprintln(out, "── summary "+strings.Repeat("─", 60))
	table := newTable(out)
	fmt.Fprintln(table, "route     \tpublished\treceived\twritten\tduplicate\tdead letters\tskipped\trows in table\t")
	var messages, rows, letters int
	for _, route := range routeNames {
		p, c, s := published[route], counted[route], stored[route]
		fmt.Fprintf(table, "%-10s\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t\n", route, p.published, c.received, c.written, c.duplicate, c.deadLettered, c.skipped, s.rows)
		messages, rows, letters = messages+p.published, rows+s.rows, letters+s.deadLetters
	}
	_ = table.Flush()
	if len(mistakes) > 0 {
		fmt.Fprintln(out, "\nNot as it must be:\n  "+strings.Join(mistakes, "\n  "))
		return
	}
	fmt.Fprintf(out, "\nAll %d published messages are accounted for: %d rows, %d dead letters, the rest recognised as duplicates or skipped on purpose.\n", messages, rows, letters)
}
