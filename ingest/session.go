package ingest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/eclipse/paho.golang/autopaho"
	"github.com/eclipse/paho.golang/packets"
	"github.com/eclipse/paho.golang/paho"
	"github.com/eclipse/paho.golang/paho/session/state"
	"github.com/mqttpg/bridge/mapping"
	"go.uber.org/zap"
)

// packetTimeout is how long paho waits for CONNACK, SUBACK and PUBACK.
const packetTimeout = 10 * time.Second

// errSessionClosed answers attempts to connect after Close or the end of Run.
var errSessionClosed = errors.New("session is closed")

// Session is one MQTT session: a client id, its connection to a broker, and its subscriptions. Run
// does the work; all other methods may be called from any goroutine at any time.
type Session struct {
	cfg         Config
	clientID    string
	log         *zap.Logger
	wanted      []mapping.Subscription // what is subscribed to, in this order
	files       *tlsFiles
	credentials map[*url.URL]*url.Userinfo // by the URL handed to autopaho, which must not know them
	urls        []*url.URL                 // without user information: autopaho puts URLs into errors

	// stopping is done from StopTaking on. takeMu makes its effect sharp: no Deliver of a QoS 1 or 2
	// message is under way or begins after StopTaking has returned.
	takeMu   sync.Mutex
	stopping context.Context
	stop     context.CancelFunc

	tidied atomic.Bool // nothing stale is subscribed any more

	closing chan struct{} // closed by Close: leave politely
	done    chan struct{} // closed when Run returns
	tasks   sync.WaitGroup

	mu          sync.Mutex
	status      Status // the parts that are not conn's
	manager     *autopaho.ConnectionManager
	conn        *conn // from dialling to the end of the connection
	generation  uint64
	incarnation uint64
	attempts    uint64    // connections begun
	broker      string    // host and port of the last broker that accepted
	final       bool      // the next DISCONNECT ends the session at the broker
	known       bool      // there was a CONNACK: the broker has, or had, this session
	lostReason  string    // why the last connection ended, as a metric label
	contested   bool      // it ended so soon, or in such a way, that somebody else may have taken the client id
	contestedAt time.Time // when that was last probable
	told        []Finding // by the self-check, so that it is not told again
	unnoted     bool      // BeginIncarnation has not succeeded for incarnation yet
	backoff     backoff
	started     bool
	leaving     bool // no new connections
}

// New returns a session for the client id given. The error names every mistake in cfg. Each session
// of a process needs a client id of its own; two clients with one id end each other's connections.
func New(cfg Config, clientID string) (*Session, error) {
	if err := cfg.check(clientID); err != nil {
		return nil, fmt.Errorf("mqtt session %q: %w", clientID, err)
	}
	log := cfg.Log.Named("mqtt").With(zap.String("client_id", clientID))
	s := &Session{
		cfg:         cfg,
		clientID:    clientID,
		log:         log,
		wanted:      mapping.Subscriptions(cfg.Filters),
		files:       &tlsFiles{caFile: cfg.CAFile, certFile: cfg.CertFile, keyFile: cfg.KeyFile, serverName: cfg.ServerName, log: log},
		credentials: map[*url.URL]*url.Userinfo{},
		closing:     make(chan struct{}),
		done:        make(chan struct{}),
		status:      Status{State: StateClosed, ClientID: clientID},
	}
	s.stopping, s.stop = context.WithCancel(context.Background())
	for _, u := range cfg.URLs {
		bare := *u
		bare.User = nil
		s.urls = append(s.urls, &bare)
		s.credentials[&bare] = u.User
	}
	return s, nil
}

// Run connects, subscribes and reconnects until ctx is done or Close is called. When ctx ends, the
// connection is cut without a DISCONNECT, so that the broker publishes the Will; the error is then
// that of ctx. After Close the error is nil. No Deliver is under way when Run has returned. A
// session runs once.
func (s *Session) Run(ctx context.Context) error {
	s.mu.Lock()
	if s.started {
		s.mu.Unlock()
		return errors.New("run mqtt session: it ran already")
	}
	s.started = true
	if s.leaving { // closed before it ran
		s.mu.Unlock()
		close(s.done)
		return nil
	}
	s.status.State = StateConnecting
	s.cfg.Metrics.begin(s.clientID)
	// The manager's own context never ends: the order of things at the end is ours.
	manager, err := autopaho.NewConnection(context.WithoutCancel(ctx), s.managerConfig())
	s.manager = manager
	s.mu.Unlock()
	if err != nil {
		return fmt.Errorf("run mqtt session: %w", err)
	}

	var result error
	select {
	case <-s.closing:
	case <-ctx.Done():
		result = ctx.Err()
	}
	s.mu.Lock()
	s.leaving = true
	c := s.conn
	s.mu.Unlock()
	if result != nil && c != nil {
		c.fail(errLeft)
	}
	// Disconnect waits until all of paho's goroutines are through. It writes DISCONNECT, which a
	// failed connection refuses; without a packet to send autopaho would not even close it.
	_ = manager.Disconnect(context.WithoutCancel(ctx))
	s.tasks.Wait()

	s.mu.Lock()
	s.conn = nil
	s.status.State = StateClosed
	s.status.ConnectedSince = time.Time{}
	s.mu.Unlock()
	s.cfg.Metrics.end(s.clientID)
	s.log.Info("session is closed", zap.Bool("clean", result == nil))
	close(s.done)
	return result
}

// StopTaking makes the session leave QoS 1 and 2 messages with the broker from now on, without
// acknowledging them. QoS 0 messages, which the broker would not keep, are still delivered. No
// Deliver of a QoS 1 or 2 message runs after StopTaking has returned.
func (s *Session) StopTaking() {
	s.takeMu.Lock()
	defer s.takeMu.Unlock()
	s.stop()
}

// deliver hands d over, unless StopTaking came in between, and says whether it did.
func (s *Session) deliver(ctx context.Context, d *Delivery) bool {
	s.takeMu.Lock()
	defer s.takeMu.Unlock()
	if d.Message.QoS > 0 && s.stopping.Err() != nil {
		return false
	}
	s.cfg.Deliver(ctx, d)
	return true
}

// Acknowledge sends PUBACK or PUBREC for the deliveries given, which must be in the order of their
// receipt [MQTT-4.6.0-2] [MQTT-4.6.0-3], over calls as well. They leave in one write. Deliveries of
// earlier connections are passed over in silence: the broker sends them again, under packet ids that
// may by now belong to other messages. So an error is for information only; the connection it
// concerns is over.
func (s *Session) Acknowledge(acks []Ack) error {
	s.mu.Lock()
	c := s.conn
	s.mu.Unlock()
	if c == nil || c.ended() {
		return nil
	}
	if err := c.acknowledge(acks); err != nil {
		return fmt.Errorf("acknowledge %d messages: %w", len(acks), err)
	}
	return nil
}

// Close ends the session's connection without loss and makes Run return nil. It stops taking, waits
// until the broker has seen every acknowledgement written so far, publishes the offline status if
// there is one, and disconnects; the broker keeps the session. All Acknowledge calls should be over.
// When ctx ends first, or the broker cannot be reached, Close does what is left without waiting and
// says in the error what it could not make sure of: messages may then be delivered again.
func (s *Session) Close(ctx context.Context) error {
	s.StopTaking()
	s.mu.Lock()
	first := !s.leaving
	s.leaving = true
	c, manager, started := s.conn, s.manager, s.started
	s.mu.Unlock()
	if !started {
		return nil
	}
	var errs []error
	if first {
		if c != nil && c.generation.Load() != 0 && !c.ended() {
			if err := c.barrier(ctx); err != nil {
				errs = append(errs, fmt.Errorf("wait for the broker to see the acknowledgements: %w", err))
			} else {
				s.publishStatus(ctx, c, manager, statusOffline)
			}
			c.leaving.Store(true)
		}
		close(s.closing)
	}
	select {
	case <-s.done:
	case <-ctx.Done():
		if c != nil {
			c.fail(errLeft)
		}
		errs = append(errs, fmt.Errorf("disconnect: %w", ctx.Err()))
	}
	return errors.Join(errs...)
}

// Barrier returns when the broker has read everything written so far, and its answer is behind
// everything it had to send by then. An error says that the connection ended, or ctx.
func (s *Session) Barrier(ctx context.Context) error {
	s.mu.Lock()
	c := s.conn
	s.mu.Unlock()
	if c == nil || c.generation.Load() == 0 || c.ended() {
		return errNotConnected
	}
	return c.barrier(ctx)
}

var errNotConnected = errors.New("not connected to the broker")

// End is Close, but that the broker forgets the session: DISCONNECT carries Session Expiry Interval 0
// [MQTT-3.14.2-2]. What the session still had to send would be lost.
func (s *Session) End(ctx context.Context) error {
	s.mu.Lock()
	s.final = true
	s.mu.Unlock()
	return s.Close(ctx)
}

func (s *Session) buildDisconnect() *paho.Disconnect {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := &paho.Disconnect{}
	if s.final {
		expiry := uint32(0)
		d.Properties = &paho.DisconnectProperties{SessionExpiryInterval: &expiry}
	}
	return d
}

// Status returns the session's present facts.
func (s *Session) Status() Status {
	s.mu.Lock()
	st, c := s.status, s.conn
	st.Subscriptions = append([]Subscription(nil), st.Subscriptions...)
	st.Contested = !s.contestedAt.IsZero() && time.Since(s.contestedAt) < suspectWindow
	st.Findings = append([]Finding(nil), st.Findings...)
	s.mu.Unlock()
	if c != nil {
		k := &c.keepAlive
		k.mu.Lock()
		defer k.mu.Unlock()
		st.KeepAliveEffective = k.interval
		st.LastPingReq, st.LastPingResp, st.RTT = k.lastRequest, k.lastResponse, k.rtt
		st.PingOutstanding = len(k.unanswered) > 0
		st.LastReceived = k.lastRead
		st.Paused = c.starved.Load()
	}
	return st
}

func (s *Session) managerConfig() autopaho.ClientConfig {
	cfg := autopaho.ClientConfig{
		ServerUrls: s.urls,
		KeepAlive:  uint16(s.cfg.KeepAlive / time.Second),
		// Never Clean Start: Mosquitto 2.0 does not keep such a session over a restart, whatever its
		// expiry.
		CleanStartOnInitialConnection: false,
		SessionExpiryInterval:         uint32(s.cfg.SessionExpiry / time.Second),
		ConnectPacketBuilder:          s.buildConnect,
		ReconnectBackoff:              s.beforeAttempts,
		AttemptConnection:             s.attempt,
		ConnectTimeout:                dialTimeout + packetTimeout,
		OnConnectError:                s.attemptFailed,
		DisconnectPacketBuilder:       s.buildDisconnect,
		OnConnectionUp:                s.connectionUp,
		OnConnectionDown:              s.connectionDown,
		ClientConfig: paho.ClientConfig{
			ClientID:      s.clientID,
			Session:       state.NewInMemory(), // for SUBSCRIBE and our own PUBLISH; received ones never reach it
			PingHandler:   pinger{},
			PacketTimeout: packetTimeout,
		},
	}
	if s.cfg.StatusTopic != "" {
		cfg.WillMessage = &paho.WillMessage{
			Topic:   s.statusTopic(),
			Payload: []byte(statusOffline),
			QoS:     1,
			Retain:  true,
		}
	}
	return cfg
}

// buildConnect completes CONNECT for each attempt.
func (s *Session) buildConnect(cp *paho.Connect, u *url.URL) (*paho.Connect, error) {
	if cp.Properties == nil { // as autopaho leaves it when the session expiry is 0
		cp.Properties = &paho.ConnectProperties{}
	}
	receiveMaximum, topicAliasMaximum := s.cfg.ReceiveMaximum, uint16(0)
	cp.Properties.ReceiveMaximum = &receiveMaximum
	cp.Properties.TopicAliasMaximum = &topicAliasMaximum
	cp.Properties.RequestProblemInfo = true
	// No Maximum Packet Size: a broker throws larger messages away without a word to anybody, and
	// tells the publisher that all is well.

	if err := s.cfg.logIn(cp, s.credentials[u]); err != nil {
		return nil, err
	}
	return cp, nil
}

// logIn enters user name and password into a CONNECT; user is what the URL says.
func (cfg *Config) logIn(cp *paho.Connect, user *url.Userinfo) error {
	username, password := cfg.Username, ""
	if username == "" && user != nil {
		username = user.Username()
		password, _ = user.Password()
	} else if cfg.Password != nil {
		var err error
		if password, err = cfg.Password(); err != nil {
			return fmt.Errorf("read the password: %w", err)
		}
	}
	cp.Username, cp.UsernameFlag = username, username != ""
	cp.Password, cp.PasswordFlag = []byte(password), password != ""
	return nil
}

// beforeAttempts is autopaho's ReconnectBackoff, also called before the first attempt.
func (s *Session) beforeAttempts(round int) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.backoff.next(round)
	if s.known || round > 0 {
		s.status.State = StateBackoff
		s.log.Debug("wait before connecting", zap.Duration("wait", d))
	}
	return d
}

// dialError is an attempt that did not get as far as CONNECT.
type dialError struct{ err error }

func (e *dialError) Error() string { return e.err.Error() }
func (e *dialError) Unwrap() error { return e.err }

// shown is what of a URL may be shown: a token may stand in the user information or in the query.
func shown(u *url.URL) string {
	return (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}).String()
}

// attempt is autopaho's AttemptConnection.
func (s *Session) attempt(ctx context.Context, _ autopaho.ClientConfig, u *url.URL) (net.Conn, error) {
	s.mu.Lock()
	if s.leaving {
		s.mu.Unlock()
		return nil, errSessionClosed
	}
	s.status.State = StateConnecting
	s.status.URL = shown(u)
	contested, unnoted, incarnation := s.contested, s.unnoted, s.incarnation
	s.mu.Unlock()

	if contested && s.cfg.Confirm != nil {
		if err := s.cfg.Confirm(); err != nil {
			return nil, &dialError{err}
		}
	}
	if unnoted {
		if err := s.note(ctx, incarnation); err != nil {
			return nil, &dialError{fmt.Errorf("the broker has lost the session, and the new one is not noted yet: %w", err)}
		}
	}
	nc, err := dial(ctx, u, s.files)
	if err != nil {
		return nil, &dialError{err}
	}
	s.mu.Lock()
	s.attempts++
	number := s.attempts
	s.mu.Unlock()
	s.beginConnection(ctx, number)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.leaving {
		_ = hardClose(nc)
		return nil, errSessionClosed
	}
	s.conn = newConn(s, nc)
	s.conn.attempt = number
	if !s.cfg.CommonSessions {
		s.conn.broker = u.Host
	}
	return s.conn, nil
}

// beginConnection has a connection noted, if that is possible soon.
func (s *Session) beginConnection(ctx context.Context, number uint64) {
	if s.cfg.BeginConnection == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, incarnationTimeout)
	defer cancel()
	if err := s.cfg.BeginConnection(ctx, number); err != nil {
		s.log.Warn("connecting, though it could not be noted", zap.Error(err))
	}
}

// attemptFailed is autopaho's OnConnectError, called in its main loop after each failed attempt.
func (s *Session) attemptFailed(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.conn
	s.conn = nil
	// There may have been a CONNACK all the same: paho gives up also when the connection is lost while it
	// sends again what it has in store.
	s.status.ConnectedSince = time.Time{}
	s.cfg.Metrics.connected.WithLabelValues(s.clientID).Set(0)
	if s.leaving {
		return
	}
	s.status.State = StateBackoff // or the next URL at once
	var code byte
	var refused *autopaho.ConnackError
	var unreached *dialError
	var old *versionError
	text := err.Error()
	if cause := errors.Unwrap(err); cause != nil {
		text = cause.Error() // the URL is known
	}
	switch {
	case errors.As(err, &refused) && refused.ReasonCode < codeUnspecifiedError:
		if c != nil && c.ended() {
			text = c.cause().Error()
		}
		text = "the connection was lost right after CONNACK: " + text
	case errors.As(err, &refused):
		code = refused.ReasonCode
		text = "the broker refused the connection: " + describeCode(code, refused.Reason)
		if code == codeUnsupportedVersion {
			text += "; it does not speak MQTT 5"
		}
	case errors.As(err, &old):
		code = codeUnsupportedVersion
	case errors.As(err, &unreached):
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET):
		text = "the broker closed the connection before CONNACK: it may not speak MQTT 5, or not at this port"
	case errors.Is(err, context.DeadlineExceeded):
		text = "no CONNACK in time: the port may not be one of MQTT"
	}
	s.backoff.refused(unreached == nil, code)
	s.status.LastReasonCode, s.status.LastReason = code, text
	s.log.Warn("connection attempt did not succeed", zap.String("url", s.status.URL),
		zap.String("reason", text), zap.Uint8("reason_code", code))
}

// accepted takes note of a successful CONNACK. The reading goroutine calls it, before the first
// PUBLISH can be read; autopaho's OnConnectionUp may come after that.
func (s *Session) accepted(c *conn, ack *packets.Connack) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.generation++
	if !ack.SessionPresent || s.broker != "" && s.broker != c.broker {
		s.incarnation++
		s.unnoted = s.cfg.BeginIncarnation != nil // until note says otherwise, whatever becomes of this connection
	}
	s.broker = c.broker
	c.incarnation, c.present = s.incarnation, ack.SessionPresent
	if ack.Properties != nil && ack.Properties.MaximumPacketSize != nil {
		c.maximumBytes = *ack.Properties.MaximumPacketSize
	}
	c.generation.Store(s.generation)

	st := &s.status
	st.State = StateConnected
	st.ConnectedSince = time.Now()
	st.SessionPresent = ack.SessionPresent
	st.Granted = grantedBy(ack.Properties, s.cfg.SessionExpiry, s.cfg.KeepAlive)
	st.Subscriptions = s.unanswered()
	s.cfg.Metrics.connected.WithLabelValues(s.clientID).Set(1)
	if s.known {
		st.Reconnects++
		s.cfg.Metrics.reconnects.WithLabelValues(s.clientID, s.lostReason).Inc()
	}
	s.log.Info("connected", zap.String("url", st.URL), zap.Bool("session_present", ack.SessionPresent),
		zap.Uint64("connection", s.generation), zap.Duration("session_expiry", st.Granted.SessionExpiry))
	if s.backoff.accepted(st.ConnectedSince) {
		s.contestedAt = st.ConnectedSince
		s.log.Warn("the broker has closed a young connection without a word and lets this client in again at once; " +
			"probably another client uses client id " + s.clientID + " (two releases with one share name, or a stuck old replica)")
	}
	if (s.known || s.cfg.Known) && !ack.SessionPresent {
		st.SessionsLost++
		s.cfg.Metrics.sessionLost.WithLabelValues(s.clientID).Inc()
		s.log.Warn("the broker lost the session: what it held for this client id is gone", zap.Bool("while_nobody_was_connected", !s.known))
		if s.cfg.Lost != nil {
			s.cfg.Lost()
		}
	}
	s.selfCheck()
	s.known = true
}

// grantedBy are the limits in the properties of CONNACK; what is absent has the protocol's default.
func grantedBy(p *packets.Properties, expiry, keepAlive time.Duration) Granted {
	g := Granted{SessionExpiry: expiry, KeepAlive: keepAlive, ReceiveMaximum: 65535, MaximumQoS: 2, Retain: true, WildcardSubs: true, SharedSubs: true, SubscriptionIDs: true}
	if p == nil {
		return g
	}
	if p.SessionExpiryInterval != nil {
		g.SessionExpiry = time.Duration(*p.SessionExpiryInterval) * time.Second
	}
	if p.ReceiveMaximum != nil {
		g.ReceiveMaximum = *p.ReceiveMaximum
	}
	if p.MaximumQOS != nil {
		g.MaximumQoS = *p.MaximumQOS
	}
	if p.MaximumPacketSize != nil {
		g.MaximumPacketSize = *p.MaximumPacketSize
	}
	if p.ServerKeepAlive != nil { // [MQTT-3.1.2-21]
		g.KeepAlive = time.Duration(*p.ServerKeepAlive) * time.Second
	}
	g.Retain = p.RetainAvailable == nil || *p.RetainAvailable == 1
	g.WildcardSubs = p.WildcardSubAvailable == nil || *p.WildcardSubAvailable == 1
	g.SharedSubs = p.SharedSubAvailable == nil || *p.SharedSubAvailable == 1
	g.SubscriptionIDs = p.SubIDAvailable == nil || *p.SubIDAvailable == 1
	return g
}

// pinged takes note of an answered PINGREQ.
func (s *Session) pinged(rtt time.Duration) {
	s.cfg.Metrics.rtt.WithLabelValues(s.clientID).Set(rtt.Seconds())
}

// connectionUp is autopaho's OnConnectionUp, called in its main loop, where it must not wait.
func (s *Session) connectionUp(manager *autopaho.ConnectionManager, _ *paho.Connack) {
	s.mu.Lock()
	c := s.conn
	s.mu.Unlock()
	s.tasks.Go(func() { s.subscribe(c, manager) })
}

// connectionDown is autopaho's OnConnectionDown, called when all of paho's goroutines are through.
// It always asks for another connection: a refusal would leave the manager waiting for ever.
func (s *Session) connectionDown() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	cause := s.conn.cause()
	s.conn = nil
	now := time.Now()
	lifetime := now.Sub(s.status.ConnectedSince)
	s.status.ConnectedSince = time.Time{}
	s.status.State = StateBackoff
	s.cfg.Metrics.connected.WithLabelValues(s.clientID).Set(0)
	if s.leaving {
		return true
	}

	label, code := classify(cause)
	if label == lostKeepAlive {
		s.status.PingTimeouts++
	}
	s.lostReason = label
	s.contested = label == lostTakenOver || lifetime < stableAfter
	text := cause.Error()
	if label == lostClosed {
		text = "the broker closed the connection without saying why"
	}
	if s.backoff.lost(now, lifetime, code, closedSilently(cause)) {
		s.contestedAt = now
		text += fmt.Sprintf("; probably another client uses client id %s (two releases with one share name, or a stuck old replica)", s.clientID)
		if label != lostTakenOver {
			s.lostReason = lostContested
		}
	}
	s.status.LastReasonCode, s.status.LastReason = code, text
	s.log.Warn("connection lost", zap.String("url", s.status.URL), zap.String("reason", text),
		zap.Uint8("reason_code", code), zap.Duration("lifetime", lifetime))
	return true
}

// Why a connection ended, as a label of bridge_mqtt_reconnects_total.
const (
	lostTakenOver    = "taken_over"
	lostDisconnected = "server_disconnect"
	lostProtocol     = "protocol_error"
	lostKeepAlive    = "keepalive_timeout"
	lostWrite        = "write"
	lostClosed       = "closed_by_broker"
	lostContested    = "contested" // closed by the broker as if another client had taken the client id
	lostNetwork      = "network"
)

var lostReasons = []string{lostTakenOver, lostDisconnected, lostProtocol, lostKeepAlive, lostWrite, lostClosed, lostContested, lostNetwork}

// closedSilently says whether the broker closed the connection without a word, by what reading or
// writing saw of it first.
func closedSilently(cause error) bool {
	return errors.Is(cause, io.EOF) || errors.Is(cause, io.ErrUnexpectedEOF) || errors.Is(cause, syscall.ECONNRESET) || errors.Is(cause, syscall.EPIPE)
}

func classify(cause error) (label string, code byte) {
	var server *disconnectError
	var violation *packetError
	var write *writeError
	switch {
	case errors.As(cause, &server) && server.code == codeSessionTakenOver:
		return lostTakenOver, server.code
	case errors.As(cause, &server):
		return lostDisconnected, server.code
	case errors.As(cause, &violation):
		return lostProtocol, violation.code
	case errors.Is(cause, errLibrary):
		return lostProtocol, 0
	case errors.Is(cause, errPingTimeout):
		return lostKeepAlive, 0
	case errors.As(cause, &write):
		return lostWrite, 0
	case errors.Is(cause, io.EOF):
		return lostClosed, 0
	}
	return lostNetwork, 0
}
