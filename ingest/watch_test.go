package ingest

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
)

const testWatchID = "test-watch-1"

// watchRig is a watch with pauses that suit a test.
type watchRig struct {
	*Watch
	t      *testing.T
	logs   *observer.ObservedLogs
	target atomic.Value // string: the broker that the sessions are connected to
	end    func()       // stops and waits
}

func newIdleWatch(t *testing.T, change func(*Config), urls ...string) *watchRig {
	t.Helper()
	core, logs := observer.New(zapcore.DebugLevel)
	r := &watchRig{t: t, logs: logs}
	cfg := Config{ShareName: "test", KeepAlive: 15 * time.Second, Log: zap.New(core)}
	for _, text := range urls {
		u, err := url.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		cfg.URLs = append(cfg.URLs, u)
	}
	r.target.Store("")
	if len(cfg.URLs) > 0 {
		r.target.Store(shown(cfg.URLs[0]))
	}
	if change != nil {
		change(&cfg)
	}
	r.Watch = NewWatch(cfg, testWatchID, func() string { return r.target.Load().(string) })
	r.pauses = watchPauses{look: 5 * time.Millisecond, retry: 10 * time.Millisecond, most: 20 * time.Millisecond, patience: 300 * time.Millisecond}
	return r
}

func newWatchRig(t *testing.T, change func(*Config), urls ...string) *watchRig {
	t.Helper()
	r := newIdleWatch(t, change, urls...)
	r.run()
	return r
}

func (r *watchRig) run() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.Run(ctx)
	}()
	r.end = sync.OnceFunc(func() {
		cancel()
		<-done
	})
	r.t.Cleanup(func() {
		r.end()
		if r.t.Failed() {
			r.t.Logf("status %+v", r.Status())
			for _, e := range r.logs.All() {
				r.t.Logf("%s %s %v", e.Level, e.Message, e.ContextMap())
			}
		}
	})
}

func (r *watchRig) await(what string, ok func(WatchStatus) bool) {
	r.t.Helper()
	eventually(r.t, what, func() bool { return ok(r.Status()) })
}

// metric is the broker's count as exported; empty = absent.
func (r *watchRig) metric() string {
	r.t.Helper()
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(r.Watch)
	families, err := reg.Gather()
	if err != nil {
		r.t.Fatal(err)
	}
	if len(families) == 0 {
		return ""
	}
	return fmt.Sprintf("%s %g", families[0].GetName(), testutil.ToFloat64(r.Watch))
}

// What the broker drops is seen at once, also where the count has vanished from $SYS before we came.
func TestWatchSeesDroppedMessages(t *testing.T) {
	broker := startMosquitto(t, "sys_interval 1\nmax_queued_messages 10\n")
	stuck := newRig(t, func(cfg *Config) { cfg.ReceiveMaximum = 5 }, broker.url()) // never acknowledges
	stuck.awaitState(StateSubscribed)
	r := newWatchRig(t, nil, broker.url())
	r.await("version and count", func(st WatchStatus) bool {
		return st.State == WatchReading && st.Software.Mosquitto && st.DroppedKnown
	})
	if st := r.Status(); st.Dropped != 0 || st.DroppedSeen != 0 || !st.LastDrop.IsZero() {
		t.Errorf("before anything was dropped: %+v", st)
	}
	if got := r.metric(); got != "bridge_broker_messages_dropped_total 0" {
		t.Errorf("metric %q", got)
	}
	if !strings.Contains(broker.log.String(), "New client connected from 127.0.0.1:") || !strings.Contains(broker.log.String(), " as "+testWatchID+" (p5, c1, k60)") {
		t.Error("the watch does not connect with Clean Start")
	}
	pub := newClient(t, broker.url(), "publisher")
	for range 100 {
		pub.publish("t/x", "1", 1)
	}
	// 5 are in flight and 10 or, with newer ones, 15 queued; the watch's own messages are QoS 0 and never queued.
	r.await("all drops", func(st WatchStatus) bool {
		return (st.Dropped == 80 || st.Dropped >= 85) && st.DroppedSeen == st.Dropped
	})
	st := r.Status()
	if time.Since(st.LastDrop) > time.Minute {
		t.Errorf("last drop at %v", st.LastDrop)
	}
	if got, want := r.metric(), fmt.Sprintf("bridge_broker_messages_dropped_total %d", st.Dropped); got != want {
		t.Errorf("metric %q, want %q", got, want)
	}
	lines := r.logs.FilterMessageSnippet("the broker threw messages away")
	if lines.Len() != 1 || lines.All()[0].Level != zapcore.ErrorLevel {
		t.Errorf("%d lines about it", lines.Len())
	}
	if r.logs.FilterMessage("delivery self-check").Len() == 0 {
		t.Error("the log names no fault of this version")
	}
	r.end()
	eventually(t, "a clean end", func() bool {
		return strings.Contains(broker.log.String(), "Received DISCONNECT from "+testWatchID+"\n")
	})
}

// A restart of the broker neither ends the watch nor makes drops of it.
func TestWatchOverARestart(t *testing.T) {
	broker := startMosquitto(t, "sys_interval 1\n")
	r := newWatchRig(t, nil, broker.url())
	r.await("a reading", func(st WatchStatus) bool { return st.DroppedKnown })
	broker.stop()
	r.await("the end is noticed", func(st WatchStatus) bool { return st.State != WatchReading && st.Reason != "" })
	broker.start()
	r.await("another reading", func(st WatchStatus) bool { return st.State == WatchReading })
	if st := r.Status(); st.DroppedSeen != 0 || st.Reason != "" {
		t.Errorf("%+v", st)
	}
}

// An access list that withholds $SYS lets the subscription pass, and nothing comes.
func TestWatchWithheld(t *testing.T) {
	list := filepath.Join(t.TempDir(), "acl")
	if err := os.WriteFile(list, []byte("topic readwrite t/#\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	broker := startMosquitto(t, "sys_interval 1\nacl_file "+list+"\n")
	r := newWatchRig(t, nil, broker.url())
	r.await("it is given up", func(st WatchStatus) bool {
		return st.State == WatchUnavailable && strings.Contains(st.Reason, "tells this client nothing below $SYS")
	})
	unknown(t, r)
	// It asks again later, and says no more of it.
	eventually(t, "three attempts", func() bool { return strings.Count(broker.log.String(), " as "+testWatchID+" (") >= 3 })
	if n := r.logs.FilterMessageSnippet("stay unknown").Len(); n != 1 {
		t.Errorf("said %d times", n)
	}
}

// Other brokers refuse the subscription, the client, or close the connection.
func TestWatchRefused(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*mochi)
		url    func(*mochi) string
		want   string
	}{
		"the subscription": {func(m *mochi) { m.allow = func(filter string) bool { return !strings.HasPrefix(filter, "$SYS") } }, (*mochi).url, "refused the subscription to $SYS"},
		"the client":       {func(m *mochi) { m.login = func(string, string) bool { return false } }, (*mochi).url, "refused the connection that reads $SYS: bad user name or password (0x86)"},
		// paho alone would end the process: it calls an authentication handler that is not there.
		"with an Authentication Method": {nil, func(*mochi) string { return scriptedBroker(t, "20 07 00 00 04 15 0001 'a'", 0x87, 0x87, 0x87) }, "refused the subscription"},
		"by closing":                    {nil, func(*mochi) string { return scriptedBroker(t, connack) }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			broker := startMochi(t, nil)
			if test.change != nil {
				test.change(broker)
			}
			r := newWatchRig(t, nil, test.url(broker))
			r.await("it is given up", func(st WatchStatus) bool {
				return st.State == WatchUnavailable && strings.Contains(st.Reason, test.want)
			})
			unknown(t, r)
			if n := r.logs.FilterMessageSnippet("stay unknown").Len(); n != 1 {
				t.Errorf("said %d times", n)
			}
		})
	}
}

// unknown: a broker that does not tell is no failure.
func unknown(t *testing.T, r *watchRig) {
	t.Helper()
	if st := r.Status(); st.Software.String() != "unknown" || st.DroppedKnown || st.DroppedSeen != 0 {
		t.Errorf("%+v", st)
	}
	if got := r.metric(); got != "" {
		t.Errorf("metric %q", got)
	}
	for _, e := range r.logs.All() {
		if e.Level > zapcore.InfoLevel {
			t.Errorf("%s: %s", e.Level, e.Message)
		}
	}
}

// The watch stays away while no session is connected, follows the sessions to another broker, and
// counts anew there. Its login is that of the URL.
func TestWatchFollowsTheSessions(t *testing.T) {
	one, other := startMochi(t, nil), startMochi(t, nil)
	other.login = func(username, password string) bool { return username == "u" && password == "p" }
	relay := startRelay(t, one.addr)
	r := newIdleWatch(t, nil, relay.url(), strings.Replace(other.url(), "//", "//u:p@", 1))
	r.target.Store("")
	r.run()
	looked := time.After(20 * r.pauses.look)
	<-looked
	if n := relay.connections(); n != 0 {
		t.Errorf("%d connections although no session is connected", n)
	}
	r.target.Store(relay.url())
	r.await("the first", func(st WatchStatus) bool { return st.State == WatchReading })
	r.target.Store(other.url())
	eventually(t, "a connection to the other", func() bool {
		_, there := other.server.Clients.Get(testWatchID)
		return there
	})
	eventually(t, "none to the first", func() bool {
		_, there := one.server.Clients.Get(testWatchID)
		return !there
	})
	r.await("the other", func(st WatchStatus) bool { return st.State == WatchReading })
	r.target.Store("")
	eventually(t, "none at all", func() bool {
		_, there := other.server.Clients.Get(testWatchID)
		return !there
	})
	for _, m := range []*mochi{one, other} {
		m.set(func() {
			for _, pk := range m.connects {
				if !pk.Connect.Clean || pk.Properties.SessionExpiryInterval != 0 || pk.Connect.WillFlag {
					t.Errorf("CONNECT %+v", pk.Connect)
				}
			}
		})
	}
}

// A broker that answers nothing any more does not hold up the end.
func TestWatchEndsBesideAStalledBroker(t *testing.T) {
	broker := startMosquitto(t, "")
	r := newWatchRig(t, nil, broker.url())
	r.await("a reading", func(st WatchStatus) bool { return st.State == WatchReading })
	broker.signal(syscall.SIGSTOP)
	r.end()
}

// TestWatchCounts reads as: the broker's count as it is told, and by how much it has risen.
func TestWatchCounts(t *testing.T) {
	type reading struct {
		n        string
		retained bool
	}
	for name, test := range map[string]struct {
		readings []reading
		last     uint64
		seen     uint64
	}{
		"as it was when we came":            {[]reading{{"17", true}}, 17, 0},
		"it rises":                          {[]reading{{"17", true}, {"20", false}}, 20, 3},
		"it rises while we are away":        {[]reading{{"17", true}, {"20", true}}, 20, 3},
		"it stays":                          {[]reading{{"17", true}, {"17", true}, {"17", false}}, 17, 0},
		"nothing was there, and it changes": {[]reading{{"20", false}}, 20, 1},
		"nothing was there, a fresh broker": {[]reading{{"0", false}, {"2", false}}, 2, 2},
		"the broker begins anew":            {[]reading{{"17", true}, {"0", false}, {"4", false}}, 4, 4},
		"anew, and drops before we look":    {[]reading{{"17", true}, {"4", true}}, 4, 4},
		"no number":                         {[]reading{{"17", true}, {"many", false}, {"-1", false}, {"", false}}, 17, 0},
		"with spaces":                       {[]reading{{" 17\n", true}}, 17, 0},
	} {
		t.Run(name, func(t *testing.T) {
			r := newIdleWatch(t, nil)
			for _, reading := range test.readings {
				r.take("mqtt://a", topicDropped, []byte(reading.n), reading.retained)
			}
			st := r.Status()
			if !st.DroppedKnown || st.Dropped != test.last || st.DroppedSeen != test.seen || st.LastDrop.IsZero() != (test.seen == 0) {
				t.Errorf("%+v", st)
			}
			if told := r.logs.FilterMessageSnippet("threw messages away").Len() > 0; told != (test.seen > 0) {
				t.Errorf("told %t", told)
			}
		})
	}
	t.Run("another broker has another count", func(t *testing.T) {
		r := newIdleWatch(t, nil)
		r.take("mqtt://a", topicVersion, []byte("mosquitto version 2.0.22"), true)
		r.take("mqtt://a", topicDropped, []byte("17"), true)
		r.take("mqtt://b", topicDropped, []byte("400"), true)
		if st := r.Status(); st.DroppedSeen != 0 || st.Dropped != 400 || st.Software.String() != "unknown" {
			t.Errorf("%+v", st)
		}
	})
	t.Run("EMQX", func(t *testing.T) {
		r := newIdleWatch(t, nil)
		r.take("mqtt://a", "$SYS/brokers/emqx@10.0.0.1/version", []byte("5.8.0"), false)
		if st := r.Status(); st.Software.String() != "EMQX 5.8.0" || st.State != WatchReading {
			t.Errorf("%+v", st)
		}
	})
}
