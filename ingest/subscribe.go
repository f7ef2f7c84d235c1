package ingest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/eclipse/paho.golang/autopaho"
	"github.com/eclipse/paho.golang/paho"
	"go.uber.org/zap"
)

// The payloads of the status topic.
const (
	statusOnline  = "online"
	statusOffline = "offline"
)

const (
	// maxSubscribeFilters is how many filters go into one SUBSCRIBE: what the most restrictive
	// brokers take (AWS IoT Core: 8).
	maxSubscribeFilters = 8

	subscribeLeast, subscribeMost = time.Second, time.Minute
)

// notAnswered is the text of a subscription whose SUBACK has not come yet.
const notAnswered = "not answered yet"

// unanswered lists all subscriptions as not granted yet.
func (s *Session) unanswered() []Subscription {
	subs := make([]Subscription, len(s.wanted))
	for i := range s.wanted {
		subs[i] = Subscription{Filter: s.cfg.subscription(s.wanted[i].Filter), Text: notAnswered}
	}
	return subs
}

// subscribe subscribes to everything on a new connection and repeats what was refused, until all is
// granted or the connection ends. It does so even if the session was present: brokers lose shared
// subscriptions while they keep the session (Mosquitto at every restart). A refused subscription
// takes nothing from the others.
func (s *Session) subscribe(c *conn, manager *autopaho.ConnectionManager) {
	noted := s.beginIncarnation(c)
	wait := subscribeLeast
	for round := 0; ; round++ {
		open, retry := s.subscribeOnce(c, manager)
		if !noted && !c.ended() {
			// The broker queues from now on. What it sends before the new session is noted could, after a
			// crash, pass for a redelivery of the old one's: so it gets no chance to send.
			c.fail(errNotNoted)
			return
		}
		if open == 0 && !s.tidy(c, manager) {
			open, retry = 1, true
		}
		if round == 0 {
			s.publishStatus(c.ctx, c, manager, statusOnline)
		}
		if open == 0 {
			return
		}
		if !retry {
			s.log.Error("subscriptions are not possible with this broker", zap.Int("missing", open))
			return
		}
		timer := time.NewTimer(jitter(wait/2, wait))
		wait = min(2*wait, subscribeMost)
		select {
		case <-timer.C:
		case <-c.ctx.Done():
			timer.Stop()
			return
		}
	}
}

// incarnationTimeout is how long a subscription may wait for a new incarnation to be stored.
const incarnationTimeout = 2 * time.Second

// beginIncarnation has a new session noted, and says whether it is.
func (s *Session) beginIncarnation(c *conn) bool {
	if c.present || s.cfg.BeginIncarnation == nil {
		return true
	}
	err := s.note(c.ctx, c.incarnation)
	if err != nil && !c.ended() {
		s.log.Warn("the new session is not noted yet: subscribing, and coming back when it is", zap.Error(err))
	}
	return err == nil
}

// note has an incarnation noted within incarnationTimeout. Until it is, no connection is attempted.
func (s *Session) note(ctx context.Context, incarnation uint64) error {
	ctx, cancel := context.WithTimeout(ctx, incarnationTimeout)
	defer cancel()
	err := s.cfg.BeginIncarnation(ctx, incarnation)
	s.mu.Lock()
	defer s.mu.Unlock()
	if incarnation == s.incarnation { // or a later CONNACK has begun another one
		s.unnoted = err != nil
	}
	return err
}

// errNotNoted is the cause of a connection that was left because its new session is not noted yet.
var errNotNoted = errors.New("left until the new session is noted")

// tidy unsubscribes what is stale, and says whether that is done.
func (s *Session) tidy(c *conn, manager *autopaho.ConnectionManager) bool {
	if s.tidied.Load() {
		return true
	}
	if c.present {
		// Last come, first gone: a filter may rely on those before it, see [mapping.Subscription].
		stale := slices.Sorted(slices.Values(s.cfg.Stale))
		slices.Reverse(stale)
		for chunk := range slices.Chunk(stale, maxSubscribeFilters) {
			// The reason codes say "no subscription existed" at worst, or that the broker would not (0x83,
			// 0x87), which no repetition changes; paho makes an error of those.
			if _, err := manager.Unsubscribe(c.ctx, &paho.Unsubscribe{Topics: chunk}); err != nil {
				if !c.ended() {
					s.log.Error("subscriptions of an earlier configuration could not be ended", zap.Strings("filters", chunk), zap.Error(err))
				}
				return false
			}
		}
		if len(s.cfg.Stale) > 0 {
			s.log.Info("ended subscriptions of an earlier configuration", zap.Strings("filters", s.cfg.Stale))
		}
	}
	if s.cfg.Unsubscribed != nil {
		if err := s.cfg.Unsubscribed(c.ctx); err != nil {
			if !c.ended() {
				s.log.Warn("subscriptions are not noted yet", zap.Error(err))
			}
			return false
		}
	}
	s.tidied.Store(true)
	return true
}

// subscribeOnce subscribes to what is not granted yet. It returns how many subscriptions are still
// missing, and whether it is of any use to try again on this connection.
func (s *Session) subscribeOnce(c *conn, manager *autopaho.ConnectionManager) (open int, retry bool) {
	s.mu.Lock()
	granted := s.status.Granted
	subs := append([]Subscription(nil), s.status.Subscriptions...)
	s.mu.Unlock()

	budget := 16 << 10 // bytes per SUBSCRIBE
	if n := int(granted.MaximumPacketSize); n > 0 {
		budget = min(budget, n) // [MQTT-3.2.2-15]
	}
	var chunk []int // indexes of subs
	size := subscribeOverhead
	send := func() {
		if len(chunk) > 0 && !c.ended() {
			s.subscribeChunk(c, manager, subs, chunk)
		}
		chunk, size = chunk[:0], subscribeOverhead
	}
	for i := range subs {
		sub := &subs[i]
		id := s.identifier(i, subs, granted)
		if sub.OK && sub.Identifier == id {
			continue
		}
		sub.OK = false
		need := 2 + len(sub.Filter) + 1
		if id != 0 {
			need += identifierSize
		}
		if code := impossible(sub.Filter, granted); code != 0 {
			sub.ReasonCode, sub.Text = code, "the broker says in CONNACK: "+describeCode(code, "")
			continue
		}
		if n := int(granted.MaximumPacketSize); n > 0 && subscribeOverhead+need > n {
			sub.ReasonCode, sub.Text = codePacketTooLarge, fmt.Sprintf("the filter does not fit into the %d bytes of a packet that the broker takes", n)
			continue
		}
		if len(s.wanted[i].After) > 0 && !granted.SubscriptionIDs {
			sub.ReasonCode, sub.Text = codeSubIDsNotSupported, s.overlapText(i)
			continue
		}
		retry = true
		if id != 0 || len(chunk) == maxSubscribeFilters || len(chunk) > 0 && size+need > budget {
			send()
		}
		sub.Identifier = id
		chunk, size = append(chunk, i), size+need
		if id != 0 { // the identifier is that of the whole packet, and the next filter may wait for this one
			send()
		}
	}
	send()

	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn != c || c.ended() {
		return 0, false // the next connection begins anew
	}
	for i := range subs {
		if !subs[i].OK {
			open++
		}
	}
	s.status.Subscriptions = subs
	s.selfCheck()
	if open == 0 {
		s.status.State = StateSubscribed
		s.log.Info("subscribed", zap.Int("filters", len(subs)), zap.Uint8("qos", s.cfg.QoS))
	}
	return open, retry
}

// identifier is the Subscription Identifier to ask for now.
func (s *Session) identifier(i int, subs []Subscription, granted Granted) uint32 {
	if !granted.SubscriptionIDs {
		return 0
	}
	wanted := &s.wanted[i]
	if slices.ContainsFunc(wanted.After, func(j int) bool { return !subs[j].OK }) {
		return wanted.Alone
	}
	return wanted.Identifier
}

// overlapText explains why a filter is not subscribed to without an identifier.
func (s *Session) overlapText(i int) string {
	var others []string
	for _, j := range s.wanted[i].After {
		others = append(others, s.wanted[j].Filter)
	}
	return fmt.Sprintf("the broker offers no Subscription Identifiers, and the filter overlaps %s, so that messages which both match would be written twice: "+
		"use one filter that matches what both do, or a second bridge with another share name for one of them", strings.Join(others, " and "))
}

// identifierSize is the greatest size of the property that carries a Subscription Identifier.
const identifierSize = 5

// refusedText begins the text of a subscription that SUBACK refuses.
const refusedText = "the broker refused: "

// subscribeOverhead is what a SUBSCRIBE has besides its filters: fixed header, packet identifier,
// no properties.
const subscribeOverhead = 5 + 2 + 1

// impossible returns the reason code of a filter that the broker's CONNACK rules out, or 0.
func impossible(filter string, granted Granted) byte {
	shared := strings.HasPrefix(filter, "$share/")
	switch {
	case shared && !granted.SharedSubs:
		return codeSharedNotSupported
	case strings.ContainsAny(filter, "+#") && !granted.WildcardSubs:
		return codeWildcardNotSupport
	}
	return 0
}

// subscribeChunk sends one SUBSCRIBE for the subscriptions at the indexes given and enters the
// answers.
func (s *Session) subscribeChunk(c *conn, manager *autopaho.ConnectionManager, subs []Subscription, chunk []int) {
	request := &paho.Subscribe{}
	if id := int(subs[chunk[0]].Identifier); id != 0 {
		request.Properties = &paho.SubscribeProperties{SubscriptionIdentifier: &id}
	}
	for _, i := range chunk {
		request.Subscriptions = append(request.Subscriptions, s.options(subs[i].Filter))
	}
	answer, err := manager.Subscribe(c.ctx, request)
	if answer == nil || len(answer.Reasons) != len(chunk) {
		text := "SUBACK does not have one reason code for each filter"
		if errors.Is(err, context.DeadlineExceeded) {
			text = "no SUBACK in time"
		} else if err != nil {
			text = err.Error()
		}
		for _, i := range chunk {
			subs[i].ReasonCode, subs[i].Text = codeUnspecifiedError, text
		}
		return
	}
	reason := ""
	if answer.Properties != nil {
		reason = answer.Properties.ReasonString
	}
	for k, i := range chunk {
		code := answer.Reasons[k]
		sub := &subs[i]
		sub.ReasonCode, sub.OK, sub.Text = code, false, ""
		switch {
		case code >= codeUnspecifiedError:
			sub.Text = refusedText + describeCode(code, reason)
		case code < s.cfg.QoS:
			// Messages do come, but without the promise that was asked for. Solace for one grants
			// shared subscriptions QoS 0 only.
			sub.Text = fmt.Sprintf("the broker granted QoS %d, QoS %d was asked for", code, s.cfg.QoS)
		default:
			sub.OK = true
		}
	}
}

// options are those of one filter. No Local stays off: it is a protocol error on a shared
// subscription [MQTT-3.8.3-4], and newer Mosquittos end the connection for it. Retain As Published
// stays off: RETAIN then says that a message was sent because of the subscription [MQTT-3.3.1-12],
// which is what a route's RETAINED setting is about; a live one that was published with RETAIN is news.
func (s *Session) options(filter string) paho.SubscribeOptions {
	o := paho.SubscribeOptions{Topic: filter, QoS: s.cfg.QoS}
	if s.cfg.ShareName != "" {
		// A shared subscription gets no retained messages by the book, but Mosquitto before 2.0.13
		// sends them all the same, and would at every reconnect.
		o.RetainHandling = 2
	} else {
		o.RetainHandling = 1 // only when the subscription is new
	}
	return o
}

func (s *Session) statusTopic() string { return s.cfg.StatusTopic + "/" + s.clientID }

// publishStatus publishes the retained status, if one is configured. No message depends on it, so what
// goes wrong is only logged, and it takes no longer than packetTimeout: paho would wait for ever for a
// broker whose Receive Maximum is used up.
func (s *Session) publishStatus(ctx context.Context, c *conn, manager *autopaho.ConnectionManager, status string) {
	if s.cfg.StatusTopic == "" || c.ended() {
		return
	}
	s.mu.Lock()
	granted := s.status.Granted
	s.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, packetTimeout)
	defer cancel()
	_, err := manager.Publish(ctx, &paho.Publish{
		Topic:   s.statusTopic(),
		Payload: []byte(status),
		QoS:     min(1, granted.MaximumQoS),
		Retain:  true,
	})
	if err != nil && !c.ended() {
		s.log.Warn("the status could not be published", zap.String("topic", s.statusTopic()), zap.String("status", status), zap.Error(err))
	}
}
