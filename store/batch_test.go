package store

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"testing"

	"github.com/mqttpg/bridge/mapping"
)

// A batch that is made in the memory of the one before is the same as one made in memory of its own:
// routes come and go, and so do dead letters, skips, redeliveries and incarnations.
func TestBatchInUsedMemory(t *testing.T) {
	config := func(name string) mapping.RouteConfig {
		c := telemetry
		c.Name, c.Topic, c.Table, c.Time, c.Key = name, name+"/{device_id}", "t_"+name, "", "delivery"
		return c
	}
	routes, err := mapping.Compile([]mapping.RouteConfig{config("a"), config("b"), config("c"), config("d")})
	if err != nil {
		t.Fatal(err)
	}
	random := rand.New(rand.NewPCG(7, 7))
	entries := func(from int) []Entry {
		few := 1 + random.IntN(5) // topics of this batch
		list := make([]Entry, 1+random.IntN(400))
		for i := range list {
			n := from + i
			m := &mapping.Message{Topic: string("abcdx"[random.IntN(few)]) + "/1", QoS: byte(random.IntN(3)), Seed: uint64(n)}
			m.Payload = fmt.Appendf(nil, `{"n":%d}`, n%7)
			if random.IntN(20) == 0 {
				m.Payload = []byte("{")
			}
			if random.IntN(20) == 0 {
				m.Payload = nil
			}
			list[i] = Entry{
				Message: m, Outcomes: routes.Map(m, nil), PacketID: uint16(n%maxPacketID + 1),
				Incarnation: uint64(from / 2000), Attempt: 1,
			}
			if i > 0 && random.IntN(4) == 0 {
				list[i] = list[i-1]
				list[i].Dup = true
			}
		}
		return list
	}
	ours, theirs := newLedger(), newLedger()
	var used *batch
	groups, letters, duplicates := 0, 0, 0
	for n := 0; n < 10000; {
		list := entries(n)
		n += len(list)
		used = newBatch(list, ours, used)
		fresh := newBatch(list, theirs, nil)
		groups, letters, duplicates = groups+len(fresh.groups), letters+len(fresh.letters), duplicates+int(fresh.settled.of("a").duplicate)
		used.settled.of("a") // as it was asked of the other one
		for _, part := range [][2]any{
			{used.groups, fresh.groups},
			{used.letters, fresh.letters},
			{used.settled, fresh.settled},
			{string(used.record.packetIDs), string(fresh.record.packetIDs)},
			{string(used.record.hashes), string(fresh.record.hashes)},
		} {
			if !reflect.DeepEqual(part[0], part[1]) {
				t.Fatalf("after %d messages: %+v, in memory of its own %+v", n, part[0], part[1])
			}
		}
		a, b := used.record, fresh.record
		a.packetIDs, a.hashes, b.packetIDs, b.hashes = nil, nil, nil, nil
		if !reflect.DeepEqual(a, b) || used.presumed != nil || used.searched || used.stubborn+used.unkept != 0 {
			t.Fatalf("after %d messages: record %+v, want %+v; batch %+v", n, a, b, used)
		}
		// What an attempt leaves behind must not reach the next batch.
		used.presumed, used.searched, used.stubborn, used.unkept = &outcome{}, true, 3, 4
	}
	if groups < 100 || letters < 100 || duplicates < 10 {
		t.Errorf("%d groups, %d letters, %d duplicates: too few to tell", groups, letters, duplicates)
	}
}
