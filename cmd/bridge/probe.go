package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/kelseyhightower/envconfig"
)

// probeTimeout is below the timeouts that orchestrators give a health check.
const probeTimeout = 3 * time.Second

func probeCommand(ctx context.Context, args []string, std streams) error {
	flags := newFlags("probe")
	target := flags.String("url", "", "base `URL` or full URL to ask (default: /readyz on the port of BRIDGE_HTTP_ADDR, on loopback)")
	if _, err := parse(flags, args, std); err != nil {
		return err
	}
	where, err := probeURL(*target)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, where, nil)
	if err != nil {
		return usageError{"probe: " + err.Error()}
	}
	// No proxy: the bridge that is asked is this container's own.
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Do(request)
	if err != nil {
		return fmt.Errorf("probe: %w", err)
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(response.Body, 64<<10))
	if err != nil {
		return fmt.Errorf("probe: read the answer: %w", err)
	}
	if response.StatusCode != http.StatusOK {
		fmt.Fprintf(std.err, "%s\n", strings.TrimSpace(string(body)))
		return errTold
	}
	fmt.Fprintf(std.out, "%s\n", strings.TrimSpace(string(body)))
	return nil
}

// probeURL is the URL to ask. It reads only the one variable it needs, so that a container with a
// half-made configuration still gets an answer from the bridge that runs in it.
func probeURL(given string) (string, error) {
	if given != "" {
		u, err := url.Parse(given)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
			return "", usageError{"probe: --url: expected a URL such as http://localhost:8080"}
		}
		if u.Path == "" || u.Path == "/" {
			u.Path = "/readyz"
		}
		return u.String(), nil
	}
	var cfg httpConfig
	if err := envconfig.Process(prefix+"_HTTP", &cfg); err != nil {
		return "", fmt.Errorf("read the environment: %w", err)
	}
	host, port, err := net.SplitHostPort(cfg.Addr.value)
	if err != nil || !validAddress(cfg.Addr.value) || port == "0" {
		return "", &problems{{"BRIDGE_HTTP_ADDR", cfg.Addr.text, "expected host:port or :port with a fixed port, such as :8080"}}
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "localhost"
	}
	return "http://" + net.JoinHostPort(host, port) + "/readyz", nil
}
