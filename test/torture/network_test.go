//go:build linux

package torture_test

import (
	"fmt"
	"strings"
	"testing"

	toxiproxy "github.com/Shopify/toxiproxy/v2"
	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox/internal/freeport"
)

// network is the ways between processes and servers, each a proxy that may be cut.
type network struct {
	t       *testing.T
	server  *toxiproxy.ApiServer // which proxies want to have, and which does not listen
	proxies map[string]*toxiproxy.Proxy
}

func newNetwork(t *testing.T) *network {
	t.Helper()
	zerolog.SetGlobalLevel(zerolog.Disabled) // toxics have a logger of their own
	n := &network{
		t: t, server: toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop()), proxies: map[string]*toxiproxy.Proxy{},
	}
	t.Cleanup(func() {
		for _, p := range n.proxies {
			p.Stop()
		}
	})
	return n
}

// link makes a way to an address, and returns its own.
func (n *network) link(name, upstream string) string {
	n.t.Helper()
	p := toxiproxy.NewProxy(n.server, name, freeport.Address(n.t), upstream)
	require.NoError(n.t, p.Start())
	n.proxies[name] = p
	return p.Listen
}

// redirect has a way lead to another address, and ends what has come over it.
func (n *network) redirect(name, upstream string) {
	n.t.Helper()
	p := n.proxies[name]
	require.NoError(n.t, p.Update(&toxiproxy.Proxy{Listen: p.Listen, Upstream: upstream, Enabled: p.Enabled}))
	if !p.Enabled { // a changed one stops
		require.NoError(n.t, p.Start())
	}
}

// cut ends what has come over a way, and lets nobody in until mend.
func (n *network) cut(name string) { n.proxies[name].Stop() }

func (n *network) mend(name string) {
	n.t.Helper()
	require.NoError(n.t, n.proxies[name].Start())
}

// poison adds a toxic in both directions, until heal.
func (n *network) poison(name, toxic, attributes string) {
	n.t.Helper()
	for _, stream := range []string{"upstream", "downstream"} {
		text := fmt.Sprintf(`{"type": %q, "stream": %q, "attributes": %s}`, toxic, stream, attributes)
		_, err := n.proxies[name].Toxics.AddToxicJson(strings.NewReader(text))
		require.NoError(n.t, err)
	}
}

func (n *network) heal(name string) { n.proxies[name].Toxics.ResetToxics(n.t.Context()) }
