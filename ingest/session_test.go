package ingest

import (
	"context"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/autopaho"
	"github.com/eclipse/paho.golang/paho"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
)

// rig is a session under test with everything it delivered.
type rig struct {
	t        testing.TB
	session  *Session
	registry *prometheus.Registry
	logs     *observer.ObservedLogs
	cancel   context.CancelFunc
	ran      chan error

	mu         sync.Mutex
	deliveries []*Delivery
	autoAck    bool
}

const testClientID = "test-0"

// newRig starts a session; change may alter its configuration.
func newRig(t *testing.T, change func(*Config), urls ...string) *rig {
	t.Helper()
	r := newIdleRig(t, change, urls...)
	r.run()
	return r
}

func newIdleRig(t testing.TB, change func(*Config), urls ...string) *rig {
	t.Helper()
	core, logs := observer.New(zapcore.DebugLevel)
	r := &rig{t: t, registry: prometheus.NewRegistry(), logs: logs}
	cfg := Config{
		ShareName:      "test",
		Filters:        []string{"t/#"},
		QoS:            1,
		KeepAlive:      15 * time.Second,
		SessionExpiry:  time.Hour,
		ReceiveMaximum: 2000,
		Budget:         NewBudget(64 << 20),
		Deliver:        r.deliver,
		Log:            zap.New(core),
		Metrics:        NewMetrics(r.registry),
	}
	for _, text := range urls {
		u, err := url.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		cfg.URLs = append(cfg.URLs, u)
	}
	if change != nil {
		change(&cfg)
	}
	s, err := New(cfg, testClientID)
	if err != nil {
		t.Fatal(err)
	}
	r.session = s
	return r
}

func (r *rig) run() {
	ctx, cancel := context.WithCancel(context.Background())
	r.cancel, r.ran = cancel, make(chan error, 1)
	go func() { r.ran <- r.session.Run(ctx) }()
	r.t.Cleanup(func() {
		cancel()
		<-r.session.done
		if r.t.Failed() {
			for _, e := range r.logs.All() {
				r.t.Logf("%s %s %v", e.Level, e.Message, e.ContextMap())
			}
		}
	})
}

func (r *rig) deliver(_ context.Context, passing *Delivery) {
	d := new(*passing)
	r.mu.Lock()
	r.deliveries = append(r.deliveries, d)
	ack := r.autoAck
	r.mu.Unlock()
	if ack {
		_ = r.session.Acknowledge([]Ack{d.Ack()})
		r.session.cfg.Budget.Release(int64(d.Size))
	}
}

func (r *rig) all() []*Delivery {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]*Delivery(nil), r.deliveries...)
}

// withQoS is what came with QoS 1 or 2.
func (r *rig) withQoS() []*Delivery {
	return slices.DeleteFunc(r.all(), func(d *Delivery) bool { return d.Message.QoS == 0 })
}

// charged is how many bytes of the budget belong to what came.
func (r *rig) charged() (n int64) {
	for _, d := range r.all() {
		n += int64(d.Size)
	}
	return n
}

// settle acknowledges deliveries and releases their bytes.
func (r *rig) settle(deliveries ...*Delivery) {
	r.t.Helper()
	var acks []Ack
	for _, d := range deliveries {
		acks = append(acks, d.Ack())
		r.session.cfg.Budget.Release(int64(d.Size))
	}
	if err := r.session.Acknowledge(acks); err != nil {
		r.t.Fatal(err)
	}
}

// received waits for exactly n deliveries and returns them.
func (r *rig) received(n int) []*Delivery {
	r.t.Helper()
	eventually(r.t, fmt.Sprintf("%d deliveries", n), func() bool { return len(r.all()) >= n })
	got := r.all()
	if len(got) != n {
		r.t.Fatalf("got %d deliveries, want %d", len(got), n)
	}
	return got
}

func (r *rig) forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.deliveries = nil
}

func (r *rig) awaitState(want State) {
	r.t.Helper()
	eventually(r.t, "state "+string(want), func() bool { return r.session.Status().State == want })
}

func (r *rig) close() {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := r.session.Close(ctx); err != nil {
		r.t.Fatalf("close: %v", err)
	}
	if err := <-r.ran; err != nil {
		r.t.Fatalf("run: %v", err)
	}
}

func (r *rig) metric(name string) float64 {
	r.t.Helper()
	families, err := r.registry.Gather()
	if err != nil {
		r.t.Fatal(err)
	}
	sum := 0.0
	for _, f := range families {
		if f.GetName() == name {
			for _, m := range f.GetMetric() {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return sum
}

// client is an ordinary MQTT client for the other side of a test.
type client struct {
	t  *testing.T
	cm *autopaho.ConnectionManager

	mu       sync.Mutex
	received []*paho.Publish
}

func newClient(t *testing.T, brokerURL, id string) *client {
	t.Helper()
	u, err := url.Parse(brokerURL)
	if err != nil {
		t.Fatal(err)
	}
	c := &client{t: t}
	cfg := autopaho.ClientConfig{
		ServerUrls:                    []*url.URL{u},
		KeepAlive:                     60,
		CleanStartOnInitialConnection: true,
		ReconnectBackoff:              func(int) time.Duration { return 50 * time.Millisecond },
		ClientConfig: paho.ClientConfig{
			ClientID: id,
			OnPublishReceived: []func(paho.PublishReceived) (bool, error){func(p paho.PublishReceived) (bool, error) {
				c.mu.Lock()
				defer c.mu.Unlock()
				c.received = append(c.received, p.Packet)
				return true, nil
			}},
		},
	}
	ctx, cancel := context.WithCancel(context.Background())
	c.cm, err = autopaho.NewConnection(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stop, done := context.WithTimeout(context.Background(), 5*time.Second)
		defer done()
		_ = c.cm.Disconnect(stop)
		cancel()
		<-c.cm.Done()
	})
	wait, done := context.WithTimeout(ctx, 30*time.Second)
	defer done()
	if err := c.cm.AwaitConnection(wait); err != nil {
		t.Fatal(err)
	}
	return c
}

func (c *client) publish(topic, payload string, qos byte) {
	c.t.Helper()
	c.send(&paho.Publish{Topic: topic, Payload: []byte(payload), QoS: qos})
}

func (c *client) send(p *paho.Publish) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if _, err := c.cm.Publish(ctx, p); err != nil {
		c.t.Fatalf("publish: %v", err)
	}
}

func (c *client) subscribe(filter string) {
	c.t.Helper()
	_, err := c.cm.Subscribe(context.Background(), &paho.Subscribe{Subscriptions: []paho.SubscribeOptions{{Topic: filter, QoS: 1}}})
	if err != nil {
		c.t.Fatalf("subscribe: %v", err)
	}
}

// last returns the payload of the last message received on topic.
func (c *client) last(topic string) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range slices.Backward(c.received) {
		if p.Topic == topic {
			return string(p.Payload)
		}
	}
	return ""
}

func TestDeliversEachQoS(t *testing.T) {
	broker := startMosquitto(t, "")
	r := newRig(t, func(cfg *Config) { cfg.QoS = 2 }, broker.url())
	r.awaitState(StateSubscribed)
	pub := newClient(t, broker.url(), "publisher")
	for qos := range byte(3) {
		pub.send(&paho.Publish{
			Topic: fmt.Sprintf("t/%d", qos), Payload: []byte{0, 0xFF, qos}, QoS: qos,
			Properties: &paho.PublishProperties{
				ContentType: "application/x", CorrelationData: []byte{1, 2},
				User: paho.UserProperties{{Key: "a", Value: "1"}, {Key: "a", Value: "2"}},
			},
		})
	}
	got := r.received(3)
	for i, d := range got {
		m := d.Message
		if m.Topic != fmt.Sprintf("t/%d", i) || m.QoS != byte(i) || string(m.Payload) != string([]byte{0, 0xFF, byte(i)}) || m.ContentType != "application/x" ||
			string(m.CorrelationData) != "\x01\x02" || len(m.UserProperties) != 2 || m.UserProperties[1].Value != "2" {
			t.Errorf("delivery %d: %+v", i, m)
		}
		if d.Connection != 1 || d.Dup || (d.PacketID == 0) != (i == 0) || m.Seed == 0 || m.ReceivedAt.Location() != time.UTC || m.ReceivedAt.Nanosecond()%1000 != 0 {
			t.Errorf("delivery %d: %+v", i, d)
		}
	}
	r.settle(got...)
	r.close()
	if used := r.session.cfg.Budget.Used(); used != 0 {
		t.Errorf("%d bytes of the budget are still held", used)
	}

	// All was acknowledged: nothing comes again.
	again := newRig(t, func(cfg *Config) { cfg.QoS = 2 }, broker.url())
	again.awaitState(StateSubscribed)
	if !again.session.Status().SessionPresent {
		t.Error("the broker did not keep the session")
	}
	pub.publish("t/end", "", 1)
	if d := again.received(1)[0]; d.Message.Topic != "t/end" {
		t.Errorf("came again: %+v", d)
	}
	again.settle(again.all()...)
	again.close()
}

// tellings is how many lines of the self-check begin with what.
func (r *rig) tellings(what string) (n int) {
	for _, entry := range r.logs.FilterMessage("delivery self-check").All() {
		if text, _ := entry.ContextMap()["what"].(string); strings.HasPrefix(text, what) {
			n++
		}
	}
	return n
}
