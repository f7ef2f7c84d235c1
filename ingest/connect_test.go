package ingest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/autopaho"
	"github.com/eclipse/paho.golang/packets"
	"github.com/eclipse/paho.golang/paho"
	mqtt "github.com/mochi-mqtt/server/v2"
)

func TestConfigMistakesAreAllReported(t *testing.T) {
	_, err := New(Config{
		URLs:     []*url.URL{{Scheme: "http", Host: "broker"}, {Scheme: "mqtt", User: url.UserPassword("u", "secret")}},
		CertFile: "cert", ShareName: "a/b", Filters: []string{"", "\xFF"}, QoS: 3,
		KeepAlive: 1500 * time.Millisecond, SessionExpiry: -1, StatusTopic: "a/#",
	}, "")
	if err == nil {
		t.Fatal("accepted")
	}
	for _, want := range []string{
		"http://broker: scheme", "no host", "certificate and key", "client id", `"a/b"`, `topic filter ""`, `\xff`,
		"QoS 3", "keep alive 1.5s", "session expiry", "receive maximum", `"a/#" contains a wildcard`, "budget",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("nothing about %q in:\n%v", want, err)
		}
	}
	if strings.Contains(err.Error(), "secret") {
		t.Errorf("the password is in the error: %v", err)
	}
	if _, err := New(Config{}, "x"); err == nil || !strings.Contains(err.Error(), "no broker URL") || !strings.Contains(err.Error(), "no topic filter") {
		t.Errorf("empty configuration: %v", err)
	}
}

func TestBrokersAreTriedInTurn(t *testing.T) {
	broker := startMosquitto(t, "")
	dead := fmt.Sprintf("mqtt://u:secret@127.0.0.1:%d", freePort(t))
	r := newRig(t, nil, dead, broker.url())
	r.awaitState(StateSubscribed)
	st := r.session.Status()
	if st.URL != broker.url() || st.Reconnects != 0 || !strings.Contains(st.LastReason, "connection refused") {
		t.Errorf("status %+v", st)
	}
	if n := r.logs.FilterMessageSnippet("connection attempt did not succeed").Len(); n != 1 {
		t.Errorf("the failed attempt is logged %d times", n)
	}
	for _, e := range r.logs.All() {
		if strings.Contains(fmt.Sprint(e.ContextMap()), "secret") {
			t.Errorf("the password is in the log: %v", e)
		}
	}
	r.close()
}

// CONNECT says what the facts about brokers ask for.
func TestConnectPacket(t *testing.T) {
	broker := startMochi(t, nil)
	r := newRig(t, func(cfg *Config) { cfg.StatusTopic = "state" }, strings.Replace(broker.url(), "mqtt://", "tcp://u:p@", 1))
	r.awaitState(StateSubscribed)
	r.close()
	pk := broker.connects[0]
	c, p := pk.Connect, pk.Properties
	if c.Clean || c.ClientIdentifier != testClientID || c.Keepalive != 15 || string(c.Username) != "u" || string(c.Password) != "p" ||
		!c.WillFlag || !c.WillRetain || c.WillQos != 1 || c.WillTopic != "state/"+testClientID || string(c.WillPayload) != "offline" {
		t.Errorf("CONNECT %+v", c)
	}
	if p.SessionExpiryInterval != 3600 || p.ReceiveMaximum != 2000 || p.TopicAliasMaximum != 0 || p.RequestProblemInfoFlag && p.RequestProblemInfo != 1 || p.MaximumPacketSize != 0 {
		t.Errorf("properties %+v", p)
	}
}

// With a session expiry of 0 autopaho makes no properties at all.
func TestSessionExpiryZero(t *testing.T) {
	broker := startMochi(t, nil)
	relay := startRelay(t, broker.addr)
	r := newRig(t, func(cfg *Config) { cfg.SessionExpiry, cfg.KeepAlive = 0, 0 }, relay.url())
	r.awaitState(StateSubscribed)
	if st := r.session.Status(); st.KeepAliveEffective != 0 || st.PingOutstanding || !st.LastPingReq.IsZero() {
		t.Errorf("keep alive is off: %+v", st)
	}
	relay.cut()
	eventually(t, "a second connection", func() bool { return r.session.Status().Reconnects == 1 })
	r.awaitState(StateSubscribed)
	r.close()
	if p := broker.connects[0].Properties; p.ReceiveMaximum != 2000 || p.SessionExpiryInterval != 0 {
		t.Errorf("properties %+v", p)
	}
	if st := r.session.Status(); st.SessionsLost != 1 {
		t.Errorf("status %+v", st)
	}
}

func TestPasswordIsReadForEachAttempt(t *testing.T) {
	broker := startMochi(t, nil)
	relay := startRelay(t, broker.addr)
	var mu sync.Mutex
	password, reads := "one", 0
	var readErr error
	broker.login = func(username, given string) bool { return username == "user" && given == "one" }
	r := newRig(t, func(cfg *Config) {
		cfg.Username = "user"
		cfg.Password = func() (string, error) {
			mu.Lock()
			defer mu.Unlock()
			reads++
			return password, readErr
		}
	}, relay.url())
	r.awaitState(StateSubscribed)

	// The secret is rotated at both ends; the next connection uses it.
	mu.Lock()
	password = "two"
	mu.Unlock()
	broker.set(func() { broker.login = func(_, given string) bool { return given == "two" } })
	relay.cut()
	eventually(t, "a second connection", func() bool { return r.session.Status().Reconnects == 1 })
	r.awaitState(StateSubscribed)

	// Then the file cannot be read for once.
	mu.Lock()
	readErr = errors.New("no such file")
	mu.Unlock()
	relay.cut()
	eventually(t, "the failed reading shows", func() bool {
		return strings.Contains(r.session.Status().LastReason, "read the password: no such file")
	})
	mu.Lock()
	readErr = nil
	mu.Unlock()
	eventually(t, "a third connection", func() bool { return r.session.Status().Reconnects == 2 })
	r.close()
}

func TestRefusedCredentials(t *testing.T) {
	broker := startMochi(t, nil)
	broker.login = func(string, string) bool { return false }
	r := newRig(t, nil, broker.url())
	eventually(t, "the refusal shows", func() bool { return r.session.Status().LastReasonCode == 0x86 })
	if st := r.session.Status(); !strings.HasPrefix(st.LastReason, "the broker refused the connection: bad user name or password (0x86)") {
		t.Errorf("status %+v", st)
	}
	eventually(t, "the wait is decided", func() bool { return len(waits(r)) > 0 })
	if d := waits(r)[0]; d < authBackoff {
		t.Errorf("waits only %s", d)
	}
	if err := r.session.Close(t.Context()); err != nil { // not connected: nothing to wait for
		t.Error(err)
	}
	if err := <-r.ran; err != nil {
		t.Error(err)
	}
}

// waits are the backoffs so far.
func waits(r *rig) []time.Duration {
	var out []time.Duration
	for _, e := range r.logs.FilterMessage("wait before connecting").All() {
		out = append(out, e.ContextMap()["wait"].(time.Duration))
	}
	return out
}

// fakeBroker answers every connection with the bytes given and closes it.
func fakeBroker(t *testing.T, answer []byte) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = nc.Read(make([]byte, 1024))
			_, _ = nc.Write(answer)
			nc.Close()
		}
	})
	t.Cleanup(func() {
		l.Close()
		wg.Wait()
	})
	return "mqtt://" + l.Addr().String()
}

func TestBrokerWithoutMQTT5(t *testing.T) {
	tests := map[string]struct {
		answer string
		code   byte
		text   string
	}{
		"CONNACK of MQTT 3.1.1":        {"20 02 00 01", 0x84, "does not speak MQTT 5"},
		"CONNACK 0x84":                 {"20 03 00 84 00", 0x84, "does not speak MQTT 5"},
		"closed without a word":        {"", 0, "may not speak MQTT 5"},
		"something else altogether":    {"'HTTP/1.1 400 Bad Request'", 0, ""},
		"PUBLISH in CONNACK's place":   {"30 04 0001 't' 00", 0, "before CONNACK"},
		"refused with a reason string": {"20 09 00 88 06 1f 0003 'why'", 0x88, "server unavailable (0x88): why"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, nil, fakeBroker(t, unhex(t, test.answer)))
			eventually(t, "a reason", func() bool { return r.session.Status().LastReason != "" })
			st := r.session.Status()
			if st.LastReasonCode != test.code || !strings.Contains(st.LastReason, test.text) || !st.ConnectedSince.IsZero() {
				t.Errorf("status %+v", st)
			}
		})
	}
}

// TestPortOfAnotherProtocol: who takes TLS or a WebSocket for nonsense closes the connection, or answers in plain text.
func TestPortOfAnotherProtocol(t *testing.T) {
	for scheme, want := range map[string]string{
		"mqtts": "tls handshake: ", "ws": "websocket handshake: ", "wss": "websocket handshake: ",
	} {
		for _, answer := range []string{"", "20 02 00 01"} {
			if scheme == "ws" && answer != "" {
				continue // no HTTP, as the error says
			}
			r := newRig(t, nil, strings.Replace(fakeBroker(t, unhex(t, answer)), "mqtt", scheme, 1))
			eventually(t, "a reason", func() bool { return r.session.Status().LastReason != "" })
			hint := map[string]string{"mqtts": ": does this port speak TLS?", "ws": ": does this port speak WebSocket?", "wss": ": does this port speak WebSocket and TLS?"}[scheme]
			if got := r.session.Status().LastReason; !strings.HasPrefix(got, want) || !strings.HasSuffix(got, hint) {
				t.Errorf("%s, answer %q: %s", scheme, answer, got)
			}
		}
	}
}

// Told of the takeover, a session stays away long enough for people to look.
func TestTakeoverWithReasonCode(t *testing.T) {
	broker := startMochi(t, nil)
	relay := startRelay(t, broker.addr)
	first := newRig(t, nil, relay.url())
	first.awaitState(StateSubscribed)
	second := newRig(t, nil, relay.url())
	eventually(t, "the first is told", func() bool { return first.session.Status().LastReasonCode == 0x8E })
	if st := first.session.Status(); !strings.Contains(st.LastReason, "probably another client uses client id test-0 (two releases with one share name, or a stuck old replica)") {
		t.Errorf("status %+v", st)
	}
	eventually(t, "the wait is decided", func() bool { return len(waits(first)) == 1 })
	if d := waits(first)[0]; d < takeoverLeast {
		t.Errorf("comes back after %s", d)
	}
	second.awaitState(StateSubscribed)
	if n := relay.connections(); n != 2 {
		t.Errorf("%d connections", n)
	}
}

// withoutDisconnect passes on what a broker says but for DISCONNECT, as Mosquitto before 2.0.15 says none at a takeover.
func withoutDisconnect(client io.Writer, broker io.Reader) error {
	for {
		packet, err := packets.ReadPacket(broker)
		if err != nil {
			return err
		}
		if packet.Type == packets.DISCONNECT {
			continue
		}
		if _, err := packet.WriteTo(client); err != nil {
			return err
		}
	}
}

// A broker may only drop the older client. The two must slow down and say what is going on.
func TestTakeoverWithoutReasonCode(t *testing.T) {
	broker := startMosquitto(t, "")
	relay := startRelayThat(t, broker.addr(), withoutDisconnect)
	a := newRig(t, nil, relay.url())
	a.awaitState(StateSubscribed)
	b := newRig(t, nil, relay.url())
	named := func(r *rig) bool {
		return strings.Contains(r.session.Status().LastReason, "without saying why; probably another client uses client id test-0")
	}
	eventually(t, "one of them names the cause", func() bool { return named(a) || named(b) })
	// Two ends, one of them of a short life, make one sure. In the worst case each had one less.
	if n := relay.connections(); n > 6 {
		t.Errorf("%d connections", n)
	}
}

// paho may give an attempt up after its CONNACK: when the connection is lost while it sends again what
// it has in store, or when the CONNACK came at the last moment.
func TestAttemptThatFailsAfterConnack(t *testing.T) {
	var noted []uint64
	r := newIdleRig(t, func(cfg *Config) {
		cfg.BeginIncarnation = func(_ context.Context, incarnation uint64) error {
			noted = append(noted, incarnation)
			return nil
		}
	}, "mqtt://test")
	c, _, _, _ := feed(t, r, nil, unhex(t, connack))
	if n := r.metric("bridge_mqtt_connected"); n != 1 {
		t.Fatalf("connected metric %v after CONNACK", n)
	}
	r.session.attemptFailed(autopaho.NewConnackError(c.cause(), &paho.Connack{}))
	st := r.session.Status()
	if n := r.metric("bridge_mqtt_connected"); n != 0 || !st.ConnectedSince.IsZero() || st.State != StateBackoff {
		t.Errorf("connected metric %v, status %+v", n, st)
	}
	if strings.Contains(st.LastReason, "success") || !strings.Contains(st.LastReason, "EOF") {
		t.Errorf("reason %q", st.LastReason)
	}
	// The next CONNACK will say that the session is there. It is a new one all the same.
	u, err := url.Parse(fakeBroker(t, nil))
	if err != nil {
		t.Fatal(err)
	}
	nc, err := r.session.attempt(t.Context(), autopaho.ClientConfig{}, u)
	if err != nil {
		t.Fatal(err)
	}
	nc.Close()
	if len(noted) != 1 || noted[0] != 1 {
		t.Errorf("noted before the next connection: %v", noted)
	}
}

// mTLS, WebSocket and both together, on one broker; then a rotation.
func TestTransports(t *testing.T) {
	pki := newPKI(t)
	tlsPort, wsPort, wssPort := freePort(t), freePort(t), freePort(t)
	secure := fmt.Sprintf("cafile %s\ncertfile %s\nkeyfile %s\nrequire_certificate true\nuse_identity_as_username true\n",
		pki.path("ca.pem"), pki.path("server.pem"), pki.path("server.key"))
	broker := startMosquitto(t, fmt.Sprintf("listener %d 127.0.0.1\n%slistener %d 127.0.0.1\nprotocol websockets\nlistener %d 127.0.0.1\nprotocol websockets\n%s",
		tlsPort, secure, wsPort, wssPort, secure))
	withCertificates := func(cfg *Config) {
		cfg.CAFile, cfg.CertFile, cfg.KeyFile = pki.path("ca.pem"), pki.path("client.pem"), pki.path("client.key")
	}
	pub := newClient(t, broker.url(), "publisher")
	for name, test := range map[string]struct {
		url    string
		change func(*Config)
	}{
		"mqtts": {fmt.Sprintf("mqtts://127.0.0.1:%d", tlsPort), withCertificates},
		"ssl, and another server name": {fmt.Sprintf("ssl://127.0.0.1:%d", tlsPort), func(cfg *Config) {
			withCertificates(cfg)
			cfg.ServerName = "broker.test"
		}},
		"ws":  {fmt.Sprintf("ws://127.0.0.1:%d/mqtt", wsPort), nil},
		"wss": {fmt.Sprintf("WSS://127.0.0.1:%d", wssPort), withCertificates},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, test.change, test.url)
			r.awaitState(StateSubscribed)
			large := strings.Repeat("x", 30_000) // many pieces; Mosquitto sends 4 KiB of WebSocket each 100 ms
			pub.publish("t/x", large, 1)
			pub.publish("t/x", "y", 1)
			got := r.received(2)
			if string(got[0].Message.Payload) != large || string(got[1].Message.Payload) != "y" {
				t.Error("payloads differ")
			}
			r.settle(got...)
			r.close()
		})
	}

	t.Run("rotation", func(t *testing.T) {
		relay := startRelay(t, fmt.Sprintf("127.0.0.1:%d", tlsPort))
		r := newRig(t, withCertificates, strings.Replace(relay.url(), "mqtt", "tls", 1))
		r.awaitState(StateSubscribed)
		pki.client("client-2")
		relay.cut()
		eventually(t, "the new certificate at the broker", func() bool { return strings.Contains(broker.log.String(), "u'client-2'") })
		r.awaitState(StateSubscribed)
		pki.write("client.pem", []byte("half written"))
		pki.write("ca.pem", nil)
		relay.cut()
		eventually(t, "a third connection", func() bool { return r.session.Status().Reconnects == 2 })
		if n := r.logs.FilterMessageSnippet("cannot be used, the last good").Len(); n < 2 {
			t.Errorf("%d warnings about the files", n)
		}
		r.close()
	})
	t.Run("files that were never good", func(t *testing.T) { // client.pem and ca.pem still are not
		url := fmt.Sprintf("tls://127.0.0.1:%d", tlsPort)
		r := newRig(t, withCertificates, url)
		eventually(t, "the ca file is named", func() bool { return strings.Contains(r.session.Status().LastReason, "no certificate in it") })
		r = newRig(t, func(cfg *Config) { cfg.CertFile, cfg.KeyFile = pki.path("client.pem"), pki.path("client.key") }, url)
		eventually(t, "the certificate is named", func() bool { return strings.Contains(r.session.Status().LastReason, "read client certificate") })
		r = newRig(t, func(cfg *Config) { cfg.CAFile = pki.path("absent.pem") }, url)
		eventually(t, "the absent file is named", func() bool { return strings.Contains(r.session.Status().LastReason, "absent.pem") })
	})
	t.Run("unknown authority", func(t *testing.T) {
		r := newRig(t, nil, fmt.Sprintf("tls://127.0.0.1:%d", tlsPort))
		eventually(t, "the reason shows", func() bool { return strings.Contains(r.session.Status().LastReason, "unknown authority") })
	})
	t.Run("no websocket there", func(t *testing.T) {
		r := newRig(t, nil, strings.Replace(broker.url(), "mqtt", "ws", 1))
		eventually(t, "the reason shows", func() bool { return strings.Contains(r.session.Status().LastReason, "websocket handshake") })
	})
}

func TestStatusTopic(t *testing.T) {
	broker := startMosquitto(t, "")
	watch := newClient(t, broker.url(), "watcher")
	watch.subscribe("state/#")
	topic := "state/" + testClientID
	withStatus := func(cfg *Config) { cfg.StatusTopic = "state" }

	r := newRig(t, withStatus, broker.url())
	eventually(t, "online", func() bool { return watch.last(topic) == "online" })
	r.awaitState(StateSubscribed)
	r.close()
	eventually(t, "offline after a clean end", func() bool { return watch.last(topic) == "offline" })
	eventually(t, "DISCONNECT in the broker's log", func() bool {
		return strings.Count(broker.log.String(), "Received DISCONNECT from "+testClientID) == 1
	})

	r = newRig(t, withStatus, broker.url())
	eventually(t, "online again", func() bool { return watch.last(topic) == "online" })
	r.awaitState(StateSubscribed)
	r.cancel() // abruptly: the broker publishes the Will
	if err := <-r.ran; !errors.Is(err, context.Canceled) {
		t.Errorf("run returned %v", err)
	}
	eventually(t, "offline by the Will", func() bool { return watch.last(topic) == "offline" })
	eventually(t, "DISCONNECT in the broker's log", func() bool {
		return strings.Count(broker.log.String(), "Received DISCONNECT from "+testClientID) == 1
	})
	late := newClient(t, broker.url(), "late")
	late.subscribe("state/#")
	eventually(t, "the status is retained", func() bool { return late.last(topic) == "offline" })
}

func TestStatusThatCannotBePublished(t *testing.T) {
	broker := startMochi(t, func(c *mqtt.Capabilities) { c.RetainAvailable = 0 })
	r := newRig(t, func(cfg *Config) { cfg.StatusTopic = "state" }, broker.url())
	eventually(t, "the refusal or a warning", func() bool {
		return strings.Contains(r.session.Status().LastReason, "retain not supported") ||
			r.logs.FilterMessageSnippet("status could not be published").Len() == 1
	})
}

// Who may not publish the status has lost no message by that.
func TestRefusedStatusIsNoLoss(t *testing.T) {
	broker := startMochi(t, nil)
	broker.publish = func(topic string) bool { return !strings.HasPrefix(topic, "state/") }
	r := newRig(t, func(cfg *Config) { cfg.StatusTopic = "state" }, broker.url())
	eventually(t, "a warning", func() bool { return r.logs.FilterMessageSnippet("status could not be published").Len() == 1 })
	r.close() // would fail if Close told of messages that may come again
	if n := r.logs.FilterMessageSnippet("status could not be published").Len(); n != 2 {
		t.Errorf("%d warnings", n)
	}
}

func TestRefusedSubscriptionShowsAndIsRepeated(t *testing.T) {
	broker := startMochi(t, nil)
	broker.allow = func(filter string) bool { return !strings.Contains(filter, "secret") }
	r := newRig(t, func(cfg *Config) { cfg.Filters = []string{"open/#", "secret/#"} }, broker.url())
	eventually(t, "two refusals, the second by repetition", func() bool {
		st := r.session.Status()
		return len(st.Subscriptions) == 2 && st.Subscriptions[1].ReasonCode == 0x87
	})
	st := r.session.Status()
	if st.State != StateConnected || !st.Subscriptions[0].OK || st.Subscriptions[1].OK ||
		st.Subscriptions[1].Text != "the broker refused: not authorized (0x87)" || st.Subscriptions[1].Filter != "$share/test/secret/#" {
		t.Errorf("status %+v", st)
	}
	pub := newClient(t, broker.url(), "publisher")
	pub.publish("open/x", "", 1)
	r.settle(r.received(1)...) // the granted one works meanwhile
	broker.set(func() { broker.allow = nil })
	r.awaitState(StateSubscribed)
	pub.publish("secret/x", "", 1)
	r.settle(r.received(2)[1])
	if n := r.tellings("subscription to $share/test/"); n != 1 {
		t.Errorf("the refusal is logged %d times", n)
	}
	r.close()
}

// scriptedBroker answers CONNECT with the bytes given, SUBSCRIBE with the reason codes given and
// PINGREQ, and says nothing else.
func scriptedBroker(t *testing.T, connack string, suback ...byte) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	serve := func(nc net.Conn) {
		defer nc.Close()
		for {
			p, err := packets.ReadPacket(nc)
			if err != nil {
				return
			}
			switch p := p.Content.(type) {
			case *packets.Connect:
				_, _ = nc.Write(unhex(t, connack))
			case *packets.Subscribe:
				_, _ = (&packets.Suback{PacketID: p.PacketID, Properties: &packets.Properties{}, Reasons: suback}).WriteTo(nc)
			case *packets.Pingreq:
				_, _ = nc.Write([]byte{0xD0, 0})
			}
		}
	}
	wg.Go(func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { serve(nc) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		wg.Wait()
	})
	return "mqtt://" + l.Addr().String()
}

func TestWhatTheBrokerCannotDo(t *testing.T) {
	tests := map[string]struct {
		connack string
		suback  []byte
		code    byte
		text    string
	}{
		"shared subscriptions":    {"20 05 00 00 02 2a 00", nil, 0x9E, "CONNACK: shared subscriptions not supported (0x9E)"},
		"wildcards":               {"20 05 00 00 02 28 00", nil, 0xA2, "CONNACK: wildcard subscriptions not supported (0xA2)"},
		"QoS 1":                   {"20 05 00 00 02 24 00", []byte{0}, 0, "granted QoS 0, QoS 1 was asked for"},
		"packets of that size":    {"20 08 00 00 05 27 00000010", nil, 0x95, "does not fit into the 16 bytes"},
		"as many codes as asked":  {connack, []byte{1, 1}, 0x80, "one reason code for each filter"},
		"this filter, it says so": {connack, []byte{0x8F}, 0x8F, "topic filter invalid (0x8F)"},
		"a code nobody knows":     {connack, []byte{0xEE}, 0xEE, "reason code 0xEE"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, nil, scriptedBroker(t, test.connack, test.suback...))
			eventually(t, "the answer", func() bool {
				subs := r.session.Status().Subscriptions
				return len(subs) == 1 && subs[0].Text != notAnswered
			})
			st := r.session.Status()
			if sub := st.Subscriptions[0]; st.State != StateConnected || sub.OK || sub.ReasonCode != test.code || !strings.Contains(sub.Text, test.text) {
				t.Errorf("status %+v", st)
			}
			if n := r.tellings("subscription to $share/test/"); n != 1 {
				t.Errorf("logged %d times", n)
			}
			r.close()
		})
	}
}

func TestManyFiltersGoInSeveralPackets(t *testing.T) {
	broker := startMosquitto(t, "max_packet_size 400\n")
	r := newRig(t, func(cfg *Config) {
		cfg.Filters = nil
		for i := range 20 { // the last ones so long that fewer fit
			cfg.Filters = append(cfg.Filters, fmt.Sprintf("f%d/%s", i, strings.Repeat("x", 10*i)))
		}
	}, broker.url())
	r.awaitState(StateSubscribed)
	if n := strings.Count(broker.log.String(), "Received SUBSCRIBE from "+testClientID); n < 20/maxSubscribeFilters+1 {
		t.Errorf("%d SUBSCRIBEs", n)
	}
	if n := len(r.session.Status().Subscriptions); n != 20 {
		t.Errorf("%d subscriptions", n)
	}
	r.close()
}

func TestServerKeepAlive(t *testing.T) {
	broker := startMosquitto(t, "max_keepalive 10\n")
	r := newRig(t, func(cfg *Config) { cfg.KeepAlive = 60 * time.Second }, broker.url())
	eventually(t, "the broker's keep alive", func() bool { return r.session.Status().KeepAliveEffective == 10*time.Second })
	r.close()
}

// A Server Keep Alive longer than ours, or none, is no reason to notice a dead connection later. More
// PINGREQs than the broker asks for are in order: [MQTT-3.1.2-21] sets the longest pause.
func TestServerKeepAliveDoesNotBlind(t *testing.T) {
	for name, connack := range map[string]string{"longer": "20 06 00 00 03 13 ffff", "off": "20 06 00 00 03 13 0000"} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, func(cfg *Config) { cfg.KeepAlive = 15 * time.Second }, scriptedBroker(t, connack, 1))
			eventually(t, "a PINGRESP", func() bool { return r.session.Status().RTT > 0 })
			if st := r.session.Status(); st.KeepAliveEffective != 15*time.Second {
				t.Errorf("keep alive %s", st.KeepAliveEffective)
			}
			r.close()
		})
	}
}

func TestLifeCycle(t *testing.T) {
	t.Run("closed before it runs", func(t *testing.T) {
		r := newIdleRig(t, nil, "mqtt://127.0.0.1:1")
		if err := r.session.Close(t.Context()); err != nil {
			t.Error(err)
		}
		if err := r.session.Run(t.Context()); err != nil {
			t.Error(err)
		}
	})
	t.Run("runs once", func(t *testing.T) {
		r := newRig(t, nil, "mqtt://127.0.0.1:1")
		eventually(t, "an attempt", func() bool { return r.session.Status().LastReason != "" })
		if err := r.session.Run(t.Context()); err == nil {
			t.Error("ran twice")
		}
		if err := r.session.Acknowledge([]Ack{{Connection: 1, PacketID: 1, QoS: 1}}); err != nil {
			t.Errorf("acknowledge without a connection: %v", err)
		}
		r.close()
		if st := r.session.Status(); st.State != StateClosed {
			t.Errorf("status %+v", st)
		}
	})
	t.Run("closed twice at once", func(t *testing.T) {
		broker := startMosquitto(t, "")
		r := newRig(t, nil, broker.url())
		r.awaitState(StateSubscribed)
		r.session.mu.Lock()
		c := r.session.conn
		r.session.mu.Unlock()
		var wg sync.WaitGroup
		for range 2 {
			wg.Go(func() {
				if err := r.session.Close(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if err := <-r.ran; err != nil {
			t.Error(err)
		}
		if !errors.Is(c.cause(), errLeft) { // or it was cut, and the broker may miss the DISCONNECT
			t.Errorf("the connection ended by %v", c.cause())
		}
	})
	t.Run("the broker does not answer any more", func(t *testing.T) {
		broker := startMosquitto(t, "")
		r := newRig(t, nil, broker.url())
		r.awaitState(StateSubscribed)
		broker.signal(syscall.SIGSTOP)
		ctx, cancel := context.WithCancel(t.Context())
		result := make(chan error, 1)
		go func() { result <- r.session.Close(ctx) }()
		eventually(t, "taking has stopped", func() bool { return r.session.stopping.Err() != nil })
		cancel()
		if err := <-result; !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "acknowledgements") {
			t.Errorf("close: %v", err)
		}
		if err := <-r.ran; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	t.Run("the context ends while the broker is away", func(t *testing.T) {
		r := newRig(t, nil, "mqtt://127.0.0.1:1")
		eventually(t, "an attempt", func() bool { return r.session.Status().LastReason != "" })
		r.cancel()
		if err := <-r.ran; !errors.Is(err, context.Canceled) {
			t.Errorf("run: %v", err)
		}
	})
	t.Run("the server disconnects", func(t *testing.T) {
		broker := startMosquitto(t, "")
		r := newRig(t, nil, broker.url())
		r.awaitState(StateSubscribed)
		broker.signal(syscall.SIGTERM) // Mosquitto says 0x8B, then goes
		eventually(t, "the reason", func() bool { return r.session.Status().LastReason != "" })
		if st := r.session.Status(); st.LastReasonCode != 0x8B && !strings.Contains(st.LastReason, "the broker") {
			t.Errorf("status %+v", st)
		}
		r.cancel()
		if err := <-r.ran; !errors.Is(err, context.Canceled) {
			t.Errorf("run: %v", err)
		}
	})
}

func TestSubscriptionIdentifierReachesTheDelivery(t *testing.T) {
	r := newIdleRig(t, nil, "mqtt://test")
	_, _, _, _ = feed(t, r, nil, unhex(t, connack+"32 0a 0001 't' 0001 04 0b 07 0b 08"))
	if ids := r.received(1)[0].SubscriptionIDs; len(ids) != 2 || ids[0] != 7 || ids[1] != 8 {
		t.Errorf("identifiers %v", ids)
	}
}

func TestOptions(t *testing.T) {
	for share, want := range map[string]paho.SubscribeOptions{
		"g": {Topic: "$share/g/a/#", QoS: 1, RetainHandling: 2},
		"":  {Topic: "a/#", QoS: 1, RetainHandling: 1},
	} {
		s := newIdleRig(t, func(cfg *Config) { cfg.ShareName = share }, "mqtt://test").session
		if got := s.options(s.cfg.subscription("a/#")); got != want {
			t.Errorf("%+v, want %+v", got, want)
		}
	}
}

// TestBeginIncarnation: a new session is told before its first subscription, a present one is not. While
// it cannot be noted the broker queues for it, and sends nothing.
func TestBeginIncarnation(t *testing.T) {
	broker := startMosquitto(t, "")
	publisher := newClient(t, broker.url(), "publisher")
	subscribes := func() int { return strings.Count(broker.log.String(), "Received SUBSCRIBE from "+testClientID) }
	var away atomic.Bool
	var mu sync.Mutex
	var told []uint64
	note := func(cfg *Config) {
		cfg.BeginIncarnation = func(_ context.Context, incarnation uint64) error {
			mu.Lock()
			defer mu.Unlock()
			if len(told) == 0 && subscribes() != 0 {
				t.Error("subscribed before it was told")
			}
			told = append(told, incarnation)
			if away.Load() {
				return errors.New("the database is away")
			}
			return nil
		}
	}
	away.Store(true)
	r := newRig(t, note, broker.url())
	eventually(t, "the subscription stands without a connection", func() bool {
		return subscribes() == 1 && strings.Contains(r.session.Status().LastReason, "the database is away")
	})
	for i := range 20 {
		publisher.publish("t/x", fmt.Sprint(i), 1)
	}
	if n := len(r.all()); n != 0 {
		t.Errorf("%d deliveries of a session that is not noted", n)
	}
	away.Store(false)
	r.awaitState(StateSubscribed)
	if n := len(r.received(20)); n != 20 || !r.session.Status().SessionPresent {
		t.Errorf("%d deliveries, session present %t", n, r.session.Status().SessionPresent)
	}
	r.close()
	mu.Lock()
	calls := len(told)
	mu.Unlock()
	r = newRig(t, note, broker.url())
	r.awaitState(StateSubscribed)
	r.close()
	mu.Lock()
	defer mu.Unlock()
	if len(told) != calls || told[0] != 1 || told[calls-1] != 1 {
		t.Errorf("told %v, then %v", told[:calls], told[calls:])
	}
}
