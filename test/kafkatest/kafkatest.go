// Package kafkatest starts Kafka servers of a test's own, which may be stopped, killed and started again.
package kafkatest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/IBM/sarama"

	"github.com/watermill-outbox/outbox/internal/freeport"
	"github.com/watermill-outbox/outbox/internal/leash"
)

// patience is how long a server may take to start, on a machine that is busy.
const patience = time.Minute

// Server is a Kafka of one node, which ends with its test.
type Server struct {
	// Address is where it is reached directly.
	Address string

	jars, settings string
	process        *leash.Process // nil while it is stopped
}

// Listener is a further way to the server: what connects there is told to come back to Advertised, such as a proxy.
type Listener struct{ Listen, Advertised string }

const settings = `
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@%[1]s
controller.listener.names=CONTROLLER
inter.broker.listener.name=DIRECT
listeners=CONTROLLER://%[1]s,%[2]s
advertised.listeners=%[3]s
listener.security.protocol.map=CONTROLLER:PLAINTEXT,%[4]s
log.dirs=%[5]s
auto.create.topics.enable=false
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
`

// Start starts a new and empty server.
func Start(tb testing.TB, more ...Listener) *Server {
	tb.Helper()
	root := projectRoot(tb)
	jars, err := exec.Command(filepath.Join(root, "services", "services"), "kafka-jars").Output() //nolint:gosec,noctx // of this repository
	if err != nil {
		tb.Fatalf("Kafka is not to be had: %v", err)
	}
	folder := tb.TempDir()
	s := &Server{
		Address: freeport.Address(tb), jars: filepath.Join(strings.TrimSpace(string(jars)), "*"), settings: filepath.Join(folder, "server.properties"),
	}
	var listeners, advertised, protocols []string
	for i, l := range append([]Listener{{s.Address, s.Address}}, more...) {
		name := "DIRECT"
		if i > 0 {
			name = fmt.Sprintf("LISTENER%d", i)
		}
		listeners = append(listeners, name+"://"+l.Listen)
		advertised = append(advertised, name+"://"+l.Advertised)
		protocols = append(protocols, name+":PLAINTEXT")
	}
	text := fmt.Sprintf(settings, freeport.Address(tb), strings.Join(listeners, ","), strings.Join(advertised, ","),
		strings.Join(protocols, ","), filepath.Join(folder, "data"))
	if err := os.WriteFile(s.settings, []byte(text), 0o600); err != nil {
		tb.Fatal(err)
	}
	format := exec.Command("java", "-cp", s.jars, "kafka.tools.StorageTool", "format", "-t", "watermilloutboxtests00", "-c", s.settings) //nolint:gosec,noctx // it ends by itself
	if out, err := format.CombinedOutput(); err != nil {
		tb.Fatalf("format Kafka's storage: %v\n%s", err, out)
	}
	tb.Cleanup(func() { s.Stop(tb, "TERM") })
	s.Start(tb)
	return s
}

// projectRoot is the folder of the main module: the one above that of this module.
func projectRoot(tb testing.TB) string {
	tb.Helper()
	mod, err := exec.Command("go", "env", "GOMOD").Output() //nolint:noctx // it ends by itself
	if err != nil {
		tb.Fatal(err)
	}
	return filepath.Dir(filepath.Dir(strings.TrimSpace(string(mod))))
}

// Start starts the server again after Stop, and waits until it answers.
func (s *Server) Start(tb testing.TB) {
	tb.Helper()
	var err error
	s.process, err = leash.Start(exec.Command, "TERM", os.DevNull, "java", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp", s.jars, "kafka.Kafka", s.settings)
	if err != nil {
		tb.Fatal(err)
	}
	for until := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		client, err := sarama.NewClient([]string{s.Address}, sarama.NewConfig())
		if err == nil {
			_ = client.Close() // it has answered
			return
		}
		if time.Now().After(until) {
			tb.Fatalf("Kafka does not start: %v", err)
		}
	}
}

// Stop stops the server by a signal, if it runs: TERM lets it write everything down, KILL does not.
func (s *Server) Stop(tb testing.TB, signal string) {
	tb.Helper()
	if s.process == nil {
		return
	}
	if err := s.process.Stop(signal); err != nil {
		tb.Error(err)
	}
	s.process = nil
}
