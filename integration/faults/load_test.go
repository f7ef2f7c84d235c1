//go:build unix

package faults

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/paho"
	"github.com/jackc/pgx/v5"
)

// kind is one sort of message with its route and the account of its messages.
type kind struct {
	name    string
	route   map[string]string // suffixes of BRIDGE_ROUTE_<NAME>_; nil: it has no route of its own
	topic   string
	payload func(n int, pad string) string
	rows    int    // that a message makes
	count   string // query: number and how many rows it has; NULL for messages that cannot be told apart
	keyed   bool   // what the publisher or a broker sends again is recognised by the key

	sent  int    // messages handed to the connection
	acked []bool // by number: the broker has taken responsibility
}

// base is the time of the first event; far enough back that no clock jump makes it the future.
var base = time.Now().UTC().Add(-time.Hour).Truncate(time.Second)

func allKinds() []*kind {
	return []*kind{
		twins(),
		{
			name:    "plain",
			route:   map[string]string{"COLUMNS": "n:int8=$.n"},
			payload: func(n int, pad string) string { return fmt.Sprintf(`{"n":%d,"pad":%q}`, n, pad) },
			rows:    1, count: "select n, count(*) from plain group by n",
		},
		{
			name:    "ident",
			route:   map[string]string{"COLUMNS": "n:int8=$.id", "KEY": "$.id"},
			payload: func(n int, pad string) string { return fmt.Sprintf(`{"id":%d,"pad":%q}`, n, pad) },
			rows:    1, count: "select n, count(*) from ident group by n", keyed: true,
		},
		{
			name:  "timed",
			route: map[string]string{"COLUMNS": "n:int8=$.n", "TIME": "$.ts"},
			payload: func(n int, pad string) string {
				ts := base.Add(time.Duration(n) * time.Millisecond).Format(time.RFC3339Nano)
				return fmt.Sprintf(`{"ts":%q,"n":%d,"pad":%q}`, ts, n, pad)
			},
			rows: 1, count: "select n, count(*) from timed group by n", keyed: true,
		},
		{
			name:  "several",
			route: map[string]string{"COLUMNS": "n:int8=$.n, v:int8=@.v", "EACH": "$.values"},
			payload: func(n int, pad string) string {
				return fmt.Sprintf(`{"n":%d,"values":[{"v":1},{"v":2},{"v":3}],"pad":%q}`, n, pad)
			},
			rows: 3, count: "select n, count(*) from several group by n",
		},
		{
			name:    "text",
			route:   map[string]string{"COLUMNS": "n:int8=payload", "FORMAT": "text"},
			payload: func(n int, _ string) string { return fmt.Sprint(n) },
			rows:    1, count: "select n, count(*) from text group by n",
		},
		{
			name: "poison", topic: "load/dev/plain",
			payload: func(n int, _ string) string { return fmt.Sprintf(`{"poison":%d`, n) },
			rows:    1, count: `select (regexp_match(convert_from(payload, 'UTF8'), '"poison":(\d+)'))[1]::int, count(*)
				from bridge.dead_letters where reason = 'invalid_payload' group by 1`,
		},
	}
}

// twins are equal to the byte and carry neither id nor time.
func twins() *kind {
	return &kind{
		name:    "twins",
		route:   map[string]string{"COLUMNS": "v:float8=$.v", "KEY": "delivery"},
		payload: func(int, string) string { return `{"v":21.5}` },
		rows:    1, count: "select null::int, count(*) from twins having count(*) > 0",
	}
}

// load publishes at QoS 1 or 2 straight to the broker and keeps account of what the broker has
// acknowledged. What a broken connection leaves unacknowledged is not sent again: it may arrive once
// or not at all.
type load struct {
	address string
	kinds   []*kind
	qos     byte
	rate    int // messages a second
	pad     string
	limit   int // messages in all; 0: until stop

	held  atomic.Bool // publish nothing for now
	stop  chan struct{}
	once  sync.Once
	done  chan struct{} // closed when all workers have ended
	clock struct{ start, end time.Time }

	mu      sync.Mutex
	client  *paho.Client
	alive   context.Context // ends with the client: paho lets a publication wait for its time-out
	clients int
	next    int
}

// routes are the variables that make the routes of the kinds.
func (l *load) routes() map[string]string {
	env := map[string]string{}
	var names []string
	for _, k := range l.kinds {
		if k.route == nil {
			continue
		}
		names = append(names, k.name)
		prefix := "BRIDGE_ROUTE_" + strings.ToUpper(k.name) + "_"
		env[prefix+"TOPIC"] = "load/{device_id}/" + k.name
		env[prefix+"PAYLOAD"] = "drop"
		for suffix, value := range k.route {
			env[prefix+suffix] = value
		}
	}
	env["BRIDGE_ROUTES"] = strings.Join(names, ",")
	return env
}

// start publishes in the background until end is called or the limit is reached.
func (l *load) start(ctx context.Context) {
	l.stop, l.done = make(chan struct{}), make(chan struct{})
	l.clock.start = time.Now()
	const beat = 10 * time.Millisecond
	tokens := make(chan struct{})
	go func() {
		defer close(tokens)
		ticker := time.NewTicker(beat)
		defer ticker.Stop()
		last, due := time.Now(), 0.0
		for given := 0; ; {
			select {
			case <-ctx.Done():
				return
			case <-l.stop:
				return
			case now := <-ticker.C:
				due = min(due+now.Sub(last).Seconds()*float64(l.rate), float64(l.rate)) // a pause is not made up for
				last = now
			}
			if l.held.Load() {
				due = 0
			}
			for ; due >= 1; due-- {
				if l.limit > 0 && given == l.limit {
					return
				}
				select {
				case tokens <- struct{}{}:
					given++
				case <-l.stop:
					return
				case <-ctx.Done():
					return
				}
			}
		}
	}()
	var workers sync.WaitGroup
	for range 32 {
		workers.Go(func() {
			for range tokens {
				if !l.publish(ctx) {
					return
				}
			}
		})
	}
	go func() {
		workers.Wait()
		l.clock.end = time.Now()
		close(l.done)
	}()
}

// running says whether the load goes on.
func (l *load) running() bool {
	select {
	case <-l.done:
		return false
	default:
		return true
	}
}

// end stops the load and returns when every message has its answer or none will come.
func (l *load) end() {
	l.once.Do(func() { close(l.stop) })
	<-l.done
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.client != nil {
		_ = l.client.Disconnect(&paho.Disconnect{}) // the broker may be gone: there is nothing to save
		l.client = nil
	}
}

// publish sends one message and notes the answer. It is false when the load is over.
func (l *load) publish(ctx context.Context) bool {
	client, alive := l.connected(ctx)
	for client == nil {
		select {
		case <-ctx.Done():
			return false
		case <-l.stop:
			return false
		case <-time.After(50 * time.Millisecond):
			client, alive = l.connected(ctx)
		}
	}
	k, n := l.take()
	topic := k.topic
	if topic == "" {
		topic = "load/dev/" + k.name
	}
	response, err := client.Publish(alive, &paho.Publish{Topic: topic, QoS: l.qos, Payload: []byte(k.payload(n, l.pad))})
	// 0x10, no matching subscribers, is no responsibility taken: a restarted Mosquitto has forgotten
	// the shared subscriptions until the bridge has subscribed again.
	if err == nil && response.ReasonCode == 0 {
		l.mu.Lock()
		k.acked[n] = true
		l.mu.Unlock()
	}
	return true
}

// take decides on the next message: all kinds in turn, poison now and then.
func (l *load) take() (*kind, int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	k := l.kinds[l.next%len(l.kinds)]
	if k.route == nil && (l.next/len(l.kinds))%5 != 0 {
		k = l.kinds[0]
	}
	l.next++
	k.sent++
	k.acked = append(k.acked, false)
	return k, k.sent - 1
}

// connected returns a connected client, after one attempt to connect if there is none; nil when the
// broker cannot be reached now.
func (l *load) connected(ctx context.Context) (*paho.Client, context.Context) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.client != nil {
		select {
		case <-l.client.Done():
			l.client = nil
		default:
			return l.client, l.alive
		}
	}
	dialer := net.Dialer{Timeout: time.Second}
	conn, err := dialer.DialContext(ctx, "tcp", l.address)
	if err != nil {
		return nil, nil
	}
	client := paho.NewClient(paho.ClientConfig{Conn: conn, PacketTimeout: 20 * time.Second})
	l.clients++
	connect := &paho.Connect{ClientID: fmt.Sprintf("publisher-%d", l.clients), CleanStart: true, KeepAlive: 30}
	patience, cancel := context.WithTimeout(ctx, 2*time.Second) // with a broker that is halted
	defer cancel()
	if _, err := client.Connect(patience, connect); err != nil {
		_ = conn.Close()
		return nil, nil
	}
	alive, end := context.WithCancel(ctx)
	go func() {
		<-client.Done()
		end()
	}()
	l.client, l.alive = client, alive
	return client, alive
}

// account is the comparison of what was published with what is in the database.
type account struct {
	published, acknowledged, rows, missing, extra int
	keyedExtra                                    int      // of the extra rows, those of kinds with a key
	what                                          []string // the first few differences, for people
}

func (a account) String() string {
	return fmt.Sprintf("published %d, acknowledged %d, rows %d, missing %d, extra %d %s",
		a.published, a.acknowledged, a.rows, a.missing, a.extra, strings.Join(a.what, "; "))
}

// compare holds the database against the account. A message that was acknowledged must have all its
// rows; one that was not may have all or none.
func (l *load) compare(t *testing.T, db *pgx.Conn) account {
	t.Helper()
	var a account
	for _, k := range l.kinds {
		found := map[int]int{}
		alike := -1 // rows of a kind whose messages cannot be told apart
		rows, err := db.Query(t.Context(), k.count)
		must(t, err)
		var number *int
		var count int
		_, err = pgx.ForEachRow(rows, []any{&number, &count}, func() error {
			if k.route != nil {
				a.rows += count
			}
			if number == nil {
				alike = count
			} else {
				found[*number] = count
			}
			return nil
		})
		must(t, err)

		l.mu.Lock()
		acked := 0
		for _, yes := range k.acked {
			if yes {
				acked++
			}
		}
		a.published += k.sent
		a.acknowledged += acked
		missing, extra := 0, 0
		note := func(n, rows int) {
			if missing+extra < 4 {
				a.what = append(a.what, fmt.Sprintf("%s %d: %d rows", k.name, n, rows))
			}
		}
		if k.name == "twins" {
			alike = max(alike, 0)
			missing, extra = max(0, acked-alike), max(0, alike-k.sent)
			if missing+extra > 0 {
				a.what = append(a.what, fmt.Sprintf("twins: %d rows of %d to %d", alike, acked, k.sent))
			}
		} else {
			for n, yes := range k.acked {
				rows, there := found[n]
				delete(found, n)
				switch {
				case (yes || there) && rows < k.rows:
					note(n, rows)
					missing += k.rows - rows
				case rows > k.rows:
					note(n, rows)
					extra += rows - k.rows
				}
			}
			for n, rows := range found { // nobody published them
				note(n, rows)
				extra += rows
			}
		}
		l.mu.Unlock()
		a.missing += missing
		a.extra += extra
		if k.keyed {
			a.keyedExtra += extra
		}
	}
	return a
}

// arrived is how many rows and dead letters there are of some kinds, and how many are lacking: what one
// kind has too many does not stand for what another one has not got yet.
func (l *load) arrived(t *testing.T, db *pgx.Conn, kinds []*kind) (rows, lacking int) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, k := range kinds {
		n, want := 0, 0
		must(t, db.QueryRow(t.Context(), "select coalesce(sum(count), 0)::int from ("+k.count+") as each(number, count)").Scan(&n))
		for _, yes := range k.acked {
			if yes {
				want += k.rows
			}
		}
		rows += n
		lacking += max(0, want-n)
	}
	return rows, lacking
}
