package main

import (
	"cmp"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/mqttpg/bridge/mapping"
	"github.com/mqttpg/bridge/store"
)

// deadLettersCommand works on the dead letters.
func deadLettersCommand(ctx context.Context, args []string, std streams) error {
	word, rest, err := subcommand(ctx, "deadletters", args, std, "list", "show", "replay", "purge")
	if err != nil {
		return err
	}
	switch word {
	case "list":
		return listDeadLetters(ctx, rest, std)
	case "show":
		return showDeadLetter(ctx, rest, std)
	case "replay":
		return replayDeadLetters(ctx, rest, std)
	}
	return purgeDeadLetters(ctx, rest, std)
}

// letterFlags adds the flags that fill in a filter.
func letterFlags(flags *flag.FlagSet, filter *store.LetterFilter, names ...string) {
	for _, name := range names {
		switch name {
		case "route":
			flags.StringVar(&filter.Route, name, "", "only those of this `route`; none: no route matched")
		case "reason":
			flags.Func(name, "only those with this `reason` code", func(s string) error {
				if filter.Reason = s; !slices.Contains(store.LetterReasons(), mapping.Reason(s)) {
					return fmt.Errorf("expected one of %s", joined(store.LetterReasons()))
				}
				return nil
			})
		case "id":
			flags.Func(name, "only the one with this `id`", func(s string) (err error) {
				filter.ID, err = parseID(s)
				return err
			})
		case "since":
			flags.Func(name, "only those received since this `time`, or not longer ago", momentInto(&filter.Since))
		case "before":
			flags.Func(name, "only those received before this `time`, or longer ago", momentInto(&filter.Before))
		}
	}
}

func joined(reasons []mapping.Reason) string {
	text := make([]string, len(reasons))
	for i, r := range reasons {
		text[i] = string(r)
	}
	return strings.Join(text, ", ")
}

// requireRoute refuses a route that is neither configured nor has letters: it is a slip of the pen, and
// to find nothing would look like success.
func requireRoute(ctx context.Context, cfg *config, conn *pgx.Conn, route string) error {
	if route == "" || route == "none" || cfg.routes.ByName(route) != nil {
		return nil
	}
	n, _, err := store.CountDeadLetters(ctx, conn, cfg.Schema.value, store.LetterFilter{Route: route})
	if err != nil || n > 0 {
		return err
	}
	var names []string
	for _, r := range cfg.routes.All() {
		names = append(names, r.Name)
	}
	return usageError{fmt.Sprintf("--route: no route %q is configured, and no dead letter has that route; configured: %s", route, strings.Join(names, ", "))}
}

func parseID(s string) (string, error) {
	id := pgtype.UUID{}
	if err := id.Scan(s); err != nil || !id.Valid {
		return "", errors.New("expected the id of a dead letter, such as 019e0f3a-2c4e-7b1d-9a65-0c8e4d1f2b37")
	}
	return id.String(), nil
}

func momentInto(moment *time.Time) func(string) error {
	return func(s string) (err error) {
		*moment, err = parseMoment(s, time.Now())
		return err
	}
}

// parseMoment reads a time, or an age counted back from now.
func parseMoment(s string, now time.Time) (time.Time, error) {
	if t, err := time.Parse(time.RFC3339, s); err == nil {
		return t, nil
	}
	expected := errors.New("expected a time such as 2026-05-01T12:00:00Z, or an age such as 90m, 24h or 7d")
	age := time.Duration(0)
	if days, rest, ok := strings.Cut(s, "d"); ok {
		n, err := strconv.ParseUint(days, 10, 16)
		if err != nil {
			return time.Time{}, expected
		}
		age, s = time.Duration(n)*24*time.Hour, cmp.Or(rest, "0s")
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 {
		return time.Time{}, expected
	}
	return now.Add(-age - d), nil
}

// letterLine is one line of deadletters list --json.
type letterLine struct {
	ID           string  `json:"id"`
	Route        string  `json:"route"`
	Topic        string  `json:"topic"`
	Reason       string  `json:"reason"`
	Detail       string  `json:"detail"`
	QoS          int     `json:"qos"`
	Retain       bool    `json:"retain"`
	PayloadBytes int64   `json:"payload_bytes"`
	ReceivedAt   string  `json:"received_at"`
	Attempts     int     `json:"attempts"`
	ReplayedAt   *string `json:"replayed_at"`
}

// tableLines is after how many lines a table is printed, so that a long list takes little memory. What
// follows is aligned anew.
const tableLines = 1000

func listDeadLetters(ctx context.Context, args []string, std streams) error {
	flags := newFlags("deadletters list")
	var filter store.LetterFilter
	letterFlags(flags, &filter, "route", "reason", "since")
	limit := flags.Int("limit", 50, "print at most this `number`; 0 = no limit")
	all := flags.Bool("all", false, "also those that were replayed")
	asJSON := flags.Bool("json", false, "print a JSON object per line")
	if _, err := parse(flags, args, std); err != nil {
		return err
	}
	if *limit < 0 {
		return usageError{"deadletters list: --limit: expected 0 or more"}
	}
	filter.Waiting = !*all

	w := tabwriter.NewWriter(std.out, 0, 8, 2, ' ', 0)
	lines := json.NewEncoder(std.out)
	lines.SetEscapeHTML(false)
	n := 0
	each := func(l *store.DeadLetter) error {
		if n++; *asJSON {
			return lines.Encode(letterLineOf(l))
		}
		if n%tableLines == 1 {
			if err := w.Flush(); err != nil {
				return err
			}
		}
		if n == 1 {
			fmt.Fprintln(w, strings.Join(letterHeads(*all), "\t"))
		}
		_, err := fmt.Fprintln(w, strings.Join(letterCells(l, *all), "\t"))
		return err
	}
	err := withDatabase(ctx, func(cfg *config, conn *pgx.Conn) error {
		if err := requireRoute(ctx, cfg, conn, filter.Route); err != nil {
			return err
		}
		return store.ListDeadLetters(ctx, conn, cfg.Schema.value, filter, *limit, each)
	})
	if err != nil {
		return err
	}
	if *asJSON {
		return nil
	}
	if n == 0 {
		fmt.Fprintln(std.err, "bridge: no such dead letters")
	}
	if *limit > 0 && n == *limit {
		fmt.Fprintf(std.err, "bridge: the newest %d; --limit 0 prints all\n", n)
	}
	return w.Flush()
}

func letterHeads(all bool) []string {
	heads := []string{"ID", "RECEIVED", "ROUTE", "REASON", "TRIES", "BYTES"}
	if all {
		heads = append(heads, "REPLAYED")
	}
	return append(heads, "TOPIC", "DETAIL")
}

func letterCells(l *store.DeadLetter, all bool) []string {
	cells := []string{l.ID, stamp(l.ReceivedAt), oneLine(l.Route), oneLine(string(l.Reason)), strconv.Itoa(l.Attempts), strconv.FormatInt(l.Bytes, 10)}
	if all {
		replayed := "-"
		if l.ReplayedAt != nil {
			replayed = stamp(*l.ReplayedAt)
		}
		cells = append(cells, replayed)
	}
	return append(cells, cutText(oneLine(l.Topic), 60), cutText(oneLine(l.Detail), 100))
}

func letterLineOf(l *store.DeadLetter) letterLine {
	line := letterLine{
		ID: l.ID, Route: l.Route, Topic: l.Topic, Reason: string(l.Reason), Detail: l.Detail, QoS: l.QoS, Retain: l.Retain,
		PayloadBytes: l.Bytes, ReceivedAt: exact(l.ReceivedAt), Attempts: l.Attempts,
	}
	if l.ReplayedAt != nil {
		replayed := exact(*l.ReplayedAt)
		line.ReplayedAt = &replayed
	}
	return line
}

// stamp is a time for people, exact one for machines.
func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
func exact(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000000Z") }

// oneLine makes text from outside fit for a line on a terminal: what could steer it is written as an
// escape.
func oneLine(s string) string {
	if printable(s) {
		return s
	}
	quoted := strconv.QuoteToGraphic(s)
	return strings.ReplaceAll(quoted[1:len(quoted)-1], `\"`, `"`)
}

// cutText cuts text for a table.
func cutText(s string, most int) string {
	if utf8.RuneCountInString(s) <= most {
		return s
	}
	return string([]rune(s)[:most-1]) + "…"
}

func showDeadLetter(ctx context.Context, args []string, std streams) error {
	flags := newFlags("deadletters show")
	payload := flags.Bool("payload", false, "write nothing but the exact payload")
	word, err := parse(flags, args, std, args...) // any word: it is an id
	if err != nil {
		return err
	}
	id, err := parseID(word)
	if err != nil {
		return usageError{fmt.Sprintf("deadletters show: %v; got %q", err, word)}
	}
	return withDatabase(ctx, func(cfg *config, conn *pgx.Conn) error {
		l, err := store.ReadDeadLetter(ctx, conn, cfg.Schema.value, id)
		if err != nil {
			return fmt.Errorf("dead letter %s: %w", id, err)
		}
		if *payload {
			if _, err := std.out.Write(l.Message.Payload); err != nil {
				return fmt.Errorf("write the payload: %w", err)
			}
			return nil
		}
		return printDeadLetter(std.out, l)
	})
}

func printDeadLetter(out io.Writer, l *store.DeadLetter) error {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	line := func(name, value string) { fmt.Fprintf(w, "%s:\t%s\n", name, value) }
	line("id", l.ID)
	line("route", oneLine(l.Route))
	line("reason", oneLine(string(l.Reason)))
	line("detail", oneLine(l.Detail))
	line("topic", oneLine(l.Topic))
	line("received at", exact(l.ReceivedAt))
	line("kept at", exact(l.CreatedAt))
	line("replays tried", strconv.Itoa(l.Attempts))
	if l.ReplayedAt == nil {
		line("replayed at", "not yet")
	} else {
		line("replayed at", exact(*l.ReplayedAt))
	}
	line("QoS", strconv.Itoa(l.QoS))
	line("retain", strconv.FormatBool(l.Retain))
	m := l.Message
	if m.ContentType != "" {
		line("content type", oneLine(m.ContentType))
	}
	if m.CorrelationData != nil {
		line("correlation data", hex.EncodeToString(m.CorrelationData)+" (hex)")
	}
	for _, p := range m.UserProperties {
		line("user property", oneLine(p.Name)+"="+oneLine(p.Value))
	}
	if l.Truncated {
		line("user properties", "too large to be kept")
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("print dead letter: %w", err)
	}
	if isText(m.Payload) {
		fmt.Fprintf(out, "payload, %d bytes:\n", len(m.Payload))
		_, err := fmt.Fprintf(out, "%s\n", m.Payload)
		return err
	}
	fmt.Fprintf(out, "payload, %d bytes, as hex:\n", len(m.Payload))
	dump := hex.Dumper(out)
	if _, err := dump.Write(m.Payload); err != nil {
		return fmt.Errorf("print payload: %w", err)
	}
	return dump.Close()
}

// isText says whether a payload can be shown as it is: text without anything that steers a terminal.
func isText(payload []byte) bool {
	return utf8.Valid(payload) && !slices.ContainsFunc([]rune(string(payload)), func(r rune) bool {
		return unicode.IsControl(r) && r != '\n' && r != '\t'
	})
}

func replayDeadLetters(ctx context.Context, args []string, std streams) error {
	flags := newFlags("deadletters replay")
	var filter store.LetterFilter
	letterFlags(flags, &filter, "route", "reason", "id", "since")
	if _, err := parse(flags, args, std); err != nil {
		return err
	}
	cfg, err := loadConfig()
	if err != nil {
		return err
	}
	pool, err := pgxpool.NewWithConfig(ctx, cfg.pool)
	if err != nil {
		return fmt.Errorf("make the connection pool: %w", err)
	}
	defer pool.Close()
	if err := requireLetters(ctx, cfg, pool, filter); err != nil {
		return err
	}
	result, err := store.ReplayDeadLetters(ctx, pool, cfg.store(nil), cfg.routes, filter)
	if err == nil || result.Replayed+result.StillWaiting() > 0 {
		printReplay(std.out, &result)
	}
	if err != nil {
		return fmt.Errorf("replay: %w", err)
	}
	cut := 0
	for kind, n := range result.Waiting {
		if kind.Reason == mapping.ReasonTooLarge {
			cut += n
		}
	}
	if cut > 0 {
		fmt.Fprintf(std.err, "bridge: %s with reason %s: the message is not whole and can never be replayed; bridge deadletters purge --reason %[2]s --yes deletes all such\n",
			letterCount(cut), mapping.ReasonTooLarge)
	}
	if n := result.StillWaiting(); n > 0 {
		fmt.Fprintf(std.err, "bridge: %s still waiting; bridge deadletters list tells why\n", letterCount(n))
		return errTold
	}
	return nil
}

// requireLetters refuses an id and a route that there are not. What was replayed already is there.
func requireLetters(ctx context.Context, cfg *config, pool *pgxpool.Pool, filter store.LetterFilter) error {
	if filter.ID == "" && filter.Route == "" {
		return nil
	}
	conn, err := pool.Acquire(ctx)
	if err != nil {
		return cfg.connectError(err)
	}
	defer conn.Release()
	if filter.ID != "" {
		n, _, err := store.CountDeadLetters(ctx, conn.Conn(), cfg.Schema.value, store.LetterFilter{ID: filter.ID})
		if err == nil && n == 0 {
			err = fmt.Errorf("dead letter %s: %w", filter.ID, store.ErrNoDeadLetter)
		}
		if err != nil {
			return err
		}
	}
	return requireRoute(ctx, cfg, conn.Conn(), filter.Route)
}

func printReplay(out io.Writer, r *store.ReplayResult) {
	fmt.Fprintf(out, "replayed: %s, %s written", letterCount(r.Replayed), counted(r.Rows, "row"))
	if r.Known > 0 {
		fmt.Fprintf(out, ", %s already there", counted(r.Known, "row"))
	}
	if r.Skipped > 0 {
		fmt.Fprintf(out, ", %d passed over by routes", r.Skipped)
	}
	fmt.Fprintln(out)
	if r.Elsewhere > 0 {
		fmt.Fprintf(out, "settled elsewhere in the meantime: %s\n", letterCount(r.Elsewhere))
	}
	if len(r.Waiting) == 0 {
		return
	}
	fmt.Fprintf(out, "still waiting: %s\n", letterCount(r.StillWaiting()))
	kinds := slices.SortedFunc(maps.Keys(r.Waiting), func(a, b store.WaitingLetters) int {
		return cmp.Or(cmp.Compare(r.Waiting[b], r.Waiting[a]), cmp.Compare(a.Route, b.Route), cmp.Compare(a.Reason, b.Reason))
	})
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	for _, kind := range kinds {
		fmt.Fprintf(w, "  %s\t%s\t%d\n", oneLine(kind.Route), oneLine(string(kind.Reason)), r.Waiting[kind])
	}
	_ = w.Flush() // as with the lines before: nobody reads what cannot be printed
}

func letterCount(n int) string { return counted(n, "dead letter") }

func counted(n int, what string) string {
	if n != 1 {
		what += "s"
	}
	return strconv.Itoa(n) + " " + what
}

func purgeDeadLetters(ctx context.Context, args []string, std streams) error {
	flags := newFlags("deadletters purge")
	var filter store.LetterFilter
	letterFlags(flags, &filter, "before", "id", "route", "reason")
	flags.BoolVar(&filter.Replayed, "replayed", false, "only those that were replayed")
	yes := flags.Bool("yes", false, "delete them")
	if _, err := parse(flags, args, std); err != nil {
		return err
	}
	if filter == (store.LetterFilter{}) {
		return usageError{"deadletters purge: expected --replayed, --before, --id, --route or --reason: which ones?"}
	}
	return withDatabase(ctx, func(cfg *config, conn *pgx.Conn) error {
		if err := requireRoute(ctx, cfg, conn, filter.Route); err != nil {
			return err
		}
		if *yes {
			n, err := store.PurgeDeadLetters(ctx, conn, cfg.Schema.value, filter)
			if err != nil {
				return err
			}
			fmt.Fprintf(std.out, "deleted: %s\n", letterCount(n))
			return nil
		}
		n, waiting, err := store.CountDeadLetters(ctx, conn, cfg.Schema.value, filter)
		if err != nil {
			return err
		}
		fmt.Fprintf(std.out, "would delete: %s, of which %d were never replayed; --yes deletes them\n", letterCount(n), waiting)
		return nil
	})
}
