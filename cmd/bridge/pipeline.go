package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/mqttpg/bridge/ingest"
	"github.com/mqttpg/bridge/mapping"
	"github.com/mqttpg/bridge/store"
	"go.uber.org/zap"
)

// pipeline is the line of one leased session: Message -> Row -> Batch -> Commit -> Ack. The session's
// reading goroutine calls deliver, the writer's goroutine calls settle.
type pipeline struct {
	lease   *store.Lease
	session *ingest.Session
	writer  *store.Writer
	routes  *mapping.Routes
	budget  *ingest.Budget

	maxMessage int // bytes of a PUBLISH, for people

	ending func(ctx context.Context) error // notes that the session is drained and about to be ended

	log *zap.Logger

	acks []ingest.Ack // of the batch being settled

	received  atomic.Uint64 // messages of all kinds
	queueable atomic.Uint64 // first deliveries with QoS 1 and 2: what the broker would have queued in an outage
	arrivals  rate          // of queueable
	tidy      chan struct{} // closed when nothing is subscribed that is not wanted
	tidied    sync.Once
	heldBytes atomic.Int64  // of the budget, by messages on the line
	owed      atomic.Int64  // acknowledgements of messages on the line
	settled   chan struct{} // capacity 1: owed has changed
}

func (s *service) newPipeline(lease *store.Lease, log *zap.Logger) (*pipeline, error) {
	p := &pipeline{lease: lease, routes: s.cfg.routes, budget: s.budget, log: log, settled: make(chan struct{}, 1), tidy: make(chan struct{})}
	p.arrivals.observe(time.Now(), 0, flow{})
	mqtt := s.mqtt
	p.maxMessage = mqtt.MaxMessageBytes
	mqtt.Deliver, mqtt.Confirm = p.deliver, s.leases.Confirmed
	mqtt.BeginIncarnation = func(ctx context.Context, incarnation uint64) error {
		return p.writer.BeginIncarnation(ctx, incarnation)
	}
	mqtt.BeginConnection = func(ctx context.Context, attempt uint64) error {
		return p.writer.BeginConnection(ctx, attempt)
	}
	mqtt.Known, mqtt.Lost = lease.Known, func() { s.lost.add(lease.ClientID, time.Now()) }
	p.ending = func(ctx context.Context) error { return s.leases.Ending(ctx, lease) }
	mqtt.Confirmed = func(number uint64) { p.writer.Confirm(number) }
	subscribed, wanted := lease.Subscriptions, mqtt.Subscriptions()
	if lease.Retiring {
		// What is wanted of others is unsubscribed in any case: a session that nobody has noted
		// anything about may have it.
		subscribed, wanted = slices.Concat(subscribed, wanted), nil
		slices.Sort(subscribed)
		subscribed = slices.Compact(subscribed)
		mqtt.Filters, mqtt.StatusTopic = nil, ""
	}
	mqtt.Stale = slices.DeleteFunc(slices.Clone(subscribed), func(filter string) bool { return slices.Contains(wanted, filter) })
	mqtt.Unsubscribed = func(ctx context.Context) error {
		if kept := mqtt.SessionExpiry > 0; !lease.Retiring && (len(mqtt.Stale) > 0 || kept != lease.Known) {
			if err := s.leases.Subscribed(ctx, lease, kept); err != nil {
				return err
			}
		}
		p.tidied.Do(func() { close(p.tidy) })
		return nil
	}
	var err error
	if p.session, err = ingest.New(mqtt, lease.ClientID); err != nil {
		return nil, err
	}
	p.writer = store.NewWriter(s.pool, s.cfg.store(s.log), s.tables, s.counters, s.metrics, lease, p.settle)
	return p, nil
}

// What an outcome and a row take in memory beside their fields.
const (
	outcomeBytes = int(unsafe.Sizeof(mapping.Outcome{}))
	rowBytes     = int(unsafe.Sizeof(mapping.Row{}))
)

// deliver maps a message and hands it to the writer. It never waits: keepalive is behind it.
func (p *pipeline) deliver(_ context.Context, d *ingest.Delivery) {
	p.received.Add(1)
	entry := store.Entry{
		Message: d.Message, Arena: d.Arena,
		PacketID: d.PacketID, Dup: d.Dup, Incarnation: d.Incarnation, Attempt: d.Attempt, Broker: d.Broker, Connection: d.Connection,
	}
	if d.Cut != nil {
		entry.Rejection, entry.Content = tooLarge(d, p.maxMessage), d.Cut.Hash
		entry.Outcomes = p.routes.RefuseCopy(d.Message, d.SubscriptionIDs, entry.Rejection, nil)
	} else {
		entry.Outcomes = p.routes.MapCopy(d.Message, d.SubscriptionIDs, d.Arena)
	}
	// The rows wait in memory as well, and EACH can make many of a small message.
	rows := len(entry.Outcomes) * outcomeBytes
	for i := range entry.Outcomes {
		for j := range entry.Outcomes[i].Rows {
			rows += rowBytes + len(entry.Outcomes[i].Rows[j].Fields)
		}
	}
	p.budget.Charge(int64(rows))
	entry.Size = d.Size + rows
	p.heldBytes.Add(int64(entry.Size))
	if d.Message.QoS > 0 {
		p.owed.Add(1)
		if !d.Dup {
			p.queueable.Add(1)
		}
	}
	p.writer.Enqueue(entry)
}

// tooLarge is why a message that was not held whole is a dead letter that cannot be replayed.
func tooLarge(d *ingest.Delivery, limit int) *mapping.Rejection {
	return &mapping.Rejection{Reason: mapping.ReasonTooLarge, Detail: fmt.Sprintf(
		"the message has %d bytes, BRIDGE_MQTT_MAX_MESSAGE_BYTES is %d: the first %d bytes of its payload are kept, so it cannot be replayed",
		d.Cut.Size, limit, len(d.Message.Payload))}
}

// settle acknowledges what is committed, in the order of receipt and in one write [MQTT-4.6.0-2], and
// gives budget and memory back.
func (p *pipeline) settle(entries []store.Entry) {
	p.acks = p.acks[:0]
	size := int64(0)
	for i := range entries {
		e := &entries[i]
		size += int64(e.Size)
		if e.Message.QoS > 0 {
			p.acks = append(p.acks, ingest.Ack{Connection: e.Connection, PacketID: e.PacketID, QoS: e.Message.QoS, Number: e.Number})
		}
	}
	if len(p.acks) > 0 {
		if err := p.session.Acknowledge(p.acks); err != nil {
			p.log.Debug("committed messages could not be acknowledged, the broker delivers them again", zap.Error(err))
		}
	}
	release(entries)
	p.heldBytes.Add(-size)
	p.budget.Release(size)
	p.owed.Add(-int64(len(p.acks)))
	select {
	case p.settled <- struct{}{}:
	default:
	}
}

// release lets go of the messages of entries. Those of one arena stand together.
func release(entries []store.Entry) {
	n := 0
	for i := range entries {
		n++
		if i+1 == len(entries) || entries[i+1].Arena != entries[i].Arena {
			entries[i].Arena.Release(n)
			n = 0
		}
	}
}

// run works until ctx ends. It then drains the line within drainTime, unless the session belongs to
// somebody else already. An error says that messages stay unacknowledged with the broker.
func (p *pipeline) run(ctx context.Context, drainTime time.Duration) error {
	// The end of ctx asks for an orderly end; only cut ends the work at once.
	work, cut := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cut(nil)
	var tasks sync.WaitGroup
	var sessionErr, writerErr error
	sessionDone, writerDone := make(chan struct{}), make(chan struct{})
	tasks.Go(func() { defer close(sessionDone); sessionErr = p.session.Run(work) })
	tasks.Go(func() { defer close(writerDone); writerErr = p.writer.Run(work) })

	retired := make(chan struct{})
	if p.lease.Retiring {
		tasks.Go(func() {
			if p.empty(work) {
				close(retired)
			}
		})
	}
	var err error
	select {
	case <-retired:
		if err := p.ending(work); err != nil {
			p.log.Debug("not noted that the session is about to be ended", zap.Error(err))
		}
		err = p.drain(ctx, errRetired, drainTime, writerDone)
	case <-ctx.Done():
		if err = context.Cause(ctx); !errors.Is(err, store.ErrFenced) {
			err = p.drain(ctx, err, drainTime, writerDone)
		}
	case <-writerDone:
		err = fmt.Errorf("writer: %w", writerErr)
	case <-sessionDone:
		err = fmt.Errorf("mqtt session: %w", sessionErr)
	}
	cut(err)
	tasks.Wait()
	// What was cut off is not acknowledged, and weighs on nobody any more.
	p.budget.Release(p.heldBytes.Swap(0))
	return err
}

// errRetired is why the line of a session that nobody needs any more is drained.
var errRetired = errors.New("the session is not needed any more")

// empty returns true when the broker has nothing left for an unsubscribed session: everything received
// is settled, and between that and the answer to a PINGREQ nothing more has come. false: ctx is done.
func (p *pipeline) empty(ctx context.Context) bool {
	select {
	case <-p.tidy:
	case <-ctx.Done():
		return false
	}
	for quiet := 0; quiet < 2; { // once more, for brokers that answer a PINGREQ before they fill the window again
		before := p.received.Load()
		if p.owed.Load() == 0 && p.session.Barrier(ctx) == nil && p.owed.Load() == 0 && p.received.Load() == before {
			quiet++
			continue
		}
		quiet = 0
		pause := time.NewTimer(100 * time.Millisecond)
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			return false
		}
	}
	return true
}

// drain ends the line without loss: no more QoS 1 and 2 messages are taken, what was taken is
// committed and acknowledged, the broker confirms that it has seen so, and what QoS 0 has brought
// until the disconnection is committed as well.
func (p *pipeline) drain(ctx context.Context, cause error, within time.Duration, writerDone <-chan struct{}) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), within)
	defer cancel()
	p.log.Info("draining session", zap.NamedError("cause", cause), zap.Int("in_flight", p.writer.Status().InFlight))
	began := time.Now()
	p.session.StopTaking()
	for p.owed.Load() > 0 {
		select {
		case <-p.settled:
		case <-writerDone:
			return errors.New("drain: the writer has ended")
		case <-ctx.Done():
			return fmt.Errorf("drain: %d messages are not committed after %s", p.owed.Load(), within)
		}
	}
	leave := p.session.Close
	if errors.Is(cause, errRetired) {
		leave = p.session.End
	}
	closeErr := leave(ctx)
	if err := p.writer.Drain(ctx); err != nil {
		return errors.Join(closeErr, fmt.Errorf("drain: %w", err))
	}
	if closeErr != nil {
		return fmt.Errorf("close mqtt session: %w", closeErr)
	}
	p.log.Info("session is drained and closed", zap.Duration("took", time.Since(began)))
	return nil
}
