//go:build unix

package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// settleTimeout is how long the bridge may take for what was published last.
const settleTimeout = 20 * time.Second

// counts is one route in the bridge's metrics.
type counts struct {
	received, written, duplicate, deadLettered, skipped, inFlight int
}

// lawHolds says that every received message has ended in one of the four ways or is on its way.
func (c counts) lawHolds() bool {
	return c.received == c.written+c.duplicate+c.deadLettered+c.skipped+c.inFlight
}

// storage is one route in the database.
type storage struct{ rows, deadLetters int }

// view is what a report shows.
type view struct {
	counts    map[string]counts
	stored    map[string]storage
	connected bool
	rtt       time.Duration // of the last keepalive, 0 when not known
	database  bool
	latest    []latest
	letters   []deadLetter
}

type latest struct {
	device, values string
	age            time.Duration
}

type deadLetter struct{ route, reason, detail string }

// observer sees the bridge from outside: over HTTP and SQL.
type observer struct {
	url    string
	schema string
	pool   *pgxpool.Pool // not one connection: the reports go on after an outage
}

func newObserver(ctx context.Context, url string, db *database) (*observer, error) {
	pool, err := pgxpool.New(ctx, db.url)
	if err != nil {
		return nil, fmt.Errorf("connect to the database: %w", err)
	}
	return &observer{url: url, schema: db.schema, pool: pool}, nil
}

func (o *observer) close() { o.pool.Close() }

func (o *observer) look(ctx context.Context) (view, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	var v view
	err := o.scrape(ctx, &v)
	if err == nil {
		v.stored, err = o.stored(ctx)
	}
	if err == nil {
		v.latest, err = o.latestValues(ctx)
	}
	if err == nil {
		v.letters, err = o.deadLetters(ctx)
	}
	return v, err
}

// scrape reads the bridge's metrics.
func (o *observer) scrape(ctx context.Context, v *view) error {
	status, text, err := get(ctx, o.url+"/metrics")
	if err != nil {
		return fmt.Errorf("ask for the metrics: %w", err)
	}
	if status != http.StatusOK {
		return fmt.Errorf("ask for the metrics: status %d", status)
	}
	return parseMetrics(text, v)
}

func parseMetrics(text string, v *view) error {
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(text))
	if err != nil {
		return fmt.Errorf("read the metrics: %w", err)
	}
	v.counts = map[string]counts{}
	add := func(name string, field func(*counts) *int) {
		for _, m := range families["bridge_messages_"+name].GetMetric() {
			for _, label := range m.GetLabel() {
				if label.GetName() == "route" {
					c := v.counts[label.GetValue()]
					*field(&c) += int(m.GetCounter().GetValue() + m.GetGauge().GetValue())
					v.counts[label.GetValue()] = c
				}
			}
		}
	}
	add("received_total", func(c *counts) *int { return &c.received })
	add("written_total", func(c *counts) *int { return &c.written })
	add("duplicate_total", func(c *counts) *int { return &c.duplicate })
	add("dead_lettered_total", func(c *counts) *int { return &c.deadLettered })
	add("skipped_total", func(c *counts) *int { return &c.skipped })
	add("in_flight", func(c *counts) *int { return &c.inFlight })
	for _, m := range families["bridge_mqtt_connected"].GetMetric() {
		v.connected = m.GetGauge().GetValue() == 1
	}
	for _, m := range families["bridge_mqtt_ping_rtt_seconds"].GetMetric() {
		v.rtt = time.Duration(m.GetGauge().GetValue() * float64(time.Second))
	}
	for _, m := range families["bridge_database_up"].GetMetric() {
		v.database = m.GetGauge().GetValue() == 1
	}
	return nil
}

// settle waits until the bridge has counted everything that was published.
func (o *observer) settle(ctx context.Context, b *bridge, published map[string]tally) (map[string]counts, error) {
	ctx, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		var v view
		err := o.scrape(ctx, &v)
		if err == nil && settled(published, v.counts) {
			return v.counts, nil
		}
		select {
		case <-b.done:
			return nil, b.obituary()
		case <-ctx.Done():
			if v.counts == nil {
				return nil, errors.Join(errors.New("the bridge did not tell its counts in time"), err)
			}
			return v.counts, nil // compare tells what is wrong with them
		case <-tick.C:
		}
	}
}

func settled(published map[string]tally, counted map[string]counts) bool {
	for route, p := range published {
		if c := counted[route]; c.received < p.published || c.inFlight > 0 {
			return false
		}
	}
	return true
}

func (o *observer) stored(ctx context.Context) (map[string]storage, error) {
	all := map[string]storage{}
	letters := pgx.Identifier{o.schema, "dead_letters"}.Sanitize()
	for _, route := range routeNames {
		var s storage
		sql := "select (select count(*) from " + pgx.Identifier{route}.Sanitize() + "), (select count(*) from " + letters + " where route = $1)"
		if err := o.pool.QueryRow(ctx, sql, route).Scan(&s.rows, &s.deadLetters); err != nil {
			return nil, fmt.Errorf("count the rows of %s: %w", route, err)
		}
		all[route] = s
	}
	return all, nil
}

// latestSQL gives one line per device with its newest values.
const latestSQL = `
select device_id, text, extract(epoch from now() - received_at)::float8 from (
	(select distinct on (device_id) device_id, received_at,
		concat_ws('   ', to_char(temperature, 'FM990.0') || ' °C', to_char(humidity, 'FM990.0') || ' %', state) as text
	from telemetry order by device_id, time desc)
	union all
	(select device_id, max(received_at), string_agg(quantity || ' ' || value, '   ' order by quantity) from
		(select distinct on (device_id, quantity) device_id, quantity, value, received_at
		from readings order by device_id, quantity, time desc) as newest group by device_id)
	union all
	(select distinct on (device_id) device_id, received_at, kind || ' (level ' || level || ')'
	from events order by device_id, time desc)
) as newest order by device_id`

func (o *observer) latestValues(ctx context.Context) ([]latest, error) {
	rows, err := o.pool.Query(ctx, latestSQL)
	if err != nil {
		return nil, fmt.Errorf("read the latest values: %w", err)
	}
	all, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (latest, error) {
		var l latest
		var seconds float64
		err := row.Scan(&l.device, &l.values, &seconds)
		l.age = time.Duration(seconds * float64(time.Second))
		return l, err
	})
	if err != nil {
		return nil, fmt.Errorf("read the latest values: %w", err)
	}
	return all, nil
}

func (o *observer) deadLetters(ctx context.Context) ([]deadLetter, error) {
	rows, err := o.pool.Query(ctx, "select route, reason, detail from "+
		pgx.Identifier{o.schema, "dead_letters"}.Sanitize()+" order by received_at desc limit 3")
	if err != nil {
		return nil, fmt.Errorf("read the dead letters: %w", err)
	}
	all, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (deadLetter, error) {
		var d deadLetter
		err := row.Scan(&d.route, &d.reason, &d.detail)
		return d, err
	})
	if err != nil {
		return nil, fmt.Errorf("read the dead letters: %w", err)
	}
	return all, nil
}
