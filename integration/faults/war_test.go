//go:build unix

package faults

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/mqttpg/bridge/integration/provider"
)

// warScenarios are those in which bridges, clocks and operators get in each other's way, or a storm of
// messages in everybody's.
var warScenarios = []*scenario{
	{
		name: "QoS 2 with kills", qos: 2,
		env: map[string]string{"BRIDGE_MQTT_QOS": "2"},
		trouble: func(s *stage) {
			kills, hits := 0, 0
			for ; s.loading(); kills++ {
				s.pause(0, time.Second)
				if s.rng.IntN(2) == 0 {
					s.loseAnswerOfCommit()
					hits++
				}
				s.killAndMend()
			}
			s.factf("%d kills, %d of them aimed between commit and PUBREC", kills, hits)
		},
	},
	{
		name: "storm beyond the byte budget", server: true, calm: true,
		env: map[string]string{"BRIDGE_MAX_INFLIGHT_BYTES": "8MiB", "BRIDGE_MQTT_KEEPALIVE": "2s"},
		// What waits stays in the broker's memory.
		broker: []string{"autosave_interval 3600"}, pad: 256 << 10, rate: 100,
		trouble: func(s *stage) {
			s.pause(500*time.Millisecond, time.Second)
			must(s.t, s.server.Stop(s.ctx))
			s.pause(8*time.Second, 12*time.Second) // several keepalives, and many times the budget
			must(s.t, s.server.Start(s.ctx))
			s.pause(0, time.Second)
		},
		remark: func(s *stage) string {
			waited := 0
			for _, k := range s.load.kinds {
				waited += k.sent * len(k.payload(0, s.load.pad))
			}
			const most = 96 << 20 // the budget, what decoding makes of it, and the program itself
			w := s.watchers[0]
			w.mu.Lock()
			defer w.mu.Unlock()
			if w.peak<<10 > most {
				s.t.Errorf("the bridge used %d MiB, expected at most %d", w.peak>>10, most>>20)
			}
			return fmt.Sprintf("%d MiB published, budget 8 MiB", waited>>20)
		},
	},
	{
		name: "two processes with one client id",
		rate: 400, // slow enough that no packet identifier comes round: to the ledger that was away for the round it could pass for the last one
		// Leases and ledger are each process's own, as with two databases; the tables are common, so
		// that they hold what both have written.
		kinds: func() []*kind {
			kinds := allKinds()
			for _, k := range kinds {
				k.count = strings.ReplaceAll(k.count, "from bridge.dead_letters",
					"from (select payload, reason from bridge.dead_letters union all select payload, reason from bridge2.dead_letters) as letters")
			}
			return kinds
		},
		prepare: func(s *stage) {
			s.command(map[string]string{"BRIDGE_DATABASE_URL": s.databaseURL, "BRIDGE_SCHEMA": "bridge2"}, "migrate")
		},
		trouble: func(s *stage) {
			began := time.Now()
			second := s.launch(map[string]string{"BRIDGE_SCHEMA": "bridge2"})
			s.until("a bridge names the client id as the trouble", func() bool {
				return slices.ContainsFunc(s.bridges, func(b *provider.Bridge) bool {
					_, body, err := b.Get(s.ctx, "/health")
					return err == nil && strings.Contains(string(body), "another client uses client id bridge-0")
				})
			})
			s.factf("in /health after %s", time.Since(began).Round(100*time.Millisecond))
			time.Sleep(70 * time.Second) // what counts is what happens while nobody does anything
			most := s.mostConnections("bridge-0", time.Minute)
			if most > 10 { // both first ones, four until both know, and about four more
				s.t.Errorf("%d connections within a minute", most)
			}
			s.factf("at most %d connections in a minute", most)
			s.terminate(second)
			s.ready(s.bridges[0]) // which may have backed off for a minute
		},
		forgive: forgiveness{
			extra:   true,
			because: "each process has a ledger of its own: what one has committed and not acknowledged comes to the other as a redelivery it knows nothing of",
		},
	},
	{
		// What a jump of the database's clock is to the leases. The bridge's own clock cannot be moved
		// from outside: Go asks the kernel for it, past any library.
		name: "clock jumps", replicas: 3, calm: true,
		env: map[string]string{"BRIDGE_MQTT_SESSIONS": "3"},
		trouble: func(s *stage) {
			s.execute("create table clock (ahead interval)", "insert into clock values ('0')",
				`create function jump() returns trigger language plpgsql as $$
				begin
					new.heartbeat_at := new.heartbeat_at + (select ahead from clock);
					return new;
				end $$`,
				"create trigger jump before insert or update on bridge.replicas for each row execute function jump()")
			before := s.leases()
			jumps := 0
			for ; s.loading(); jumps++ {
				hours := s.rng.IntN(97) - 48
				if s.rng.IntN(2) == 0 { // for all from now on
					s.execute(fmt.Sprintf("update clock set ahead = interval '%d hours'", hours))
				} else { // what one has noted, and all stamps of sessions and ledger
					by := fmt.Sprintf(" + interval '%d hours'", hours)
					s.execute("update bridge.replicas set heartbeat_at = heartbeat_at"+by+" where id = (select id from bridge.replicas order by random() limit 1)",
						"update bridge.sessions set acquired_at = acquired_at"+by, "update bridge.deliveries set committed_at = committed_at"+by)
				}
				s.pause(100*time.Millisecond, 3*time.Second)
			}
			if after := s.leases(); after != before {
				s.t.Errorf("sessions moved: before %s, after %s", before, after)
			}
			s.factf("%d jumps of up to two days", jumps)
		},
	},
	{
		name: "a session drained and put back", replicas: 2, short: true,
		env: map[string]string{"BRIDGE_MQTT_SESSIONS": "3"},
		trouble: func(s *stage) {
			drains := 0
			for ; drains == 0 || s.loading(); drains++ {
				index := strconv.Itoa(s.rng.IntN(s.sessions()))
				s.pause(0, time.Second)
				s.command(s.env, "sessions", "drain", index)
				s.pause(0, time.Second)
				s.command(s.env, "sessions", "drain", "--undo", index)
				s.awaitReady()
			}
			s.factf("%d drains", drains)
		},
	},
	{
		name: "a session drained while bridges are killed", replicas: 2,
		env: map[string]string{"BRIDGE_MQTT_SESSIONS": "3"},
		trouble: func(s *stage) {
			drains := 0
			for ; drains == 0 || s.loading(); drains++ {
				index := strconv.Itoa(s.rng.IntN(s.sessions()))
				drained := make(chan struct{})
				go func() {
					defer close(drained)
					s.command(s.env, "sessions", "drain", index)
				}()
				s.pause(0, 2*time.Second)
				victim := pick(s, s.bridges)
				s.kill(victim)
				s.pause(0, 8*time.Second) // now and then the other one takes over
				must(s.t, victim.Start(s.ctx))
				<-drained
				s.command(s.env, "sessions", "drain", "--undo", index)
				s.awaitReady()
			}
			s.factf("%d drains", drains)
		},
	},
}

// command runs a command of the bridge, which must succeed.
func (s *stage) command(env map[string]string, args ...string) {
	s.t.Helper()
	if code, _, stderr := provider.RunBridge(s.t, env, nil, args...); code != 0 {
		s.t.Errorf("bridge %s: exit code %d: %s", strings.Join(args, " "), code, stderr)
	}
}

// mostConnections is the greatest number of connections of a client within a time, by the broker's log.
func (s *stage) mostConnections(clientID string, within time.Duration) int {
	var times []int
	for _, found := range regexp.MustCompile(`(?m)^(\d+): New client connected from \S+ as `+clientID+` `).FindAllStringSubmatch(s.broker.Logs(s.ctx), -1) {
		at, err := strconv.Atoi(found[1])
		must(s.t, err)
		times = append(times, at)
	}
	most := 0
	for first := range times {
		for last := first; last < len(times) && times[last]-times[first] < int(within.Seconds()); last++ {
			most = max(most, last-first+1)
		}
	}
	return most
}

// leases tells who has held which session since when.
func (s *stage) leases() string {
	s.t.Helper()
	var state string
	db := s.connect()
	defer func() { _ = db.Close(context.WithoutCancel(s.ctx)) }()
	must(s.t, db.QueryRow(s.ctx, "select string_agg(concat_ws(' ', index, owner, epoch), ', ' order by index) from bridge.sessions").Scan(&state))
	return state
}
