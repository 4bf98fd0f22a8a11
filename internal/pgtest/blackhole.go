package pgtest

import (
	"bytes"
	"context"
	"net"
	"sync"
	"time"
)

// BlackHole dials connections that may fall in: from then on what is sent on them goes nowhere, nothing is closed, and
// nobody answers, as when a firewall has forgotten them.
type BlackHole struct {
	mu    sync.Mutex
	conns []net.Conn
	all   bool
	words []byte        // whoever sends them next falls in; none at all while fell is nil
	fell  chan struct{} // closed when he has
}

// Next has the next connection fall in that sends these words, in capital letters or small. What it returns is closed then.
func (h *BlackHole) Next(words string) <-chan struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.words, h.fell = bytes.ToLower([]byte(words)), make(chan struct{})
	return h.fell
}

// All has all connections fall in, and new ones, too.
func (h *BlackHole) All() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.all = true
}

// Close closes all connections. Drivers wait long for what is in the hole.
func (h *BlackHole) Close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, conn := range h.conns {
		_ = conn.Close() // most have been
	}
}

// DialContext is what pgx needs for a DialFunc; lib/pq wants the other two, too.
func (h *BlackHole) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.conns = append(h.conns, conn)
	return &holeConn{Conn: conn, hole: h}, nil
}

// Dial is DialContext without a context.
func (h *BlackHole) Dial(network, address string) (net.Conn, error) {
	return h.DialContext(context.Background(), network, address)
}

// DialTimeout is DialContext with a timeout.
func (h *BlackHole) DialTimeout(network, address string, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return h.DialContext(ctx, network, address)
}

type holeConn struct {
	net.Conn
	hole *BlackHole
	in   bool // the hole's mu's
}

func (c *holeConn) Write(b []byte) (int, error) {
	if c.hole.takes(c, b) {
		return len(b), nil
	}
	return c.Conn.Write(b)
}

func (h *BlackHole) takes(c *holeConn, b []byte) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.fell != nil && bytes.Contains(bytes.ToLower(b), h.words) {
		c.in = true
		close(h.fell)
		h.fell = nil
	}
	return c.in || h.all
}
