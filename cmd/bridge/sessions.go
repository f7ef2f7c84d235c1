package main

import (
	"context"
	"encoding/json"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/mqttpg/bridge/store"
)

// sessionsCommand works on the leased sessions.
func sessionsCommand(ctx context.Context, args []string, std streams) error {
	word, rest, err := subcommand("sessions", args, std, "list", "drain")
	switch {
	case err != nil:
		return err
	case word == "drain":
		return usageError{"sessions drain comes with a later version; a smaller BRIDGE_MQTT_SESSIONS drains those beyond it"}
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
	cfg, err := loadConfig()
	if err != nil {
		return err
	}
	conn, err := cfg.connect(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	all, err := store.ListSessions(ctx, conn, cfg.Schema.value)
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
