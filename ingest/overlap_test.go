package ingest

import (
	"fmt"
	"strings"
	"testing"

	"github.com/mqttpg/bridge/mapping"
)

// overlapping are routes whose filters overlap in part.
func overlapping(t *testing.T) *mapping.Routes {
	t.Helper()
	routes, err := mapping.Compile([]mapping.RouteConfig{
		{Name: "x", Topic: "a/+/x", Format: "raw"},
		{Name: "b", Topic: "a/b/# c", Format: "raw"},
	})
	if err != nil {
		t.Fatal(err)
	}
	return routes
}

// TestOverlappingFilters: of the copies that a broker sends, each route takes one, whether there is one
// for each subscription or one for them all.
func TestOverlappingFilters(t *testing.T) {
	brokers := map[string]func(t *testing.T) string{
		"mosquitto": func(t *testing.T) string { return startMosquitto(t, "").url() },
		"mochi":     func(t *testing.T) string { return startMochi(t, nil).url() },
	}
	for name, start := range brokers {
		for _, share := range []string{"test", ""} {
			t.Run(name+"/"+map[bool]string{true: "exclusive", false: "shared"}[share == ""], func(t *testing.T) {
				broker, routes := start(t), overlapping(t)
				r := newRig(t, func(cfg *Config) { cfg.ShareName, cfg.Filters = share, routes.Filters() }, broker)
				r.awaitState(StateSubscribed)
				pub := newClient(t, broker, "publisher")
				const n = 20
				for i := range n {
					for _, topic := range []string{"a/b/x", "a/b/y", "a/c/x", "c"} {
						pub.publish(topic, fmt.Sprint(i), 1)
					}
				}
				pub.publish("a/b/end", "", 1)
				eventually(t, "the last message", func() bool {
					got := r.all()
					return len(got) > 0 && got[len(got)-1].Message.Topic == "a/b/end"
				})
				written := map[string]int{}
				for _, d := range r.all() {
					for _, o := range routes.MapCopy(d.Message, d.SubscriptionIDs, nil) {
						if o.Skip != mapping.SkipOverlap {
							written[o.Route.Name+" "+d.Message.Topic]++
						}
					}
				}
				for _, want := range []string{"x a/b/x", "b a/b/x", "b a/b/y", "x a/c/x", "b c"} {
					if written[want] != n {
						t.Errorf("%s: %d of %d messages", want, written[want], n)
					}
				}
				t.Logf("%d copies of %d messages", len(r.all()), 4*n+1)
				r.settle(r.all()...)
				r.close()
			})
		}
	}
}

// TestRefusedFilterOfAnOverlap: while the first filter is refused, the copies of the second are all there
// are, and its identifier says so.
func TestRefusedFilterOfAnOverlap(t *testing.T) {
	broker, routes := startMochi(t, nil), overlapping(t)
	broker.allow = func(filter string) bool { return !strings.HasSuffix(filter, "a/+/x") }
	r := newRig(t, func(cfg *Config) { cfg.Filters = routes.Filters() }, broker.url())
	pub := newClient(t, broker.url(), "publisher")
	eventually(t, "the refusal", func() bool {
		subs := r.session.Status().Subscriptions
		return len(subs) == 3 && subs[0].ReasonCode == 0x87 && subs[1].OK
	})
	taken := func(d *Delivery) bool {
		for _, o := range routes.MapCopy(d.Message, d.SubscriptionIDs, nil) {
			if o.Skip == mapping.SkipOverlap {
				return false
			}
		}
		return true
	}
	pub.publish("a/b/x", "", 1)
	got := r.received(1)
	if !taken(got[0]) {
		t.Errorf("the only copy is passed over: %v", got[0].SubscriptionIDs)
	}
	r.settle(got...)
	broker.set(func() { broker.allow = nil })
	r.awaitState(StateSubscribed)
	r.forget()
	pub.publish("a/b/x", "", 1)
	pub.publish("c", "", 1)
	eventually(t, "the message behind", func() bool {
		all := r.all()
		return len(all) > 0 && all[len(all)-1].Message.Topic == "c"
	})
	n := 0
	for _, d := range r.all() {
		if d.Message.Topic != "c" && taken(d) {
			n++
		}
	}
	if n != 1 {
		t.Errorf("%d copies are taken", n)
	}
	r.settle(r.all()...)
	r.close()
}

// TestNoSubscriptionIdentifiers: without them nobody could tell copies apart, so what overlaps is not
// subscribed to. It takes nothing from the others.
func TestNoSubscriptionIdentifiers(t *testing.T) {
	broker := scriptedBroker(t, "20 05 00 00 02 29 00", 1, 1)
	r := newRig(t, func(cfg *Config) { cfg.Filters = overlapping(t).Filters() }, broker)
	eventually(t, "the answers", func() bool {
		subs := r.session.Status().Subscriptions
		return len(subs) == 3 && subs[2].Text != notAnswered
	})
	st := r.session.Status()
	if subs := st.Subscriptions; st.State != StateConnected || !subs[0].OK || subs[1].OK || !subs[2].OK || subs[1].ReasonCode != 0xA1 ||
		!strings.Contains(subs[1].Text, "offers no Subscription Identifiers, and the filter overlaps a/+/x, so that messages which both match would be written twice") {
		t.Errorf("status %+v", st)
	}
	eventually(t, "the log tells that nothing more can be done", func() bool {
		return r.logs.FilterMessageSnippet("not possible with this broker").Len() == 1
	})
	if n := r.tellings("subscription to $share/test/a/b/#: "); n != 1 {
		t.Errorf("the refusal is logged %d times", n)
	}
	r.close()

	// Nothing overlaps: nothing is missed.
	r = newRig(t, func(cfg *Config) { cfg.Filters = []string{"a/#", "c"} }, broker)
	r.awaitState(StateSubscribed)
	r.close()
}
