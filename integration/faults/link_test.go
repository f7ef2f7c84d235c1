//go:build unix

package faults

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	toxiproxy "github.com/Shopify/toxiproxy/v2"
	"github.com/rs/zerolog"
)

// direction of the data on a link, seen from the bridge.
type direction string

const (
	upstream   direction = "upstream"   // from the bridge to its server
	downstream direction = "downstream" // from the server to the bridge
)

// link is what lies between the bridges and one of their servers.
type link struct {
	t     *testing.T
	proxy *toxiproxy.Proxy
}

func newLink(t *testing.T, name, server string) *link {
	t.Helper()
	api := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop())
	l := &link{t: t, proxy: toxiproxy.NewProxy(api, name, "127.0.0.1:0", server)}
	must(t, l.proxy.Start())
	t.Cleanup(l.proxy.Stop)
	return l
}

// address is host and port for the bridges.
func (l *link) address() string { return l.proxy.Listen }

// toxic makes a link worse, until mend. See the documentation of toxiproxy for kinds and attributes.
func (l *link) toxic(kind string, to direction, attributes map[string]any) {
	l.t.Helper()
	description, err := json.Marshal(map[string]any{"type": kind, "stream": to, "attributes": attributes})
	must(l.t, err)
	_, err = l.proxy.Toxics.AddToxicJson(bytes.NewReader(description))
	must(l.t, err)
}

// lose drops all data of one direction. Connections stay open until the link is mended, which
// closes them.
func (l *link) lose(to direction) { l.toxic("timeout", to, map[string]any{"timeout": 0}) }

// mend removes everything that was added.
func (l *link) mend() { l.proxy.Toxics.ResetToxics(l.t.Context()) }

// prepareReset makes connections that are opened from now on end with a TCP reset instead of a FIN.
func (l *link) prepareReset() {
	l.t.Helper()
	_, err := l.proxy.Toxics.AddToxicJson(strings.NewReader(`{"name": "linger", "type": "reset_peer", "toxicity": 0}`))
	must(l.t, err)
}

// reset ends every connection at once. It adds and removes a toxic instead of turning up the one
// of prepareReset: toxiproxy writes a changed toxicity while its connections still read the old one.
func (l *link) reset() {
	l.t.Helper()
	const name = "cut"
	_, err := l.proxy.Toxics.AddToxicJson(strings.NewReader(`{"name": "` + name + `", "type": "timeout", "attributes": {"timeout": 0}}`))
	must(l.t, err)
	must(l.t, l.proxy.Toxics.RemoveToxic(l.t.Context(), name)) // this kind closes its connections when it goes
}
