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
	// after is how long none of its sessions is connected while another replica reaches the broker. Where a broker falls
	// silent, one replica notices up to a keep alive and ten seconds before another one does; and what a standby tells is
	// as old as a pause and brokerTimeout at most.
	after time.Duration
	pause time.Duration // between a standby's trials
	look  time.Duration // between looks at how things stand
	// empty is for how long no other replica must be there until one that stands back believes it: after an outage of the
	// database the heartbeats of all are old for a moment.
	empty time.Duration
}

func newCutOffTimes(keepAlive time.Duration) cutOffTimes {
	return cutOffTimes{after: max(30*time.Second, keepAlive+15*time.Second), pause: 10 * time.Second, look: time.Second, empty: 10 * time.Second}
}

// cutOffError is why a replica gives all its sessions up.
type cutOffError struct{ reason string }

func (e *cutOffError) Error() string {
	return "this replica has lost the broker, and others reach it: " + e.reason
}

// connections counts the sessions in use that this replica holds, those of them that are connected, and those of these
// that are read: one whose reader is paused, for memory is short, would not notice that the broker is silent.
func (s *service) connections() (held, connected, read int) {
	for _, p := range s.owned() {
		if p.lease.Retiring { // its client id may be refused, and nobody needs it
			continue
		}
		held++
		if status := p.session.Status(); !status.ConnectedSince.IsZero() {
			connected++
			if !status.Paused {
				read++
			}
		}
	}
	return held, connected, read
}

// reachesBroker is what the other replicas are told; nil: nothing.
func (s *service) reachesBroker() *bool {
	switch held, connected, read := s.connections(); {
	case held > 0 && connected == 0:
		return new(bool)
	case read > 0 && s.cfg.MQTT.Keepalive.value > 0: // without a keep alive a connection stands for ever
		reached := true
		return &reached
	case held > 0:
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tried
}

func (s *service) setTried(reached *bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tried = reached
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
// client ids, and would come back at once. And one that has never succeeded, as where the broker admits known client ids
// alone, would never let it in. A standby tries the broker for others that miss it.
func (s *service) watchReach(ctx context.Context, leave context.CancelCauseFunc) {
	defer s.setTried(nil)
	look := time.NewTicker(s.cutOff.look)
	defer look.Stop()
	var lost, missed time.Time // since when; zero: it is not so
	var doubted time.Time      // when the last trial failed beside a connection
	for {
		select {
		case <-ctx.Done():
			return
		case <-look.C:
		}
		held, connected, _ := s.connections()
		if s.leases.Status().Replicas > 1 && connected > 0 && !s.trialWorks && (doubted.IsZero() || over(doubted, s.cutOff.after)) {
			err := s.cfg.reachBroker(ctx)
			switch s.trialWorks = err == nil; {
			case s.trialWorks:
				s.log.Debug("the broker admits trial connections")
			case doubted.IsZero() && ctx.Err() == nil:
				s.log.Warn("the broker refuses a trial connection, although sessions are connected: should this replica lose it, the sessions stay (BRIDGE_MQTT_TRIAL)", zap.Error(err))
			}
			doubted = time.Now()
		}
		lost, missed = since(lost, s.alone()), since(missed, held == 0 && s.leases.Status().BrokerMissed)
		if missed.IsZero() {
			s.setTried(nil)
		}
		switch {
		case s.trialWorks && over(lost, s.cutOff.after):
			err := s.cfg.reachBroker(ctx)
			if err == nil {
				s.log.Debug("sessions are not connected, though a trial is: they stay")
				lost = time.Time{}
			}
			if err == nil || ctx.Err() != nil || !s.alone() {
				continue
			}
			cut := &cutOffError{brokerReason(err)}
			s.log.Warn("giving all sessions up", zap.Error(cut), zap.Duration("after", time.Since(lost)))
			s.setStanding(cut.reason) // not ready from now on, also while the sessions are drained
			leave(cut)
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
	held, connected, _ := s.connections()
	return held > 0 && connected == 0 && s.leases.Status().BrokerReached
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
