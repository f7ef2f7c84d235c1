package store

import (
	"cmp"
	"maps"
	"slices"
	"sync"

	"github.com/mqttpg/bridge/mapping"
	"github.com/prometheus/client_golang/prometheus"
)

// Counters counts messages per route and what became of them. It is a [prometheus.Collector] that
// takes all counts under one lock, so that in every scrape and for every route
//
//	received = written + duplicate + dead-lettered + skipped + in flight
//
// A message that matches two routes counts once for each. Safe for concurrent use.
type Counters struct {
	mu     sync.Mutex
	routes []*RouteCounts // by the number of the route
	none   *RouteCounts   // of messages without one
	names  map[string]*RouteCounts
}

// RouteCounts is the conservation law of one route.
type RouteCounts struct {
	Route        string
	Received     uint64
	InFlight     uint64 // received and not settled yet; every message changes both, which stand in one line of the cache
	Written      uint64 // at least one row of the message was inserted
	Rows         uint64 // that were inserted
	Duplicate    uint64 // its outcome is committed already: a redelivery, or all its rows were there
	DeadLettered map[mapping.Reason]uint64
	Skipped      map[mapping.SkipReason]uint64
}

// NewCounters counts for the routes given, which must be all that there are and are shown from the start with
// zeros, and for messages without a route under the name none.
func NewCounters(routes []*mapping.Route) *Counters {
	c := &Counters{routes: make([]*RouteCounts, len(routes)), names: map[string]*RouteCounts{}}
	counts := func(name string) *RouteCounts {
		c.names[name] = &RouteCounts{Route: name, DeadLettered: map[mapping.Reason]uint64{}, Skipped: map[mapping.SkipReason]uint64{}}
		return c.names[name]
	}
	c.none = counts(noRoute)
	for _, route := range routes {
		c.routes[route.Number] = counts(route.Name)
	}
	return c
}

// Snapshot returns the counts of all routes at one instant, sorted by name.
func (c *Counters) Snapshot() []RouteCounts {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := make([]RouteCounts, 0, len(c.names))
	for _, r := range c.names {
		counts := *r
		counts.DeadLettered = maps.Clone(r.DeadLettered)
		counts.Skipped = maps.Clone(r.Skipped)
		all = append(all, counts)
	}
	slices.SortFunc(all, func(a, b RouteCounts) int { return cmp.Compare(a.Route, b.Route) })
	return all
}

func (c *Counters) received(e *Entry) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(e.Outcomes) == 0 {
		c.none.Received++
		c.none.InFlight++
	}
	for i := range e.Outcomes {
		r := c.routes[e.Outcomes[i].Route.Number]
		r.Received++
		r.InFlight++
	}
}

// settled moves a committed batch out of flight, all routes in one instant.
func (c *Counters) settled(tallies map[string]*tally) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for name, t := range tallies {
		r := c.names[name]
		r.Written += t.written
		r.Rows += t.rows
		r.Duplicate += t.duplicate
		r.InFlight -= t.written + t.duplicate
		for reason, n := range t.deadLettered {
			r.DeadLettered[reason] += n
			r.InFlight -= n
		}
		for reason, n := range t.skipped {
			r.Skipped[reason] += n
			r.InFlight -= n
		}
	}
}

// abandoned lets entries go that were never settled.
func (c *Counters) abandoned(entries []Entry) {
	c.mu.Lock()
	defer c.mu.Unlock()
	count := func(r *RouteCounts) {
		r.Skipped[SkipAbandoned]++
		r.InFlight--
	}
	for i := range entries {
		if len(entries[i].Outcomes) == 0 {
			count(c.none)
		}
		for j := range entries[i].Outcomes {
			count(c.routes[entries[i].Outcomes[j].Route.Number])
		}
	}
}

// tally is what became of one batch's messages of one route.
type tally struct {
	written, duplicate uint64
	rows               uint64
	deadLettered       map[mapping.Reason]uint64     // nil: none
	skipped            map[mapping.SkipReason]uint64 // nil: none
}

func (t *tally) deadLetter(reason mapping.Reason) {
	if t.deadLettered == nil {
		t.deadLettered = map[mapping.Reason]uint64{}
	}
	t.deadLettered[reason]++
}

func (t *tally) skip(reason mapping.SkipReason, n uint64) {
	if t.skipped == nil {
		t.skipped = map[mapping.SkipReason]uint64{}
	}
	t.skipped[reason] += n
}

type tallies map[string]*tally

func (t tallies) of(route string) *tally {
	r := t[route]
	if r == nil {
		r = &tally{}
		t[route] = r
	}
	return r
}

var (
	descReceived = prometheus.NewDesc("bridge_messages_received_total", "Messages received for a route.", []string{"route"}, nil)
	descWritten  = prometheus.NewDesc("bridge_messages_written_total", "Messages of which at least one row was inserted.", []string{"route"}, nil)
	descRows     = prometheus.NewDesc("bridge_rows_written_total", "Rows inserted into route tables.", []string{"route"}, nil)
	descDup      = prometheus.NewDesc("bridge_messages_duplicate_total", "Messages whose outcome was committed already: redeliveries, and those whose rows were all there.", []string{"route"}, nil)
	descDead     = prometheus.NewDesc("bridge_messages_dead_lettered_total", "Messages kept in the table of dead letters.", []string{"route", "reason"}, nil)
	descSkipped  = prometheus.NewDesc("bridge_messages_skipped_total", "Messages passed over; abandoned: left unacknowledged at a hard stop, for the broker to deliver again; refused_by_table: a trigger or rule of the table kept nothing of them.", []string{"route", "reason"}, nil)
	descInFlight = prometheus.NewDesc("bridge_messages_in_flight", "Messages received and not committed yet.", []string{"route"}, nil)
)

// Describe implements [prometheus.Collector].
func (c *Counters) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descReceived, descWritten, descRows, descDup, descDead, descSkipped, descInFlight} {
		ch <- d
	}
}

// Collect implements [prometheus.Collector].
func (c *Counters) Collect(ch chan<- prometheus.Metric) {
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	for _, r := range c.Snapshot() {
		counter(descReceived, r.Received, r.Route)
		counter(descWritten, r.Written, r.Route)
		counter(descRows, r.Rows, r.Route)
		counter(descDup, r.Duplicate, r.Route)
		for _, reason := range LetterReasons() {
			// From 0: a rate or an increase does not see the first letter of a series that begins with it. The same
			// goes for what is skipped.
			counter(descDead, r.DeadLettered[reason], r.Route, string(reason))
		}
		for _, reason := range skipReasons {
			counter(descSkipped, r.Skipped[reason], r.Route, string(reason))
		}
		ch <- prometheus.MustNewConstMetric(descInFlight, prometheus.GaugeValue, float64(r.InFlight), r.Route)
	}
}
