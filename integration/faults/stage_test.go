//go:build unix

package faults

import (
	"context"
	"fmt"
	"hash/fnv"
	"maps"
	"math/rand/v2"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/mqttpg/bridge/integration/provider"
)

// scenario is one row of the matrix.
type scenario struct {
	name  string
	short bool // it is on the short list

	env      map[string]string   // of the bridges, beside the routes
	direct   bool                // to the broker: a link holds acknowledgements of which the broker has read none
	replicas int                 // bridges at the start; 0 is 1
	broker   []string            // lines of mosquitto.conf
	server   bool                // a database server of its own, which trouble may stop
	kinds    func() []*kind      // nil: all
	qos      byte                // of publications; 0 is 1
	rate     int                 // messages a second; 0 is 400, or 1000 in the long form
	limit    int                 // messages in all; 0: as many as fit into the time
	pad      int                 // bytes of padding in every JSON payload
	gap      bool                // the longest gap of any session is of interest
	calm     bool                // no connection to the broker may end
	patience time.Duration       // how long nothing may change before rows count as missing; 0 is 20 s
	prepare  func(s *stage)      // before the first bridge starts
	trouble  func(s *stage)      // while the load runs; the load ends after it
	after    func(s *stage)      // when the load has ended, before the wait for its rows
	forgive  forgiveness         // what the protocol forbids to promise
	remark   func(*stage) string // further facts for the table
}

// forgiveness says which differences a scenario cannot avoid, and why. The documents say the same.
type forgiveness struct {
	missing int  // rows at most
	extra   bool // of kinds without a key; a key recognises every copy
	because string
}

// stage is what a scenario plays on.
type stage struct {
	t    *testing.T
	ctx  context.Context
	rng  *rand.Rand
	long bool

	broker      *provider.Broker
	server      *provider.Database
	databaseURL string // the direct way, for the scenario itself
	brokerLink  *link
	dbLink      *link

	env      map[string]string
	bridges  []*provider.Bridge
	watchers []*watcher
	load     *load
	over     time.Time // when the load shall end
	facts    []string
}

// result is what a scenario came to.
type result struct {
	account
	deadLettered, reconnects, peak int
	gap                            time.Duration
	remark                         string
}

// play runs a scenario for about as long as given, and the time to drain.
func play(t *testing.T, sc *scenario, seed uint64, long bool, seconds int) result {
	t.Helper()
	name := fnv.New64a()
	_, _ = name.Write([]byte(sc.name))
	s := &stage{t: t, ctx: t.Context(), rng: rand.New(rand.NewPCG(seed, name.Sum64())), long: long}

	// Without a line for every packet the log of a long run stays readable.
	conf := append([]string{"log_type error", "log_type warning", "log_type notice", "log_type information"}, sc.broker...)
	s.broker = provider.StartBroker(t, provider.BrokerConfig{Conf: conf})
	if sc.server {
		s.server = provider.StartDatabase(t, provider.DatabaseConfig{})
	} else {
		s.server = provider.SharedDatabase(t)
	}
	s.databaseURL = s.server.Fresh(t)
	s.brokerLink = newLink(t, "broker", s.broker.Addr(""))
	database, err := url.Parse(s.databaseURL)
	must(t, err)
	s.dbLink = newLink(t, "database", database.Host)
	database.Host = s.dbLink.address()

	s.load = &load{address: s.broker.Addr(""), kinds: allKinds(), qos: max(sc.qos, 1), rate: sc.rate, limit: sc.limit, pad: strings.Repeat("x", sc.pad)}
	if sc.kinds != nil {
		s.load.kinds = sc.kinds()
	}
	if s.load.rate == 0 {
		s.load.rate = 400
		if long {
			s.load.rate = 1000
		}
	}
	s.env = map[string]string{
		"BRIDGE_MQTT_URLS":    "mqtt://" + s.brokerLink.address(),
		"BRIDGE_DATABASE_URL": database.String(),
	}
	if sc.direct {
		s.env["BRIDGE_MQTT_URLS"] = "mqtt://" + s.broker.Addr("")
	}
	maps.Copy(s.env, s.load.routes())
	maps.Copy(s.env, sc.env)
	if sc.prepare != nil {
		sc.prepare(s)
	}
	for range max(sc.replicas, 1) {
		s.launch(nil)
	}
	s.awaitReady()
	s.until("the sessions are shared out", func() bool {
		owners := 0
		for _, bridge := range s.bridges {
			owners += min(s.owned(bridge), 1)
		}
		return owners == min(len(s.bridges), s.sessions())
	})
	s.awaitReady()
	connected := s.connections()
	var watched *gaps
	if sc.gap {
		watched = watchGaps(t, s.databaseURL)
	}

	if sc.limit > 0 {
		s.over = time.Now().Add(time.Hour)
	} else {
		s.over = time.Now().Add(time.Duration(seconds) * time.Second)
	}
	s.load.start(s.ctx)
	t.Cleanup(s.load.end) // a scenario that fails half way must not leave the publisher behind
	sc.trouble(s)
	for s.loading() {
		time.Sleep(20 * time.Millisecond)
	}
	s.load.end()
	if sc.after != nil {
		sc.after(s)
	}
	s.drain(sc.patience)

	db := s.connect()
	defer func() { _ = db.Close(context.WithoutCancel(s.ctx)) }()
	r := result{account: s.load.compare(t, db)}
	must(t, db.QueryRow(s.ctx, "select count(*) from bridge.dead_letters").Scan(&r.deadLettered))
	r.reconnects = s.connections() - connected
	scrapes, duplicates := 0, 0
	for _, w := range s.watchers {
		w.mu.Lock()
		r.peak = max(r.peak, w.peak)
		scrapes += w.scrapes
		for _, n := range w.duplicates {
			duplicates += n
		}
		w.mu.Unlock()
	}
	if scrapes == 0 {
		t.Error("no scrape succeeded: the conservation law was not looked at")
	}
	if watched != nil {
		r.gap = watched.longest(s.load.clock.start, s.load.clock.end)
	}
	if sc.remark != nil {
		s.facts = append(s.facts, sc.remark(s))
	}
	if duplicates > 0 {
		s.factf("%d redeliveries recognised", duplicates)
	}
	r.remark = strings.Join(s.facts, "; ")
	t.Logf("%s; %d scrapes; %s", r.account, scrapes, r.remark)
	return r
}

// sessions is how many sessions the bridges share.
func (s *stage) sessions() int {
	n := 1
	if text := s.env["BRIDGE_MQTT_SESSIONS"]; text != "" {
		_, err := fmt.Sscan(text, &n)
		must(s.t, err)
	}
	return n
}

// launch starts one more bridge and does not wait for it.
func (s *stage) launch(env map[string]string) *provider.Bridge {
	s.t.Helper()
	all := maps.Clone(s.env)
	maps.Copy(all, env)
	bridge := provider.StartBridge(s.t, all)
	s.bridges = append(s.bridges, bridge)
	s.watchers = append(s.watchers, watch(s.t, bridge))
	return bridge
}

// awaitReady waits until every bridge that runs is ready and all sessions have an owner.
func (s *stage) awaitReady() {
	s.t.Helper()
	for _, bridge := range s.bridges {
		if bridge.PID() != 0 {
			s.ready(bridge)
		}
	}
	s.until("every session has an owner", func() bool {
		owned := 0
		for _, bridge := range s.bridges {
			owned += s.owned(bridge)
		}
		return owned >= s.sessions()
	})
	for _, bridge := range s.bridges {
		if bridge.PID() != 0 {
			s.ready(bridge)
		}
	}
}

func (s *stage) ready(bridge *provider.Bridge) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.ctx, 2*time.Minute)
	defer cancel()
	must(s.t, bridge.WaitReady(ctx))
}

// owned is how many sessions a bridge holds; 0 when it does not answer.
func (s *stage) owned(bridge *provider.Bridge) int {
	return int(s.metric(bridge, "bridge_sessions_owned"))
}

// metric adds up the samples of a family; 0 when the bridge does not answer.
func (s *stage) metric(bridge *provider.Bridge, family string) float64 {
	if bridge.PID() == 0 {
		return 0
	}
	ctx, cancel := context.WithTimeout(s.ctx, 5*time.Second)
	defer cancel()
	families, err := bridge.Metrics(ctx)
	if err != nil {
		return 0
	}
	sum := 0.0
	for _, sample := range families[family].GetMetric() {
		sum += sample.GetCounter().GetValue() + sample.GetGauge().GetValue()
	}
	return sum
}

// loading says whether it is still the time for trouble.
func (s *stage) loading() bool {
	return s.load.running() && time.Now().Before(s.over) && s.ctx.Err() == nil
}

// pause waits for a random time between two.
func (s *stage) pause(least, most time.Duration) {
	time.Sleep(least + time.Duration(s.rng.Int64N(int64(most-least)+1)))
}

// until waits for something and ends the test when it does not come.
func (s *stage) until(what string, come func() bool) {
	s.t.Helper()
	if !s.within(2*time.Minute, come) {
		s.t.Fatalf("waited two minutes in vain until %s", what)
	}
}

// within waits for something and says whether it came.
func (s *stage) within(limit time.Duration, come func() bool) bool {
	for deadline := time.Now().Add(limit); ; {
		if come() {
			return true
		}
		if time.Now().After(deadline) || s.ctx.Err() != nil {
			return false
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// kill ends a bridge with SIGKILL.
func (s *stage) kill(bridge *provider.Bridge) {
	s.t.Helper()
	must(s.t, bridge.Kill(s.ctx))
}

// expire ends the leases of a share whose bridges are all dead, as their time to live of five
// seconds would: it makes room for more kills in the same time.
func (s *stage) expire() {
	s.t.Helper()
	s.execute("delete from bridge.replicas", "update bridge.sessions set owner = null")
}

// revive starts a killed bridge again and waits until it is ready.
func (s *stage) revive(bridge *provider.Bridge) {
	s.t.Helper()
	must(s.t, bridge.Start(s.ctx))
	s.ready(bridge)
	s.until("the bridge has its session", func() bool { return s.owned(bridge) > 0 || len(s.bridges) > 1 })
	s.ready(bridge)
}

// terminate sends SIGTERM and waits until the bridge has ended.
func (s *stage) terminate(bridge *provider.Bridge) {
	s.t.Helper()
	must(s.t, bridge.Term())
	ctx, cancel := context.WithTimeout(s.ctx, time.Minute)
	defer cancel()
	code, err := bridge.Wait(ctx)
	must(s.t, err)
	if code != 0 {
		s.t.Errorf("exit code %d after SIGTERM", code)
	}
}

// connect opens a connection to the scenario's database that no trouble touches.
func (s *stage) connect() *pgx.Conn {
	s.t.Helper()
	var db *pgx.Conn
	var err error
	s.until("the database answers", func() bool { db, err = pgx.Connect(s.ctx, s.databaseURL); return err == nil })
	return db
}

// execute runs statements in the scenario's database.
func (s *stage) execute(statements ...string) {
	s.t.Helper()
	db := s.connect()
	defer func() { _ = db.Close(context.WithoutCancel(s.ctx)) }()
	for _, statement := range statements {
		_, err := db.Exec(s.ctx, statement)
		must(s.t, err)
	}
}

// number asks the scenario's database for one.
func (s *stage) number(query string) int {
	s.t.Helper()
	db := s.connect()
	defer func() { _ = db.Close(context.WithoutCancel(s.ctx)) }()
	var n int
	must(s.t, db.QueryRow(s.ctx, query).Scan(&n))
	return n
}

// factf adds to the remarks of the table.
func (s *stage) factf(format string, args ...any) {
	s.facts = append(s.facts, fmt.Sprintf(format, args...))
}

// batches is how many batches are committed.
func (s *stage) batches() int {
	return s.number("select coalesce(sum(last), 0)::int from (select max(batch) as last from bridge.deliveries group by share_name, index) as each")
}

// drain waits until all that was acknowledged is in its table, or nothing has changed for a while,
// and then until the bridges have nothing left to do: what is too much shall have time to arrive.
func (s *stage) drain(patience time.Duration) {
	s.t.Helper()
	if patience == 0 {
		patience = 20 * time.Second
	}
	db := s.connect()
	defer func() { _ = db.Close(context.WithoutCancel(s.ctx)) }()
	before, changed := -1, time.Now()
	for time.Since(changed) < patience {
		rows, lacking := s.load.arrived(s.t, db, s.load.kinds)
		if rows != before {
			before, changed = rows, time.Now()
		}
		if lacking == 0 {
			break
		}
		time.Sleep(200 * time.Millisecond)
	}
	s.settle(db, patience)
}

// settle waits until nothing changes any more and the bridges have nothing in flight.
func (s *stage) settle(db *pgx.Conn, patience time.Duration) {
	s.t.Helper()
	quiet, state := 0, ""
	s.within(patience, func() bool {
		time.Sleep(200 * time.Millisecond)
		rows, _ := s.load.arrived(s.t, db, s.load.kinds)
		now, busy := fmt.Sprint(rows), false
		for _, w := range s.watchers {
			if w.bridge.PID() != 0 {
				w.mu.Lock()
				now += fmt.Sprint(" ", w.settled)
				busy = busy || w.settled < 0
				w.mu.Unlock()
			}
		}
		quiet++
		if now != state || busy {
			quiet, state = 0, now
		}
		return quiet >= 8
	})
}

// must ends the test at an error of what the scenario itself does.
func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// pick returns one of a list at random.
func pick[T any](s *stage, list []T) T { return list[s.rng.IntN(len(list))] }

func serverVersion(t *testing.T, databaseURL string) string {
	t.Helper()
	db, err := pgx.Connect(t.Context(), databaseURL)
	must(t, err)
	defer func() { _ = db.Close(context.WithoutCancel(t.Context())) }()
	var version string
	must(t, db.QueryRow(t.Context(), "select split_part(current_setting('server_version'), ' ', 1)").Scan(&version))
	return version
}
