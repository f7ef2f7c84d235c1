package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"maps"
	mathrand "math/rand/v2"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/mqttpg/bridge/health"
	"github.com/mqttpg/bridge/ingest"
	"github.com/mqttpg/bridge/migrations"
	"github.com/mqttpg/bridge/store"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

func runCommand(ctx context.Context, args []string, std streams) error {
	if _, err := parse(newFlags("run"), args, std); err != nil {
		return err
	}
	cfg, err := loadConfig()
	if err != nil {
		return err
	}
	s, err := newService(ctx, cfg, newLogger(cfg.Log, std.err))
	if err != nil {
		return err
	}
	return s.run(ctx)
}

// newLogger logs to w, one line an event.
func newLogger(cfg logConfig, w io.Writer) *zap.Logger {
	encoding := zap.NewProductionEncoderConfig()
	encoding.TimeKey, encoding.MessageKey = "time", "message"
	encoding.EncodeDuration = zapcore.StringDurationEncoder
	encoding.EncodeTime = func(t time.Time, e zapcore.PrimitiveArrayEncoder) {
		e.AppendString(t.UTC().Format("2006-01-02T15:04:05.000Z"))
	}
	encoder := zapcore.NewJSONEncoder(encoding)
	if cfg.Format.value == "console" {
		encoding.EncodeLevel = zapcore.CapitalLevelEncoder
		encoder = zapcore.NewConsoleEncoder(encoding)
	}
	level, err := zapcore.ParseLevel(cfg.Level.value)
	if err != nil { // loadConfig has let only known ones through
		level = zapcore.InfoLevel
	}
	return zap.New(zapcore.NewCore(encoder, zapcore.Lock(zapcore.AddSync(w)), level))
}

// service is the running bridge: the parts that all sessions share.
type service struct {
	cfg     *config
	log     *zap.Logger
	started time.Time

	registry *prometheus.Registry
	pool     *pgxpool.Pool
	tables   *store.Tables
	counters *store.Counters
	metrics  *store.Metrics
	monitor  *store.Monitor
	leases   *store.Leases
	budget   *ingest.Budget
	mqtt     ingest.Config // but for Deliver
	watch    *ingest.Watch // nil: BRIDGE_MQTT_WATCH is off
	outage   *prometheus.GaugeVec
	lost     lostSessions
	cutOff   cutOffTimes

	// Of work, and of what it waits for.
	trialWorks   bool // a trial connection has succeeded
	hasConnected bool // a session was connected

	mu        sync.Mutex
	state     string
	prepared  bool   // migrations are done, tables were looked at
	trouble   string // why the last attempt to prepare the database did not succeed
	standing  string // why this replica stands back; empty: it does not
	tried     *bool  // whether a standby has reached the broker, for others that miss it; nil: it has not tried
	triedAt   time.Time
	pipelines map[int]*pipeline
	unclean   []error // ends of sessions that may lead to redelivery
}

func newService(ctx context.Context, cfg *config, log *zap.Logger) (*service, error) {
	// The pool does not end with ctx: it is used until the last session is drained.
	pool, err := pgxpool.NewWithConfig(context.WithoutCancel(ctx), cfg.pool)
	if err != nil {
		return nil, fmt.Errorf("make the connection pool: %w", err)
	}
	s := &service{
		cfg: cfg, log: log, started: time.Now(), registry: prometheus.NewRegistry(), pool: pool,
		state: health.Starting, pipelines: map[int]*pipeline{}, cutOff: newCutOffTimes(),
	}
	v, c := buildInfo()
	s.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "bridge_build_info", Help: "Always 1; what was built.",
			ConstLabels: prometheus.Labels{"version": v, "commit": c},
		}, func() float64 { return 1 }))

	s.counters = store.NewCounters(cfg.routes.All())
	s.registry.MustRegister(s.counters)
	s.metrics = store.NewMetrics(s.registry)
	s.tables = store.NewTables(pool, cfg.store(log), cfg.routes)
	s.registry.MustRegister(s.tables)
	s.monitor = store.NewMonitor(pool, cfg.Schema.value, s.metrics)
	s.monitor.Recovered = func() {
		for _, p := range s.owned() {
			p.writer.Retry()
		}
	}
	subscriptions := cfg.ingest(log)
	s.leases = store.NewLeases(pool, store.LeaseConfig{
		Schema: cfg.Schema.value, ShareName: cfg.MQTT.ShareName.value, ClientIDPrefix: cfg.clientIDPrefix(),
		Sessions: cfg.MQTT.Sessions.value, Subscriptions: subscriptions.Subscriptions(), Owner: rand.Text(),
		ReachesBroker: s.reachesBroker, Log: log, Metrics: s.metrics,
	})
	s.budget = ingest.NewBudget(int64(cfg.MaxInflightBytes.value))
	s.mqtt = cfg.ingest(log)
	s.mqtt.Budget, s.mqtt.Metrics = s.budget, ingest.NewMetrics(s.registry)
	s.outage = prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "bridge_outage_tolerance_seconds",
		Help: "How long a database outage the broker's queue survives at the present rate, +Inf without a limit; absent while unknown.",
	}, nil)
	s.registry.MustRegister(s.outage)
	if cfg.MQTT.Watch.value == "on" {
		s.watch = cfg.watch(log, s.connectedTo)
		s.registry.MustRegister(s.watch)
	}
	return s, nil
}

// store is the configuration of package store.
func (cfg *config) store(log *zap.Logger) store.Config {
	return store.Config{
		Schema: cfg.Schema.value, MaxMessages: cfg.Batch.MaxMessages.value, MaxBytes: cfg.Batch.MaxBytes.value,
		Linger: cfg.Batch.Linger.value, Window: cfg.MQTT.ReceiveMaximum.value, ParkAfter: cfg.ParkAfter.value, Log: log,
	}
}

// batchesInFlight is how many batches of messages a session reads ahead: while one is committed the next
// fills up and is sorted out. A third one cost 5 MB and saved nothing.
const batchesInFlight = 2

// mostAhead is how many messages of a session are read and not yet acknowledged at most where rows need the ledger:
// with the acknowledgements that are on their way, no more than it recognises.
const mostAhead = 16_000

// maxInFlight is how many QoS 1 and 2 messages of a session are read and not yet acknowledged at most: one more than
// a broker may send, so that it is seen whether one exceeds Receive Maximum, and no more than the ledger recognises.
func (cfg *config) maxInFlight() int {
	most := store.LedgerWindow
	if cfg.routes.NeedLedger() {
		most = mostAhead
	}
	return min(max(cfg.MQTT.ReceiveMaximum.value+1, batchesInFlight*cfg.Batch.MaxMessages.value), most)
}

// ingest is the configuration of package ingest that the environment gives.
func (cfg *config) ingest(log *zap.Logger) ingest.Config {
	m := &cfg.MQTT
	shareName := m.ShareName.value
	if m.Mode.value == "exclusive" {
		shareName = "" // plain subscriptions
	}
	return ingest.Config{
		URLs: m.URLs.value, Username: cfg.username, Password: cfg.password,
		CAFile: m.CAFile.value, CertFile: m.CertFile.value, KeyFile: m.KeyFile.value, ServerName: m.ServerName.value,
		ShareName: shareName, Filters: cfg.routes.Filters(), QoS: byte(m.QoS.value),
		KeepAlive: m.Keepalive.value, SessionExpiry: m.SessionExpiry.value,
		ReceiveMaximum: uint16(m.ReceiveMaximum.value), MaxInFlight: cfg.maxInFlight(), FewUnread: cfg.routes.NeedLedger(),
		MaxMessageBytes: m.MaxMessageBytes.value, CommonSessions: m.CommonSessions.value == "on",
		StatusTopic: m.StatusTopic.value, Behind: cfg.routes.Behind, Log: log,
	}
}

// run serves until ctx is done, and then drains. The HTTP server is the first to come and the last to
// leave. An end that may lead to redelivery is an error.
func (s *service) run(ctx context.Context) error {
	v, _ := buildInfo()
	s.log.Info("bridge starts", zap.String("version", v), zap.Any("configuration", s.cfg.effective()))
	for _, route := range s.cfg.routes.All() {
		s.log.Info("route", zap.String("route", route.Name), zap.Strings("filters", route.Filters), zap.String("table", tableName(&route.Table)))
	}
	for _, warning := range s.cfg.warnings {
		s.log.Warn("configuration", zap.String("warning", warning))
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", s.cfg.HTTP.Addr.value)
	if err != nil {
		s.pool.Close()
		return fmt.Errorf("listen on BRIDGE_HTTP_ADDR: %w", err)
	}
	s.log.Info("http server listens", zap.Stringer("address", listener.Addr()))

	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s.serve(ctx, stop, listener)
	}()
	select {
	case <-ended:
	case <-s.overdue(ctx):
		// The rest waits for a database or a broker that does not answer, and ends with the process.
		return errors.New("shutdown took longer than BRIDGE_SHUTDOWN_TIMEOUT: what is not committed stays with the broker")
	}
	err = context.Cause(ctx)
	if errors.Is(err, context.Canceled) {
		err = nil // the signal
	}
	err = errors.Join(append(s.unclean, err)...)
	s.log.Info("bridge has stopped", zap.Bool("clean", err == nil))
	return err
}

// serve does everything until ctx is done and the sessions are drained. It calls stop when it cannot
// go on.
func (s *service) serve(ctx context.Context, stop context.CancelCauseFunc, listener net.Listener) {
	beside, leave := context.WithCancel(context.WithoutCancel(ctx))
	var tasks sync.WaitGroup
	tasks.Go(func() {
		if err := s.healthServer().Serve(beside, listener); err != nil {
			stop(err) // nobody could tell how the bridge is
		}
	})
	tasks.Go(func() { s.monitor.Run(beside) })
	s.work(ctx, beside)
	leave()
	tasks.Wait()
	s.pool.Close()
}

// overdue returns a channel that closes when the time to drain is over.
func (s *service) overdue(ctx context.Context) <-chan struct{} {
	over := make(chan struct{})
	context.AfterFunc(ctx, func() { time.AfterFunc(s.cfg.ShutdownTimeout.value, func() { close(over) }) })
	return over
}

// drainTime is the part of BRIDGE_SHUTDOWN_TIMEOUT that a session may take to drain; the rest is for
// telling the database that the session is free.
func (s *service) drainTime() time.Duration { return s.cfg.ShutdownTimeout.value * 4 / 5 }

// work prepares the database, and then holds sessions until ctx is done and they are drained. beside
// ends later.
func (s *service) work(ctx, beside context.Context) {
	noted := context.AfterFunc(ctx, func() {
		s.setState(health.Stopping)
		s.log.Info("shutting down: sessions are drained", zap.Duration("at_most", s.cfg.ShutdownTimeout.value))
	})
	defer noted()
	if !s.prepare(ctx) {
		return
	}
	s.monitor.Ping(ctx) // so that the version shown is that of now
	s.log.Info("database is prepared")
	s.setPrepared()

	beside, leave := context.WithCancel(beside)
	var tasks sync.WaitGroup
	tasks.Go(func() { s.tables.Maintain(beside) })
	tasks.Go(func() { s.measure(beside) })
	if s.watch != nil {
		tasks.Go(func() { s.watch.Run(beside) })
	}
	for began, reason := time.Now(), ""; s.standBack(ctx, began, reason); {
		if reason = s.takePart(ctx); reason == "" {
			break
		}
	}
	leave()
	tasks.Wait()
}

// The pauses between attempts to prepare the database.
const leastPrepareWait, mostPrepareWait = time.Second, 15 * time.Second

// prepare applies migrations and makes the tables. It tries until it succeeds, because a database
// that comes up after the bridge is the normal case in a cluster; false: ctx ended first.
func (s *service) prepare(ctx context.Context) bool {
	for wait := leastPrepareWait; ; wait = min(2*wait, mostPrepareWait) {
		err := s.prepareOnce(ctx)
		if err == nil {
			return true
		}
		if ctx.Err() != nil {
			return false
		}
		s.log.Warn("database is not prepared yet, trying again", zap.Error(err), zap.Duration("after", wait))
		s.mu.Lock()
		s.trouble = err.Error()
		s.mu.Unlock()
		pause := time.NewTimer(wait/2 + mathrand.N(wait/2)) //nolint:gosec // replicas must not knock in step; nothing is secret
		select {
		case <-ctx.Done():
			pause.Stop()
			return false
		case <-pause.C:
		}
	}
}

func (s *service) prepareOnce(ctx context.Context) error {
	if err := s.migrate(ctx); err != nil {
		return err
	}
	if err := s.tables.Ensure(ctx); err != nil {
		return fmt.Errorf("prepare tables: %w", err)
	}
	return nil
}

const (
	// standBackPause is between two looks whether a replica still has to stand back. It tries less and less often whether it
	// could do the work, at least every standBackMost.
	standBackPause, standBackMost = 2 * time.Second, 15 * time.Second
	// countTimeout is how long a look may take: a database that hangs must not stop them.
	countTimeout = 5 * time.Second
	// tablesWait is how long a replica stands back for the tables of its routes: four times as long as the CronJob of deploy/k8s
	// needs that makes them, and longer than its rollouts wait for a pod. After that a table is broken, and one route must not
	// keep a replica away for ever.
	tablesWait = 20 * time.Minute
)

// standBack waits as long as other replicas do the work and this one could not, for want of the broker or of its tables: a
// release with a wrong address must not take the sessions of one that is well. Tables count until tablesWait after began;
// reason is why sessions were given up before, empty at the start. False: ctx has ended.
func (s *service) standBack(ctx context.Context, began time.Time, reason string) bool {
	told := reason
	var empty time.Time // since when there are no others
	var tries backoffs  // a broker that refuses the password may lock the account, which is that of the others, too
	for ctx.Err() == nil {
		others, err := s.others(ctx)
		empty = since(empty, err == nil && others == 0)
		switch {
		case err != nil: // nobody does any work without the database
		case others == 0: // there is nothing to be careful of
			if told == "" || over(empty, s.cutOff.empty) {
				reason = ""
			}
		case tries.due(standBackPause, standBackMost):
			if reason = s.unfit(ctx, time.Since(began) < tablesWait); reason != "" {
				tries.failed()
			}
		}
		s.setStanding(reason)
		if reason == "" {
			if told != "" && ctx.Err() == nil {
				s.log.Info("standing back no longer", zap.Int("others", others))
			}
			return ctx.Err() == nil
		}
		if reason != told {
			s.log.Warn("standing back: other replicas do the work, and this one could not", zap.String("reason", reason), zap.Int("others", others))
			told = reason
		}
		pause := time.NewTimer(standBackPause)
		select {
		case <-ctx.Done():
		case <-pause.C:
		}
		pause.Stop()
	}
	return false
}

// others counts the other replicas while this one has no row of its own.
func (s *service) others(ctx context.Context) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, countTimeout)
	defer cancel()
	return store.CountReplicas(ctx, s.pool, s.cfg.Schema.value, s.cfg.MQTT.ShareName.value)
}

// unfit says why this replica could not do the work of a session; empty: it could.
func (s *service) unfit(ctx context.Context, tables bool) string {
	if tables && s.cfg.Migrate.value == "off" { // somebody else makes them, and may not have done so yet
		if failing := s.tables.Failing(); len(failing) > 0 {
			route := slices.Min(slices.Collect(maps.Keys(failing)))
			return "route " + route + ": waits for bridge migrate --tables, which the owner of the tables runs: " + failing[route]
		}
	}
	if s.cfg.MQTT.Trial.value == "on" {
		if err := s.cfg.reachBroker(ctx); err != nil {
			return brokerReason(err)
		}
		s.trialWorks = true
	}
	return ""
}

func brokerReason(err error) string { return "broker: " + err.Error() }

func (s *service) setStanding(reason string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.standing = reason
}

// migrate applies the migrations, or with BRIDGE_MIGRATE=off makes sure that somebody else has.
func (s *service) migrate(ctx context.Context) error {
	conn, err := s.pool.Acquire(ctx)
	if err != nil {
		return s.cfg.connectError(err)
	}
	defer conn.Release()
	if err := checkEncoding(conn.Conn()); err != nil {
		return err
	}
	if s.cfg.Migrate.value == "on" {
		return migrations.Apply(ctx, conn.Conn(), s.cfg.Schema.value, func(m migrations.Migration) {
			s.log.Info("applying migration", zap.Int("version", m.Version), zap.String("name", m.Name))
		})
	}
	all, err := migrations.List(ctx, conn.Conn(), s.cfg.Schema.value)
	if err != nil {
		return err
	}
	for _, m := range all {
		if !m.Applied {
			return fmt.Errorf("migration %d is pending and BRIDGE_MIGRATE is off: run bridge migrate", m.Version)
		}
	}
	return nil
}

// hold does the work of one leased session until ctx ends.
func (s *service) hold(ctx context.Context, lease *store.Lease) {
	log := s.log.With(zap.Int("session", lease.Index), zap.String("client_id", lease.ClientID))
	p, err := s.newPipeline(lease, log)
	if err != nil { // the configuration was checked: this is a defect, and must be seen
		log.Error("session cannot be made", zap.Error(err))
		return
	}
	s.mu.Lock()
	s.pipelines[lease.Index] = p
	s.mu.Unlock()

	err = p.run(ctx, s.drainTime())
	if err == nil && lease.Retiring && ctx.Err() == nil {
		if err = s.leases.Retired(context.WithoutCancel(ctx), lease); err == nil {
			log.Info("session is retired: the broker has forgotten it")
		}
	}

	s.mu.Lock()
	delete(s.pipelines, lease.Index)
	s.mu.Unlock()
	if err != nil {
		log.Warn("session ended without being drained: the broker delivers again what is not acknowledged", zap.Error(err))
		s.addUnclean(fmt.Errorf("session %s: %w", lease.ClientID, err))
	}
}

func (s *service) setState(state string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state = state
}

// setPrepared makes a starting service a running one, unless it is already being stopped.
func (s *service) setPrepared() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.prepared, s.trouble = true, ""
	if s.state == health.Starting {
		s.state = health.Running
	}
}

// addUnclean notes what went wrong while the service is being stopped. Before that, everything is
// mended by carrying on.
func (s *service) addUnclean(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state == health.Stopping {
		s.unclean = append(s.unclean, err)
	}
}
