// Package freeport finds ports for servers of a test's own.
package freeport

import (
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
	"testing"
)

// Ports are from below those that the system gives to clients: a client that is trying to reach a server which has stopped
// could get the server's.
const first, count = 20_000, 10_000

var given = struct {
	sync.Mutex
	ports map[int]bool
}{ports: map[int]bool{}}

// Port returns one on which nobody listens, and which it has not returned before: who asks for several opens them later.
func Port(tb testing.TB) int {
	tb.Helper()
	given.Lock()
	defer given.Unlock()
	for range 100 {
		port := first + rand.IntN(count) //nolint:gosec // nobody is to be surprised
		if given.ports[port] {
			continue
		}
		listener, err := net.Listen("tcp", address(port)) //nolint:noctx // it does not wait
		if err != nil {
			continue
		}
		if err := listener.Close(); err != nil {
			tb.Fatal(err)
		}
		given.ports[port] = true
		return port
	}
	tb.Fatal("no port is free")
	return 0
}

// Address returns such a port with its host.
func Address(tb testing.TB) string {
	tb.Helper()
	return address(Port(tb))
}

func address(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }
