package mapping

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

func TestSubscriptions(t *testing.T) {
	for _, test := range []struct {
		story   string
		filters []string
		want    string // filter: after
	}{
		{"one", []string{"#"}, "#"},
		{"apart", []string{"b/#", "a/#"}, "a/# b/#"},
		{"apart at the root", []string{"$SYS/#", "+/x"}, "$SYS/# +/x"},
		{"a pair", []string{"a/b/#", "a/+/x"}, "a/+/x* a/b/#*[a/+/x]"},
		{"a pair and one beside it", []string{"c", "a/b/#", "a/+/x"}, "a/+/x* a/b/#*[a/+/x] c"},
		{"a chain", []string{"a/+/x/#", "a/b/+", "a/b/c/#"}, "a/+/x/#* a/b/+*[a/+/x/#] a/b/c/#*[a/b/+]"},
		{"three", []string{"+/y/z", "x/+/z", "x/y/+"}, "+/y/z* x/+/z*[+/y/z] x/y/+*[+/y/z x/+/z]"},
	} {
		list := Subscriptions(test.filters)
		var got []string
		for _, s := range list {
			text := s.Filter
			if s.Identifier != 0 {
				text += "*"
			}
			if (s.Alone != s.Identifier) != (len(s.After) > 0) || s.Identifier > maxSubscriptionIdentifier {
				t.Errorf("%s: %+v", test.story, s)
			}
			var after []string
			for _, j := range s.After {
				after = append(after, list[j].Filter)
			}
			if len(after) > 0 {
				text += fmt.Sprint(after)
			}
			got = append(got, text)
		}
		if got := strings.Join(got, " "); got != test.want {
			t.Errorf("%s: %s, want %s", test.story, got, test.want)
		}
	}
}

// TestIdentifiersStay: messages that were queued before an upgrade carry them.
func TestIdentifiersStay(t *testing.T) {
	list := Subscriptions([]string{"a/+/x", "a/b/#"})
	if a, b := list[0], list[1]; a.Identifier != 163036808 || b.Identifier != 219525224 || b.Alone != 68565312 {
		t.Errorf("%+v", list)
	}
	// They depend on filters that overlap, and on no others.
	more := Subscriptions([]string{"a/+/x", "a/b/#", "a/c/y", "z/#"})
	if more[0].Identifier != list[0].Identifier || more[1].Identifier != list[1].Identifier || more[1].Alone != list[1].Alone {
		t.Errorf("with filters beside them: %+v", more)
	}
	third := Subscriptions([]string{"a/+/x", "a/b/#", "+/b/x/y"})
	if third[1].Identifier != list[0].Identifier || third[2].Identifier == list[1].Identifier || third[2].Alone != list[1].Alone {
		t.Errorf("with one that overlaps: %+v", third)
	}
}

func TestMapCopy(t *testing.T) {
	r := mustCompile(t, RouteConfig{Name: "x", Topic: "a/+/x", Retained: "store"}, RouteConfig{Name: "b", Topic: "a/b/# c/# +/y"})
	list := Subscriptions(r.Filters())
	ids := map[string]uint32{}
	for _, s := range list {
		ids[s.Filter] = s.Identifier
		ids[s.Filter+" alone"] = s.Alone
	}
	const unknown = 4711
	for _, test := range []struct {
		story string
		topic string
		ids   []uint32
		want  string // routes; those that pass it over with a minus
	}{
		{"no identifier: queued before there were any", "a/b/x", nil, "x b"},
		{"an identifier of other filters", "a/b/x", []uint32{unknown}, "x b"},
		{"the first copy is for all", "a/b/x", []uint32{ids["a/+/x"]}, "x b"},
		{"the second is for none", "a/b/x", []uint32{ids["a/b/#"]}, "-x -b"},
		{"the second, without the first", "a/b/x", []uint32{ids["a/b/# alone"]}, "x b"},
		{"one copy for both", "a/b/x", []uint32{ids["a/b/#"], ids["a/+/x"]}, "x b"},
		{"one copy for the second and for nobody knows what", "a/b/x", []uint32{ids["a/b/#"], unknown}, "x b"},
		{"a topic that only the second matches", "a/b/y", []uint32{ids["a/b/#"]}, "b"},
		{"a topic that only the first matches", "a/c/x", []uint32{ids["a/+/x"]}, "x"},
		{"one route, two of its filters, first", "c/y", []uint32{ids["+/y"]}, "b"},
		{"one route, two of its filters, second", "c/y", []uint32{ids["c/#"]}, "-b"},
		{"one route, both in one copy", "c/y", []uint32{ids["c/#"], ids["+/y"]}, "b"},
		{"no route", "nowhere", []uint32{ids["c/#"]}, ""},
	} {
		var got []string
		for _, o := range r.MapCopy(message(test.topic, "1"), test.ids, nil) {
			name := o.Route.Name
			if o.Skip == SkipOverlap {
				name = "-" + name
			}
			got = append(got, name)
		}
		if got := strings.Join(got, " "); got != test.want {
			t.Errorf("%s: %s, want %s", test.story, got, test.want)
		}
	}

	// A retained message is sent when its own subscription is new, perhaps long after the first one was.
	m := message("a/b/x", "1")
	m.Retain = true
	if out := r.MapCopy(m, []uint32{ids["a/b/#"]}, nil); len(out) != 2 || out[0].Rows == nil || out[1].Skip != SkipRetained {
		t.Errorf("retained: %s", render(t, out))
	}
}

// TestAmbiguousIdentifier: rather a copy too many than one too few.
func TestAmbiguousIdentifier(t *testing.T) {
	c := copiesOf([]string{"a/+/x", "a/b/#"})
	list := Subscriptions([]string{"a/+/x", "a/b/#"})
	topic := []string{"a", "b", "x"}
	if !c.repeats(topic, []uint32{list[1].Identifier}) {
		t.Fatal("the second copy is taken")
	}
	met := map[uint32]string{}
	for i := range 1 << 20 {
		filter := fmt.Sprintf("%d/+", i)
		id := identifier(filter, "+/x")
		other, collides := met[id]
		met[id] = filter
		if !collides {
			continue
		}
		c := copiesOf([]string{"+/x", filter, other})
		for _, f := range []string{filter, other} {
			if c.repeats([]string{strings.TrimSuffix(f, "/+"), "x"}, []uint32{id}) {
				t.Errorf("%s and %s have the identifier %d in common, and it is believed", filter, other, id)
			}
		}
		return
	}
	t.Fatal("no two filters with one identifier were found")
}

// fakeBroker sends a copy for every subscription that matches, or one for all of them.
type fakeBroker struct {
	subscriptions map[string]uint32
	queue         []copied
	merges        bool
}

type copied struct {
	topic  string
	number int
	ids    []uint32
}

func (b *fakeBroker) publish(topic string, number int) {
	all := copied{topic: topic, number: number}
	matched := false
	for _, filter := range slices.Sorted(func(yield func(string) bool) {
		for filter := range b.subscriptions {
			if !yield(filter) {
				return
			}
		}
	}) {
		if !naive(filter, topic) {
			continue
		}
		matched = true
		var ids []uint32
		if id := b.subscriptions[filter]; id != 0 {
			ids = []uint32{id}
		}
		all.ids = append(all.ids, ids...)
		if !b.merges {
			b.queue = append(b.queue, copied{topic, number, ids})
		}
	}
	if matched && b.merges {
		b.queue = append(b.queue, all)
	}
}

// TestCopies changes random configurations on a session that messages are queued for. Whatever the
// moment a message is published at, every route that the configurations have in common gets it; and
// while nothing changes, it gets it once.
func TestCopies(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	topics := sequences([]string{"a", "b"}, 3)
	texts := slices.DeleteFunc(sequences([]string{"a", "b", "+", "#"}, 3), func(s string) bool {
		_, err := parseFilter(s)
		return err != nil
	})
	draw := func() *Routes {
		var configs []RouteConfig
		for i := range 1 + random.IntN(4) {
			var patterns []string
			for range 1 + random.IntN(2) {
				patterns = append(patterns, texts[random.IntN(len(texts))])
			}
			configs = append(configs, RouteConfig{Name: fmt.Sprintf("r%d", i), Topic: strings.Join(patterns, " ")})
		}
		return mustCompile(t, configs...)
	}
	wants := func(r *Routes, name, topic string) bool {
		route := r.ByName(name)
		return route != nil && slices.ContainsFunc(route.Filters, func(f string) bool { return naive(f, topic) })
	}
	passedOver, changed := 0, 0
	for round := range 400 {
		b := &fakeBroker{subscriptions: map[string]uint32{}, merges: round%2 == 0}
		number := 0
		var old *Routes
		for range 3 {
			routes := draw()
			type sent struct {
				topic  string
				steady bool
			}
			messages := map[int]sent{}
			publish := func(steady bool) {
				for _, topic := range topics {
					number++
					messages[number] = sent{topic, steady}
					b.publish(topic, number)
				}
			}
			if old != nil {
				publish(false) // queued under the configuration before
			}
			// As a session does it: all that is wanted, in order, and then what is stale, in reverse. One
			// may be refused, for a while.
			list := Subscriptions(routes.Filters())
			refused := random.IntN(2 * len(list))
			for again := range 2 {
				granted := make([]bool, len(list))
				for i, s := range list {
					if i == refused && again == 0 {
						continue
					}
					id := s.Identifier
					for _, j := range s.After {
						if !granted[j] {
							id = s.Alone
						}
					}
					b.subscriptions[s.Filter] = id
					granted[i] = true
					if old != nil {
						publish(false)
					}
				}
			}
			var stale []string
			for filter := range b.subscriptions {
				if !slices.Contains(routes.Filters(), filter) {
					stale = append(stale, filter)
				}
			}
			slices.Sort(stale)
			for _, filter := range slices.Backward(stale) {
				delete(b.subscriptions, filter)
				publish(false)
			}
			publish(true)

			got := map[string]int{}
			for _, c := range b.queue {
				for _, o := range routes.MapCopy(message(c.topic, "1"), c.ids, nil) {
					if o.Skip == SkipOverlap {
						passedOver++
						continue
					}
					got[fmt.Sprint(c.number, o.Route.Name)]++
				}
			}
			for n, m := range messages {
				for _, route := range routes.All() {
					if !wants(routes, route.Name, m.topic) || !m.steady && !wants(old, route.Name, m.topic) {
						continue
					}
					times := got[fmt.Sprint(n, route.Name)]
					if times == 0 || m.steady && times != 1 {
						t.Fatalf("round %d: from %v to %v: route %s has a message on %s %d times, steady %t", round, filtersOf(old), filtersOf(routes), route.Name, m.topic, times, m.steady)
					}
					if times > 1 {
						changed++
					}
				}
			}
			b.queue, old = nil, routes
		}
	}
	if passedOver == 0 || changed == 0 {
		t.Errorf("%d copies were passed over, %d came too often amid a change: the cases do not meet what is tested", passedOver, changed)
	}
}

func filtersOf(r *Routes) []string {
	if r == nil {
		return nil
	}
	return r.Filters()
}

func BenchmarkMapCopy(b *testing.B) {
	config := RouteConfig{Payload: "drop", Format: "text"}
	one, two := config, config
	one.Name, one.Topic = "one", "a/+/x"
	two.Name, two.Topic = "two", "a/b/#"
	apart := two
	apart.Topic = "b/#"
	for name, test := range map[string]struct {
		configs []RouteConfig
		ids     []uint32
	}{
		"apart":       {[]RouteConfig{one, apart}, nil},
		"taken":       {[]RouteConfig{one, two}, []uint32{Subscriptions([]string{"a/+/x", "a/b/#"})[0].Identifier}},
		"passed over": {[]RouteConfig{one, two}, []uint32{Subscriptions([]string{"a/+/x", "a/b/#"})[1].Identifier}},
	} {
		b.Run(name, func(b *testing.B) {
			r := mustCompile(b, test.configs...)
			m := message("a/b/x", "1")
			b.ReportAllocs()
			var current, arena *Arena
			for b.Loop() {
				current, arena = current.Next(len(m.Payload))
				r.MapCopy(m, test.ids, arena)
			}
		})
	}
}
