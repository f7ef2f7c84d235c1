package ingest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/eclipse/paho.golang/packets"
	"github.com/eclipse/paho.golang/paho"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
)

// The topics below $SYS that are read. Mosquitto and mochi have the first, EMQX the last.
const (
	topicVersion = "$SYS/broker/version"
	topicDropped = "$SYS/broker/publish/messages/dropped"
	topicEMQX    = emqxTree + "+/version"
)

// WatchState is where a [Watch] stands.
type WatchState string

// The states of a watch.
const (
	WatchWaiting     WatchState = "waiting"     // no session is connected, or the next attempt is not due
	WatchAsking      WatchState = "asking"      // subscribed, and nothing has come yet
	WatchReading     WatchState = "reading"     // the broker tells
	WatchUnavailable WatchState = "unavailable" // the broker does not tell this client; looked at again within the hour
)

// WatchStatus is a snapshot of what a [Watch] has read.
type WatchStatus struct {
	State    WatchState
	Reason   string // why nothing can be read; empty while all is well
	ClientID string
	Software Software // zero: unknown

	// Dropped is the broker's own count of messages it threw away since it started, for all of its
	// clients together; DroppedKnown says whether it has told. DroppedSeen is by how much it rose
	// before our eyes, at LastDrop for the last time.
	Dropped      uint64
	DroppedKnown bool
	DroppedSeen  uint64
	LastDrop     time.Time
}

// The pauses of a watch. It is in no hurry: what it reads decides nothing, and the broker has other
// things to do when it comes back.
type watchPauses struct {
	look     time.Duration // between looks at which broker the sessions are connected to
	retry    time.Duration // before the first attempt after one that failed; doubled each time,
	most     time.Duration // up to this
	patience time.Duration // how long a subscribed watch waits for anything; EMQX tells once a minute
}

// watchFailures is how many connections may end before anything is said about it. Some brokers answer a
// subscription to $SYS by closing the connection.
const watchFailures = 3

const (
	watchKeepAlive = 60 // seconds
	watchRoom      = 16 // messages that may wait to be looked at
)

// A Watch reads what a broker tells of itself below $SYS: its version, and how many messages it threw
// away. It does so over a connection of its own, so that the sessions carry nothing but the routes: a
// client with Clean Start, Session Expiry 0, QoS 0, no Will and a random client id, which takes nobody's
// place and leaves nothing behind. A broker that does not let it read is asked again after half an hour to an hour;
// that is no failure, and said once. It is a [prometheus.Collector]. All methods may be called from any
// goroutine.
type Watch struct {
	cfg    Config
	broker func() string
	log    *zap.Logger
	files  *tlsFiles
	pauses watchPauses

	mu         sync.Mutex
	status     WatchStatus
	url        string // of the broker that status is about
	toldReason string
	lastLog    time.Time // of dropped messages
	unlogged   uint64
}

// NewWatch returns a watch that logs in as cfg says, with the client id given, which nobody else may
// use. broker says, as [Status.URL] does, which of cfg.URLs the sessions are connected to at present;
// empty = none, and then the watch stays away as well.
func NewWatch(cfg Config, clientID string, broker func() string) *Watch {
	log := cfg.Log.Named("watch").With(zap.String("client_id", clientID))
	return &Watch{
		cfg: cfg, broker: broker, log: log,
		files:  &tlsFiles{caFile: cfg.CAFile, certFile: cfg.CertFile, keyFile: cfg.KeyFile, serverName: cfg.ServerName, log: log},
		pauses: watchPauses{look: time.Second, retry: 15 * time.Second, most: time.Hour, patience: 90 * time.Second},
		status: WatchStatus{State: WatchWaiting, ClientID: clientID},
	}
}

// Status returns what is known now.
func (w *Watch) Status() WatchStatus {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.status
}

// Run watches until ctx is done.
func (w *Watch) Run(ctx context.Context) {
	failures := 0
	for ctx.Err() == nil {
		u := w.target()
		if u == nil {
			pause(ctx, w.pauses.look)
			continue
		}
		began := time.Now()
		err := w.read(ctx, u)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > w.pauses.patience { // it has worked
			failures = 0
		}
		wait := min(w.pauses.retry<<min(failures, 10), w.pauses.most)
		failures++
		var hidden *hiddenError
		switch {
		case errors.Is(err, errMoved), errors.Is(err, errAlone):
			w.enter(WatchWaiting, "")
			failures = 0
		case errors.As(err, &hidden):
			wait = w.pauses.most
			w.unavailable(err)
		case failures >= watchFailures:
			w.unavailable(err)
		default:
			w.enter(WatchWaiting, err.Error())
			w.log.Debug("the connection that reads $SYS ended", zap.Error(err))
		}
		pause(ctx, jitter(wait/2, wait))
	}
}

// pause waits for d or the end of ctx.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// target is the URL of the broker to watch; nil: none for now.
func (w *Watch) target() *url.URL {
	address := w.broker()
	for _, u := range w.cfg.URLs {
		if address != "" && shown(u) == address {
			return u
		}
	}
	return nil
}

// hiddenError is a broker that does not let the watch read, which repetition will hardly change.
type hiddenError struct{ text string }

func (e *hiddenError) Error() string { return e.text }

var (
	errMoved = errors.New("the sessions are with another broker")
	errAlone = errors.New("no session is connected any more")
)

// read connects to the broker at u, subscribes, and takes in what comes, until the connection ends or
// is of no more use. It returns why.
func (w *Watch) read(ctx context.Context, u *url.URL) error {
	bare := *u // user name and password go into CONNECT
	bare.User = nil
	nc, err := dial(ctx, &bare, w.files)
	if err != nil {
		return err
	}
	defer func() { _ = hardClose(nc) }()
	ended := make(chan error, 4) // paho may call more than once
	end := func(err error) {
		select {
		case ended <- err:
		default:
		}
	}
	client := paho.NewClient(paho.ClientConfig{
		Conn: packets.NewThreadSafeConn(nc), ClientID: w.status.ClientID, PacketTimeout: packetTimeout,
		AuthHandler: noAuthentication{},
		OnPublishReceived: []func(paho.PublishReceived) (bool, error){func(p paho.PublishReceived) (bool, error) {
			w.take(shown(u), p.Packet.Topic, p.Packet.Payload, p.Packet.Retain)
			return true, nil
		}},
		OnClientError: end,
		OnServerDisconnect: func(d *paho.Disconnect) {
			end(&disconnectError{code: d.ReasonCode})
		},
	})
	// What comes is of QoS 0, which Receive Maximum says nothing of; but paho makes room for as many messages.
	room := uint16(watchRoom)
	connect := &paho.Connect{
		ClientID: w.status.ClientID, CleanStart: true, KeepAlive: watchKeepAlive,
		Properties: &paho.ConnectProperties{ReceiveMaximum: &room},
	}
	if err := w.cfg.logIn(connect, u.User); err != nil {
		return err
	}
	if err := nc.SetDeadline(time.Now().Add(packetTimeout)); err != nil {
		return err
	}
	if ack, err := client.Connect(ctx, connect); err != nil {
		if ack != nil && ack.ReasonCode >= codeUnspecifiedError {
			return &hiddenError{"the broker refused the connection that reads $SYS: " + describeCode(ack.ReasonCode, "")}
		}
		return fmt.Errorf("connect: %w", err)
	}
	defer func() {
		_ = nc.SetDeadline(time.Now().Add(lingerTimeout)) // a stalled broker must not hold up the end
		_ = client.Disconnect(&paho.Disconnect{})
		<-client.Done()
	}()
	if err := nc.SetDeadline(time.Time{}); err != nil {
		return err
	}
	if err := w.subscribe(ctx, client); err != nil {
		return err
	}
	return w.follow(ctx, nc, shown(u), client.Done(), ended)
}

// noAuthentication is there because paho calls its handler for an Authentication Method in CONNACK even
// where CONNECT had none, and does not ask whether there is a handler.
type noAuthentication struct{}

// Authenticate answers an AUTH that nobody asked for.
func (noAuthentication) Authenticate(*paho.Auth) *paho.Auth { return &paho.Auth{} }

// Authenticated does nothing.
func (noAuthentication) Authenticated() {}

// subscribe asks for the topics, one SUBSCRIBE for all. Some of them may be refused.
func (w *Watch) subscribe(ctx context.Context, client *paho.Client) error {
	request := &paho.Subscribe{}
	for _, topic := range []string{topicVersion, topicDropped, topicEMQX} {
		request.Subscriptions = append(request.Subscriptions, paho.SubscribeOptions{Topic: topic})
	}
	answer, err := client.Subscribe(ctx, request)
	if answer == nil {
		return fmt.Errorf("subscribe to $SYS: %w", err)
	}
	text := ""
	for _, code := range answer.Reasons {
		if code < codeUnspecifiedError {
			return nil
		}
		text = describeCode(code, "")
	}
	return &hiddenError{"the broker refused the subscription to $SYS: " + text}
}

// follow waits while readings come in.
func (w *Watch) follow(ctx context.Context, nc net.Conn, address string, done <-chan struct{}, ended <-chan error) error {
	w.enter(WatchAsking, "")
	w.mu.Lock()
	if w.url == address && w.status.Software.Text != "" {
		w.status.State = WatchReading // as before
	}
	w.mu.Unlock()
	patience := time.NewTimer(w.pauses.patience)
	defer patience.Stop()
	look := time.NewTicker(w.pauses.look)
	defer look.Stop()
	away := 0
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-ended:
			return err
		case <-done:
			select {
			case err := <-ended:
				return err
			case <-time.After(lingerTimeout): // paho tells in a goroutine of its own
				return errors.New("the connection ended")
			}
		case <-patience.C:
			if w.Status().State == WatchAsking {
				return &hiddenError{"the broker tells this client nothing below $SYS"}
			}
		case <-look.C:
			// No write of the library's has a deadline; none takes so long unless the broker is stalled.
			if err := nc.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
				return err
			}
			switch now := w.broker(); {
			case now == address:
				away = 0
			case now != "":
				return errMoved
			default:
				if away++; away > 60 {
					return errAlone
				}
			}
		}
	}
}

// take is called with every message.
func (w *Watch) take(address, topic string, payload []byte, retained bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.url != address { // another broker, another count
		w.url = address
		w.status.Software, w.status.Dropped, w.status.DroppedKnown = Software{}, 0, false
	}
	switch {
	case topic == topicVersion, strings.HasPrefix(topic, emqxTree):
		software := parseSoftware(topic, payload)
		if software.Text == "" {
			return
		}
		if software != w.status.Software {
			w.status.Software = software
			w.log.Info("the broker tells its version", zap.String("version", software.Text))
			for _, f := range CheckSoftware(&w.cfg, software) {
				f.log(w.log)
			}
		}
	case topic == topicDropped:
		n, err := strconv.ParseUint(strings.TrimSpace(string(payload)), 10, 64)
		if err != nil {
			return
		}
		w.count(n, retained)
	default:
		return
	}
	w.status.State, w.status.Reason, w.toldReason = WatchReading, "", ""
}

// count takes in a reading of the broker's count of dropped messages. w.mu is held.
func (w *Watch) count(n uint64, retained bool) {
	st := &w.status
	rise := uint64(0)
	switch {
	case st.DroppedKnown && n >= st.Dropped:
		rise = n - st.Dropped
	case st.DroppedKnown: // the broker has begun anew
		rise = n
	case n > 0 && !retained:
		// Told because it has changed. By how much is unknown: Mosquitto before 2.0.16 takes a value
		// that has not changed for a minute out of $SYS, and the one before was never seen.
		rise = 1
	}
	st.Dropped, st.DroppedKnown = n, true
	if rise == 0 {
		return
	}
	now := time.Now()
	st.DroppedSeen += rise
	st.LastDrop = now
	w.unlogged += rise
	if now.Sub(w.lastLog) < dropLogInterval {
		return
	}
	w.log.Error("the broker threw messages away: they reach nobody, and their publishers were not told",
		zap.Uint64("at_least", w.unlogged), zap.Uint64("since_the_broker_started", n), zap.Stringer("broker", st.Software))
	w.lastLog, w.unlogged = now, 0
}

// dropLogInterval keeps a broker that drops for hours from filling the log; it counts every ten seconds.
const dropLogInterval = time.Minute

func (w *Watch) enter(state WatchState, reason string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.status.State, w.status.Reason = state, reason
}

// unavailable notes that the broker does not tell, and says so once for each reason.
func (w *Watch) unavailable(err error) {
	w.enter(WatchUnavailable, err.Error())
	w.mu.Lock()
	told := w.toldReason == err.Error()
	w.toldReason = err.Error()
	w.mu.Unlock()
	if !told {
		w.log.Info("the broker's version and its count of dropped messages stay unknown", zap.String("reason", err.Error()))
	}
}

var droppedDesc = prometheus.NewDesc("bridge_broker_messages_dropped_total",
	"Messages the broker says it threw away since it started, for all of its clients together; absent while unknown.", nil, nil)

// Describe sends the description of the broker's count.
func (w *Watch) Describe(out chan<- *prometheus.Desc) { out <- droppedDesc }

// Collect sends the broker's count as last read, if it is known.
func (w *Watch) Collect(out chan<- prometheus.Metric) {
	if st := w.Status(); st.DroppedKnown {
		out <- prometheus.MustNewConstMetric(droppedDesc, prometheus.CounterValue, float64(st.Dropped))
	}
}
