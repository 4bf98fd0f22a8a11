package outbox_test

import (
	"context"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/components/delay"
	"github.com/ThreeDotsLabs/watermill/components/requeuer"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/message/router/middleware"
	"github.com/ThreeDotsLabs/watermill/pubsub/gochannel"
	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox"
)

// flow is a router with one handler, "bill", from the topic "orders" to "bills", over a Go channel.
type flow struct {
	t      *testing.T
	pubSub *gochannel.GoChannel
	router *message.Router
	bill   *message.Handler
	start  sync.Once
	nacks  bool // failed messages, so that they are delivered again

	mu  sync.Mutex
	err error // of the last delivery, as it came out of all middleware
}

func newFlow(t *testing.T, publisher message.Publisher, h message.HandlerFunc, mw ...message.HandlerMiddleware) *flow {
	t.Helper()
	pubSub := gochannel.NewGoChannel(gochannel.Config{BlockPublishUntilSubscriberAck: true}, nil)
	f := &flow{t: t, router: newRouter(t), pubSub: pubSub}
	f.router.AddMiddleware(func(h message.HandlerFunc) message.HandlerFunc {
		return func(msg *message.Message) ([]*message.Message, error) {
			produced, err := h(msg)
			f.mu.Lock()
			defer f.mu.Unlock()
			f.err = err
			if f.nacks {
				return produced, err
			}
			return produced, nil
		}
	})
	f.router.AddMiddleware(mw...)
	f.bill = f.router.AddHandler("bill", "orders", f.pubSub, "bills", publisher, h)
	return f
}

// deliver has the router handle msg, and returns the error that it nacks it for.
func (f *flow) deliver(msg *message.Message) error {
	f.t.Helper()
	f.run()
	require.NoError(f.t, f.pubSub.Publish("orders", msg))
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

func (f *flow) run() { f.start.Do(func() { runRouter(f.t, f.router) }) }

func runRouter(t *testing.T, router *message.Router) {
	t.Helper()
	ended := make(chan error, 1)
	go func() { ended <- router.Run(context.Background()) }()
	<-router.Running()
	t.Cleanup(func() {
		require.NoError(t, router.Close())
		require.NoError(t, <-ended)
	})
}

// orders is what the tests of this file have in common: a store, and a handler of orders.
type orders struct {
	*database

	t     *testing.T
	log   *watermill.CaptureLoggerAdapter
	calls int
	fail  []func(msg *message.Message) error // what becomes of one call after the other, after the write
}

// inOrder runs a test over the memory store, by a clock that passes only while everybody waits.
func inOrder(t *testing.T, test func(t *testing.T, o *orders)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		test(t, &orders{database: memoryDatabase(t), t: t, log: watermill.NewCaptureLogger()})
	})
}

func (o *orders) dedup(group string) message.HandlerMiddleware {
	return o.database.dedup(o.t, group, outbox.WithLogger(o.log))
}

// flow is a router with handle and mw.
func (o *orders) flow(mw ...message.HandlerMiddleware) *flow {
	return newFlow(o.t, o.publisher(o.t), o.handle, mw...)
}

func (o *orders) handle(msg *message.Message) ([]*message.Message, error) {
	o.calls++
	if err := o.write(msg.Context(), string(msg.Payload)); err != nil {
		return nil, err
	}
	if o.calls <= len(o.fail) {
		if err := o.fail[o.calls-1](msg); err != nil {
			return nil, err
		}
	}
	return []*message.Message{message.NewMessageWithContext(msg.Context(), watermill.NewUUID(), []byte("bill"))}, nil
}

type chain = []message.HandlerMiddleware

func down(*message.Message) error     { return errDown }
func boom(*message.Message) error     { panic("boom") }
func nack(msg *message.Message) error { msg.Nack(); return nil }

func timeOut(msg *message.Message) error {
	<-msg.Context().Done()
	return msg.Context().Err()
}

func times(n int, fail func(*message.Message) error) []func(*message.Message) error {
	return slices.Repeat([]func(*message.Message) error{fail}, n)
}

func (o *orders) ownTx() message.Publisher { return o.publisher(o.t, outbox.WithOwnTx()) }

func (o *orders) poisonQueue(publisher message.Publisher) message.HandlerMiddleware {
	o.t.Helper()
	poisonQueue, err := middleware.PoisonQueue(publisher, "poisoned")
	require.NoError(o.t, err)
	return poisonQueue
}

func (o *orders) retry() message.HandlerMiddleware {
	return middleware.Retry{MaxRetries: 3, InitialInterval: time.Second, ResetContextOnRetry: true}.Middleware
}

func (o *orders) logged() []watermill.CapturedMessage {
	return slices.Concat(o.log.Captured()[watermill.ErrorLogLevel], o.log.Captured()[watermill.InfoLogLevel])
}

// requireHandled checks that the order has its effect, mark and bill, once, and that nothing else was published.
func (o *orders) requireHandled() {
	o.t.Helper()
	effects, pending := o.counts(o.t)
	require.Equal(o.t, map[string]int{"order": 1}, effects)
	require.Equal(o.t, map[string]int{"bill": 1}, pending)
	require.True(o.t, o.isMarked(o.t, "group/bill", "id"))
}

// requireNothing checks that nothing of the order has come to stay.
func (o *orders) requireNothing() {
	o.t.Helper()
	effects, pending := o.counts(o.t)
	require.Empty(o.t, effects)
	require.Empty(o.t, pending)
	require.False(o.t, o.isMarked(o.t, "group/bill", "id"))
}

func newOrder() *message.Message {
	msg := message.NewMessage("id", []byte("order"))
	middleware.SetCorrelationID("correlation", msg)
	return msg
}

// breaker is a circuit breaker with the defaults of gobreaker: open after six failures in a row, for a minute.
func breaker() message.HandlerMiddleware {
	return withDefaults(middleware.NewCircuitBreaker).Middleware
}

func withDefaults[Settings any](construct func(Settings) middleware.CircuitBreaker) middleware.CircuitBreaker {
	var defaults Settings
	return construct(defaults)
}

var delayOnError = (&middleware.DelayOnError{
	InitialInterval: time.Minute, MaxInterval: time.Hour, Multiplier: 2,
}).Middleware

func TestDeduplicator_InTheDocumentedOrder_HandlesOnceWhateverFails(t *testing.T) {
	inOrder(t, func(t *testing.T, o *orders) {
		f := o.flow(o.poisonQueue(o.ownTx()), delayOnError, o.retry(), breaker(), middleware.Recoverer,
			middleware.Duplicator, o.dedup("group"), middleware.Timeout(time.Minute), middleware.CorrelationID)
		o.fail = []func(*message.Message) error{down, boom, timeOut}
		for range 3 {
			require.NoError(t, f.deliver(newOrder()))
		}
		require.Equal(t, 4, o.calls, "three attempts failed, and what came later was known")
		o.requireHandled()
		rows, err := o.pending()
		require.NoError(t, err)
		require.Equal(t, "correlation", rows[0].Headers[middleware.CorrelationIDMetadataKey])
		require.Empty(t, o.logged())
	})
}

func TestDeduplicator_HandlesOnce_WhenTheRouterNacksAndTheBrokerRedelivers(t *testing.T) {
	inOrder(t, func(t *testing.T, o *orders) {
		f := o.flow(o.dedup("group"))
		f.nacks = true
		o.fail = []func(*message.Message) error{down, boom, nack, down}
		require.NoError(t, f.deliver(newOrder()))
		require.Equal(t, 5, o.calls)
		o.requireHandled()
	})
}

// Without ResetContextOnRetry, too, since the Deduplicator gives the message its context back.
func TestDeduplicator_ATimeoutInside_LeavesLaterAttemptsALivingContext(t *testing.T) {
	inOrder(t, func(t *testing.T, o *orders) {
		retry := middleware.Retry{MaxRetries: 3, InitialInterval: time.Second}
		f := o.flow(retry.Middleware, o.dedup("group"), middleware.Timeout(time.Minute))
		o.fail = times(2, timeOut)
		require.NoError(t, f.deliver(newOrder()))
		o.requireHandled()
	})
}

// A poison message goes into the outbox by itself, after all attempts were rolled back. Requeued with a delay, it comes
// back under its id when the delay is over, and is handled.
func TestDeduplicator_APoisonMessageLeavesNoEffect_AndCanBeRequeued(t *testing.T) {
	inOrder(t, func(t *testing.T, o *orders) {
		f := o.flow(o.poisonQueue(o.ownTx()), o.retry(), middleware.Recoverer, o.dedup("group"),
			middleware.CorrelationID)
		o.fail = times(4, down)
		require.NoError(t, f.deliver(newOrder()))
		require.Equal(t, 4, o.calls)
		effects, pending := o.counts(t)
		require.Empty(t, effects)
		require.Equal(t, map[string]int{"order": 1}, pending)
		require.False(t, o.isMarked(t, "group/bill", "id"))
		rows, err := o.pending()
		require.NoError(t, err)
		require.Equal(t, "poisoned", rows[0].Topic)
		require.Equal(t, errDown.Error(), rows[0].Headers[middleware.ReasonForPoisonedKey])

		again := newRouter(t)
		_, err = requeuer.NewRequeuer(requeuer.Config{
			Router: again, Subscriber: f.pubSub, SubscribeTopic: "poisoned", Publisher: o.ownTx(),
			GeneratePublishTopic: func(p requeuer.GeneratePublishTopicParams) (string, error) {
				delay.Message(p.Message, delay.For(30*time.Minute))
				return p.Message.Metadata.Get(middleware.PoisonedTopicKey), nil
			},
		}, watermill.NopLogger{})
		require.NoError(t, err)
		runRouter(t, again)
		n, err := drain(t, o.LeasedStore, f.pubSub)
		require.NoError(t, err)
		require.Equal(t, 1, n, "what the Requeuer has published is not due")
		rows, err = o.pending()
		require.NoError(t, err)
		require.Equal(t, "orders", rows[0].Topic)
		require.Empty(t, rows[0].Headers[delay.DelayedForKey]+rows[0].Headers[delay.DelayedUntilKey])
		require.Equal(t, "1", rows[0].Headers[requeuer.RetriesKey])

		require.NoError(t, o.age())
		bill := newBroker()
		_, err = drain(t, o.LeasedStore, brokerFunc(func(topic string, msg *message.Message) error {
			if topic == "orders" {
				return f.deliver(msg)
			}
			return bill.Publish(topic, msg)
		}))
		require.NoError(t, err)
		effects, _ = o.counts(t)
		require.Equal(t, map[string]int{"order": 1}, effects)
		require.True(t, o.isMarked(t, "group/bill", "id"))
		require.Equal(t, []string{"bill"}, bill.payloads())
		require.Equal(t, "correlation", bill.published[0].Metadata.Get(middleware.CorrelationIDMetadataKey))
	})
}

// Whether it is inside or outside makes no difference: it returns the error that it delays for.
func TestDeduplicator_DelayOnError_DelaysTheMessageThatIsPublishedAgain(t *testing.T) {
	for _, inside := range []bool{false, true} {
		inOrder(t, func(t *testing.T, o *orders) {
			mw := chain{o.poisonQueue(o.ownTx()), delayOnError, o.dedup("group")}
			if inside {
				mw[1], mw[2] = mw[2], mw[1]
			}
			f := o.flow(mw...)
			o.fail = times(1, down)
			require.NoError(t, f.deliver(newOrder()))
			rows, err := o.pending()
			require.NoError(t, err)
			require.Len(t, rows, 1)
			require.Equal(t, "poisoned", rows[0].Topic)
			require.Equal(t, o.now().Add(time.Minute), rows[0].AvailableAt)
			require.Empty(t, rows[0].Headers[delay.DelayedForKey]+rows[0].Headers[delay.DelayedUntilKey])
		})
	}
}

func TestDeduplicator_AnOpenCircuitBreakerLeavesNoMark(t *testing.T) {
	for _, inside := range []bool{false, true} {
		inOrder(t, func(t *testing.T, o *orders) {
			mw := chain{breaker(), o.dedup("group")}
			if inside {
				mw[0], mw[1] = mw[1], mw[0]
			}
			f := o.flow(mw...)
			o.fail = times(6, down)
			for range 6 {
				require.ErrorIs(t, f.deliver(newOrder()), errDown)
			}
			require.ErrorContains(t, f.deliver(newOrder()), "circuit breaker is open")
			require.Equal(t, 6, o.calls)
			o.requireNothing()
			time.Sleep(time.Minute + time.Second) // until it lets one through, by the fake clock
			require.NoError(t, f.deliver(newOrder()))
			o.requireHandled()
		})
	}
}

func TestDeduplicator_AnIgnoredErrorLeavesNoEffect(t *testing.T) {
	ignore := middleware.NewIgnoreErrors([]error{errDown}).Middleware
	inOrder(t, func(t *testing.T, o *orders) {
		f := o.flow(ignore, o.dedup("group"))
		o.fail = times(1, down)
		require.NoError(t, f.deliver(newOrder()), "acknowledged")
		o.requireNothing()
	})
	inOrder(t, func(t *testing.T, o *orders) {
		f := o.flow(o.dedup("group"), ignore)
		o.fail = times(1, func(msg *message.Message) error {
			outbox.SetRollback(msg.Context()) // which nobody inside can swallow
			return errDown
		})
		require.ErrorContains(t, f.deliver(newOrder()), "SetRollback")
		o.requireNothing()
		require.NoError(t, f.deliver(newOrder()))
		o.requireHandled()
	})
}

// When a router closes, it cancels the contexts of messages in flight. An outbox publisher refuses such a message, so
// that it is nacked and comes again, instead of being given up for poisoned.
func TestDeduplicator_AClosingRouterPoisonsNothing(t *testing.T) {
	inOrder(t, func(t *testing.T, o *orders) {
		f := o.flow(o.poisonQueue(o.ownTx()), o.retry(), o.dedup("group"))
		f.nacks = true
		begun := make(chan struct{}, 1)
		o.fail = times(1, func(msg *message.Message) error {
			begun <- struct{}{}
			return timeOut(msg)
		})
		f.run()
		var wg sync.WaitGroup
		wg.Go(func() { _ = f.pubSub.Publish("orders", newOrder()) }) // ends with the channel
		<-begun
		require.NoError(t, f.router.Close())
		require.NoError(t, f.pubSub.Close())
		wg.Wait()
		synctest.Wait() // for the handler, too
		require.ErrorIs(t, f.err, context.Canceled)
		o.requireNothing()
		require.Empty(t, o.logged())
	})
}

// Of the wrong orders those that can be seen are refused, by an error that says what to do; nothing comes of the
// message until they are mended.
func TestDeduplicator_RefusesAWrongOrder(t *testing.T) {
	const poison, ended, twice = "PoisonQueue is inside", "Timeout inside", "leave one out"
	for name, test := range map[string]struct {
		order func(o *orders) chain
		want  string
	}{
		"PoisonQueue inside": {func(o *orders) chain {
			return chain{o.dedup("group"), o.poisonQueue(newBroker())}
		}, poison},
		"PoisonQueue inside, attempts failing alike": {func(o *orders) chain {
			return chain{o.retry(), o.dedup("group"), o.poisonQueue(newBroker())}
		}, poison},
		"PoisonQueue inside, that fails at first": {func(o *orders) chain {
			results := []error{errDown, nil, nil, nil, nil, nil, nil, nil}
			return chain{o.retry(), o.dedup("group"), o.poisonQueue(brokerFunc(func(string, *message.Message) (err error) {
				err, results = results[0], results[1:]
				return err
			}))}
		}, poison},
		"PoisonQueue inside, to the outbox": {func(o *orders) chain {
			return chain{o.dedup("group"), o.poisonQueue(o.ownTx())}
		}, poison},
		"Timeout outside, in a Retry": {func(o *orders) chain {
			retry := middleware.Retry{MaxRetries: 1, InitialInterval: time.Second}
			return chain{retry.Middleware, middleware.Timeout(time.Minute), o.dedup("group")}
		}, ended},
		"Deduplicator twice": {func(o *orders) chain {
			return chain{o.dedup("group"), o.dedup("group")}
		}, twice},
		"Deduplicator twice, another in between": {func(o *orders) chain {
			d := o.dedup("group")
			return chain{d, o.dedup("another"), d}
		}, twice},
	} {
		t.Run(name, func(t *testing.T) {
			inOrder(t, func(t *testing.T, o *orders) {
				f := o.flow(test.order(o)...)
				o.fail = times(100, down)
				for range 2 {
					require.ErrorContains(t, f.deliver(newOrder()), test.want)
				}
				o.requireNothing()
				if test.want == ended { // whose error is one of those that routers do not log
					require.Len(t, o.logged(), 1)
				}
			})
		})
	}
}

func TestDeduplicator_RefusesToBeOnTheRouterAndOnItsHandler(t *testing.T) {
	inOrder(t, func(t *testing.T, o *orders) {
		d := o.dedup("group")
		f := o.flow(d)
		f.bill.AddMiddleware(d)
		require.ErrorContains(t, f.deliver(newOrder()), "leave one out")
		o.requireNothing()
	})
}

// A handler may have Deduplicators of several groups, and may call another handler that has one, for another message.
func TestDeduplicator_MayBeNested(t *testing.T) {
	inOrder(t, func(t *testing.T, o *orders) {
		inner := o.dedup("group")(o.writes("inner"))
		f := newFlow(t, nil, func(msg *message.Message) ([]*message.Message, error) {
			if err := o.write(msg.Context(), "outer"); err != nil {
				return nil, err
			}
			return inner(message.NewMessageWithContext(msg.Context(), msg.UUID+" inner", nil))
		}, o.dedup("group"), o.dedup("another"))
		for range 2 {
			require.NoError(t, f.deliver(newOrder()))
		}
		o.requireEffects(t, map[string]int{"outer": 1, "inner": 1})
		for _, name := range []string{"group/bill", "another/bill"} {
			require.True(t, o.isMarked(t, name, "id"), name)
		}
		require.True(t, o.isMarked(t, "group/bill", "id inner"))
	})
}

func TestDeduplicator_HandlesWhatComesFromAPoisonTopic(t *testing.T) {
	inOrder(t, func(t *testing.T, o *orders) {
		f := o.flow(o.dedup("group"))
		o.fail = times(1, down)
		msg := newOrder()
		msg.Metadata.Set(middleware.ReasonForPoisonedKey, "its reason")
		require.ErrorIs(t, f.deliver(msg), errDown)
		require.NoError(t, f.deliver(msg))
		o.requireHandled()
	})
}

// What may be meant is logged, once for each handler, and not refused.
func TestDeduplicator_WarnsOnce(t *testing.T) {
	const ack, correlation = "A message was acknowledged before", "is saved without the correlation id"
	ackByHand := func(h message.HandlerFunc) message.HandlerFunc {
		return func(msg *message.Message) ([]*message.Message, error) {
			defer msg.Ack()
			return h(msg)
		}
	}
	for name, test := range map[string]struct {
		outside, inside chain
		want            string
	}{
		"InstantAck outside":    {chain{middleware.InstantAck}, chain{middleware.CorrelationID}, ack},
		"InstantAck inside":     {nil, chain{middleware.InstantAck, middleware.CorrelationID}, ack},
		"Ack in the handler":    {nil, chain{ackByHand, middleware.CorrelationID}, ack},
		"CorrelationID outside": {chain{middleware.CorrelationID}, nil, correlation},
	} {
		t.Run(name, func(t *testing.T) {
			inOrder(t, func(t *testing.T, o *orders) {
				f := o.flow(slices.Concat(test.outside, chain{o.dedup("group")}, test.inside)...)
				for _, id := range []string{"1", "2"} {
					msg := newOrder()
					msg.UUID = id
					require.NoError(t, f.deliver(msg))
					synctest.Wait() // it may have been acknowledged before it was handled
				}
				require.Len(t, o.logged(), 1)
				require.Contains(t, o.logged()[0].Msg, test.want)
				require.Equal(t, "bill", o.logged()[0].Fields["handler_name"])
			})
		})
	}
}
