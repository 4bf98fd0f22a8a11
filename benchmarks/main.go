// Command benchmarks runs this project and what people would pick instead side by side, on the same servers and in turns,
// and makes a table and a chart of what it has found. README.md beside it says what is measured and how.
package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/alecthomas/kong"

	"github.com/watermill-outbox/outbox/benchmarks/peer"
)

func main() {
	var commands struct {
		Run    runCommand    `cmd:"" help:"Run scenarios, and write a result file."`
		Report reportCommand `cmd:"" help:"Make a table and a chart of a result file."`
		Soak   soakCommand   `cmd:"" help:"Relay a steady load for a long time, and fail if latencies, the backlog, tables, memory, processor time or the log of writes grow, or a message is lost or comes twice."`
		Relay  relayCommand  `cmd:"" hidden:""`
	}
	parsed := kong.Parse(&commands, kong.Description("Benchmarks of watermill-outbox and its alternatives."))
	if err := parsed.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "benchmarks:", err)
		os.Exit(1)
	}
}

// peers are all that are compared.
var peers = []peer.Peer{
	peer.Ours, peer.OursOverFranz, peer.Debezium,
	peer.WatermillSQL3, peer.WatermillSQL3Fast, peer.WatermillSQL4, peer.WatermillSQL4Fast, peer.WatermillSQL4Queue, peer.WatermillSQL4QueueFast,
	peer.River, peer.RiverDefault, peer.SkipLockedStatus, peer.SkipLockedDelete,
	peer.WatermillKafka, peer.FranzGo, peer.NoMessage, peer.PlainInsert,
}

func peerNamed(name string) (peer.Peer, error) {
	var names []string
	for _, p := range peers {
		if p.Name == name {
			return p, nil
		}
		names = append(names, p.Name)
	}
	return peer.Peer{}, fmt.Errorf("there is no peer %q, only %s", name, strings.Join(names, "; "))
}
