//go:build unix

package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"sync"
	"time"

	"github.com/eclipse/paho.golang/paho"
)

// tally is what was published to one route and what must become of it.
type tally struct {
	published, written, duplicate, deadLettered, skipped int
	rows                                                 int
}

func (t *tally) count(p publication) {
	t.published++
	t.rows += p.rows
	switch p.fate {
	case written:
		t.written++
	case duplicate:
		t.duplicate++
	case deadLettered:
		t.deadLettered++
	case skipped:
		t.skipped++
	}
}

// fleet is all devices, each with an MQTT connection of its own.
type fleet struct {
	failed  chan error // the first failure of a device
	running sync.WaitGroup

	mu      sync.Mutex
	byRoute map[string]tally
	err     error
}

// startFleet connects the devices and lets them publish until ctx is done.
func startFleet(ctx context.Context, address string) (*fleet, error) {
	f := &fleet{failed: make(chan error, 1), byRoute: map[string]tally{}}
	var clients []*paho.Client
	for _, d := range devices() {
		client, err := connectDevice(ctx, address, d.id)
		if err != nil {
			for _, c := range clients {
				_ = c.Disconnect(&paho.Disconnect{}) // on the way out
			}
			return nil, fmt.Errorf("connect device %s: %w", d.id, err)
		}
		clients = append(clients, client)
	}
	for i, d := range devices() {
		f.running.Go(func() {
			if err := f.live(ctx, d, clients[i]); err != nil {
				f.fail(fmt.Errorf("device %s: %w", d.id, err))
			}
		})
	}
	return f, nil
}

func connectDevice(ctx context.Context, address, id string) (*paho.Client, error) {
	dialer := net.Dialer{Timeout: 5 * time.Second}
	conn, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	client := paho.NewClient(paho.ClientConfig{ClientID: id, Conn: conn})
	// The client takes this context for its whole life, and a device must still publish what it has
	// begun when the fleet is told to stop.
	_, err = client.Connect(context.WithoutCancel(ctx), &paho.Connect{ClientID: id, KeepAlive: 30, CleanStart: true})
	if err != nil {
		_ = conn.Close() // the connection never was one
		return nil, err
	}
	return client, nil
}

// live takes the device's turns. A message is counted when the broker has acknowledged it.
func (f *fleet) live(ctx context.Context, d device, client *paho.Client) error {
	defer func() { _ = client.Disconnect(&paho.Disconnect{}) }() // the broker ends soon, too
	tick := time.NewTicker(d.period)
	defer tick.Stop()
	for n := 0; ctx.Err() == nil; n++ {
		for _, p := range d.next(n, time.Now()) {
			if err := publish(context.WithoutCancel(ctx), client, p); err != nil {
				return fmt.Errorf("publish to %s: %w", p.topic, err)
			}
			f.count(p)
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
	return nil
}

func publish(ctx context.Context, client *paho.Client, p publication) error {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	response, err := client.Publish(ctx, &paho.Publish{Topic: p.topic, Payload: p.payload, QoS: 1, Retain: p.retain})
	if err != nil {
		return err
	}
	if response.ReasonCode != 0 { // 0x10 would say that nobody subscribes to it
		return fmt.Errorf("the broker answered with reason code %#x", response.ReasonCode)
	}
	return nil
}

func (f *fleet) count(p publication) {
	f.mu.Lock()
	defer f.mu.Unlock()
	t := f.byRoute[p.route]
	t.count(p)
	f.byRoute[p.route] = t
}

func (f *fleet) fail(err error) {
	f.mu.Lock()
	f.err = errors.Join(f.err, err)
	f.mu.Unlock()
	select {
	case f.failed <- err:
	default:
	}
}

// tallies returns a copy.
func (f *fleet) tallies() map[string]tally {
	f.mu.Lock()
	defer f.mu.Unlock()
	return maps.Clone(f.byRoute)
}

// wait returns when every device has stopped.
func (f *fleet) wait() error {
	f.running.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}
