package crash_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"net"
	"sync/atomic"
)

// dial is for pgx: the connection passes points where statements are sent and answered.
//
//	before delete   it is about to be sent
//	in delete       it has been sent, and the server may or may not get to it
//	after delete    the server has answered
//
// What only prepares a statement is a point of its own: "before preparing delete".
func (t *trap) dial(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return &wire{Conn: conn, trap: t, prepared: map[string]string{}}, nil
}

type wire struct {
	net.Conn

	trap     *trap
	prepared map[string]string      // names of statements, by what pgx calls them; whoever writes owns it
	sent     atomic.Pointer[string] // what has not been answered
}

func (w *wire) Write(b []byte) (int, error) {
	name := w.read(b)
	w.trap.step("before " + name)
	w.sent.Store(&name)
	n, err := w.Conn.Write(b)
	w.trap.step("in " + name)
	return n, err
}

func (w *wire) Read(b []byte) (int, error) {
	n, err := w.Conn.Read(b)
	if n > 0 {
		if name := w.sent.Swap(nil); name != nil {
			w.trap.at("after " + *name)
		}
	}
	return n, err
}

// read returns the name of what is written: of several statements, the first that does more than to begin a transaction.
// https://www.postgresql.org/docs/current/protocol-message-formats.html
func (w *wire) read(b []byte) (name string) {
	bound, named := false, func(candidate string) {
		if name == "" || name == aLook || name == "begin" {
			name = candidate
		}
	}
	for len(b) > 4 && b[0] != 0 { // else it is the first message of a connection, which has no type
		size := 1 + int(binary.BigEndian.Uint32(b[1:]))
		if size > len(b) {
			break
		}
		first, rest, _ := bytes.Cut(b[5:size], []byte{0})
		second, _, _ := bytes.Cut(rest, []byte{0})
		switch b[0] {
		case 'Q': // the text
			named(nameOf(string(first)))
			bound = true
		case 'P': // the statement's name, and its text
			w.prepared[string(first)] = nameOf(string(second))
			named(w.prepared[string(first)])
		case 'B': // the portal's name, and the statement's
			named(w.prepared[string(second)])
			bound = true
		}
		b = b[size:]
	}
	switch {
	case name == "":
		return "a message" // about the connection
	case !bound:
		return "preparing " + name
	}
	return name
}
