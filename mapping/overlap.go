package mapping

import (
	"crypto/sha256"
	"encoding/binary"
	"slices"
	"strings"
)

// maxSubscriptionIdentifier is the greatest Subscription Identifier, MQTT 5 section 3.8.2.1.2.
const maxSubscriptionIdentifier = 268_435_455

// Subscription is how to subscribe to one filter of a set of which none covers another.
//
// Filters that overlap in part, as a/+/x and a/b/#, make the broker send a message that both match
// once for each. Of these copies the one of the first filter, in the order of their texts, goes to
// all routes that match the topic, and the others to none. It takes an identifier to tell them apart:
// one that stands for the filter and for those that come before it, so that it means the same after a
// restart with other routes, however long a message was queued.
type Subscription struct {
	Filter string

	// Identifier is the Subscription Identifier to ask for; 0: none, for no other filter overlaps. It
	// may be asked for while all of After are granted, and not otherwise: a copy that comes with it
	// is passed over where one of After matches, since that one's copy is there as well.
	Identifier uint32
	After      []int // indexes of the filters that overlap this one and come before it

	// Alone is the identifier to ask for as long as one of After is not granted: every copy that comes
	// with it is taken. It equals Identifier where there is nothing in After.
	Alone uint32
}

// Subscriptions says how to subscribe to the filters given, in the order to do it in. The answer for
// one filter depends on the texts of that filter and of those that overlap it, and on nothing else.
func Subscriptions(filters []string) []Subscription {
	filters = slices.Sorted(slices.Values(filters))
	list := make([]Subscription, len(filters))
	levels := make([][]string, len(filters))
	for i, text := range filters {
		list[i].Filter = text
		levels[i] = strings.Split(text, "/")
		for j := range i {
			if intersect(levels[j], levels[i]) {
				list[i].After = append(list[i].After, j)
			}
		}
	}
	for i := range list {
		s := &list[i]
		if len(s.After) == 0 {
			continue
		}
		before := []string{s.Filter}
		for _, j := range s.After {
			before = append(before, filters[j])
			// The first of them needs one too: a broker that sends a single copy for all of them names
			// those that have an identifier [MQTT-3.3.4-4].
			list[j].Alone = identifier(filters[j])
		}
		s.Identifier, s.Alone = identifier(before...), identifier(s.Filter)
	}
	for i := range list {
		if len(list[i].After) == 0 {
			list[i].Identifier = list[i].Alone
		}
	}
	return list
}

// identifier makes a Subscription Identifier of a filter and those that it comes after. Queued messages
// carry it: another way to make it would have them pass for those of an older configuration.
func identifier(filters ...string) uint32 {
	sum := sha256.Sum256([]byte(strings.Join(filters, "\x00"))) // which no filter holds [MQTT-4.7.3-2]
	return binary.BigEndian.Uint32(sum[:])%maxSubscriptionIdentifier + 1
}

// copies tells by Subscription Identifiers which copy of a message is the one to take: the filters, by
// levels, whose copy is there as well.
type copies map[uint32][][]string

func copiesOf(filters []string) copies {
	c := copies{}
	add := func(id uint32, after [][]string) {
		if _, ambiguous := c[id]; ambiguous {
			after = nil // once in 268 million: rather take a copy too many
		}
		c[id] = after
	}
	list := Subscriptions(filters)
	for _, s := range list {
		if s.Identifier == 0 {
			continue
		}
		var after [][]string
		for _, j := range s.After {
			after = append(after, strings.Split(list[j].Filter, "/"))
		}
		add(s.Identifier, after)
		if s.Alone != s.Identifier {
			add(s.Alone, nil)
		}
	}
	return c
}

// repeats reports whether a copy that came for the subscriptions with these identifiers is there only
// because several filters match its topic. Without identifiers, and with one that the present filters
// do not have, nobody can tell: the copy was queued before they were subscribed to.
func (c copies) repeats(topic []string, identifiers []uint32) bool {
	for _, id := range identifiers {
		after, known := c[id]
		if !known || !slices.ContainsFunc(after, func(f []string) bool { return covers(f, topic) }) {
			return false
		}
	}
	return len(identifiers) > 0
}
