package health

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"go.uber.org/zap"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// healthy is a report with nothing to complain about.
func healthy() Report {
	now := time.Now()
	rtt, ping := 0.42, 1.5
	return Report{
		Broker: []Session{{
			State: "subscribed", URL: "mqtt://broker:1883", ClientID: "bridge-0",
			ConnectedSince: Instant{now.Add(-time.Hour)}, SessionPresent: true, KeepAliveEffectiveS: 15,
			LastPingReq: Instant{now}, LastPingResp: Instant{now}, RTTMS: &rtt, LastReceived: Instant{now},
			Subscriptions: []Subscription{{Filter: "$share/bridge/#", ReasonCode: 1, OK: true}},
		}},
		Delivery: Delivery{ // what is only worth knowing degrades nothing
			BrokerVersion: "mosquitto version 2.0.11", Watch: Watch{State: "reading"},
			LostSessions: []LostSession{{ClientID: "bridge-0", Times: 1, Last: Instant{now.Add(-time.Hour)}}},
			Findings:     []Finding{{Severity: "warning", What: "old"}},
		},
		Database: Database{State: "up", PingMS: &ping, Prepared: true, MigrationVersion: 1},
		Routes:   map[string]Route{"telemetry": {Received: 5, Written: 3, Duplicate: 1, InFlight: 1}},
		Process:  Process{State: Running},
	}
}

func serverOf(report Report) *Server {
	return &Server{
		Loops:    func() []Loop { return []Loop{{Name: "writer bridge-0", LastTurn: time.Now()}} },
		Report:   func() Report { return report },
		Gatherer: prometheus.NewRegistry(),
		Version:  "v1.2.3",
		Started:  time.Now().Add(-time.Minute),
		Log:      zap.NewNop(),
	}
}

func get(t *testing.T, s *Server, method, path string) *httptest.ResponseRecorder {
	t.Helper()
	w := httptest.NewRecorder()
	s.Handler().ServeHTTP(w, httptest.NewRequest(method, path, nil))
	return w
}

func TestLivezIsAboutLoopsOnly(t *testing.T) {
	broken := healthy()
	broken.Database = Database{State: "down", LastError: "connection refused"}
	broken.Broker[0].State = "backoff"
	s := serverOf(broken)
	if w := get(t, s, "GET", "/livez"); w.Code != 200 || w.Body.String() != "alive\n" {
		t.Errorf("broker and database away: %d %q, want 200 alive", w.Code, w.Body)
	}
	s.Loops = func() []Loop {
		return []Loop{{"leases", time.Now()}, {"writer bridge-0", time.Now().Add(-3 * time.Minute)}}
	}
	w := get(t, s, "GET", "/livez")
	if w.Code != 503 || w.Body.String() != "loop writer bridge-0: has not turned for 3m0s\n" {
		t.Errorf("a hung loop: %d %q", w.Code, w.Body)
	}
	w = get(t, s, "GET", "/livez?verbose")
	if want := "[+] loop leases: ok\n[-] loop writer bridge-0: has not turned for 3m0s\n"; w.Body.String() != want {
		t.Errorf("verbose: %q, want %q", w.Body, want)
	}
}

func TestReadyz(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*Report)
		code   int
		body   string
	}{
		{"all well", func(*Report) {}, 200, "ready\n"},
		{"hot standby", func(r *Report) { r.Broker = nil }, 200, "ready (hot standby: this process owns no session)\n"},
		{"a failing route does not make it unready", func(r *Report) { r.Routes["telemetry"] = Route{Failing: "no table"} }, 200, "ready\n"},
		{
			"database not asked yet", func(r *Report) { r.Database = Database{State: "unknown", Prepared: true} }, 503,
			"database: has not answered yet\n",
		},
		{
			"database down at the start", func(r *Report) { r.Database = Database{State: "down", LastError: "connect:\n\trefused"} }, 503,
			"database: connect: refused\nmigrations: not done yet\n",
		},
		{
			"migrations fail", func(r *Report) { r.Database.Prepared = false; r.Database.LastError = "permission denied" }, 503,
			"migrations: not done yet: permission denied\n",
		},
		{"before the first look for sessions", func(r *Report) { r.Broker, r.Process.State = nil, Starting }, 503, "process: has not looked for sessions yet\n"},
		{"shutting down", func(r *Report) { r.Process.State = Stopping }, 503, "process: shutting down\n"},
		{
			"broker away", func(r *Report) { r.Broker[0].State, r.Broker[0].LastReason = "backoff", "connection refused" }, 503,
			"broker bridge-0: backoff: connection refused\n",
		},
		{"still connecting", func(r *Report) { r.Broker[0].State = "connecting" }, 503, "broker bridge-0: connecting\n"},
		{"subscription refused", func(r *Report) {
			r.Broker[0].State = "connected"
			r.Broker[0].Subscriptions[0] = Subscription{Filter: "secret/#", ReasonCode: 0x87, Reason: "not authorized"}
		}, 503, "broker bridge-0: subscription to secret/#: not authorized\n"},
		{
			"a session that was lost does not make it unready", func(r *Report) {
				r.Delivery.LostSessions = []LostSession{{ClientID: "bridge-0", Times: 1, Last: Instant{time.Now()}}}
			}, 200, "ready\n",
		},
		{
			"one of two sessions", func(r *Report) { r.Broker = append(r.Broker, Session{ClientID: "bridge-1", State: "closed"}) }, 503,
			"broker bridge-1: closed\n",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := healthy()
			c.change(&r)
			w := get(t, serverOf(r), "GET", "/readyz")
			if w.Code != c.code || w.Body.String() != c.body {
				t.Errorf("got %d %q, want %d %q", w.Code, w.Body, c.code, c.body)
			}
		})
	}
	w := get(t, serverOf(healthy()), "GET", "/readyz?verbose")
	want := "[+] process: ok\n[+] database: ok\n[+] migrations: ok\n[+] broker bridge-0: ok\nready\n"
	if w.Body.String() != want {
		t.Errorf("verbose: %q, want %q", w.Body, want)
	}
}

func TestHealthStatus(t *testing.T) {
	recent := time.Now().Add(-14 * time.Minute)
	for _, c := range []struct {
		name    string
		change  func(*Report)
		status  Status
		reasons []string
	}{
		{"all well", func(*Report) {}, OK, []string{}},
		{"hot standby", func(r *Report) { r.Broker = nil }, OK, []string{}},
		{"a table with a warning", func(r *Report) { r.Routes["a"] = Route{Warning: "no unique index"} }, OK, []string{}},
		{"keep alive off and long silent", func(r *Report) {
			r.Broker[0].KeepAliveEffectiveS = 0
			r.Broker[0].LastReceived = Instant{time.Now().Add(-time.Hour)}
			r.Broker[0].LastPingResp = Instant{}
		}, OK, []string{}},
		{"silent broker", func(r *Report) {
			r.Broker[0].LastReceived = Instant{time.Now().Add(-40 * time.Second)}
			r.Broker[0].LastPingResp = Instant{time.Now().Add(-30 * time.Second)}
		}, Degraded, []string{"broker bridge-0: silent for 30s, with a keep alive of 15s"}},
		{"quiet topic, but the broker answers pings", func(r *Report) {
			r.Broker[0].LastReceived = Instant{time.Now().Add(-40 * time.Second)}
		}, OK, []string{}},
		{
			"old delivery and full budget", func(r *Report) { r.Broker[0].OldestUnacknowledgedS = 61; r.Broker[0].Paused = true }, Degraded,
			[]string{
				"broker bridge-0: the oldest message has waited 61s for its commit",
				"broker bridge-0: reading is paused: BRIDGE_MAX_INFLIGHT_BYTES is used up",
			},
		},
		{
			"everything is drained", func(r *Report) { r.Broker, r.Share = nil, Share{Name: "plant", Replicas: 2, Drained: []int{0}} }, Degraded,
			[]string{"share plant: every session is out of use, so nobody receives messages; bridge sessions drain --undo puts one back"},
		},
		{
			"contested", func(r *Report) { r.Broker[0].Contested = true }, Degraded,
			[]string{"broker bridge-0: probably another client uses client id bridge-0 (two releases with one share name, or a stuck old replica)"},
		},
		{
			"failing route", func(r *Report) { r.Routes["a"] = Route{Failing: "permission denied"} }, Degraded,
			[]string{"route a: permission denied"},
		},
		{"the broker threw messages away", func(r *Report) {
			r.Delivery.MessagesDroppedSeen, r.Delivery.LastDrop = 85, Instant{recent}
		}, Degraded, []string{"broker: threw messages away, at least 85 while the bridge looked on, the last at " + recent.UTC().Format(time.RFC3339)}},
		{"the broker threw messages away, long ago", func(r *Report) {
			r.Delivery.MessagesDroppedSeen, r.Delivery.LastDrop = 85, Instant{time.Now().Add(-16 * time.Minute)}
		}, OK, []string{}},
		{"the broker lost a session", func(r *Report) {
			r.Delivery.LostSessions = []LostSession{
				{ClientID: "bridge-0", Times: 2, Last: Instant{recent}},
				{ClientID: "bridge-1", Times: 1, Last: Instant{time.Now().Add(-16 * time.Minute)}},
			}
		}, Degraded, []string{"broker bridge-0: the broker had lost the session and what it held for it, found at " + recent.UTC().Format(time.RFC3339)}},
		{"database down", func(r *Report) { r.Database.State, r.Database.LastError = "down", "refused" }, Down, []string{"database: refused"}},
		{"commits are retried", func(r *Report) { r.Database.LastError = "disk full" }, Degraded, []string{"database: disk full"}},
		{"no session connected", func(r *Report) { r.Broker[0].State = "backoff" }, Down, []string{"broker bridge-0: backoff"}},
		{
			"one of two sessions connected", func(r *Report) { r.Broker = append(r.Broker, Session{ClientID: "bridge-1", State: "backoff"}) },
			Degraded,
			[]string{"broker bridge-1: backoff"},
		},
		{"stopping", func(r *Report) { r.Process.State = Stopping }, Degraded, []string{"process: shutting down"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := healthy()
			c.change(&r)
			w := get(t, serverOf(r), "GET", "/health")
			var got Report
			if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil {
				t.Fatal(err)
			}
			if w.Code != 200 || got.Status != c.status || !slices.Equal(got.Reasons, c.reasons) {
				t.Errorf("got %d %s %q, want 200 %s %q", w.Code, got.Status, got.Reasons, c.status, c.reasons)
			}
		})
	}
}

// TestHealthDocument fixes the names that dashboards and scripts read.
func TestHealthDocument(t *testing.T) {
	w := get(t, serverOf(healthy()), "GET", "/health")
	var doc map[string]any
	if err := json.Unmarshal(w.Body.Bytes(), &doc); err != nil {
		t.Fatal(err)
	}
	names := func(v any) []string { return sortedNames(v.(map[string]any)) }
	session := doc["broker"].([]any)[0].(map[string]any)
	for _, c := range []struct {
		of   string
		got  []string
		want string
	}{
		{"document", names(doc), "broker database delivery process reasons routes share status"},
		{"session", names(session), "client_id connected_since contested granted in_flight keep_alive_effective_s last_pingreq last_pingresp " +
			"last_reason last_reason_code last_received oldest_unacknowledged_s paused ping_outstanding receive_maximum reconnects rtt_ms " +
			"session_present state subscriptions url"},
		{"granted", names(session["granted"]), "broker_receive_maximum maximum_qos retain_available session_expiry_s " +
			"shared_subscription_available subscription_identifiers_available wildcard_subscription_available"},
		{"share", names(doc["share"]), "drained in_use name replicas retiring"},
		{"delivery", names(doc["delivery"]), "broker_version findings last_drop lost_sessions messages_dropped messages_dropped_seen outage watch"},
		{"watch", names(doc["delivery"].(map[string]any)["watch"]), "client_id reason state"},
		{"outage", names(doc["delivery"].(map[string]any)["outage"]), "queue_limit received_per_s seconds text"},
		{"finding", names(doc["delivery"].(map[string]any)["findings"].([]any)[0]), "consequence remedy severity what"},
		{"lost session", names(doc["delivery"].(map[string]any)["lost_sessions"].([]any)[0]), "client_id last times"},
		{"database", names(doc["database"]), "last_commit last_error migration_version ping_ms pool prepared state"},
		{"pool", names(doc["database"].(map[string]any)["pool"]), "idle in_use max total"},
		{"route", names(doc["routes"].(map[string]any)["telemetry"]), "dead_lettered duplicate failing in_flight parked parked_waiting received replayed skipped warning written"},
		{"process", names(doc["process"]), "goroutines memory stands_back state uptime_s version"},
	} {
		if got := strings.Join(c.got, " "); got != c.want {
			t.Errorf("%s has %s\nwant %s", c.of, got, c.want)
		}
	}
	if at := session["connected_since"].(string); !strings.HasSuffix(at, "Z") {
		t.Errorf("connected_since %q is not UTC", at)
	}
	if doc["database"].(map[string]any)["last_commit"] != nil {
		t.Error("a commit that never was has a time")
	}
	process := doc["process"].(map[string]any)
	if process["version"] != "v1.2.3" || process["uptime_s"].(float64) < 60 || process["goroutines"].(float64) < 1 {
		t.Errorf("process %v", process)
	}
	if m := process["memory"].(map[string]any); m["total_bytes"].(float64) < 1 || m["heap_bytes"].(float64) < 1 {
		t.Errorf("memory %v", m)
	}
	empty := get(t, serverOf(Report{}), "GET", "/health").Body.String()
	if strings.Contains(empty, `"broker": null`) || strings.Contains(empty, `"routes": null`) || strings.Contains(empty, `"findings": null`) || strings.Contains(empty, `"lost_sessions": null`) {
		t.Errorf("lists are null: %s", empty)
	}
	impossible := healthy()
	impossible.Broker[0].OldestUnacknowledgedS = math.Inf(1)
	if w := get(t, serverOf(impossible), "GET", "/health"); w.Code != 500 {
		t.Errorf("a report that cannot be encoded answers %d", w.Code)
	}
}

func TestMethodsAndPaths(t *testing.T) {
	s := serverOf(healthy())
	for _, path := range []string{"/livez", "/readyz", "/health", "/metrics", "/"} {
		if w := get(t, s, "HEAD", path); w.Code != 200 {
			t.Errorf("HEAD %s: %d", path, w.Code)
		}
		for _, method := range []string{"POST", "PUT", "DELETE", "OPTIONS"} {
			w := get(t, s, method, path)
			if w.Code != 405 || w.Header().Get("Allow") != "GET, HEAD" {
				t.Errorf("%s %s: %d, Allow %q", method, path, w.Code, w.Header().Get("Allow"))
			}
		}
		if w := get(t, s, "GET", path); w.Header().Get("Cache-Control") != "no-store" {
			t.Errorf("%s may be cached", path)
		}
	}
	if w := get(t, s, "GET", "/nothing"); w.Code != 404 {
		t.Errorf("/nothing: %d", w.Code)
	}
}

func TestMetrics(t *testing.T) {
	s := serverOf(healthy())
	reg := prometheus.NewRegistry()
	up := prometheus.NewGauge(prometheus.GaugeOpts{Name: "bridge_database_up", Help: "."})
	up.Set(1)
	reg.MustRegister(up)
	s.Gatherer = reg
	if w := get(t, s, "GET", "/metrics"); !strings.Contains(w.Body.String(), "bridge_database_up 1") {
		t.Errorf("metrics: %s", w.Body)
	}
}

// TestPage looks for what would make the page depend on other hosts, and for names it reads that
// the document does not have.
func TestPage(t *testing.T) {
	w := get(t, serverOf(healthy()), "GET", "/")
	text := w.Body.String()
	for _, s := range []string{"http://", "https://", " src=", "innerHTML", "@import"} {
		if strings.Contains(text, s) {
			t.Errorf("the page holds %q", s)
		}
	}
	policy := w.Header().Get("Content-Security-Policy")
	if !strings.Contains(policy, "default-src 'none'") || strings.Count(policy, "'sha256-") != 2 {
		t.Errorf("policy %q", policy)
	}
	for of, typ := range map[string]reflect.Type{
		"s.": reflect.TypeFor[Session](), "d.": reflect.TypeFor[Database](), "d.pool.": reflect.TypeFor[Pool](),
		"p.": reflect.TypeFor[Process](), "p.memory.": reflect.TypeFor[Memory](), "r.": reflect.TypeFor[Report](),
	} {
		have := map[string]bool{}
		for field := range typ.Fields() {
			have[field.Tag.Get("json")] = true
		}
		for _, name := range usesOf(text, of) {
			if !have[name] {
				t.Errorf("the page reads %s%s, which the document does not have", of, name)
			}
		}
	}
}

// usesOf lists the property names that stand directly behind the variable in the script.
func usesOf(text, variable string) []string {
	var names []string
	for i := 0; ; {
		j := strings.Index(text[i:], variable)
		if j < 0 {
			return names
		}
		start := i + j
		i = start + len(variable)
		if c := text[start-1]; c == '.' || c == '_' || c >= 'a' && c <= 'z' || c >= '0' && c <= '9' {
			continue
		}
		end := i
		for text[end] == '_' || text[end] >= 'a' && text[end] <= 'z' {
			end++
		}
		if end > i && text[end] != '(' {
			names = append(names, text[i:end])
		}
	}
}

func TestServe(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := serverOf(healthy())
	entered, release := make(chan struct{}), make(chan struct{})
	s.Report = func() Report { close(entered); <-release; return healthy() }
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, l) }()

	type result struct {
		body string
		err  error
	}
	asked := make(chan result, 1)
	go func() {
		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		response, err := client.Get("http://" + l.Addr().String() + "/readyz")
		if err != nil {
			asked <- result{err: err}
			return
		}
		defer func() { _ = response.Body.Close() }()
		body, err := io.ReadAll(response.Body)
		asked <- result{string(body), err}
	}()
	<-entered
	cancel() // a request under way is still answered
	close(release)
	if r := <-asked; r.err != nil || r.body != "ready\n" {
		t.Errorf("request during shutdown: %q, %v", r.body, r.err)
	}
	if err := <-served; err != nil {
		t.Errorf("Serve after its context: %v", err)
	}
	if _, err := net.Dial("tcp", l.Addr().String()); err == nil {
		t.Error("the listener is still open")
	}
	if err := s.Serve(context.Background(), l); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Serve on a closed listener: %v, want net.ErrClosed", err)
	}
}
