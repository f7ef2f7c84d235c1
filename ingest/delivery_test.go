package ingest

import (
	"fmt"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/paho"
	"go.uber.org/zap"
)

// What is unacknowledged when the connection is lost comes again, in order, with DUP and the same
// packet ids, on a new generation; acknowledgements of the old one are worth nothing.
func TestRedeliveryAfterALostConnection(t *testing.T) {
	for qos := byte(1); qos <= 2; qos++ {
		t.Run(fmt.Sprintf("QoS %d", qos), func(t *testing.T) {
			broker := startMosquitto(t, "")
			relay := startRelay(t, broker.addr())
			r := newRig(t, func(cfg *Config) { cfg.QoS = qos }, relay.url())
			r.awaitState(StateSubscribed)
			pub := newClient(t, broker.url(), "publisher")
			for i := range 10 {
				pub.publish("t/x", fmt.Sprint(i), qos)
			}
			first := r.received(10)
			r.settle(first[:4]...)
			eventually(t, "four acknowledgements", func() bool {
				return strings.Count(broker.log.String(), fmt.Sprintf("Received %s from %s", map[byte]string{1: "PUBACK", 2: "PUBREC"}[qos], testClientID)) == 4
			})
			r.forget()
			relay.cut()

			again := r.received(6)
			for i, d := range again {
				if !d.Dup || d.PacketID != first[i+4].PacketID || string(d.Message.Payload) != fmt.Sprint(i+4) || d.Connection != 2 {
					t.Errorf("redelivery %d: %+v", i, d)
				}
				if d.Message.Seed == first[i+4].Message.Seed {
					t.Errorf("redelivery %d has the seed of the first delivery", i)
				}
			}
			r.settle(first[4:]...) // too late: they belong to connection 1
			r.awaitState(StateSubscribed)
			r.forget()
			relay.cut()
			third := r.received(6)
			if third[0].Connection != 3 || !third[0].Dup || r.session.cfg.Budget.Used() != int64(again[0].Size)*12 {
				t.Errorf("third delivery: %+v, %d bytes held", third[0], r.session.cfg.Budget.Used())
			}
			r.settle(third...)
			r.close()
			st := r.session.Status()
			if st.Reconnects != 2 || st.SessionsLost != 0 || st.State != StateClosed {
				t.Errorf("status %+v", st)
			}
		})
	}
}

func TestAcknowledgementsArriveInOrder(t *testing.T) {
	broker := startMochi(t, nil)
	r := newRig(t, nil, broker.url())
	r.awaitState(StateSubscribed)
	pub := newClient(t, broker.url(), "publisher")
	for i := range 100 {
		pub.publish("t/x", fmt.Sprint(i), 1)
	}
	got := r.received(100)
	r.settle(got[:50]...)
	r.settle(got[50:]...)
	eventually(t, "100 PUBACKs", func() bool {
		broker.mu.Lock()
		defer broker.mu.Unlock()
		return len(broker.acks) == 100
	})
	broker.mu.Lock()
	defer broker.mu.Unlock()
	for i, ack := range broker.acks {
		if ack.PacketID != got[i].PacketID {
			t.Fatalf("acknowledgement %d is for packet id %d, want %d", i, ack.PacketID, got[i].PacketID)
		}
	}
}

// With nothing acknowledged the broker stops at Receive Maximum, and goes on as we acknowledge.
func TestReceiveMaximumHoldsTheStream(t *testing.T) {
	broker := startMosquitto(t, "")
	r := newRig(t, func(cfg *Config) { cfg.ReceiveMaximum = 5 }, broker.url())
	r.awaitState(StateSubscribed)
	pub := newClient(t, broker.url(), "publisher")
	for i := range 20 {
		pub.publish("t/x", fmt.Sprint(i), 1)
	}
	pub.publish("t/x", "sentinel", 0) // comes after all that may come
	got := r.received(6)
	if string(got[5].Message.Payload) != "sentinel" {
		t.Fatalf("the sixth is %+v", got[5])
	}
	r.mu.Lock()
	r.autoAck = true // for what comes from now on
	r.mu.Unlock()
	r.settle(got...)
	r.received(21)
}

// Mosquitto 2.0.11 exceeds Receive Maximum when acknowledgements come while it has a backlog. That
// must be borne: no DISCONNECT 0x93, only the byte budget as bound.
func TestReceiveMaximumExceededByTheBroker(t *testing.T) {
	broker := startMosquitto(t, "")
	r := newRig(t, func(cfg *Config) { cfg.ReceiveMaximum = 5 }, broker.url())
	r.awaitState(StateSubscribed)
	pub := newClient(t, broker.url(), "publisher")
	for i := range 200 {
		pub.publish("t/x", fmt.Sprint(i), 1)
	}
	done := 0
	eventually(t, "all 200", func() bool {
		got := r.all()
		r.settle(got[done:]...)
		done = len(got)
		return done == 200
	})
	if st := r.session.Status(); st.Reconnects != 0 || st.State != StateSubscribed {
		t.Errorf("status %+v", st)
	}
	r.close()
}

// Close must not lose an acknowledgement: DISCONNECT right after PUBACKs does.
func TestCloseLosesNoAcknowledgement(t *testing.T) {
	broker := startMosquitto(t, "")
	pub := newClient(t, broker.url(), "publisher")
	for round := range 5 {
		r := newRig(t, nil, broker.url())
		r.awaitState(StateSubscribed)
		for i := range 200 {
			pub.publish("t/x", fmt.Sprint(i), 1)
		}
		got := r.received(200) // and nothing from the round before
		for _, d := range got {
			if d.Dup {
				t.Fatalf("round %d: came again: %+v", round, d)
			}
		}
		r.settle(got...)
		r.close()
	}
}

// From StopTaking on messages stay with the broker, for the next owner of the session.
func TestStopTakingLeavesMessagesWithTheBroker(t *testing.T) {
	broker := startMosquitto(t, "")
	r := newRig(t, nil, broker.url())
	r.awaitState(StateSubscribed)
	pub := newClient(t, broker.url(), "publisher")
	pub.publish("t/x", "before", 1)
	r.settle(r.received(1)...)
	r.session.StopTaking()
	pub.publish("t/x", "after", 1)
	pub.publish("t/x", "QoS 0", 0)
	if got := r.received(2); string(got[1].Message.Payload) != "QoS 0" {
		t.Fatalf("delivered %+v", got[1])
	}
	r.close()

	next := newRig(t, nil, broker.url())
	if got := next.received(1); string(got[0].Message.Payload) != "after" || !got[0].Dup {
		t.Errorf("the next owner got %+v", got[0])
	}
	next.settle(next.all()...)
	next.close()
}

// While the budget is used up nothing is read; the broker must go on seeing PINGREQs, and the missing
// PINGRESPs must not be taken for its death.
func TestBudgetPauseKeepsTheConnection(t *testing.T) {
	broker := startMosquitto(t, "")
	r := newRig(t, func(cfg *Config) {
		cfg.KeepAlive = time.Second
		cfg.Budget = NewBudget(3 * (overheadBytes + 1000))
	}, broker.url())
	r.awaitState(StateSubscribed)
	pub := newClient(t, broker.url(), "publisher")
	payload := strings.Repeat("x", 800)
	for range 10 {
		pub.publish("t/x", payload, 1)
	}
	eventually(t, "paused", func() bool { return r.session.Status().Paused })
	pings := func() int {
		return strings.Count(broker.log.String(), "Received PINGREQ from "+testClientID)
	}
	before := pings()
	eventually(t, "five more PINGREQs at the broker", func() bool { return pings() >= before+5 })
	st := r.session.Status()
	if !st.Paused || !st.PingOutstanding || st.Reconnects != 0 || len(r.all()) > 5 {
		t.Errorf("while paused: %+v, %d delivered", st, len(r.all()))
	}
	done := 0
	eventually(t, "all ten", func() bool {
		got := r.all()
		r.settle(got[done:]...)
		done = len(got)
		return done == 10
	})
	eventually(t, "PINGRESPs are seen", func() bool { return !r.session.Status().PingOutstanding })
	if st := r.session.Status(); st.Reconnects != 0 || st.PingTimeouts != 0 || st.Paused {
		t.Errorf("afterwards: %+v", st)
	}
	r.close()
}

func TestHalfOpenBrokerIsFound(t *testing.T) {
	broker := startMosquitto(t, "")
	r := newRig(t, func(cfg *Config) { cfg.KeepAlive = 2 * time.Second }, broker.url())
	r.awaitState(StateSubscribed)
	eventually(t, "a first PINGRESP", func() bool { return r.session.Status().RTT > 0 })
	if n := r.metric("bridge_mqtt_ping_rtt_seconds"); n <= 0 {
		t.Errorf("rtt metric %v", n)
	}
	if n := r.metric("bridge_mqtt_connected"); n != 1 {
		t.Errorf("connected metric %v", n)
	}
	broker.signal(syscall.SIGSTOP)
	eventually(t, "the timeout", func() bool { return r.session.Status().PingTimeouts == 1 })
	if st := r.session.Status(); !strings.Contains(st.LastReason, "no PINGRESP") {
		t.Errorf("status %+v", st)
	}
	if n := r.metric("bridge_mqtt_connected"); n != 0 {
		t.Errorf("connected metric %v", n)
	}
	broker.signal(syscall.SIGCONT)
	r.awaitState(StateSubscribed)
	if n := r.metric("bridge_mqtt_reconnects_total"); n != 1 {
		t.Errorf("reconnects %v", n)
	}
	r.close()
	if n := r.metric("bridge_mqtt_connected"); n != 0 {
		t.Errorf("connected metric %v", n)
	}
}

func TestBrokerRestart(t *testing.T) {
	broker := startMosquitto(t, "")
	r := newRig(t, nil, broker.url())
	r.awaitState(StateSubscribed)
	broker.stop()
	eventually(t, "the loss is seen", func() bool { return r.session.Status().State == StateBackoff })
	broker.start()
	r.awaitState(StateSubscribed) // with new subscriptions, or the next message would not come
	pub := newClient(t, broker.url(), "publisher")
	pub.publish("t/x", "hello", 1)
	r.settle(r.received(1)...)
	st := r.session.Status() // without persistence the broker forgot the session
	if st.SessionsLost != 1 || st.SessionPresent || r.metric("bridge_mqtt_session_lost_total") != 1 {
		t.Errorf("status %+v", st)
	}
	if r.logs.FilterMessageSnippet("the broker lost the session").Len() != 1 {
		t.Error("the loss is not in the log")
	}
	r.close()
}

// A session that an earlier owner left with the broker is lost when the broker does not have it.
func TestSessionLostWhileNobodyWasConnected(t *testing.T) {
	broker := startMosquitto(t, "") // without persistence
	var lost atomic.Int64
	for _, step := range []struct {
		name          string
		known, forget bool
		want          uint64
	}{
		{"brand-new", false, false, 0},
		{"kept", true, false, 0},
		{"lost", true, true, 1},
		{"lost, but nobody knows that it was there", false, true, 0},
	} {
		if step.forget {
			broker.stop()
			broker.start()
		}
		lost.Store(0)
		r := newRig(t, func(cfg *Config) { cfg.Known, cfg.Lost = step.known, func() { lost.Add(1) } }, broker.url())
		r.awaitState(StateSubscribed)
		n := step.want
		if st := r.session.Status(); st.SessionsLost != n || r.metric("bridge_mqtt_session_lost_total") != float64(n) || lost.Load() != int64(n) ||
			r.logs.FilterMessageSnippet("the broker lost the session").FilterLevelExact(zap.WarnLevel).Len() != int(n) {
			t.Errorf("%s: told %d times, status %+v", step.name, lost.Load(), st)
		}
		if step.name == "lost" { // once more, while it is connected
			broker.stop()
			broker.start()
			eventually(t, "the second loss", func() bool { return lost.Load() == 2 && r.session.Status().SessionsLost == 2 })
			r.awaitState(StateSubscribed)
		}
		r.close()
	}
}

// A plain subscription gets the retained messages once, not at every reconnect.
func TestExclusiveMode(t *testing.T) {
	broker := startMosquitto(t, "")
	relay := startRelay(t, broker.addr())
	pub := newClient(t, broker.url(), "publisher")
	pub.send(&paho.Publish{Topic: "t/r", Payload: []byte("kept"), QoS: 1, Retain: true})
	r := newRig(t, func(cfg *Config) { cfg.ShareName = "" }, relay.url())
	r.awaitState(StateSubscribed)
	got := r.received(1)
	if !got[0].Message.Retain || string(got[0].Message.Payload) != "kept" {
		t.Errorf("got %+v", got[0])
	}
	if sub := r.session.Status().Subscriptions; len(sub) != 1 || sub[0] != (Subscription{Filter: "t/#", ReasonCode: 1, OK: true}) {
		t.Errorf("subscriptions %+v", sub)
	}
	r.settle(got...)
	eventually(t, "the acknowledgement", func() bool { return strings.Contains(broker.log.String(), "Received PUBACK from "+testClientID) })
	relay.cut()
	eventually(t, "a second connection", func() bool { return r.session.Status().Reconnects == 1 })
	r.awaitState(StateSubscribed)
	// A live message comes without the flag, however it was published: the flag says that a message
	// was sent because of the subscription, and routes skip those [MQTT-3.3.1-12].
	pub.send(&paho.Publish{Topic: "t/r", QoS: 1, Retain: true})
	got = r.received(2)
	if got[1].Message.Retain || len(got[1].Message.Payload) != 0 {
		t.Errorf("got %+v", got[1])
	}
	r.settle(got[1])
	r.close()
}

// Mosquitto before 2.0.13 sends retained messages to shared subscriptions, against the book;
// Retain Handling 2 keeps it from doing so at every reconnect.
func TestSharedSubscriptionGetsNoRetainedMessages(t *testing.T) {
	broker := startMosquitto(t, "")
	pub := newClient(t, broker.url(), "publisher")
	pub.send(&paho.Publish{Topic: "t/r", Payload: []byte("kept"), QoS: 1, Retain: true})
	r := newRig(t, nil, broker.url())
	r.awaitState(StateSubscribed)
	pub.publish("t/x", "live", 1)
	if got := r.received(1); got[0].Message.Topic != "t/x" {
		t.Errorf("got %+v", got[0])
	}
}
