package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/mqttpg/bridge/ingest"
	"github.com/mqttpg/bridge/store"
	"go.uber.org/zap"
)

// path is the way of one replica to its broker.
type path struct {
	server string
	addr   string
	wires  sync.WaitGroup

	mu   sync.Mutex
	pass func(connect []byte) bool // whether a client gets through, by its CONNECT
	ends []net.Conn
}

func everybody([]byte) bool { return true }
func nobody([]byte) bool    { return false }

// visitors are those that try the broker; sessions have other client ids.
func visitors(connect []byte) bool { return bytes.Contains(connect, []byte("-check-")) }
func sessions(connect []byte) bool { return !visitors(connect) }

func newPath(t *testing.T, server string) *path {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &path{server: server, addr: l.Addr().String(), pass: everybody}
	p.wires.Go(func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			p.wires.Go(func() { p.join(near) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		p.only(nobody)
		p.wires.Wait()
	})
	return p
}

// join connects a client with the server.
func (p *path) join(near net.Conn) {
	defer func() { _ = near.Close() }()
	connect := make([]byte, 4096)
	_ = near.SetReadDeadline(time.Now().Add(patience))
	n, err := near.Read(connect)
	if err != nil {
		return
	}
	_ = near.SetReadDeadline(time.Time{})
	far, err := net.Dial("tcp", p.server)
	if err != nil {
		return
	}
	defer func() { _ = far.Close() }()
	p.mu.Lock()
	passes := p.pass(connect[:n])
	p.ends = append(p.ends, near, far)
	p.mu.Unlock()
	if !passes {
		return
	}
	if _, err := far.Write(connect[:n]); err != nil {
		return
	}
	var back sync.WaitGroup
	back.Go(func() {
		_, _ = io.Copy(near, far)
		_ = near.Close()
	})
	_, _ = io.Copy(far, near)
	_ = far.Close()
	back.Wait()
}

// only ends all connections, and lets some through from now on.
func (p *path) only(pass func(connect []byte) bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pass = pass
	for _, nc := range p.ends {
		_ = nc.Close()
	}
	p.ends = nil
}

// pair is two replicas of one share with a real broker, and the way of the first one to it.
type pair struct {
	t            *testing.T
	broker       *mosquitto
	path         *path
	url          string   // of the database
	settings     []string // of both
	cut, healthy *running
	sent         int
}

// pairs counts those that were made, for the names of their databases.
var pairs atomic.Int64

// newPair starts the replica whose way can be cut first, so that it has the only session if there is but one.
func newPair(t *testing.T, sessions int, admitted func(connect []byte) bool, settings ...string) *pair {
	t.Helper()
	p := newLonely(t, sessions, admitted, settings...)
	p.cut.awaitReady()
	p.join()
	p.holds(sessions-sessions/2, sessions/2)
	if !slices.Contains(p.settings, "BRIDGE_MQTT_TRIAL=off") {
		p.hasTried()
	}
	return p
}

// newLonely starts no other replica yet.
func newLonely(t *testing.T, sessions int, admitted func(connect []byte) bool, settings ...string) *pair {
	t.Helper()
	p := &pair{t: t, broker: startMosquitto(t, ""), url: databaseNamed(t, fmt.Sprint("pair ", pairs.Add(1)))}
	p.path = newPath(t, p.broker.addr)
	p.path.only(admitted)
	p.settings = slices.Concat(readings, []string{
		"BRIDGE_DATABASE_URL=" + p.url, fmt.Sprint("BRIDGE_MQTT_SESSIONS=", sessions), "BRIDGE_MQTT_MODE=shared", "BRIDGE_LOG_LEVEL=debug",
		"BRIDGE_MQTT_COMMON_SESSIONS=on", // it is one broker behind two addresses
	}, settings)
	environment(t, append(p.settings, "BRIDGE_MQTT_URLS=mqtt://"+p.path.addr)...)
	p.cut = startWith(t, soon)
	return p
}

// soon gives times that are a part of the true ones. Nothing is asserted of them, but that they pass. Heartbeats are a second
// apart: for so long one replica may not know yet what another one has lost.
func soon(s *service) {
	s.cutOff = cutOffTimes{after: 3 * time.Second, heard: time.Hour, pause: 300 * time.Millisecond, look: 50 * time.Millisecond, empty: time.Second}
	if s.cfg.MQTT.Keepalive.value == 0 {
		s.cutOff.heard = time.Second
	}
}

// join starts the other replica.
func (p *pair) join() {
	p.t.Helper()
	environment(p.t, append(p.settings, "BRIDGE_MQTT_URLS=mqtt://"+p.broker.addr)...)
	p.healthy = startWith(p.t, soon)
	p.healthy.awaitReady()
}

// hasTried waits until the first replica has tried the broker beside its connection.
func (p *pair) hasTried() {
	p.t.Helper()
	eventually(p.t, "the first replica has tried the broker", func() (bool, string) {
		log := p.cut.log.String()
		return strings.Contains(log, "the broker admits trial connections") || strings.Contains(log, "the broker refuses a trial connection"), log
	})
}

// holds waits until the two have so many sessions, all of them subscribed.
func (p *pair) holds(cut, healthy int) {
	p.t.Helper()
	eventually(p.t, fmt.Sprintf("the replicas have %d and %d sessions", cut, healthy), func() (bool, string) {
		one, other := sessionsOf(p.cut), sessionsOf(p.healthy)
		return strings.Count(one, "subscribed") == cut && strings.Count(other, "subscribed") == healthy, one + " | " + other
	})
}

// publish sends so many more readings, each another number.
func (p *pair) publish(n int) {
	p.t.Helper()
	var payloads []string
	for range n {
		payloads = append(payloads, fmt.Sprint(p.sent))
		p.sent++
	}
	p.broker.publish("readings/a", payloads...)
}

// eachOnce waits until every reading is in the table, and looks that none is there twice.
func (p *pair) eachOnce() {
	p.t.Helper()
	eventually(p.t, fmt.Sprintf("%d different rows", p.sent), func() (bool, string) {
		got := query(p.t, p.url, `select count(distinct value) from readings`)
		return got == fmt.Sprint(p.sent), got
	})
	if got := query(p.t, p.url, `select count(*) from readings`); got != fmt.Sprint(p.sent) {
		p.t.Errorf("%s rows of %d readings", got, p.sent)
	}
}

// standsBack waits until the first replica has given everything up and says so.
func (p *pair) standsBack() {
	p.t.Helper()
	eventually(p.t, "the replica that is cut off stands back", func() (bool, string) {
		code, body := p.cut.get("/readyz")
		return code == http.StatusServiceUnavailable && strings.Contains(body, "stands back, for other replicas do the work: broker: mqtt://"+p.path.addr) &&
			len(p.cut.health().Broker) == 0, body
	})
	if n := strings.Count(p.cut.log.String(), "giving all sessions up"); n != 1 {
		p.t.Errorf("it has said so %d times", n)
	}
	if code, body := p.cut.get("/livez"); code != http.StatusOK {
		p.t.Errorf("/livez: %d %s", code, body)
	}
}

// tell waits until the first and the second replica tell this of the broker.
func (p *pair) tell(want string) {
	p.t.Helper()
	eventually(p.t, "the replicas tell of the broker: "+want, func() (bool, string) {
		got := query(p.t, p.url, `select string_agg(coalesce(reaches_broker::text, 'null'), ', ' order by started_at) from bridge.replicas`)
		return got == want, got
	})
}

// nothingMoves waits for several times what it takes to be cut off, by the heartbeats, and looks who has the sessions.
func (p *pair) nothingMoves() {
	p.t.Helper()
	standing := func() string {
		return query(p.t, p.url, `select string_agg(concat_ws(' ', index, owner, epoch), ', ' order by index) from bridge.sessions`)
	}
	before, from := standing(), query(p.t, p.url, `select clock_timestamp()::text`)
	eventually(p.t, "both replicas have sent heartbeats for some time", func() (bool, string) {
		got := query(p.t, p.url, `select count(*) from bridge.replicas where heartbeat_at > $1::timestamptz + interval '6 s'`, from)
		return got == "2", got
	})
	if after := standing(); after != before {
		p.t.Errorf("sessions moved:\n%s\n%s", before, after)
	}
}

// end stops both in good order.
func (p *pair) end() {
	p.t.Helper()
	for _, r := range []*running{p.cut, p.healthy} {
		if code := r.end(); code != exitOK {
			p.t.Errorf("exit code %d", code)
		}
		if strings.Contains(r.log.String(), "without being drained") {
			p.t.Error("a session was not drained")
		}
	}
}

// TestCutOff: a replica that loses the broker, while another one reaches it, gives its sessions up, and takes its share
// again when it can.
func TestCutOff(t *testing.T) {
	for _, tt := range []struct {
		name     string
		sessions int
		play     func(t *testing.T, p *pair)
	}{
		{"with messages in its hands", 2, cutOffUnderLoad},
		{"with a standby", 1, cutOffWithStandby},
	} {
		p := newPair(t, tt.sessions, everybody) // one after the other, for they change the environment
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel() // most of it is waiting
			p.t = t
			tt.play(t, p)
		})
	}
}

// TestCutOffBeforeAnotherCame: it does not matter who was there when the broker was lost.
func TestCutOffBeforeAnotherCame(t *testing.T) {
	for _, tt := range []struct {
		name     string
		admitted func(connect []byte) bool
		lose     func(p *pair) // before the other replica starts
	}{
		{"it was connected", everybody, func(p *pair) {
			p.cut.awaitReady()
			p.hasTried()
			p.path.only(nobody)
		}},
		{"it never was", nobody, func(p *pair) {
			eventually(p.t, "it has taken the sessions", func() (bool, string) {
				s := sessionsOf(p.cut)
				return strings.Count(s, "bridge-") == 2, s
			})
		}},
	} {
		p := newLonely(t, 2, tt.admitted) // one after the other, for they change the environment
		tt.lose(p)
		p.join()
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel() // most of it is waiting
			p.t = t
			eventually(t, "the other one has subscribed, so that the broker keeps what is published", func() (bool, string) {
				s := sessionsOf(p.healthy)
				return strings.Contains(s, "subscribed"), s
			})
			p.publish(10)
			p.standsBack()
			p.eachOnce()
			p.path.only(everybody)
			p.cut.awaitReady()
			p.publish(10)
			p.eachOnce()
			p.end()
		})
	}
}

// cutOffUnderLoad: what the replica had is written once, as is all the rest.
func cutOffUnderLoad(t *testing.T, p *pair) {
	t.Helper()
	p.publish(20)
	p.eachOnce()
	conn, err := pgx.Connect(context.Background(), p.url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	if _, err := conn.Exec(context.Background(), `begin; lock table readings in access exclusive mode`); err != nil {
		t.Fatal(err)
	}
	p.publish(40)
	eventually(t, "messages are under way in the replica", func() (bool, string) {
		n := 0
		for _, s := range p.cut.health().Broker {
			n += s.InFlight
		}
		return n > 0, fmt.Sprint(n)
	})
	p.path.only(nobody)
	p.tell("false, true")
	if _, err := conn.Exec(context.Background(), `rollback`); err != nil {
		t.Fatal(err)
	}
	p.publish(40)
	p.standsBack()
	p.holds(0, 2)
	p.publish(20)
	p.eachOnce()
	if n := p.healthy.health().Routes["readings"].Duplicate; n == 0 {
		t.Error("the next owner was sent nothing again")
	}

	p.path.only(everybody)
	p.holds(1, 1)
	p.cut.awaitReady()
	p.publish(20)
	p.eachOnce()
	p.nothingMoves()
	if log := p.cut.log.String(); !strings.Contains(log, "standing back no longer") {
		t.Error("it does not say that it takes part again")
	}
	p.end()
}

// cutOffWithStandby: the only session goes to a replica that has tried the broker for the one that misses it.
func cutOffWithStandby(t *testing.T, p *pair) {
	t.Helper()
	p.tell("true, null")
	p.path.only(nobody)
	p.publish(10)
	p.standsBack()
	p.holds(0, 1)
	p.eachOnce()
	p.tell("true") // the other one has left

	p.path.only(everybody)
	p.cut.awaitReady()
	p.publish(10)
	p.eachOnce()
	p.nothingMoves()
	p.tell("true, null")
	p.end()
}

// TestNobodyIsCutOffAlone: without the broker, or where nothing would be better for it, everybody keeps what he has.
func TestNobodyIsCutOffAlone(t *testing.T) {
	down, up := func(p *pair) { p.broker.kill() }, func(p *pair) { p.broker.start() }
	cut, mend := func(p *pair) { p.path.only(nobody) }, func(p *pair) { p.path.only(everybody) }
	for _, tt := range []struct {
		name     string
		sessions int
		setting  string
		admitted func(connect []byte) bool
		begin    func(p *pair)
		told     string
		end      func(p *pair)
		after    string
	}{
		{"the broker is down", 2, "", everybody, down, "false, false", up, "true, true"},
		{"the broker is down for a standby, too", 1, "", everybody, down, "false, false", up, "true, null"}, // nobody asks it any more
		{"there is no way back that is tried", 2, "BRIDGE_MQTT_TRIAL=off", everybody, cut, "false, true", mend, "true, true"},
		{"nobody tries for it", 1, "BRIDGE_MQTT_TRIAL=off", everybody, cut, "false, null", mend, "true, null"},
		{"there never was a way back", 2, "", sessions, cut, "false, true", mend, "true, true"},
		{"nobody would notice a silent broker", 2, "BRIDGE_MQTT_KEEPALIVE=0s", everybody, cut, "false, null", mend, "null, null"},
		{"the way back is open", 2, "", everybody, func(p *pair) { p.path.only(visitors) }, "false, true", func(p *pair) {
			eventually(p.t, "it has tried", func() (bool, string) {
				return strings.Contains(p.cut.log.String(), "they stay"), p.cut.log.String()
			})
			p.path.only(everybody)
		}, "true, true"},
	} {
		var settings []string
		if tt.setting != "" {
			settings = append(settings, tt.setting)
		}
		p := newPair(t, tt.sessions, tt.admitted, settings...) // one after the other, for they change the environment
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel() // most of it is waiting
			p.t = t
			tt.begin(p)
			p.tell(tt.told)
			p.nothingMoves()
			p.tell(tt.told)
			if tt.told == "false, true" {
				p.publish(10)
			}
			tt.end(p)
			p.cut.awaitReady()
			p.healthy.awaitReady()
			p.tell(tt.after)
			p.publish(10)
			p.eachOnce()
			p.end()
		})
	}
}

// TestRetiringSessionsTellNothing: a session that nobody needs any more may well be refused.
func TestRetiringSessionsTellNothing(t *testing.T) {
	environment(t, append(readings, "BRIDGE_MQTT_URLS=mqtt://127.0.0.1:1", "BRIDGE_DATABASE_URL=postgres://u@127.0.0.1:1/d")...)
	cfg, err := loadConfig()
	if err != nil {
		t.Fatal(err)
	}
	mqtt, id := cfg.visitor()
	session, err := ingest.New(mqtt, id)
	if err != nil {
		t.Fatal(err)
	}
	s := &service{pipelines: map[int]*pipeline{0: {lease: &store.Lease{Retiring: true}, session: session}}}
	if c := s.connections(); c != (connections{retiring: 1}) || s.reachesBroker() != nil {
		t.Errorf("%+v, and %v is told", c, s.reachesBroker())
	} else if c.none() || c.any() {
		t.Error("it is not given to a replica that could drain it") // see alone
	}
}

// TestStandsBackWithoutDatabase: that the others cannot be counted, or not soon, does not mean that there are none.
func TestStandsBackWithoutDatabase(t *testing.T) {
	url := database(t)
	environment(t, append(readings, "BRIDGE_MQTT_URLS=mqtt://127.0.0.1:1", "BRIDGE_DATABASE_URL="+url)...)
	cfg, err := loadConfig()
	if err != nil {
		t.Fatal(err)
	}
	s, err := newService(t.Context(), cfg, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	defer s.pool.Close()
	query(t, url, `create schema bridge`)
	query(t, url, `create table bridge.replicas (share_name text, heartbeat_at timestamptz)`)
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	if _, err := conn.Exec(t.Context(), `begin; lock table bridge.replicas in access exclusive mode`); err != nil {
		t.Fatal(err)
	}
	counted := make(chan error, 1)
	hung, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	go func() {
		_, err := s.others(hung)
		counted <- err
	}()
	if err := <-counted; err == nil || hung.Err() != nil {
		t.Errorf("others are counted although nobody can: %v", err)
	}
	if err := conn.Close(t.Context()); err != nil {
		t.Fatal(err)
	}

	const reason = "broker: it does not answer"
	short, stop := context.WithTimeout(t.Context(), time.Second)
	defer stop()
	if s.standBack(short, time.Now(), reason) {
		t.Error("a replica that was cut off takes part at once, though the heartbeats of the others may only be late")
	}
	s.cutOff.empty = time.Millisecond
	if !s.standBack(t.Context(), time.Now(), reason) {
		t.Error("a replica that is alone stands back")
	}

	query(t, url, `drop schema bridge cascade`)
	ctx, stop := context.WithTimeout(t.Context(), 100*time.Millisecond) // a first look is over, or under way
	defer stop()
	if s.standBack(ctx, time.Now(), reason) {
		t.Error("a replica that was cut off takes part, though nobody knows of the others")
	}
	if s.report().Process.StandsBack != reason {
		t.Errorf("it stands back because of %q", s.report().Process.StandsBack)
	}
	if !s.standBack(t.Context(), time.Now(), "") {
		t.Error("a replica that has no reason stands back")
	}
}

// TestCutOffTimes: what is told of the broker is too old before anybody gives something up for it, by some heartbeats.
func TestCutOffTimes(t *testing.T) {
	if times := newCutOffTimes(); times.after < times.heard+5*time.Second {
		t.Errorf("cut off after %s, though what another one tells may be %s old", times.after, times.heard)
	}
}
