package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/mqttpg/bridge/store"
)

// sessionsCommand works on the leased sessions.
func sessionsCommand(ctx context.Context, args []string, std streams) error {
	word, rest, err := subcommand(ctx, "sessions", args, std, "list", "drain")
	switch {
	case err != nil:
		return err
	case word == "drain":
		return drainSession(ctx, rest, std)
	}
	return listSessions(ctx, rest, std)
}

// sessionLine is one line of sessions list --json.
type sessionLine struct {
	Share        string   `json:"share"`
	Index        int      `json:"index"`
	ClientID     string   `json:"client_id"`
	State        string   `json:"state"`
	Owner        *string  `json:"owner"`
	Host         *string  `json:"host"`
	Epoch        int64    `json:"epoch"`
	Since        *string  `json:"since"`
	HeartbeatAge *float64 `json:"heartbeat_age_s"`
}

func listSessions(ctx context.Context, args []string, std streams) error {
	flags := newFlags("sessions list")
	asJSON := flags.Bool("json", false, "print a JSON object per line")
	if _, err := parse(flags, args, std); err != nil {
		return err
	}
	var all []store.SessionRecord
	err := withDatabase(ctx, func(cfg *config, conn *pgx.Conn) (err error) {
		all, err = store.ListSessions(ctx, conn, cfg.Schema.value)
		return err
	})
	if err != nil {
		return err
	}
	if *asJSON {
		lines := json.NewEncoder(std.out)
		lines.SetEscapeHTML(false)
		for i := range all {
			if err := lines.Encode(lineOf(&all[i])); err != nil {
				return fmt.Errorf("print session: %w", err)
			}
		}
		return nil
	}
	if len(all) == 0 {
		fmt.Fprintln(std.err, "bridge: no sessions: no bridge has run with this schema yet")
		return nil
	}
	w := tabwriter.NewWriter(std.out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "SHARE\tINDEX\tCLIENT ID\tSTATE\tHOST\tEPOCH\tSINCE\tHEARTBEAT")
	for i := range all {
		s := &all[i]
		since, heartbeat := "-", "-"
		if s.AcquiredAt != nil {
			since = stamp(*s.AcquiredAt)
		}
		if s.Heartbeat != nil {
			heartbeat = s.Heartbeat.Round(100*time.Millisecond).String() + " ago"
		}
		fmt.Fprintf(w, "%s\t%d\t%s\t%s\t%s\t%d\t%s\t%s\n", oneLine(s.ShareName), s.Index, oneLine(s.ClientID), s.State, orDash(oneLine(s.Host)), s.Epoch, since, heartbeat)
	}
	return w.Flush()
}

func lineOf(s *store.SessionRecord) sessionLine {
	line := sessionLine{
		Share: s.ShareName, Index: s.Index, ClientID: s.ClientID, State: string(s.State), Epoch: s.Epoch,
		Owner: orNull(s.Owner), Host: orNull(s.Host),
	}
	if s.AcquiredAt != nil {
		since := exact(*s.AcquiredAt)
		line.Since = &since
	}
	if s.Heartbeat != nil {
		age := s.Heartbeat.Seconds()
		line.HeartbeatAge = &age
	}
	return line
}

func orNull(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

// drainPoll is how often sessions drain looks how far the replicas are; they look once a second.
const drainPoll = 250 * time.Millisecond

// drainSession asks the running replicas, through the database, to retire one session, and waits until
// they have.
func drainSession(ctx context.Context, args []string, std streams) error {
	flags := newFlags("sessions drain")
	undo := flags.Bool("undo", false, "put the session back into use")
	force := flags.Bool("force", false, "even if it is the last session in use")
	timeout := time.Minute
	flags.Func("timeout", "how long to wait until it is drained: a `duration` such as 90s (default 1m)", func(text string) (err error) {
		timeout, err = durationFormat{}.parse(text)
		return err
	})
	word, err := parse(flags, args, std, args...) // any word: it is an index
	if err != nil {
		return err
	}
	index, err := strconv.ParseUint(word, 10, 31)
	switch {
	case err != nil:
		return usageError{fmt.Sprintf("sessions drain: expected the index of a session, as bridge sessions list shows it; got %q", word)}
	case timeout <= 0:
		return usageError{"sessions drain: --timeout: expected more than 0s"}
	case *undo && *force:
		return usageError{"sessions drain: expected only one of --undo and --force"}
	}
	return withDatabase(ctx, func(cfg *config, conn *pgx.Conn) error {
		d := drain{conn: conn, schema: cfg.Schema.value, share: cfg.MQTT.ShareName.value, index: int(index), std: std}
		if *undo {
			return d.undo(ctx)
		}
		return d.run(ctx, *force, timeout)
	})
}

// drain is one call of sessions drain.
type drain struct {
	conn   *pgx.Conn
	schema string
	share  string
	index  int
	std    streams
}

func (d *drain) undo(ctx context.Context) error {
	before, err := store.UndoDrain(ctx, d.conn, d.schema, d.share, d.index)
	if err != nil {
		return err
	}
	if before.State != store.SessionDraining && before.State != store.SessionDrained {
		fmt.Fprintf(d.std.out, "%s: in use already, %s\n", oneLine(before.ClientID), before.State)
		return nil
	}
	fmt.Fprintf(d.std.out, "%s: in use again; it was %s\n", oneLine(before.ClientID), before.State)
	return nil
}

func (d *drain) run(ctx context.Context, force bool, timeout time.Duration) error {
	began := time.Now()
	before, err := store.RequestDrain(ctx, d.conn, d.schema, d.share, d.index, force)
	if errors.Is(err, store.ErrLastSession) {
		return fmt.Errorf("%w; --force drains it all the same", err)
	}
	if err != nil {
		return err
	}
	name := oneLine(before.ClientID)
	if before.State == store.SessionDrained {
		fmt.Fprintf(d.std.out, "%s: drained already; --undo puts it back into use\n", name)
		return nil
	}
	wait, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	poll := time.NewTicker(drainPoll)
	defer poll.Stop()
	for told := ""; ; {
		s, err := d.look(wait)
		switch {
		case wait.Err() != nil: // what is told below
		case err != nil:
			return fmt.Errorf("%w; the request stands", err)
		case s.State == store.SessionDrained:
			fmt.Fprintf(d.std.out, "%s: drained after %s: the broker has forgotten it, and it stays out of use until --undo\n", name, time.Since(began).Round(100*time.Millisecond))
			return nil
		case s.State != store.SessionDraining:
			return fmt.Errorf("session %d of share %s: put back into use in the meantime", d.index, d.share)
		default:
			if now := drainProgress(s); now != told {
				fmt.Fprintf(d.std.out, "%s: %s\n", name, now)
				told = now
			}
		}
		select {
		case <-poll.C:
		case <-wait.Done():
			why := "not drained within " + timeout.String()
			if ctx.Err() != nil {
				why = "interrupted"
			}
			return fmt.Errorf("session %d of share %s: %s (%s); the request stands and the replicas go on with it: "+
				"bridge sessions list shows how far they are, bridge sessions drain --undo %[1]d takes it back", d.index, d.share, why, told)
		}
	}
}

func (d *drain) look(ctx context.Context) (*store.SessionRecord, error) {
	all, err := store.ListSessions(ctx, d.conn, d.schema)
	if err != nil {
		return nil, err
	}
	for i := range all {
		if all[i].ShareName == d.share && all[i].Index == d.index {
			return &all[i], nil
		}
	}
	return nil, fmt.Errorf("session %d of share %s: its row is gone", d.index, d.share)
}

// drainProgress says how far the replicas are.
func drainProgress(s *store.SessionRecord) string {
	switch host := orDash(oneLine(s.Host)); {
	case s.Owner == "":
		return "free, waiting for a replica to drain it"
	case s.AcquiredToDrain:
		return "being drained by " + host
	default:
		return "asked " + host + " to give it up"
	}
}
