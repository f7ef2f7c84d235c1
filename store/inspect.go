package store

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/mqttpg/bridge/mapping"
)

// DeadLetter is one message that could not be written, for people to look at.
type DeadLetter struct {
	ID         string
	Route      string // none: no route matched the topic
	Topic      string
	QoS        int
	Retain     bool
	Bytes      int64 // of the payload
	ReceivedAt time.Time
	Reason     mapping.Reason
	Detail     string
	Attempts   int        // replays that were tried
	ReplayedAt *time.Time // nil: it still waits
	CreatedAt  time.Time

	// Message is what was received; only ReadDeadLetter fills it in.
	Message *mapping.Message
	// Truncated says that its User Properties were too large to keep.
	Truncated bool
}

// LetterFilter chooses dead letters. What is zero does not matter.
type LetterFilter struct {
	ID       string // a UUID
	Route    string
	Reason   string
	Since    time.Time // received then or later
	Before   time.Time // received earlier
	Waiting  bool      // not replayed yet
	Replayed bool
}

// where is the condition of the filter and its parameters.
func (f LetterFilter) where() (condition string, params []any) {
	all := []string{"true"}
	add := func(holds bool, text string, value any) {
		if holds {
			params = append(params, value)
			all = append(all, strings.ReplaceAll(text, "$", "$"+strconv.Itoa(len(params))))
		}
	}
	add(f.ID != "", "id = $::text::uuid", f.ID)
	add(f.Route != "", "route = $", f.Route)
	add(f.Reason != "", "reason = $", f.Reason)
	add(!f.Since.IsZero(), "received_at >= $", f.Since)
	add(!f.Before.IsZero(), "received_at < $", f.Before)
	if f.Waiting {
		all = append(all, "replayed_at is null")
	}
	if f.Replayed {
		all = append(all, "replayed_at is not null")
	}
	return strings.Join(all, " and "), params
}

// letterColumns are those of DeadLetter in order, but for the message.
const letterColumns = "id::text, route, topic, qos, retain, octet_length(payload), received_at, reason, detail, attempts, replayed_at, created_at"

func (l *DeadLetter) fields() []any {
	return []any{&l.ID, &l.Route, &l.Topic, &l.QoS, &l.Retain, &l.Bytes, &l.ReceivedAt, &l.Reason, &l.Detail, &l.Attempts, &l.ReplayedAt, &l.CreatedAt}
}

// ListDeadLetters calls each for the dead letters that the filter chooses, the newest first, at most
// limit of them; 0 is no limit. It does not read their payloads.
func ListDeadLetters(ctx context.Context, conn *pgx.Conn, schema string, filter LetterFilter, limit int, each func(*DeadLetter) error) error {
	condition, params := filter.where()
	sql := "select " + letterColumns + " from " + letterTable(schema) + " where " + condition + " order by received_at desc, id desc"
	if limit > 0 {
		sql += " limit " + strconv.Itoa(limit)
	}
	rows, err := conn.Query(ctx, sql, params...)
	if err != nil {
		return fmt.Errorf("list dead letters: %w", unprepared(schema, err))
	}
	var l DeadLetter
	if _, err = pgx.ForEachRow(rows, l.fields(), func() error { return each(&l) }); err != nil {
		return fmt.Errorf("list dead letters: %w", unprepared(schema, err))
	}
	return nil
}

// ErrNoDeadLetter says that there is no dead letter with the id.
var ErrNoDeadLetter = errors.New("no such dead letter")

// ReadDeadLetter reads one dead letter with its message.
func ReadDeadLetter(ctx context.Context, conn *pgx.Conn, schema, id string) (*DeadLetter, error) {
	l := &DeadLetter{}
	var payload, document []byte
	err := conn.QueryRow(ctx, "select "+letterColumns+", payload, properties::text from "+letterTable(schema)+" where id = $1::text::uuid", id).
		Scan(append(l.fields(), &payload, &document)...)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, ErrNoDeadLetter
	}
	if err != nil {
		return nil, fmt.Errorf("read dead letter: %w", unprepared(schema, err))
	}
	l.Message = &mapping.Message{Topic: l.Topic, Payload: payload, QoS: byte(l.QoS), Retain: l.Retain, ReceivedAt: l.ReceivedAt}
	if l.Truncated, err = readProperties(document, l.Message); err != nil {
		return nil, err
	}
	return l, nil
}

// CountDeadLetters counts what the filter chooses, and how many of those still wait.
func CountDeadLetters(ctx context.Context, conn *pgx.Conn, schema string, filter LetterFilter) (all, waiting int, err error) {
	condition, params := filter.where()
	err = conn.QueryRow(ctx, "select count(*), count(*) filter (where replayed_at is null) from "+letterTable(schema)+" where "+condition, params...).
		Scan(&all, &waiting)
	if err != nil {
		return 0, 0, fmt.Errorf("count dead letters: %w", unprepared(schema, err))
	}
	return all, waiting, nil
}

// PurgeDeadLetters deletes what the filter chooses and says how many that were.
func PurgeDeadLetters(ctx context.Context, conn *pgx.Conn, schema string, filter LetterFilter) (int, error) {
	condition, params := filter.where()
	tag, err := conn.Exec(ctx, "delete from "+letterTable(schema)+" where "+condition, params...)
	if err != nil {
		return 0, fmt.Errorf("delete dead letters: %w", unprepared(schema, err))
	}
	return int(tag.RowsAffected()), nil
}

// readProperties gives a message the properties that a dead letter keeps.
func readProperties(document []byte, m *mapping.Message) (truncated bool, err error) {
	var doc properties
	if err := json.Unmarshal(document, &doc); err != nil {
		return false, fmt.Errorf("read properties of a dead letter: %w", err)
	}
	m.ContentType = doc.ContentType
	if doc.CorrelationData != "" {
		if m.CorrelationData, err = base64.StdEncoding.DecodeString(doc.CorrelationData); err != nil {
			return false, fmt.Errorf("read properties of a dead letter: correlation data: %w", err)
		}
	}
	for _, p := range doc.UserProperties {
		m.UserProperties = append(m.UserProperties, mapping.UserProperty{Name: p[0], Value: p[1]})
	}
	return doc.Truncated, nil
}

// SessionState is what has become of a session.
type SessionState string

// The states of a session.
const (
	SessionHeld     SessionState = "held"     // a live process holds it
	SessionFree     SessionState = "free"     // nobody does; the next process that looks takes it
	SessionOrphaned SessionState = "orphaned" // its process is dead and somebody will take it
	SessionRetired  SessionState = "retired"  // drained and ended at the broker, because it is beyond BRIDGE_MQTT_SESSIONS
	SessionDraining SessionState = "draining" // taken out of use by RequestDrain, and not drained yet
	SessionDrained  SessionState = "drained"  // taken out of use by RequestDrain, drained and ended at the broker
)

// SessionRecord is one session as the database has it, for people to look at.
type SessionRecord struct {
	ShareName  string
	Index      int
	ClientID   string
	Epoch      int64
	State      SessionState
	Owner      string         // replica; empty: none
	Host       string         // of the owner; empty: unknown
	AcquiredAt *time.Time     // when the owner took it
	Heartbeat  *time.Duration // age of the owner's last, by the clock of the database; nil: no such replica

	// AcquiredToDrain says of a session that is draining that its owner has taken it for that.
	AcquiredToDrain bool
}

// ListSessions reads the sessions of all shares, with a connection or in a transaction.
func ListSessions(ctx context.Context, conn querier, schema string) ([]SessionRecord, error) {
	table := func(name string) string { return pgx.Identifier{schema, name}.Sanitize() }
	rows, err := conn.Query(ctx, `
		select s.share_name, s.index, s.client_id, s.epoch, coalesce(s.owner, ''), coalesce(r.host, ''),
		       case when s.owner is not null then s.acquired_at end, (extract(epoch from now() - r.heartbeat_at) * 1e6)::int8,
		       s.retired_at is not null, s.drain_requested_at is not null, coalesce(s.acquired_at > s.drain_requested_at, false)
		from `+table("sessions")+` s left join `+table("replicas")+` r on r.id = s.owner order by s.share_name, s.index`)
	if err != nil {
		return nil, fmt.Errorf("list sessions: %w", unprepared(schema, err))
	}
	all, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (s SessionRecord, err error) {
		var age *int64 // microseconds
		var retired, drain bool
		if err := row.Scan(&s.ShareName, &s.Index, &s.ClientID, &s.Epoch, &s.Owner, &s.Host, &s.AcquiredAt, &age, &retired, &drain, &s.AcquiredToDrain); err != nil {
			return s, err
		}
		if age != nil {
			d := time.Duration(*age) * time.Microsecond
			s.Heartbeat = &d
		}
		switch {
		case drain && retired:
			s.State = SessionDrained
		case drain:
			s.State = SessionDraining
		case retired:
			s.State = SessionRetired
		case s.Heartbeat != nil && *s.Heartbeat < defaultTTL:
			s.State = SessionHeld
		case s.Owner == "":
			s.State = SessionFree
		default:
			s.State = SessionOrphaned
		}
		return s, nil
	})
	if err != nil {
		return nil, fmt.Errorf("list sessions: %w", unprepared(schema, err))
	}
	return all, nil
}

// CountReplicas counts the living processes of a share, by the clock of the database.
func CountReplicas(ctx context.Context, conn querier, schema, share string) (n int, err error) {
	err = conn.QueryRow(ctx, "select count(*)::int from "+pgx.Identifier{schema, "replicas"}.Sanitize()+" where share_name = $1 and heartbeat_at > now() - $2 * interval '1 second'",
		share, defaultTTL.Seconds()).Scan(&n)
	if err != nil {
		return 0, fmt.Errorf("count replicas: %w", unprepared(schema, err))
	}
	return n, nil
}

// The reasons not to take a session out of use.
var (
	// ErrLastSession: messages would pile up nowhere and be lost.
	ErrLastSession = errors.New("it is the last session in use: nobody would receive messages any more")
	// ErrNoReplica: sessions are drained by the process that holds them.
	ErrNoReplica = errors.New("no bridge of this share is running: start one, for it is the bridge that drains")
)

// RequestDrain takes a session out of use: the replicas drain it, end it at the broker, and leave it
// alone until [UndoDrain]. It returns the session as it was before; one that is draining or drained
// already is no error. The last session in use is only taken out of it by force, otherwise it is [ErrLastSession]; without a
// living replica it is [ErrNoReplica].
func RequestDrain(ctx context.Context, conn *pgx.Conn, schema, share string, index int, force bool) (SessionRecord, error) {
	return changeSession(ctx, conn, schema, share, index, "drain_requested_at = now()", func(tx pgx.Tx, s *SessionRecord, inUse int) (bool, error) {
		switch s.State {
		case SessionDraining, SessionDrained:
			return false, nil
		case SessionRetired:
			return false, errors.New("it is beyond BRIDGE_MQTT_SESSIONS, and was drained because of that")
		}
		if inUse == 1 && !force {
			return false, ErrLastSession
		}
		alive, err := CountReplicas(ctx, tx, schema, share)
		if err == nil && alive == 0 {
			err = ErrNoReplica
		}
		return true, err
	})
}

// UndoDrain puts a session back into use, whether or not it is drained yet. It returns the session as it
// was before; one that is in use is no error.
func UndoDrain(ctx context.Context, conn *pgx.Conn, schema, share string, index int) (SessionRecord, error) {
	return changeSession(ctx, conn, schema, share, index, "drain_requested_at = null", func(_ pgx.Tx, s *SessionRecord, _ int) (bool, error) {
		if s.State == SessionRetired {
			return false, errors.New("it is beyond BRIDGE_MQTT_SESSIONS: a greater number brings it back")
		}
		return s.State == SessionDraining || s.State == SessionDrained, nil
	})
}

// changeSession changes the row of a session if allow says so, which also gets to know how many
// sessions of the share are in use.
func changeSession(ctx context.Context, conn *pgx.Conn, schema, share string, index int, set string, allow func(tx pgx.Tx, s *SessionRecord, inUse int) (bool, error)) (SessionRecord, error) {
	var found SessionRecord
	table := pgx.Identifier{schema, "sessions"}.Sanitize()
	err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		// One change at a time, or two could take the last two sessions out of use. Batches and leases go on.
		if _, err := tx.Exec(ctx, "lock table "+table+" in share update exclusive mode"); err != nil {
			return unprepared(schema, err)
		}
		all, err := ListSessions(ctx, tx, schema)
		if err != nil {
			return err
		}
		s, inUse, err := pick(all, share, index)
		if err != nil {
			return err
		}
		found = *s
		change, err := allow(tx, s, inUse)
		if err != nil || !change {
			return err
		}
		_, err = tx.Exec(ctx, "update "+table+" set "+set+" where share_name = $1 and index = $2", share, index)
		return err
	})
	if err != nil {
		return found, fmt.Errorf("session %d of share %s: %w", index, share, err)
	}
	return found, nil
}

// pick finds a session of a share, and counts those of the share that are in use.
func pick(all []SessionRecord, share string, index int) (found *SessionRecord, inUse int, err error) {
	var own []string
	others := map[string]bool{}
	for i := range all {
		s := &all[i]
		if s.ShareName != share {
			others[s.ShareName] = true
			continue
		}
		own = append(own, strconv.Itoa(s.Index))
		if s.Index == index {
			found = s
		}
		switch s.State {
		case SessionRetired, SessionDraining, SessionDrained:
		default:
			inUse++
		}
	}
	switch {
	case found != nil:
		return found, inUse, nil
	case len(own) == 1:
		return nil, 0, errors.New("no such session: the only index of the share is " + own[0])
	case len(own) > 0:
		return nil, 0, errors.New("no such session: the indices of the share are " + strings.Join(own, ", "))
	case len(others) > 0:
		return nil, 0, errors.New("no such share in this database, which has " + strings.Join(slices.Sorted(maps.Keys(others)), ", ") + "; BRIDGE_MQTT_SHARE_NAME says which one is meant")
	}
	return nil, 0, errors.New("no sessions: no bridge has run with this schema yet")
}

func letterTable(schema string) string { return pgx.Identifier{schema, "dead_letters"}.Sanitize() }

// unprepared says what to do where the bridge's own tables are missing.
func unprepared(schema string, err error) error {
	pgErr := (*pgconn.PgError)(nil)
	if !errors.As(err, &pgErr) {
		return err
	}
	switch pgErr.Code {
	case "42P01", "3F000": // no such table, no such schema
		return fmt.Errorf("schema %s is not prepared, run bridge migrate: %w", schema, err)
	case "42703": // no such column
		return fmt.Errorf("schema %s is of an older version, run bridge migrate: %w", schema, err)
	}
	return err
}
