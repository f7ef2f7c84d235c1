package ingest

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/eclipse/paho.golang/paho/log"
)

func TestPingDeadline(t *testing.T) {
	for keepAlive, want := range map[time.Duration]time.Duration{
		time.Second:        time.Second,
		2 * time.Second:    time.Second,
		15 * time.Second:   7500 * time.Millisecond,
		60 * time.Second:   10 * time.Second,
		3600 * time.Second: 10 * time.Second,
	} {
		if got := pingDeadline(keepAlive); got != want {
			t.Errorf("keep alive %s: %s, want %s", keepAlive, got, want)
		}
	}
}

// pingRig runs the pinger on a connection whose other end the test holds. Only PINGREQs are
// expected there; requests counts them.
type pingRig struct {
	c        *conn
	peer     net.Conn
	requests chan time.Time
	result   chan error
	cancel   context.CancelFunc
}

func newPingRig(t *testing.T, keepAlive uint16) *pingRig {
	ours, theirs := net.Pipe()
	r := &pingRig{
		c: newConn(newIdleRig(t, func(cfg *Config) { cfg.KeepAlive = time.Duration(keepAlive) * time.Second }, "mqtt://test").session, ours), peer: theirs,
		requests: make(chan time.Time, 1000), result: make(chan error, 1),
	}
	r.c.generation.Store(1)
	r.c.session.conn = r.c
	var ctx context.Context
	ctx, r.cancel = context.WithCancel(t.Context())
	go func() { // the broker reads
		b := make([]byte, 2)
		for {
			if _, err := io.ReadFull(theirs, b); err != nil {
				close(r.requests)
				return
			}
			if b[0] != 0xC0 || b[1] != 0 {
				t.Errorf("the broker got % x", b)
			}
			r.requests <- time.Now()
		}
	}()
	go func() { _, _ = io.Copy(io.Discard, r.c) }() // paho reads
	go func() { r.result <- pinger{}.Run(ctx, r.c, keepAlive) }()
	return r
}

func (r *pingRig) end() {
	r.cancel()
	r.c.fail(errLeft)
	_ = r.peer.Close()
}

func (r *pingRig) respond() { _, _ = r.peer.Write([]byte{0xD0, 0}) }

func TestPingerPingsEachInterval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		r := newPingRig(t, 10)
		defer r.end()
		for i := range 4 {
			if at := <-r.requests; at.Sub(start) != time.Duration(i)*10*time.Second {
				t.Fatalf("PINGREQ %d after %s", i, at.Sub(start))
			}
			time.Sleep(30 * time.Millisecond)
			r.respond()
			synctest.Wait()
			st := r.c.session.Status()
			if st.RTT != 30*time.Millisecond || st.PingOutstanding || !st.LastPingResp.Equal(time.Now()) || st.KeepAliveEffective != 10*time.Second {
				t.Fatalf("facts: %+v", st)
			}
		}
		r.cancel()
		if err := <-r.result; err != nil {
			t.Error(err)
		}
	})
}

func TestPingerFindsTheBrokerGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		r := newPingRig(t, 10)
		defer r.end()
		if err := <-r.result; !errors.Is(err, errPingTimeout) {
			t.Fatal(err)
		}
		if d := time.Since(start); d != 5*time.Second {
			t.Errorf("after %s", d)
		}
		if !errors.Is(context.Cause(r.c.ctx), errPingTimeout) {
			t.Errorf("the connection goes on: %v", context.Cause(r.c.ctx))
		}
	})
}

// A PINGRESP that queues behind data is late, not missing.
func TestPingerIsPatientWhileDataFlows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		r := newPingRig(t, 10)
		defer r.end()
		puback := []byte{0x40, 2, 0, 1}
		for range 20 {
			time.Sleep(4 * time.Second)
			if _, err := r.peer.Write(puback); err != nil {
				t.Fatal(err)
			}
		}
		if err := <-r.result; !errors.Is(err, errPingTimeout) {
			t.Fatal(err)
		}
		if d := time.Since(start); d != 85*time.Second { // 5 s after the last data
			t.Errorf("after %s", d)
		}
	})
}

// While the reader waits for the byte budget no PINGRESP can be seen; the broker must still see
// PINGREQs, or it would drop us.
func TestPingerIsPatientWhilePaused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newPingRig(t, 10)
		defer r.end()
		r.c.keepAlive.pause(true)
		for range 100 {
			<-r.requests
		}
		r.c.keepAlive.pause(false)
		resumed := time.Now()
		if err := <-r.result; !errors.Is(err, errPingTimeout) {
			t.Fatal(err)
		}
		if d := time.Since(resumed); d < 5*time.Second || d > 15*time.Second {
			t.Errorf("gave up %s after reading went on", d)
		}
	})
}

// A write that waits for the broker does not keep the pinger from seeing that it is gone; while what is written is read, it is not.
func TestPingerDoesNotWaitForTheWriter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newPingRig(t, 10)
		defer r.end()
		<-r.requests
		r.c.Lock()
		defer r.c.writeMu.Unlock()
		for range 20 {
			time.Sleep(4 * time.Second)
			r.c.keepAlive.wrote(time.Now())
		}
		last := time.Now()
		if err := <-r.result; !errors.Is(err, errPingTimeout) {
			t.Fatal(err)
		}
		if d := time.Since(last); d < 5*time.Second || d > 5*time.Second+pingAgain {
			t.Errorf("after %s", d)
		}
	})
}

func TestKeepAliveOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newPingRig(t, 0)
		defer r.end()
		if err := <-r.result; err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		if len(r.requests) != 0 || r.c.ctx.Err() != nil {
			t.Error("pinged, or gave up")
		}
		// The barrier pings all the same.
		done := make(chan error, 1)
		go func() { done <- r.c.barrier(t.Context()) }()
		<-r.requests
		r.respond()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestBarrierWaitsForItsOwnPing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newPingRig(t, 60)
		defer r.end()
		<-r.requests // the pinger's first, unanswered
		done := make(chan error, 1)
		go func() { done <- r.c.barrier(t.Context()) }()
		<-r.requests
		r.respond()
		synctest.Wait()
		if len(done) != 0 {
			t.Fatal("took the answer to an earlier PINGREQ for its own")
		}
		r.respond()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		r.respond() // answers nothing
		synctest.Wait()
		r.c.keepAlive.mu.Lock()
		if r.c.keepAlive.responses != 2 {
			t.Errorf("%d responses", r.c.keepAlive.responses)
		}
		r.c.keepAlive.mu.Unlock()

		ctx, cancel := context.WithCancel(t.Context())
		go func() { done <- r.c.barrier(ctx) }()
		<-r.requests
		synctest.Wait() // it is written, and waits for the answer
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("context: %v", err)
		}
		go func() { done <- r.c.barrier(t.Context()) }()
		<-r.requests
		r.peer.Close()
		if err := <-done; !errors.Is(err, io.EOF) {
			t.Errorf("end of the connection: %v", err)
		}
		if err := r.c.barrier(t.Context()); !errors.Is(err, io.EOF) {
			t.Errorf("after the end: %v", err)
		}
	})
}

func TestPingerWantsOurConnection(t *testing.T) {
	nc, peer := net.Pipe()
	defer nc.Close()
	defer peer.Close()
	p := pinger{}
	p.PacketSent()
	p.PacketReceived()
	p.PingResp()
	p.SetDebug(log.NOOPLogger{})
	if err := p.Run(t.Context(), nc, 1); err == nil {
		t.Error("ran on a foreign connection")
	}
}
