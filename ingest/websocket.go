package ingest

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/gorilla/websocket"
)

// webSocketConn makes a stream of a WebSocket's binary messages: MQTT packets may be split and
// joined over messages at will [MQTT-6.0.0-2]. One goroutine may read; the other methods may be called
// by several at once, as a net.Conn's may: websocket.Conn allows one writer, and takes setting the
// deadline for writing.
type webSocketConn struct {
	*websocket.Conn
	message io.Reader // what is left of the current message; nil between messages

	// longest bounds each write, whatever the deadline: the websocket sets the socket's deadline anew with
	// each message, so one that was set in that very moment is lost.
	longest time.Duration

	writing  sync.Mutex
	mu       sync.Mutex
	deadline time.Time // of writes; guarded by mu
}

func (c *webSocketConn) Read(p []byte) (int, error) {
	for {
		if c.message == nil {
			kind, r, err := c.NextReader()
			if err != nil {
				var closed *websocket.CloseError
				if errors.As(err, &closed) && closed.Code == websocket.CloseNormalClosure {
					return 0, io.EOF
				}
				return 0, err
			}
			if kind != websocket.BinaryMessage { // [MQTT-6.0.0-1]
				return 0, fmt.Errorf("websocket message is not binary")
			}
			c.message = r
		}
		n, err := c.message.Read(p)
		if errors.Is(err, io.EOF) {
			c.message, err = nil, nil
		}
		if n > 0 || err != nil {
			return n, err
		}
	}
}

// Write sends p as one message.
func (c *webSocketConn) Write(p []byte) (int, error) {
	c.writing.Lock()
	defer c.writing.Unlock()
	c.mu.Lock()
	deadline := c.deadline
	c.mu.Unlock()
	if bound := time.Now().Add(c.longest); deadline.IsZero() || deadline.After(bound) {
		deadline = bound
	}
	if err := c.Conn.SetWriteDeadline(deadline); err != nil {
		return 0, err
	}
	if err := c.WriteMessage(websocket.BinaryMessage, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// SetWriteDeadline sets the deadline of writes, of one under way too. Once it has passed within a write
// the connection is of no more use.
func (c *webSocketConn) SetWriteDeadline(t time.Time) error {
	c.mu.Lock()
	c.deadline = t
	c.mu.Unlock()
	return c.NetConn().SetWriteDeadline(t)
}

// SetDeadline sets both deadlines.
func (c *webSocketConn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

// CloseWrite begins the closing handshake; the peer's answer ends Read.
func (c *webSocketConn) CloseWrite() error {
	goodbye := websocket.FormatCloseMessage(websocket.CloseNormalClosure, "")
	return c.WriteControl(websocket.CloseMessage, goodbye, time.Now().Add(time.Second))
}
