package peer

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

const aboutDebezium = "Debezium 3.3.1.Final's connector for PostgreSQL with its outbox event router, on a Kafka Connect 4.1.0 of its own, standalone, " +
	"warmed up with 1,200,000 messages; the documentation's table, with `payload bytea` and `BinaryDataConverter`, whose rows are inserted and stay; " +
	"`pgoutput` with a publication of the INSERTs into this table; `poll.interval.ms=5` (500 by default), `max.batch.size=8192`, " +
	"`max.queue.size=32768`, `extended.headers.enabled=false`; a producer with `acks=all`, idempotence and 5 requests in flight (1 by default in " +
	"Kafka Connect), `linger.ms=0`, `batch.size=131072`, no compression; `java -Xmx1g -XX:+UseParallelGC`"

// connectWorker are Kafka Connect's settings, apart from addresses and files. A backlog is drained as fast, within the
// spread, with batches of 16 KB, with one request in flight, and with a linger of 1 or 5 ms, Kafka's default; but by that
// each message comes later.
const connectWorker = `
plugin.path=
plugin.discovery=service_load
key.converter=org.apache.kafka.connect.storage.StringConverter
value.converter=io.debezium.converters.BinaryDataConverter
producer.acks=all
producer.enable.idempotence=true
producer.max.in.flight.requests.per.connection=5
producer.linger.ms=0
producer.batch.size=131072
producer.compression.type=none
`

// debeziumSettings are the connector's. The default sizes of batches and of the queue, a quarter of these, drain a backlog as
// fast; so do batches of 1024. What is bounded in bytes is what would not fit where payloads are large. The headers that are
// left out say which connector a message has come by, and take a tenth of the processor time.
func debeziumSettings(database pgconn.Config, slot string) map[string]string {
	return map[string]string{
		"connector.class":   "io.debezium.connector.postgresql.PostgresConnector",
		"database.hostname": database.Host,
		"database.port":     strconv.Itoa(int(database.Port)),
		"database.user":     database.User,
		"database.password": database.Password,
		"database.dbname":   database.Database,

		"plugin.name":                 "pgoutput",
		"slot.name":                   slot,
		"publication.name":            "debezium_outbox",
		"publication.autocreate.mode": "filtered",
		"table.include.list":          "public.debezium_outbox",
		"topic.prefix":                slot,
		"snapshot.mode":               "no_data",
		"extended.headers.enabled":    "false",
		"poll.interval.ms":            "5",
		"max.batch.size":              "8192",
		"max.queue.size":              "32768",
		"max.queue.size.in.bytes":     "67108864",

		"transforms":             "outbox",
		"transforms.outbox.type": "io.debezium.transforms.outbox.EventRouter",
		"transforms.outbox.route.topic.replacement": "${routedByValue}",
	}
}

// javaOptions are the Java machine's. With G1, which Kafka Connect's own script chooses, it is as fast and takes more memory.
var javaOptions = []string{"-Xms1g", "-Xmx1g", "-XX:+UseParallelGC", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"}

// connector is the name that Kafka Connect knows it by.
const connector = "outbox"

// kafkaConnect is a Kafka Connect on this machine with one connector, which it stops rather than pauses: a connector that is
// paused goes on to read the log.
type kafkaConnect struct {
	folder  string
	url     string
	command *exec.Cmd
	guard   *exec.Cmd
	ended   chan struct{} // closed by the goroutine that waits for the command
}

// start returns when Kafka Connect has the connector, which is stopped.
func (k *kafkaConnect) start(ctx context.Context, settings map[string]string) (err error) {
	jars := os.Getenv("BENCH_DEBEZIUM_JARS")
	if jars == "" {
		return errors.New("BENCH_DEBEZIUM_JARS does not say where Debezium's archives are: start this by `make bench`, which fetches them")
	}
	address, err := freeAddress()
	if err != nil {
		return err
	}
	k.url = "http://" + address
	if k.folder, err = os.MkdirTemp("", "kafka-connect-"); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, k.stop())
		}
	}()
	worker := fmt.Sprintf("bootstrap.servers=%s\nlisteners=%s\noffset.storage.file.filename=%s%s",
		strings.Join(KafkaBrokers(), ","), k.url, filepath.Join(k.folder, "offsets"), connectWorker)
	file := filepath.Join(k.folder, "worker.properties")
	if err = os.WriteFile(file, []byte(worker), 0o600); err != nil {
		return err
	}
	arguments := append([]string{"-cp", filepath.Join(jars, "*")}, javaOptions...)
	if err := k.run(append(arguments, "org.apache.kafka.connect.cli.ConnectStandalone", file)); err != nil {
		return fmt.Errorf("starting Kafka Connect: %w", err)
	}
	const atMost = time.Minute
	err = await(ctx, atMost, func(ctx context.Context) (bool, error) {
		ended := k.hasEnded()
		err := k.call(ctx, http.MethodGet, "/connectors", nil, nil)
		if ended {
			return false, err
		}
		return err == nil, nil
	})
	if err != nil {
		return fmt.Errorf("waiting for Kafka Connect: %w", err)
	}
	return k.call(ctx, http.MethodPost, "/connectors", map[string]any{"name": connector, "config": settings, "initial_state": "STOPPED"}, nil)
}

// freeAddress returns one of this machine on which nothing listens.
func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // it is at once
	if err != nil {
		return "", err
	}
	defer l.Close() //nolint:errcheck // nobody has called
	return l.Addr().String(), nil
}

// run starts Java and a guard, which ends it when this program ends in whatever way: it waits for the end of its input.
func (k *kafkaConnect) run(arguments []string) error {
	log, err := os.Create(k.log())
	if err != nil {
		return err
	}
	defer log.Close()                              //nolint:errcheck // Java has it
	k.command = exec.Command("java", arguments...) //nolint:noctx,gosec // it is ended by a signal
	k.command.Stdout, k.command.Stderr = log, log
	if err := k.command.Start(); err != nil {
		k.command = nil
		return err
	}
	k.ended = make(chan struct{})
	go func() { // until Java ends
		_ = k.command.Wait() // its log says more than its code
		close(k.ended)
	}()
	k.guard = exec.Command("sh", "-c", `read -r line; kill "$0"`, strconv.Itoa(k.pid())) //nolint:noctx,gosec // as above
	if _, err := k.guard.StdinPipe(); err != nil {
		return err
	}
	return k.guard.Start()
}

func (k *kafkaConnect) log() string { return filepath.Join(k.folder, "log") }

func (k *kafkaConnect) pid() int {
	if k.command == nil {
		return 0
	}
	return k.command.Process.Pid
}

func (k *kafkaConnect) hasEnded() bool {
	select {
	case <-k.ended:
		return true
	default:
		return false
	}
}

// logged returns the end of the log.
func (k *kafkaConnect) logged() string {
	log, _ := os.ReadFile(k.log()) // there is no more to be said without
	const enough = 1000
	short := causes(string(log))
	return short[max(len(short)-enough, 0):]
}

// causes leaves the frames out of what Java writes of exceptions.
func causes(trace string) string {
	lines := slices.DeleteFunc(strings.Split(strings.TrimSpace(trace), "\n"), func(line string) bool { return strings.HasPrefix(line, "\t") })
	return strings.Join(lines, "\n")
}

func (k *kafkaConnect) resume(ctx context.Context) error {
	if err := k.call(ctx, http.MethodPut, "/connectors/"+connector+"/resume", nil, nil); err != nil {
		return err
	}
	return k.awaitState(ctx, "RUNNING", 1)
}

// pause stops the connector and has it forget where it was: it goes on where its slot begins. With a position, it would
// first look for that in the log, and read the first transaction twice.
func (k *kafkaConnect) pause(ctx context.Context) error {
	if err := k.call(ctx, http.MethodPut, "/connectors/"+connector+"/stop", nil, nil); err != nil {
		return err
	}
	if err := k.awaitState(ctx, "STOPPED", 0); err != nil {
		return err
	}
	return k.call(ctx, http.MethodDelete, "/connectors/"+connector+"/offsets", nil, nil)
}

// connectStatus is what Kafka Connect says of a connector.
type connectStatus struct {
	Connector connectState   `json:"connector"`
	Tasks     []connectState `json:"tasks"`
}

type connectState struct {
	State string `json:"state"`
	Trace string `json:"trace"`
}

func (k *kafkaConnect) awaitState(ctx context.Context, state string, tasks int) error {
	const atMost = time.Minute
	err := await(ctx, atMost, func(ctx context.Context) (bool, error) {
		var status connectStatus
		if err := k.call(ctx, http.MethodGet, "/connectors/"+connector+"/status", nil, &status); err != nil {
			return false, err
		}
		reached := len(status.Tasks) == tasks && status.Connector.State == state
		for _, part := range append(status.Tasks, status.Connector) {
			if part.State == "FAILED" {
				return false, errors.New(causes(part.Trace))
			}
			reached = reached && part.State == state
		}
		return reached, nil
	})
	if err != nil {
		return fmt.Errorf("waiting for Debezium to be %s: %w", state, err)
	}
	return nil
}

// call calls Kafka Connect's REST API.
func (k *kafkaConnect) call(ctx context.Context, method, path string, body, into any) error {
	var sent io.Reader
	if body != nil {
		data, err := json.Marshal(body)
		if err != nil {
			return err
		}
		sent = bytes.NewReader(data)
	}
	request, err := http.NewRequestWithContext(ctx, method, k.url+path, sent)
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := http.DefaultClient.Do(request)
	if err != nil && k.hasEnded() {
		return fmt.Errorf("the process of Kafka Connect has ended, and has written: %s", k.logged())
	}
	if err != nil {
		return err
	}
	defer response.Body.Close() //nolint:errcheck // it is read
	answer, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	if response.StatusCode >= http.StatusBadRequest {
		return fmt.Errorf("%s %s answers %s: %s", method, path, response.Status, answer)
	}
	if into == nil {
		return nil
	}
	return json.Unmarshal(answer, into)
}

// stop ends Java, and waits until it has ended.
func (k *kafkaConnect) stop() error {
	if k.command != nil {
		process := k.command.Process
		_ = process.Signal(syscall.SIGTERM) // it may have ended
		const atMost = 30 * time.Second
		late := time.AfterFunc(atMost, func() { _ = process.Kill() })
		<-k.ended
		late.Stop()
	}
	if k.guard != nil && k.guard.Process != nil {
		_ = k.guard.Process.Kill() // it has nothing left to guard
		_ = k.guard.Wait()
	}
	k.command, k.guard = nil, nil
	return os.RemoveAll(k.folder)
}
