package ingest

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"time"

	"github.com/gorilla/websocket"
	"golang.org/x/net/proxy"
)

// dialTimeout bounds one attempt to reach a broker: name, TCP, TLS and WebSocket together. It has to
// be ours: autopaho's ConnectTimeout does not cover a connection it did not dial itself.
const dialTimeout = 10 * time.Second

// A scheme says how a broker URL is reached.
type scheme struct {
	tls, webSocket bool
	port           string // default
}

var schemes = map[string]scheme{
	"mqtt":  {port: "1883"},
	"tcp":   {port: "1883"},
	"mqtts": {tls: true, port: "8883"},
	"ssl":   {tls: true, port: "8883"},
	"tls":   {tls: true, port: "8883"},
	"ws":    {webSocket: true, port: "80"},
	"wss":   {webSocket: true, tls: true, port: "443"},
}

// dial opens a network connection to the broker at u. Proxies are honoured as the environment says:
// HTTP_PROXY, HTTPS_PROXY and NO_PROXY for WebSockets, ALL_PROXY (SOCKS5) for the others.
func dial(ctx context.Context, u *url.URL, files *tlsFiles) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	how := schemes[strings.ToLower(u.Scheme)]
	var tlsConfig *tls.Config
	if how.tls {
		var err error
		if tlsConfig, err = files.config(u.Hostname()); err != nil {
			return nil, err
		}
	}
	if how.webSocket {
		return dialWebSocket(ctx, u, tlsConfig)
	}

	port := u.Port()
	if port == "" {
		port = how.port
	}
	nc, err := proxy.Dial(ctx, "tcp", net.JoinHostPort(u.Hostname(), port))
	if err != nil {
		return nil, err // net says what it was doing
	}
	if !how.tls {
		return nc, nil
	}
	conn := tls.Client(nc, tlsConfig)
	if err := conn.HandshakeContext(ctx); err != nil {
		_ = nc.Close()
		return nil, fmt.Errorf("tls handshake: %w%s", err, doubt(err, "TLS"))
	}
	return conn, nil
}

// doubt asks whether the port speaks the protocol, if the error is what one of another protocol makes of a handshake.
func doubt(err error, protocol string) string {
	noTLS := tls.RecordHeaderError{}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.As(err, &noTLS) {
		return ": does this port speak " + protocol + "?"
	}
	return ""
}

func dialWebSocket(ctx context.Context, u *url.URL, tlsConfig *tls.Config) (net.Conn, error) {
	dialer := websocket.Dialer{
		Proxy:            http.ProxyFromEnvironment,
		HandshakeTimeout: dialTimeout,
		TLSClientConfig:  tlsConfig,
		Subprotocols:     []string{"mqtt"}, // [MQTT-6.0.0-3]
		ReadBufferSize:   readBufferSize,
		WriteBufferSize:  16 << 10,
	}
	target := *u // gorilla knows no upper case and takes the default ports from the scheme
	target.Scheme = strings.ToLower(u.Scheme)
	ws, response, err := dialer.DialContext(ctx, target.String(), nil)
	if response != nil {
		_ = response.Body.Close()
	}
	switch {
	case err != nil && response != nil:
		return nil, fmt.Errorf("websocket handshake: %w (HTTP status %s)", err, response.Status)
	case err != nil && tlsConfig != nil:
		return nil, fmt.Errorf("websocket handshake: %w%s", err, doubt(err, "WebSocket and TLS"))
	case err != nil:
		return nil, fmt.Errorf("websocket handshake: %w%s", err, doubt(err, "WebSocket"))
	}
	return &webSocketConn{Conn: ws, longest: heavyTimeout}, nil
}
