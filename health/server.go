// Package health tells the truth about the bridge over HTTP: /livez, /readyz, /health, /metrics
// and a status page on /.
//
// Liveness is about the process alone. A broker or a database that is away makes the process
// unready, never dead: a restart mends neither, and would cost the sessions and all that is in
// flight.
package health

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"runtime"
	"runtime/metrics"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.uber.org/zap"
)

// Server answers the questions. All fields are required; the functions are called once per
// request, from any goroutine, and must neither block nor ask the network.
type Server struct {
	Loops    func() []Loop // the process's own loops, for /livez
	Report   func() Report // the facts, for /readyz and /health
	Gatherer prometheus.Gatherer
	Version  string
	Started  time.Time
	Log      *zap.Logger
}

// Loop is one of the process's own loops.
type Loop struct {
	Name string
	// LastTurn is when the loop last came round, whether or not that turn achieved anything.
	LastTurn time.Time
}

// loopStallsAfter is how old a loop's last turn may be before the process counts as hung. Every
// loop waits with a timeout far below it, so only a deadlock or a bug gets there; a shorter limit
// would kill a process that is merely starved of CPU, and lose its warm sessions for nothing.
const loopStallsAfter = 2 * time.Minute

// shutdownGrace is how long requests under way may take once Serve ends.
const shutdownGrace = 2 * time.Second

// Serve answers requests on l until ctx is done, lets those under way finish, and closes l. It
// returns nil after ctx, and otherwise why it could not go on.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	server := &http.Server{
		Handler:           s.Handler(),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          zap.NewStdLog(s.Log),
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	select {
	case err := <-served:
		return fmt.Errorf("serve http: %w", err)
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownGrace)
	defer cancel()
	if err := server.Shutdown(grace); err != nil {
		_ = server.Close() // whoever still holds a connection has had its grace
	}
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve http: %w", err)
	}
	return nil
}

// Handler returns the handler of all paths. It answers GET and HEAD and nothing else.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", s.livez)
	mux.HandleFunc("GET /readyz", s.readyz)
	mux.HandleFunc("GET /health", s.health)
	mux.Handle("GET /metrics", promhttp.HandlerFor(s.Gatherer, promhttp.HandlerOpts{ErrorLog: zap.NewStdLog(s.Log)}))
	mux.HandleFunc("GET /{$}", statusPage)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-store") // an answer of a moment ago is a lie
		w.Header().Set("X-Content-Type-Options", "nosniff")
		mux.ServeHTTP(w, r)
	})
}

func (s *Server) livez(w http.ResponseWriter, r *http.Request) {
	loops := s.Loops()
	checks := make([]check, 0, len(loops))
	for _, loop := range loops {
		c := check{name: "loop " + loop.Name}
		if age := time.Since(loop.LastTurn); age > loopStallsAfter {
			c.reason = fmt.Sprintf("has not turned for %s", age.Round(time.Second))
		}
		checks = append(checks, c)
	}
	answer(w, r, "alive", checks)
}

func (s *Server) readyz(w http.ResponseWriter, r *http.Request) {
	report := s.Report()
	word := "ready"
	if len(report.Broker) == 0 {
		word = "ready (hot standby: this process owns no session)"
	}
	answer(w, r, word, report.checks())
}

// answer writes 200 and word when every check holds, and otherwise 503 and a line per reason; all
// checks with ?verbose.
func answer(w http.ResponseWriter, r *http.Request, word string, checks []check) {
	code := http.StatusOK
	var failed, all strings.Builder
	for _, c := range checks {
		if c.reason == "" {
			fmt.Fprintf(&all, "[+] %s: ok\n", c.name)
			continue
		}
		code = http.StatusServiceUnavailable
		line := c.name + ": " + strings.Join(strings.Fields(c.reason), " ") // one line each, whatever an error's text holds
		fmt.Fprintf(&all, "[-] %s\n", line)
		fmt.Fprintln(&failed, line)
	}
	text := failed.String()
	if r.URL.Query().Has("verbose") {
		text = all.String()
	}
	if code == http.StatusOK {
		text += word + "\n"
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(code)
	_, _ = w.Write([]byte(text))
}

// health writes the document with 200 whatever it says: the caller asked for the facts, and got
// them.
func (s *Server) health(w http.ResponseWriter, _ *http.Request) {
	report := s.Report()
	now := time.Now()
	report.judge(now)
	report.Process.Version = s.Version
	report.Process.UptimeS = now.Sub(s.Started).Truncate(time.Millisecond).Seconds()
	report.Process.Goroutines = runtime.NumGoroutine()
	report.Process.Memory.TotalBytes, report.Process.Memory.HeapBytes = memory()
	if report.Broker == nil {
		report.Broker = []Session{}
	}
	if report.Delivery.LostSessions == nil {
		report.Delivery.LostSessions = []LostSession{}
	}
	if report.Delivery.Findings == nil {
		report.Delivery.Findings = []Finding{}
	}
	if report.Routes == nil {
		report.Routes = map[string]Route{}
	}
	text, err := json.MarshalIndent(report, "", "  ")
	if err != nil { // an infinite number in a fact
		http.Error(w, "encode report: "+err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(append(text, '\n'))
}

// memory reads the runtime's own figures, which unlike runtime.ReadMemStats stops no goroutine.
func memory() (total, heap uint64) {
	samples := []metrics.Sample{{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/objects:bytes"}}
	metrics.Read(samples)
	return samples[0].Value.Uint64(), samples[1].Value.Uint64()
}

func sortedNames[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
