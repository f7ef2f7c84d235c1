// Load publishes at QoS 1 and keeps account of what the broker has taken. It runs in a pod of the
// cluster tests; `load start NAME` and `load stop`, executed in the same pod, begin and end a scenario.
//
// Every second message is a numbered one for a route with a key: it is sent again until the broker
// takes it. The others are equal to the byte and carry neither number nor time, so nothing may be sent
// twice: what a broken connection leaves without an answer may have arrived or not, and is counted as
// open.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/eclipse/paho.golang/paho"
)

const control = "127.0.0.1:8090"

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "load:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 1 && args[0] == "serve":
		return serve()
	case len(args) == 2 && args[0] == "start":
		return ask("/start?name=" + args[1])
	case len(args) == 1 && args[0] == "stop":
		return ask("/stop")
	}
	return errors.New("usage: load serve | start NAME | stop")
}

// ask sends a command to the load that runs in this pod and prints its answer.
func ask(path string) error {
	request, err := http.NewRequestWithContext(context.Background(), http.MethodPost, "http://"+control+path, http.NoBody)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return fmt.Errorf("ask the load: %w", err)
	}
	defer func() { _ = response.Body.Close() }()
	if _, err := io.Copy(os.Stdout, response.Body); err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	if response.StatusCode != http.StatusOK {
		return errors.New(response.Status)
	}
	return nil
}

func serve() error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	p := &publisher{address: os.Getenv("LOAD_BROKER")}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /start", func(w http.ResponseWriter, r *http.Request) {
		if !p.start(ctx, r.FormValue("name")) {
			http.Error(w, "it is running", http.StatusConflict)
		}
	})
	mux.HandleFunc("POST /stop", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(p.end())
	})
	server := &http.Server{Addr: control, Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	context.AfterFunc(ctx, func() { _ = server.Close() })
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve: %w", err)
	}
	return nil
}

// perSecond is the rate; what a pause of the broker holds up is not made up for.
const perSecond = 1000

// account is what became of the messages of a scenario.
type account struct {
	Numbered int `json:"numbered"` // taken by the broker, every one of them
	Equal    int `json:"equal"`    // taken by the broker
	Open     int `json:"open"`     // equal ones without an answer: each may be there or not
	Refused  int `json:"refused"`  // times that the broker said "no matching subscribers", and was asked again
}

type publisher struct {
	address string

	mu     sync.Mutex
	stop   context.CancelFunc // nil: not running
	done   chan struct{}
	counts account

	connecting sync.Mutex
	client     *paho.Client
	alive      context.Context // ends with the client
	clients    int
}

func (p *publisher) start(ctx context.Context, name string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stop != nil {
		return false
	}
	intake, stop := context.WithCancel(ctx)
	p.stop, p.done, p.counts = stop, make(chan struct{}), account{}
	numbers := make(chan int)
	go pace(intake, numbers)
	var workers sync.WaitGroup
	for range 64 {
		workers.Go(func() {
			for n := range numbers {
				if n%2 == 0 {
					p.numbered(ctx, name, n)
				} else {
					p.equal(ctx, name)
				}
			}
		})
	}
	go func() {
		workers.Wait()
		close(p.done)
	}()
	return true
}

// pace hands out numbers until ctx ends.
func pace(ctx context.Context, numbers chan<- int) {
	defer close(numbers)
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	last, due := time.Now(), 0.0
	for n := 0; ; {
		select {
		case <-ctx.Done():
			return
		case now := <-ticker.C:
			due = min(due+now.Sub(last).Seconds()*perSecond, perSecond/10)
			last = now
		}
		for ; due >= 1; due-- {
			select {
			case <-ctx.Done():
				return
			case numbers <- n:
				n++
			}
		}
	}
}

// end stops the intake and returns the account when every message has its answer.
func (p *publisher) end() account {
	p.mu.Lock()
	stop, done := p.stop, p.done
	p.mu.Unlock()
	if stop != nil {
		stop()
		<-done
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stop = nil
	return p.counts
}

func (p *publisher) count(f func(*account)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f(&p.counts)
}

const pause = 50 * time.Millisecond // before a message is sent again

// numbered sends until the broker takes it: the route's key recognises what comes twice.
func (p *publisher) numbered(ctx context.Context, name string, n int) {
	now := time.Now().UTC()
	topic := fmt.Sprintf("devices/%s-%d/telemetry", name, n%20)
	payload := fmt.Sprintf(`{"ts":%q,"n":%d,"temperature":%d.5}`, now.Format(time.RFC3339Nano), n, n%40)
	for ctx.Err() == nil {
		taken, refused, _ := p.publish(ctx, topic, payload)
		if taken {
			p.count(func(a *account) { a.Numbered++ })
			return
		}
		if refused {
			p.count(func(a *account) { a.Refused++ })
		}
		time.Sleep(pause)
	}
}

// equal sends once, and again only if the broker has certainly not taken it.
func (p *publisher) equal(ctx context.Context, name string) {
	for ctx.Err() == nil {
		taken, refused, sent := p.publish(ctx, "readings/"+name+"/temperature", "21.5")
		switch {
		case taken:
			p.count(func(a *account) { a.Equal++ })
			return
		case refused:
			p.count(func(a *account) { a.Refused++ })
		case sent:
			p.count(func(a *account) { a.Open++ })
			return
		}
		time.Sleep(pause)
	}
}

const noMatchingSubscribers = 0x10 // of a PUBACK

// publish makes one attempt. taken: the broker has it; refused: the broker said that nobody gets it;
// otherwise sent tells whether it was handed to a connection.
func (p *publisher) publish(ctx context.Context, topic, payload string) (taken, refused, sent bool) {
	client, alive := p.connected(ctx)
	if client == nil {
		return false, false, false
	}
	answer, err := client.Publish(alive, &paho.Publish{Topic: topic, QoS: 1, Payload: []byte(payload)})
	switch {
	case answer != nil && answer.ReasonCode == noMatchingSubscribers, answer != nil && answer.ReasonCode >= 0x80:
		return false, true, true
	case err != nil:
		return false, false, true
	}
	return true, false, true
}

// connected returns a client, after one attempt to connect if there is none; nil when the broker
// cannot be reached now.
func (p *publisher) connected(ctx context.Context) (*paho.Client, context.Context) {
	p.connecting.Lock()
	defer p.connecting.Unlock()
	if p.client != nil {
		select {
		case <-p.client.Done():
			p.client = nil
		default:
			return p.client, p.alive
		}
	}
	conn, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "tcp", p.address)
	if err != nil {
		return nil, nil
	}
	client := paho.NewClient(paho.ClientConfig{Conn: conn, PacketTimeout: 20 * time.Second})
	p.clients++
	patience, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	connect := &paho.Connect{ClientID: fmt.Sprintf("load-%d", p.clients), CleanStart: true, KeepAlive: 10}
	if _, err := client.Connect(patience, connect); err != nil {
		_ = conn.Close()
		return nil, nil
	}
	alive, end := context.WithCancel(ctx)
	go func() {
		<-client.Done()
		end()
	}()
	p.client, p.alive = client, alive
	return client, alive
}
