package outbox

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/ThreeDotsLabs/watermill"
)

// Config is what a [Forwarder] goes by. Its zero value is not useful: NewForwarder starts from [DefaultConfig] and
// applies the options to it.
type Config struct {
	// PollInterval is how often an idle Forwarder looks for new messages when nothing wakes it; after activity it looks
	// every few milliseconds. A delayed message may be late by as much, and 25 ms more. 1 ms to 1 h, default 1 s.
	PollInterval time.Duration
	// BatchSize is how many messages are claimed, and how many are marked, at once. 1 to 100,000, default 1,000.
	BatchSize int
	// Retention is how long processed messages are kept in the archive. 0, the default, keeps none: rows are deleted as
	// soon as the broker has acknowledged their messages, which is the cheapest.
	Retention time.Duration
	// CleanupInterval is how often messages past their retention are deleted. Default 1 h.
	CleanupInterval time.Duration
	// Concurrency is how many Publish calls run at once, each with one message. More is faster where the broker's client
	// batches concurrent calls, as Kafka's does. 1 to 65,536, default 256.
	Concurrency int
	// MaxInFlight bounds the messages that are claimed and not marked yet; as many again may be in Publish calls that hang.
	// When they are, topics that are down are not tried until one returns. 1 to 1,000,000, default 10,000.
	MaxInFlight int
	// MaxInFlightBytes bounds their size in memory; one message may exceed it alone. Publish calls that hang may hold as
	// much again, with the same effect. 1 KiB to 1 TiB, default 32 MiB.
	MaxInFlightBytes int
	// MaxRetries is after how many failed attempts that counted a message is set aside. An attempt counts if other messages
	// of the topic get through meanwhile, so an outage of a part of a topic, such as one partition, uses attempts up: the
	// defaults last for 50 s on average. Raise this and MaxRetryBackoff to outlast longer ones. 1 to 1,000,000, default 10.
	MaxRetries int
	// RetryBackoff is the longest wait after the first failed attempt; it doubles with each further one. 1 ms to 24 h,
	// default 200 ms.
	RetryBackoff time.Duration
	// MaxRetryBackoff is the longest wait after any attempt. RetryBackoff to 24 h, default 1 min.
	MaxRetryBackoff time.Duration
	// PublishTimeout is after how long a Publish call that has not returned is reported as stalled and no longer counts
	// as a worker. It counts as a failure of the topic until it returns, so this should be well above the broker's latency
	// under load: otherwise outages are reported that are none. The call itself goes on: whether the message was published is known only when it returns. Such calls
	// delay their keys and topics alone, unless they fill MaxInFlight or MaxInFlightBytes twice; then nothing is published
	// until one returns.
	// 1 ms to 24 h, default 30 s.
	PublishTimeout time.Duration
	// CloseTimeout is how long Close and a cancelled Run wait for Publish calls in flight and for their marks. A database
	// that does not answer may add up to 20 s, for the last mark and the release of the leases. 1 ms to 24 h, default 30 s.
	CloseTimeout time.Duration
	// PermanentError tells which errors of the broker's publisher no retry will mend. Default: none. A panic is logged,
	// and means no.
	PermanentError func(error) bool
	// Logger defaults to slog.Default().
	Logger watermill.LoggerAdapter
	// Observer defaults to none.
	Observer Observer
}

// DefaultConfig returns the configuration of a [Forwarder] made without options.
func DefaultConfig() Config {
	return Config{
		PollInterval:     time.Second,
		BatchSize:        1000,
		CleanupInterval:  time.Hour,
		Concurrency:      256,
		MaxInFlight:      10_000,
		MaxInFlightBytes: 32 << 20,
		MaxRetries:       10,
		RetryBackoff:     200 * time.Millisecond,
		MaxRetryBackoff:  time.Minute,
		PublishTimeout:   30 * time.Second,
		CloseTimeout:     30 * time.Second,
		PermanentError:   func(error) bool { return false },
		Logger:           defaultLogger(),
		Observer:         nopObserver{},
	}
}

func defaultLogger() watermill.LoggerAdapter { return watermill.NewSlogLogger(slog.Default()) }

// validate returns one error for each field that is out of its bounds, joined.
func (c Config) validate() error {
	const day = 24 * time.Hour
	return errors.Join(
		within("PollInterval", c.PollInterval, time.Millisecond, time.Hour),
		within("BatchSize", c.BatchSize, 1, 100_000),
		within("Concurrency", c.Concurrency, 1, 65_536),
		within("MaxInFlight", c.MaxInFlight, 1, 1_000_000),
		within("MaxInFlightBytes", c.MaxInFlightBytes, 1<<10, 1<<40),
		within("MaxRetries", c.MaxRetries, 1, 1_000_000),
		within("RetryBackoff", c.RetryBackoff, time.Millisecond, day),
		within("MaxRetryBackoff", c.MaxRetryBackoff, max(c.RetryBackoff, time.Millisecond), day),
		within("PublishTimeout", c.PublishTimeout, time.Millisecond, day),
		within("CloseTimeout", c.CloseTimeout, time.Millisecond, day),
		notNil("PermanentError", c.PermanentError),
		notNil("Logger", c.Logger),
		notNil("Observer", c.Observer),
	)
}

func within[T int | time.Duration](field string, value, lowest, highest T) error {
	if value < lowest || value > highest {
		return fmt.Errorf("%s is %v, must be from %v to %v", field, value, lowest, highest)
	}
	return nil
}

func notNil(field string, value any) error {
	if isNil(value) {
		return fmt.Errorf("%s is nil", field)
	}
	return nil
}

// Option sets a field of a [Forwarder]'s [Config]. The fields' documentation has defaults, units and bounds.
type Option interface{ Apply(c *Config) }

// OptionFunc is a function that is an [Option].
type OptionFunc func(c *Config)

// Apply calls f.
func (f OptionFunc) Apply(c *Config) { f(c) }

// WithPollInterval sets [Config].PollInterval.
func WithPollInterval(d time.Duration) Option {
	return OptionFunc(func(c *Config) { c.PollInterval = d })
}

// WithBatchSize sets [Config].BatchSize.
func WithBatchSize(n int) Option { return OptionFunc(func(c *Config) { c.BatchSize = n }) }

// WithRetention sets [Config].Retention; zero or less keeps nothing.
func WithRetention(d time.Duration) Option {
	return OptionFunc(func(c *Config) { c.Retention = max(d, 0) })
}

// WithCleanupInterval sets [Config].CleanupInterval; zero or less is ignored.
func WithCleanupInterval(d time.Duration) Option {
	return OptionFunc(func(c *Config) {
		if d > 0 {
			c.CleanupInterval = d
		}
	})
}

// WithConcurrency sets [Config].Concurrency.
func WithConcurrency(n int) Option { return OptionFunc(func(c *Config) { c.Concurrency = n }) }

// WithMaxInFlight sets [Config].MaxInFlight.
func WithMaxInFlight(messages int) Option {
	return OptionFunc(func(c *Config) { c.MaxInFlight = messages })
}

// WithMaxInFlightBytes sets [Config].MaxInFlightBytes.
func WithMaxInFlightBytes(bytes int) Option {
	return OptionFunc(func(c *Config) { c.MaxInFlightBytes = bytes })
}

// WithMaxRetries sets [Config].MaxRetries.
func WithMaxRetries(n int) Option { return OptionFunc(func(c *Config) { c.MaxRetries = n }) }

// WithRetryBackoff sets [Config].RetryBackoff and MaxRetryBackoff.
func WithRetryBackoff(first, longest time.Duration) Option {
	return OptionFunc(func(c *Config) { c.RetryBackoff, c.MaxRetryBackoff = first, longest })
}

// WithPublishTimeout sets [Config].PublishTimeout, which should be well above the broker's latency.
func WithPublishTimeout(d time.Duration) Option {
	return OptionFunc(func(c *Config) { c.PublishTimeout = d })
}

// WithCloseTimeout sets [Config].CloseTimeout.
func WithCloseTimeout(d time.Duration) Option {
	return OptionFunc(func(c *Config) { c.CloseTimeout = d })
}

// WithPermanentError sets [Config].PermanentError: a message whose error it answers true for (too large, refused) is
// set aside at once.
func WithPermanentError(isPermanent func(error) bool) Option {
	return OptionFunc(func(c *Config) { c.PermanentError = isPermanent })
}

// WithLogger sets where log lines go, instead of slog.Default(): an option of [NewForwarder], [NewDeduplicator] and
// [RunProcessedCleanup]. Their fields are Watermill's: message_uuid, topic, handler_name, err. Use watermill.NopLogger{}
// for silence.
func WithLogger(logger watermill.LoggerAdapter) LoggerOption { return LoggerOption{logger} }

// LoggerOption is what [WithLogger] returns.
type LoggerOption struct{ logger watermill.LoggerAdapter }

// Apply implements [Option].
func (o LoggerOption) Apply(c *Config)                   { c.Logger = o.logger }
func (o LoggerOption) applyDeduplicator(d *Deduplicator) { d.logger = o.logger }
func (o LoggerOption) applyCleanup(c *cleanup)           { c.logger = o.logger }

// WithObserver sets who hears of events: an option of [NewForwarder], [NewPublisher] and [NewDeduplicator]. See
// [Observer].
func WithObserver(observer Observer) ObserverOption { return ObserverOption{observer} }

// ObserverOption is what [WithObserver] returns.
type ObserverOption struct{ observer Observer }

// Apply implements [Option].
func (o ObserverOption) Apply(c *Config)                   { c.Observer = o.observer }
func (o ObserverOption) applyPublisher(p *Publisher)       { p.observer = o.observer }
func (o ObserverOption) applyDeduplicator(d *Deduplicator) { d.observer = o.observer }
