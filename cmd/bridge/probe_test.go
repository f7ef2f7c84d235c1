package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
)

func TestProbe(t *testing.T) {
	code := http.StatusOK
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(code)
		fmt.Fprintf(w, "asked %s\nbroker: away\n", r.URL.Path)
	}))
	defer server.Close()
	u, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		answer int
		addr   string
		args   []string
		code   int
		stdout string
		stderr string
	}{
		{"ready", 200, ":" + u.Port(), nil, 0, "asked /readyz\n", ""},
		{"unspecified address", 200, "0.0.0.0:" + u.Port(), nil, 0, "asked /readyz\n", ""},
		{"host", 200, "127.0.0.1:" + u.Port(), nil, 0, "asked /readyz\n", ""},
		{"not ready", 503, ":" + u.Port(), nil, 1, "", "asked /readyz\nbroker: away\n"},
		{"base URL", 200, "", []string{"--url", server.URL}, 0, "asked /readyz\n", ""},
		{"full URL", 200, "", []string{"--url", server.URL + "/livez"}, 0, "asked /livez\n", ""},
		{"nobody there", 200, "127.0.0.1:1", nil, 1, "", "bridge: probe: "},
		{"any port", 200, ":0", nil, 2, "", `BRIDGE_HTTP_ADDR: ":0": expected`},
		{"no address", 200, "8080", nil, 2, "", `BRIDGE_HTTP_ADDR: "8080": expected`},
	} {
		t.Run(c.name, func(t *testing.T) {
			environment(t, "BRIDGE_MQTT_QOS=not read by probe")
			if c.addr != "" {
				t.Setenv("BRIDGE_HTTP_ADDR", c.addr)
			}
			code = c.answer
			exit, stdout, stderr := bridge(t, "", append([]string{"probe"}, c.args...)...)
			if exit != c.code || !strings.HasPrefix(stdout, c.stdout) || !strings.HasPrefix(stderr, c.stderr) || c.stdout == "" && stdout != "" {
				t.Errorf("exit %d, %q, %q; want %d, %q, %q", exit, stdout, stderr, c.code, c.stdout, c.stderr)
			}
		})
	}
}
