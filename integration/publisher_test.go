//go:build unix

package integration

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/paho"
)

// message is what a device publishes.
type message struct {
	topic   string
	payload []byte
	qos     byte
	retain  bool
	user    paho.UserProperties
}

// publisher is a fleet of devices on one connection. Like a device that keeps what it could not
// send, it repeats a message until the broker has taken responsibility for it; what it repeats it
// sends with the same content. A broker that answers "no matching subscribers" has not taken the
// message: a restarted Mosquitto has forgotten every shared subscription until the bridge has
// subscribed again.
type publisher struct {
	address  string
	clientID string

	mu     sync.Mutex
	client *paho.Client

	repeated atomic.Int64 // transmissions beyond the first of a message
}

// reasonNoSubscribers is the reason code of a PUBACK or PUBREC for a message nobody subscribed to.
const reasonNoSubscribers = 0x10

func newPublisher(t *testing.T, brokerURL, clientID string) *publisher {
	t.Helper()
	u, err := url.Parse(brokerURL)
	if err != nil {
		t.Fatalf("broker URL: %v", err)
	}
	p := &publisher{address: u.Host, clientID: clientID}
	t.Cleanup(func() {
		p.close()
		if n := p.repeated.Load(); t.Failed() && n > 0 {
			t.Logf("%s has made %d transmissions beyond the first of a message: a route without a key writes these as well", clientID, n)
		}
	})
	return p
}

func (p *publisher) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.client != nil {
		_ = p.client.Disconnect(&paho.Disconnect{}) // the broker may be gone: there is nothing to save
		p.client = nil
	}
}

// connected returns a connected client, after one attempt to connect if there is none.
func (p *publisher) connected(ctx context.Context) (*paho.Client, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.client != nil {
		select {
		case <-p.client.Done():
			p.client = nil
		default:
			return p.client, nil
		}
	}
	dialer := net.Dialer{Timeout: 5 * time.Second}
	conn, err := dialer.DialContext(ctx, "tcp", p.address)
	if err != nil {
		return nil, fmt.Errorf("connect to the broker: %w", err)
	}
	client := paho.NewClient(paho.ClientConfig{Conn: conn, PacketTimeout: 10 * time.Second})
	if _, err := client.Connect(ctx, &paho.Connect{ClientID: p.clientID, CleanStart: true, KeepAlive: 30}); err != nil {
		return nil, fmt.Errorf("connect to the broker: %w", err)
	}
	p.client = client
	return client, nil
}

// send returns when the broker has taken responsibility for m; at QoS 0, when it is on the wire.
func (p *publisher) send(ctx context.Context, m message) error {
	for attempt := 0; ; attempt++ {
		if attempt > 0 {
			select {
			case <-ctx.Done():
				return fmt.Errorf("publish to %s: %w", m.topic, ctx.Err())
			case <-time.After(50 * time.Millisecond):
			}
		}
		client, err := p.connected(ctx)
		if err != nil {
			continue
		}
		if attempt > 0 {
			p.repeated.Add(1)
		}
		publish := &paho.Publish{Topic: m.topic, Payload: m.payload, QoS: m.qos, Retain: m.retain}
		if len(m.user) > 0 {
			publish.Properties = &paho.PublishProperties{User: m.user}
		}
		response, err := client.Publish(ctx, publish)
		switch {
		case errors.Is(err, paho.ErrInvalidArguments):
			return fmt.Errorf("publish to %s: %w", m.topic, err)
		case err != nil:
			continue // the connection is gone
		case response.ReasonCode >= 0x80 || response.ReasonCode == reasonNoSubscribers && !m.retain:
			continue // refused for now; paho reports a PUBREC that says so without an error
		}
		return nil
	}
}

// sendAll sends messages in no particular order, several at a time as many devices would, and
// fails the test if they cannot be delivered to the broker before ctx ends.
func (p *publisher) sendAll(ctx context.Context, t *testing.T, messages []message) {
	t.Helper()
	queue := make(chan message)
	var workers sync.WaitGroup
	var failed atomic.Pointer[error]
	for range 12 {
		workers.Go(func() {
			for m := range queue {
				if err := p.send(ctx, m); err != nil {
					failed.CompareAndSwap(nil, &err)
				}
			}
		})
	}
	for _, m := range messages {
		queue <- m
	}
	close(queue)
	workers.Wait()
	if err := failed.Load(); err != nil {
		t.Errorf("the publisher gave up: %v", *err)
	}
}

// stream is a publication that goes on in the background of a scenario.
type stream struct {
	sent atomic.Int64
	done chan struct{}
}

// startStream sends messages at about perSecond in the background.
func (p *publisher) startStream(ctx context.Context, t *testing.T, messages []message, perSecond int) *stream {
	t.Helper()
	s := &stream{done: make(chan struct{})}
	const beat = 20 * time.Millisecond
	go func() {
		defer close(s.done)
		ticker := time.NewTicker(beat)
		defer ticker.Stop()
		start := time.Now()
		for len(messages) > 0 && ctx.Err() == nil { // it ends before its time when the test has failed
			<-ticker.C
			due := int(time.Since(start).Seconds()*float64(perSecond)) - int(s.sent.Load())
			due = min(max(due, 0), len(messages))
			p.sendAll(ctx, t, messages[:due])
			s.sent.Add(int64(due))
			messages = messages[due:]
		}
	}()
	t.Cleanup(s.wait) // a test that fails half way must not leave the sender behind
	return s
}

// waitSent returns when at least n messages are with the broker.
func (s *stream) waitSent(t *testing.T, n int) {
	t.Helper()
	eventually(t, fmt.Sprintf("%d messages sent", n), func() (bool, string) {
		sent := s.sent.Load()
		return sent >= int64(n), fmt.Sprintf("%d sent", sent)
	})
}

// over says whether everything is with the broker.
func (s *stream) over() bool {
	select {
	case <-s.done:
		return true
	default:
		return false
	}
}

// wait returns when everything is with the broker.
func (s *stream) wait() { <-s.done }
