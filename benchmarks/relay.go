package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime/pprof"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/watermill-outbox/outbox/benchmarks/measure"
	"github.com/watermill-outbox/outbox/benchmarks/peer"
)

// relayCommand relays with one peer until it is ended. The other commands start it as a process of its own, so that what
// it uses can be told apart. It writes how many messages have been published to its standard output.
type relayCommand struct {
	Peer        string `required:""`
	URL         string `required:""`
	Topic       string `required:""`
	Publisher   string `enum:"kafka,noop,slow" required:""`
	Concurrency int    `required:""`
	Messages    int    // how many there are, if Seen is to tell which of them were published
	Seen        string // a file for that
	Profile     string // a file for a profile of processor time
}

func (c *relayCommand) Run() error {
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	go func() { // who has started it may be killed: then this ends, too
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	p, err := peerNamed(c.Peer)
	if err != nil {
		return err
	}
	env, err := connect(ctx, c.URL, c.Topic, c.Concurrency)
	if err != nil {
		return err
	}
	defer disconnect(env)
	o, err := p.New(ctx, env)
	if err != nil {
		return err
	}
	published := &countingPublisher{seen: newBitmap(c.Messages)}
	switch c.Publisher {
	case "kafka":
		newPublisher := newKafkaPublisher
		if p.Publisher != nil {
			newPublisher = p.Publisher
		}
		if published.Publisher, err = newPublisher(); err != nil {
			return err
		}
	case "slow":
		published.Publisher = slowPublisher{}
	default:
		published.Publisher = noopPublisher{}
	}
	if c.Profile != "" {
		file, err := os.Create(c.Profile)
		if err != nil {
			return err
		}
		defer file.Close() //nolint:errcheck // a profile that is cut off says so
		if err := pprof.StartCPUProfile(file); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	go published.tell(ctx, os.Stdout)
	err = o.Relay(ctx, published)
	if c.Seen != "" {
		err = errors.Join(err, published.seen.write(c.Seen))
	}
	return errors.Join(err, o.Close(), published.Close())
}

func newKafkaPublisher() (message.Publisher, error) {
	config := kafka.DefaultSaramaSyncPublisherConfig()
	config.Producer.RequiredAcks = sarama.WaitForAll // as for all peers
	return kafka.NewPublisher(kafka.PublisherConfig{
		Brokers: peer.KafkaBrokers(), Marshaler: kafka.NewWithPartitioningMarshaler(peer.PartitionKey),
		OverwriteSaramaConfig: config,
	}, watermill.NopLogger{})
}

type noopPublisher struct{}

func (noopPublisher) Publish(string, ...*message.Message) error { return nil }
func (noopPublisher) Close() error                              { return nil }

// slowAck is how long a slow broker takes for each message.
const slowAck = 5 * time.Millisecond

type slowPublisher struct{ noopPublisher }

func (slowPublisher) Publish(_ string, msgs ...*message.Message) error {
	time.Sleep(time.Duration(len(msgs)) * slowAck)
	return nil
}

type countingPublisher struct {
	message.Publisher

	n    atomic.Int64
	seen bitmap // of the messages by their numbers, if there is nobody else to ask
}

func (p *countingPublisher) Publish(topic string, msgs ...*message.Message) error {
	err := p.Publisher.Publish(topic, msgs...)
	if err != nil {
		return err
	}
	p.n.Add(int64(len(msgs)))
	if len(p.seen) == 0 {
		return nil
	}
	for _, msg := range msgs {
		n, err := peer.NumberOf(msg.Payload)
		if err != nil {
			return err
		}
		p.seen.set(n)
	}
	return nil
}

// sampling is how often a relay and a topic are asked how many messages have been published.
const sampling = 10 * time.Millisecond

func (p *countingPublisher) tell(ctx context.Context, w io.Writer) {
	ticks := time.NewTicker(sampling)
	defer ticks.Stop()
	var last int64
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticks.C:
		}
		if n := p.n.Load(); n != last {
			last = n
			_, _ = fmt.Fprintln(w, n) // who has begun it may have ended
		}
	}
}

// relayProcess is a relay that was started.
type relayProcess struct {
	measure.Process

	published atomic.Int64
	stop      func(ctx context.Context) error
}

// startRelay starts a peer's relay: its own program, or this one, with more arguments.
func (b *bench) startRelay(ctx context.Context, p peer.Peer, o peer.Outbox, publisher string, more ...string) (*relayProcess, error) {
	if server, ok := o.(peer.Server); ok {
		if publisher != "kafka" {
			return nil, fmt.Errorf("%s publishes to Kafka only", p.Name)
		}
		return &relayProcess{Process: measure.NewProcess(server.Process()), stop: server.Pause}, server.Resume(ctx)
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	arguments := []string{
		"relay", "--peer", p.Name, "--url", b.env.URL, "--topic", b.env.Topic,
		"--publisher", publisher, "--concurrency", strconv.Itoa(b.env.Concurrency),
	}
	if b.profiles != "" {
		name := fmt.Sprintf("%s %s %d.pprof", p.Name, publisher, time.Now().UnixMilli())
		arguments = append(arguments, "--profile", filepath.Join(b.profiles, name))
	}
	command := exec.Command(self, append(arguments, more...)...) //nolint:noctx,gosec // it is this program, and ended by a signal
	command.Stderr = os.Stderr
	if _, err := command.StdinPipe(); err != nil { // whose end it takes for ours
		return nil, err
	}
	out, err := command.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := command.Start(); err != nil {
		return nil, err
	}
	r := &relayProcess{Process: measure.NewProcess(command.Process.Pid)}
	go func() { // until the process ends
		for lines := bufio.NewScanner(out); lines.Scan(); {
			if n, err := strconv.ParseInt(lines.Text(), 10, 64); err == nil {
				r.published.Store(n)
			}
		}
	}()
	r.stop = func(context.Context) error {
		_ = command.Process.Signal(syscall.SIGTERM) // it may have ended by an error, which Wait returns
		late := time.AfterFunc(time.Minute, func() { _ = command.Process.Kill() })
		defer late.Stop()
		if err := command.Wait(); err != nil {
			return fmt.Errorf("the relay of %s: %w", p.Name, err)
		}
		return nil
	}
	return r, nil
}
