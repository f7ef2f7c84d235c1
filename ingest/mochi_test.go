package ingest

import (
	"bytes"
	"io"
	"log/slog" //nolint:depguard // the broker takes no other logger
	"net"
	"sync"
	"testing"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/listeners"
	"github.com/mochi-mqtt/server/v2/packets"
)

// mochi is an embedded broker whose decisions the test makes.
type mochi struct {
	mqtt.HookBase
	server *mqtt.Server
	addr   string

	mu       sync.Mutex
	login    func(username, password string) bool
	allow    func(filter string) bool
	publish  func(topic string) bool
	connects []packets.Packet // every CONNECT
	acks     []packets.Packet // every PUBACK and PUBREC
}

func startMochi(t *testing.T, change func(*mqtt.Capabilities)) *mochi {
	t.Helper()
	capabilities := mqtt.NewDefaultServerCapabilities()
	if change != nil {
		change(capabilities)
	}
	m := &mochi{server: mqtt.New(&mqtt.Options{Capabilities: capabilities, Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})}
	if err := m.server.AddHook(m, nil); err != nil {
		t.Fatal(err)
	}
	tcp := listeners.NewTCP(listeners.Config{ID: "tcp", Address: "127.0.0.1:0"})
	if err := m.server.AddListener(tcp); err != nil {
		t.Fatal(err)
	}
	m.addr = tcp.Address()
	if err := m.server.Serve(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.server.Close() })
	return m
}

func (m *mochi) url() string { return "mqtt://" + m.addr }

func (m *mochi) set(change func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	change()
}

// ID names the hook.
func (m *mochi) ID() string { return "test" }

// Provides lists the hook's functions.
func (m *mochi) Provides(b byte) bool {
	return bytes.Contains([]byte{mqtt.OnConnectAuthenticate, mqtt.OnACLCheck, mqtt.OnConnect, mqtt.OnPacketRead}, []byte{b})
}

// OnConnect keeps the CONNECT.
func (m *mochi) OnConnect(_ *mqtt.Client, pk packets.Packet) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.connects = append(m.connects, pk)
	return nil
}

// OnPacketRead keeps acknowledgements.
func (m *mochi) OnPacketRead(_ *mqtt.Client, pk packets.Packet) (packets.Packet, error) {
	if pk.FixedHeader.Type == packets.Puback || pk.FixedHeader.Type == packets.Pubrec {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.acks = append(m.acks, pk)
	}
	return pk, nil
}

// OnConnectAuthenticate asks login.
func (m *mochi) OnConnectAuthenticate(_ *mqtt.Client, pk packets.Packet) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.login == nil || m.login(string(pk.Connect.Username), string(pk.Connect.Password))
}

// OnACLCheck asks allow for subscriptions and publish for publications.
func (m *mochi) OnACLCheck(_ *mqtt.Client, filter string, write bool) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if write {
		return m.publish == nil || m.publish(filter)
	}
	return m.allow == nil || m.allow(filter)
}

// relay is a TCP proxy that counts connections and can cut them.
type relay struct {
	t        *testing.T
	listener net.Listener
	target   string
	pass     func(client io.Writer, broker io.Reader) error // what the broker says, until its end

	mu    sync.Mutex
	count int
	conns []net.Conn
	wg    sync.WaitGroup
}

func startRelay(t *testing.T, target string) *relay {
	t.Helper()
	return startRelayThat(t, target, func(client io.Writer, broker io.Reader) error {
		_, err := io.Copy(client, broker)
		return err
	})
}

// startRelayThat passes on what pass makes of the broker's words.
func startRelayThat(t *testing.T, target string, pass func(client io.Writer, broker io.Reader) error) *relay {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{t: t, listener: l, target: target, pass: pass}
	r.wg.Go(r.serve)
	t.Cleanup(func() {
		l.Close()
		r.cut()
		r.wg.Wait()
	})
	return r
}

func (r *relay) url() string { return "mqtt://" + r.listener.Addr().String() }

func (r *relay) serve() {
	for {
		in, err := r.listener.Accept()
		if err != nil {
			return
		}
		r.mu.Lock()
		r.count++
		r.mu.Unlock()
		out, err := net.Dial("tcp", r.target)
		if err != nil {
			in.Close()
			continue
		}
		r.mu.Lock()
		r.conns = append(r.conns, in, out)
		r.mu.Unlock()
		end := func() {
			in.Close()
			out.Close()
		}
		r.wg.Go(func() {
			defer end()
			_, _ = io.Copy(out, in)
		})
		r.wg.Go(func() {
			defer end()
			_ = r.pass(in, out) // any error is the end of the connection
		})
	}
}

// cut ends all connections.
func (r *relay) cut() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.conns {
		c.Close()
	}
	r.conns = nil
}

func (r *relay) connections() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.count
}
