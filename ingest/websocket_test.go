package ingest

import (
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/autopaho"
	"github.com/gorilla/websocket"
)

// webSocketServer lets the test be the broker's end of a WebSocket. It returns a URL.
func webSocketServer(t *testing.T, before func(), serve func(*websocket.Conn)) *url.URL {
	t.Helper()
	upgrader := websocket.Upgrader{Subprotocols: []string{"mqtt"}}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		before()
		ws, err := upgrader.Upgrade(w, r, nil)
		if err != nil {
			t.Error(err)
			return
		}
		defer ws.Close()
		serve(ws)
	}))
	t.Cleanup(server.Close)
	u, err := url.Parse(strings.Replace(server.URL, "http", "ws", 1))
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func TestWebSocketIsAStream(t *testing.T) {
	protocol := make(chan string, 1)
	got := make(chan string, 1)
	u := webSocketServer(t, func() {}, func(ws *websocket.Conn) {
		protocol <- ws.Subprotocol()
		_, first, err := ws.ReadMessage()
		if err != nil {
			t.Error(err)
		}
		got <- string(first)
		for _, part := range []string{"a", "", "bc", "def"} { // packets may be split at will [MQTT-6.0.0-2]
			if err := ws.WriteMessage(websocket.BinaryMessage, []byte(part)); err != nil {
				t.Error(err)
			}
		}
		_, _, _ = ws.ReadMessage() // answers our closing
	})
	nc, err := dial(t.Context(), u, &tlsFiles{})
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	if name := <-protocol; name != "mqtt" { // [MQTT-6.0.0-3]
		t.Errorf("subprotocol %q", name)
	}
	if err := nc.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := nc.Write([]byte("hello")); err != nil || <-got != "hello" {
		t.Errorf("write: %v", err)
	}
	six := make([]byte, 6)
	if _, err := io.ReadFull(nc, six); err != nil || string(six) != "abcdef" {
		t.Errorf("read %q, %v", six, err)
	}
	if err := nc.(*webSocketConn).CloseWrite(); err != nil {
		t.Error(err)
	}
	if _, err := nc.Read(six); !errors.Is(err, io.EOF) {
		t.Errorf("after the closing handshake: %v", err)
	}
	if _, err := nc.Write(six); err == nil {
		t.Error("wrote after the closing handshake")
	}
}

func TestWebSocketRefusesText(t *testing.T) {
	u := webSocketServer(t, func() {}, func(ws *websocket.Conn) {
		_ = ws.WriteMessage(websocket.TextMessage, []byte("x"))
		_, _, _ = ws.ReadMessage()
	})
	nc, err := dial(t.Context(), u, &tlsFiles{})
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	if _, err := nc.Read(make([]byte, 1)); err == nil || !strings.Contains(err.Error(), "not binary") { // [MQTT-6.0.0-1]
		t.Errorf("read: %v", err)
	}
}

// paho's pinger writes while others write and set deadlines, as a net.Conn allows. The race detector judges.
func TestWebSocketTakesSeveralWriters(t *testing.T) {
	const writers, each = 4, 50
	got := make(chan int, 1)
	u := webSocketServer(t, func() {}, func(ws *websocket.Conn) {
		n := 0
		for range writers * each {
			if _, m, err := ws.ReadMessage(); err == nil && string(m) == "hello" {
				n++
			}
		}
		got <- n
	})
	nc, err := dial(t.Context(), u, &tlsFiles{})
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			for range each {
				if _, err := nc.Write([]byte("hello")); err != nil {
					t.Error(err)
				}
				if err := nc.SetDeadline(time.Now().Add(time.Minute)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if n := <-got; n != writers*each {
		t.Errorf("%d of %d messages arrived whole", n, writers*each)
	}
}

// A stalled broker must not hold up a write beyond a deadline, though it was set while the write waited.
func TestWebSocketDeadlineEndsAWrite(t *testing.T) {
	begun := make(chan error, 1)
	release := make(chan struct{})
	u := webSocketServer(t, func() {}, func(ws *websocket.Conn) {
		_, _, err := ws.NextReader()
		begun <- err
		<-release
	})
	defer close(release)
	nc, err := dial(t.Context(), u, &tlsFiles{})
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	nc.(*webSocketConn).longest = time.Hour
	ended := make(chan error, 1)
	go func() {
		_, err := nc.Write(make([]byte, 64<<20)) // more than the socket's buffers hold
		ended <- err
	}()
	if err := <-begun; err != nil {
		t.Fatal(err)
	}
	for { // a long message is written in fragments, and each sets the deadline anew
		if err := nc.SetWriteDeadline(time.Now()); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-ended:
			var timeout net.Error // websocket hides os.ErrDeadlineExceeded
			if !errors.As(err, &timeout) || !timeout.Timeout() {
				t.Errorf("the write ended with %v", err)
			}
			return
		case <-time.After(time.Millisecond):
		}
	}
}

// A session that is closed while it dials must not come up after all: its client id may have a new
// owner already.
func TestClosedWhileDialling(t *testing.T) {
	s := newIdleRig(t, nil, "mqtt://test").session
	ended := make(chan error, 1)
	u := webSocketServer(t, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.leaving = true
	}, func(ws *websocket.Conn) {
		_, _, err := ws.ReadMessage()
		ended <- err
	})
	if nc, err := s.attempt(t.Context(), autopaho.ClientConfig{}, u); !errors.Is(err, errSessionClosed) {
		t.Errorf("got a connection %v, err %v", nc, err)
	}
	if err := <-ended; err == nil {
		t.Error("the broker got a packet")
	}
	if _, err := s.attempt(t.Context(), autopaho.ClientConfig{}, u); !errors.Is(err, errSessionClosed) {
		t.Errorf("the next attempt: %v", err)
	}
}
