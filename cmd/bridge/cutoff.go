package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.uber.org/zap"
)

// cutOffTimes are those by which a replica finds out that it has lost the broker, and it alone.
type cutOffTimes struct {
	// after is how long, all in all, none of its sessions is connected while another replica reaches the broker.
	after time.Duration
	// heard is how long ago the broker may have sent something, or a trial have succeeded, for a replica to tell that it
	// reaches it: shorter than after, so that nobody gives anything up for a broker that has fallen silent for all.
	heard time.Duration
	pause time.Duration // between a standby's trials
	look  time.Duration // between looks at how things stand
	// empty is for how long no other replica must be there until one that stands back believes it: after an outage of the
	// database the heartbeats of all are old for a moment.
	empty time.Duration
}

func newCutOffTimes() cutOffTimes {
	return cutOffTimes{after: 30 * time.Second, heard: 20 * time.Second, pause: 10 * time.Second, look: time.Second, empty: 10 * time.Second}
}

// cutOffError is why a replica gives all its sessions up.
type cutOffError struct{ reason string }

func (e *cutOffError) Error() string {
	return "this replica has lost the broker, and others reach it: " + e.reason
}

// connections are how the sessions of this replica stand. Those that are to be drained and ended count for themselves:
// their client ids may be refused, and nobody waits for them.
type connections struct {
	held, connected int // in use
	heard           int // of the connected ones: the broker has sent something lately
	retiring        int
	emptied         int // of the retiring ones: connected
}

// any says that there is a connection of some kind.
func (c connections) any() bool { return c.connected+c.emptied > 0 }

// none says that there is no session, so none that could be connected.
func (c connections) none() bool { return c.held+c.retiring == 0 }

func (s *service) connections() (c connections) {
	for _, p := range s.owned() {
		status := p.session.Status()
		connected := !status.ConnectedSince.IsZero()
		switch {
		case p.lease.Retiring:
			c.retiring++
			if connected {
				c.emptied++
			}
			continue
		case connected:
			c.connected++
			if !status.LastReceived.IsZero() && time.Since(status.LastReceived) < s.cutOff.heard {
				c.heard++
			}
		}
		c.held++
	}
	return c
}

// reachesBroker is what the other replicas are told; nil: nothing. A connection by itself is no evidence: without a keep
// alive, and while memory is short and nothing is read, it stands though the broker is silent.
func (s *service) reachesBroker() *bool {
	switch c := s.connections(); {
	case c.held > 0 && c.connected == 0:
		return new(bool)
	case c.heard > 0:
		reached := true
		return &reached
	case c.held > 0:
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tried != nil && *s.tried && time.Since(s.triedAt) > s.cutOff.heard {
		return nil
	}
	return s.tried
}

func (s *service) setTried(reached *bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tried, s.triedAt = reached, time.Now()
}

// takePart holds sessions until ctx ends, or until this replica is cut off from the broker while others are not. The
// answer is then the reason.
func (s *service) takePart(ctx context.Context) (cutOff string) {
	ctx, leave := context.WithCancelCause(ctx)
	var watch sync.WaitGroup
	if s.cfg.MQTT.Trial.value == "on" { // otherwise there is no way back that is tried
		watch.Go(func() { s.watchReach(ctx, leave) })
	}
	err := s.leases.Run(ctx, s.hold)
	leave(nil)
	watch.Wait()
	if err != nil {
		s.addUnclean(fmt.Errorf("hold sessions: %w", err))
	}
	if cut := (*cutOffError)(nil); errors.As(context.Cause(ctx), &cut) {
		return cut.reason
	}
	return ""
}

// watchReach calls leave when none of the sessions is connected, another replica reaches the broker, and a trial of this one
// does not. The trial is what lets it in again: while that succeeds the sessions are in a pause, or refused under their
// client ids, and would come back at once. And one that has never succeeded where sessions were connected, because the
// broker admits known client ids alone, would never let it in. A standby tries the broker for others that miss it.
func (s *service) watchReach(ctx context.Context, leave context.CancelCauseFunc) {
	defer s.setTried(nil)
	look := time.NewTicker(s.cutOff.look)
	defer look.Stop()
	var cut time.Duration // for how long this replica was cut off alone; when nobody knows, it stands still
	var missed time.Time  // since when others miss the broker; zero: they do not
	var doubts backoffs   // trials that failed beside a connection
	for looked := time.Now(); ; {
		select {
		case <-ctx.Done():
			return
		case <-look.C:
		}
		passed := min(time.Since(looked), 2*s.cutOff.look) // a trial takes its time, and what was meanwhile nobody knows
		looked = time.Now()
		c := s.connections()
		s.hasConnected = s.hasConnected || c.any()
		if c.connected > 0 && !s.trialWorks && doubts.due(s.cutOff.after, time.Hour) {
			err := s.cfg.reachBroker(ctx)
			switch s.trialWorks = err == nil; {
			case s.trialWorks:
				s.log.Debug("the broker admits trial connections")
			case ctx.Err() == nil:
				if doubts.n == 0 {
					s.log.Warn("the broker refuses a trial connection, although sessions are connected: should this replica lose it, the sessions stay (BRIDGE_MQTT_TRIAL)", zap.Error(err))
				}
				doubts.failed()
			}
		}
		switch {
		case c.any() || c.none():
			cut = 0
		case s.leases.Status().BrokerReached:
			cut += passed
		}
		missed = since(missed, c.held == 0 && s.leases.Status().BrokerMissed)
		if missed.IsZero() {
			s.setTried(nil)
		}
		switch {
		// Alone now, too: it would try a broker that is down for all at every look.
		case cut >= s.cutOff.after && s.alone() && (s.trialWorks || !s.hasConnected):
			err := s.cfg.reachBroker(ctx)
			if err == nil {
				s.log.Debug("sessions are not connected, though a trial is: they stay")
				cut = 0
			}
			if err == nil || ctx.Err() != nil || !s.alone() {
				continue
			}
			lost := &cutOffError{brokerReason(err)}
			s.log.Warn("giving all sessions up", zap.Error(lost), zap.Duration("after", cut))
			s.setStanding(lost.reason) // not ready from now on, also while the sessions are drained
			leave(lost)
			return
		case over(missed, s.cutOff.pause):
			reached := s.cfg.reachBroker(ctx) == nil
			s.setTried(&reached)
			missed = time.Now()
		}
	}
}

// alone says that this replica holds sessions, none of them is connected, and another replica reaches the broker.
func (s *service) alone() bool {
	c := s.connections()
	return !c.none() && !c.any() && s.leases.Status().BrokerReached
}

// backoffs are failures of something that is tried again and again, at longer and longer intervals.
type backoffs struct {
	n    int
	last time.Time
}

func (b *backoffs) failed() { b.n, b.last = b.n+1, time.Now() }

// due says that it is time to try: at once, then after a pause, twice as long a pause, and so on, up to most.
func (b *backoffs) due(pause, most time.Duration) bool {
	return b.n == 0 || time.Since(b.last) >= min(pause<<min(b.n-1, 10), most)
}

// since is when a state began that was begun at t or, zero, was not there.
func since(t time.Time, there bool) time.Time {
	switch {
	case !there:
		return time.Time{}
	case t.IsZero():
		return time.Now()
	}
	return t
}

func over(t time.Time, d time.Duration) bool { return !t.IsZero() && time.Since(t) >= d }
