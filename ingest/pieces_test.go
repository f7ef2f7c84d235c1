package ingest

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"
)

// TestRecordsAreReadAtOnce: Mosquitto sends each packet in a TLS record of its own, and a read brings one
// record. A pause before each read would hold up all that arrived with it.
func TestRecordsAreReadAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pki := newPKI(t)
		pair, err := tls.LoadX509KeyPair(pki.path("server.pem"), pki.path("server.key"))
		if err != nil {
			t.Fatal(err)
		}
		const rate = 20_000
		ours, theirs := net.Pipe()
		packets := make(chan []byte, rate) // the socket's buffers
		packet := unhex(t, "32 07 0001 't' 0001 00 'x'")
		go func() {
			for range rate {
				packets <- packet
				time.Sleep(time.Second / rate)
			}
			close(packets)
		}()
		go func() {
			broker := tls.Server(theirs, &tls.Config{Certificates: []tls.Certificate{pair}})
			for packet := range packets {
				if _, err := broker.Write(packet); err != nil {
					t.Error(fmt.Errorf("broker: %w", err))
				}
			}
			_ = broker.Close()
		}()
		n, late, began := 0, time.Duration(0), time.Now()
		r := newIdleRig(t, func(cfg *Config) {
			cfg.Deliver = func(context.Context, *Delivery) {
				late = max(late, time.Since(began.Add(time.Duration(n)*time.Second/rate)))
				n++
			}
			cfg.Budget = NewBudget(1 << 40)
			cfg.MaxInFlight = rate
		}, "mqtt://test")
		c := newConn(r.session, tls.Client(ours, &tls.Config{InsecureSkipVerify: true}))
		c.generation.Store(1)
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		_ = ours.Close()
		if n != rate || late > gatherFor {
			t.Errorf("%d messages, the latest %v late", n, late)
		}
	})
}
