package brokers_test

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"
)

// network is what lies between a client and its broker, and may be cut. Clients dial through it.
type network struct {
	mu    sync.Mutex
	cut   bool
	conns map[net.Conn]struct{}
}

var errCut = errors.New("the network is cut")

// Cut ends all connections, and refuses new ones until Mend is called.
func (n *network) Cut() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut = true
	for conn := range n.conns {
		_ = conn.Close()
	}
	n.conns = nil
}

func (n *network) Mend() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut = false
}

// Dial fits the dialers of most clients.
func (n *network) Dial(name, address string) (net.Conn, error) {
	return n.DialContext(context.Background(), name, address)
}

func (n *network) DialContext(ctx context.Context, name, address string) (net.Conn, error) {
	if n.isCut() {
		return nil, errCut
	}
	dialer := net.Dialer{Timeout: 5 * time.Second}
	conn, err := dialer.DialContext(ctx, name, address)
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.cut {
		_ = conn.Close()
		return nil, errCut
	}
	if n.conns == nil {
		n.conns = map[net.Conn]struct{}{}
	}
	n.conns[conn] = struct{}{} // until it is cut: there are few
	return conn, nil
}

func (n *network) isCut() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.cut
}
