package brokers_test

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/stretchr/testify/require"
)

// kafkaServer is a Kafka of a test's own, which may be stopped and started.
type kafkaServer struct {
	jars, settings string
	address        string
	process        *exec.Cmd
	signal         io.Closer // stops it
}

const kafkaSettings = `
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@%[2]s
listeners=PLAINTEXT://%[1]s,CONTROLLER://%[2]s
advertised.listeners=PLAINTEXT://%[1]s
controller.listener.names=CONTROLLER
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT
log.dirs=%[3]s
auto.create.topics.enable=false
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
group.initial.rebalance.delay.ms=0
`

func startKafka(t *testing.T) *kafkaServer {
	t.Helper()
	jars, err := exec.Command("../../services/services", "kafka-jars").Output()
	require.NoError(t, err, "Kafka is not to be had")
	folder := t.TempDir()
	k := &kafkaServer{
		jars:     filepath.Join(strings.TrimSpace(string(jars)), "*"),
		settings: filepath.Join(folder, "server.properties"),
		address:  freeAddress(t),
	}
	settings := fmt.Sprintf(kafkaSettings, k.address, freeAddress(t), filepath.Join(folder, "data"))
	require.NoError(t, os.WriteFile(k.settings, []byte(settings), 0o600))
	out, err := exec.Command("java", "-cp", k.jars, "kafka.tools.StorageTool",
		"format", "-t", "watermilloutboxtests00", "-c", k.settings).CombinedOutput()
	require.NoError(t, err, "%s", out)
	k.start(t)
	t.Cleanup(k.stop)
	return k
}

func freeAddress(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer listener.Close() //nolint:errcheck // nobody has connected
	return listener.Addr().String()
}

func (k *kafkaServer) start(t *testing.T) {
	t.Helper()
	// It must not outlive a test process that panics or is killed: the end of its pipe stops it, too.
	k.process = exec.Command("sh", "-c", `"$@" >/dev/null 2>&1 & read -r _; kill -s TERM $!; wait $!`, "sh",
		"java", "-Xmx256m", "-cp", k.jars, "kafka.Kafka", k.settings)
	var err error
	k.signal, err = k.process.StdinPipe()
	require.NoError(t, err)
	require.NoError(t, k.process.Start())
	require.Eventually(t, func() bool {
		client, err := sarama.NewClient([]string{k.address}, sarama.NewConfig())
		if err == nil {
			_ = client.Close()
		}
		return err == nil
	}, patience, 100*time.Millisecond)
}

// stop has it write everything down.
func (k *kafkaServer) stop() {
	_ = k.signal.Close()
	_ = k.process.Wait() // how a server ends is no matter
}
