package outbox_test

import (
	"context"
	"database/sql"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/components/delay"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/store/memory"
)

func pendingOf(t *testing.T, store *memory.Store) []outbox.Message {
	t.Helper()
	msgs, err := store.Pending(t.Context(), nil, 1000)
	require.NoError(t, err)
	return msgs
}

func TestPublisher_WritesInTheTransactionOfTheContext(t *testing.T) {
	store := newMemory(t)
	pub, err := outbox.NewPublisher(store)
	require.NoError(t, err)
	tx := store.Begin()
	msg := newMessage("payload", "order-1")
	msg.Metadata.Set("trace", "abc")
	msg.SetContext(store.ContextWithTx(t.Context(), tx))
	require.NoError(t, pub.Publish("orders", msg))
	require.Empty(t, pendingOf(t, store), "nothing before the commit")
	require.NoError(t, tx.Commit())

	row := pendingOf(t, store)[0]
	require.Equal(t, msg.UUID, row.UUID)
	require.Equal(t, "orders", row.Topic)
	require.Equal(t, "order-1", row.Key)
	require.Equal(t, "payload", string(row.Payload))
	require.Equal(t, map[string]string{"trace": "abc"}, row.Headers, "the key is a column")
}

func TestPublisher_RefusesWhatItCannotWriteAtomically(t *testing.T) {
	store, db := newSQLite(t)
	other := newMemory(t)
	pub, err := outbox.NewPublisher(store)
	require.NoError(t, err)
	with := func(tx any) *message.Message {
		msg := newMessage("x", "")
		msg.SetContext(outbox.ContextWithTx(t.Context(), store, tx))
		return msg
	}
	tx1, err := db.Begin()
	require.NoError(t, err)
	defer tx1.Rollback() //nolint:errcheck // nothing was done
	cancelled, cancel := context.WithCancel(outbox.ContextWithTx(t.Context(), store, tx1))
	cancel()
	late := newMessage("x", "")
	late.SetContext(cancelled)
	foreign := newMessage("x", "")
	foreign.SetContext(other.ContextWithTx(t.Context(), other.Begin()))

	for name, c := range map[string]struct {
		msgs []*message.Message
		is   error
		says string
	}{
		"no transaction":            {[]*message.Message{newMessage("x", "")}, outbox.ErrNoTx, "store.Publisher(tx)"},
		"a transaction of another":  {[]*message.Message{foreign}, outbox.ErrNoTx, "ContextWithTx"},
		"nil":                       {[]*message.Message{with(nil)}, outbox.ErrNoTx, ""},
		"a typed nil":               {[]*message.Message{with((*sql.Tx)(nil))}, outbox.ErrInvalidTx, "nil *sql.Tx"},
		"a *sql.DB":                 {[]*message.Message{with(db)}, outbox.ErrInvalidTx, "*sql.DB"},
		"a transaction of memory":   {[]*message.Message{with(other.Begin())}, outbox.ErrInvalidTx, "*memory.Tx"},
		"a string":                  {[]*message.Message{with("tx")}, outbox.ErrInvalidTx, "a string"},
		"different transactions":    {[]*message.Message{with(tx1), with(&sql.Tx{})}, outbox.ErrInvalidMessage, "number 2"},
		"one without a transaction": {[]*message.Message{with(tx1), newMessage("x", "")}, outbox.ErrInvalidMessage, "number 2"},
		"a cancelled context":       {[]*message.Message{with(tx1), late}, context.Canceled, "message 2 of 2"},
		"a nil message":             {[]*message.Message{with(tx1), nil}, outbox.ErrInvalidMessage, "message 2 of 2"},
	} {
		t.Run(name, func(t *testing.T) {
			err := pub.Publish("topic", c.msgs...)
			require.ErrorIs(t, err, c.is)
			require.ErrorContains(t, err, c.says)
		})
	}
	require.NoError(t, pub.Publish("topic"), "no messages, nothing to do")
	require.NoError(t, pub.Close())
	require.NoError(t, pub.Publish("topic", with(tx1)), "Close is a no-op")
}

func TestPublisher_RefusesWhatCouldNotComeBackAsItWas(t *testing.T) {
	store := newMemory(t)
	pub, err := outbox.NewPublisher(store, outbox.WithOwnTx())
	require.NoError(t, err)
	change := func(f func(*message.Message)) *message.Message {
		msg := newMessage("x", "")
		f(msg)
		return msg
	}
	for name, c := range map[string]struct {
		topic string
		msg   *message.Message
	}{
		"an empty topic":                  {"", newMessage("x", "")},
		"a topic too long":                {strings.Repeat("t", outbox.MaxTopicLength+1), newMessage("x", "")},
		"a topic with NUL":                {"a\x00b", newMessage("x", "")},
		"a key too long":                  {"t", newMessage("x", strings.Repeat("k", outbox.MaxKeyLength+1))},
		"a key of invalid UTF-8":          {"t", newMessage("x", "\xff")},
		"a uuid of invalid UTF-8":         {"t", change(func(m *message.Message) { m.UUID = "\xff" })},
		"metadata of invalid UTF-8":       {"t", change(func(m *message.Message) { m.Metadata.Set("k", "\xff") })},
		"a metadata key of invalid UTF-8": {"t", change(func(m *message.Message) { m.Metadata.Set("\xff", "v") })},
		"a delay nobody can read":         {"t", change(func(m *message.Message) { m.Metadata.Set(delay.DelayedForKey, "soon") })},
		"a moment nobody can read":        {"t", change(func(m *message.Message) { m.Metadata.Set(delay.DelayedUntilKey, "noon") })},
	} {
		t.Run(name, func(t *testing.T) {
			require.ErrorIs(t, pub.Publish(c.topic, newMessage("fine", ""), c.msg), outbox.ErrInvalidMessage)
		})
	}
	require.Empty(t, pendingOf(t, store), "nothing of a refused call is written")
}

func TestPublisher_KeyFunc_TotalOrder_OwnTx(t *testing.T) {
	store := newMemory(t)
	pub, err := outbox.NewPublisher(store, outbox.WithOwnTx(), outbox.WithTotalOrder(),
		outbox.WithKeyFunc(func(topic string, msg *message.Message) (string, error) {
			if msg.Metadata.Get("fail") != "" {
				return "", errDown
			}
			return msg.Metadata.Get("customer"), nil
		}))
	require.NoError(t, err)
	byFunc, bySetKey, without, failing := newMessage("1", ""), newMessage("2", "set"), newMessage("3", ""), newMessage("4", "")
	byFunc.Metadata.Set("customer", "c1")
	bySetKey.Metadata.Set("customer", "c2")
	failing.Metadata.Set("fail", "yes")
	require.NoError(t, pub.Publish("topic", byFunc, bySetKey, without))
	require.ErrorIs(t, pub.Publish("topic", failing), errDown)
	var keys []string
	for _, m := range pendingOf(t, store) {
		keys = append(keys, m.Key)
	}
	require.Equal(t, []string{"c1", "set", "_outbox_total"}, keys)
}

func TestPublisher_KeyRequired_RefusesAMessageWithoutOne(t *testing.T) {
	store := newMemory(t)
	pub, err := outbox.NewPublisher(store, outbox.WithOwnTx(), outbox.WithKeyRequired())
	require.NoError(t, err)
	require.NoError(t, pub.Publish("topic", newMessage("x", "key")))
	err = pub.Publish("topic", newMessage("x", ""))
	require.ErrorIs(t, err, outbox.ErrNoKey)
	require.ErrorContains(t, err, "outbox.SetKey(msg, key)")
}

func TestPublisher_FillsInAnEmptyUUID_AndChangesNoMessage(t *testing.T) {
	store := newMemory(t)
	pub, err := outbox.NewPublisher(store, outbox.WithOwnTx())
	require.NoError(t, err)
	msg := &message.Message{Payload: []byte("x")} // no metadata map, as a literal has none
	require.NoError(t, pub.Publish("topic", msg))
	require.Empty(t, msg.UUID)
	require.Nil(t, msg.Metadata)
	require.NotEmpty(t, pendingOf(t, store)[0].UUID)
}

func TestPublisher_IsSafeForConcurrentUseOfOneTransaction(t *testing.T) {
	store, db := newSQLite(t)
	tx, err := db.Begin()
	require.NoError(t, err)
	pub := store.Publisher(tx)
	var wg sync.WaitGroup
	errs := make(chan error, 20)
	for range 20 {
		wg.Go(func() { errs <- pub.Publish("topic", newMessage("x", "")) })
	}
	wg.Wait()
	close(errs)
	for err := range errs {
		require.NoError(t, err)
	}
	require.NoError(t, tx.Commit())
	stats, err := store.Stats(t.Context())
	require.NoError(t, err)
	require.EqualValues(t, 20, stats.Pending)
}

func TestNewPublisher_SaysWhatIsWrong(t *testing.T) {
	store := newMemory(t)
	for want, construct := range map[string]func() (*outbox.Publisher, error){
		"the store is nil":    func() (*outbox.Publisher, error) { return outbox.NewPublisher(nil) },
		"the function is nil": func() (*outbox.Publisher, error) { return outbox.NewPublisher(store, outbox.WithKeyFunc(nil)) },
		"an option is nil":    func() (*outbox.Publisher, error) { return outbox.NewPublisher(store, nil) },
		"the observer is nil": func() (*outbox.Publisher, error) { return outbox.NewPublisher(store, outbox.WithObserver(nil)) },
		"cannot be a context key": func() (*outbox.Publisher, error) {
			return outbox.NewPublisher(struct {
				outbox.Store
				notComparable []int
			}{Store: store})
		},
	} {
		_, err := construct()
		require.ErrorContains(t, err, want)
	}
	err := store.Publisher(store.Begin(), outbox.WithKeyFunc(nil)).Publish("topic", newMessage("x", ""))
	require.ErrorContains(t, err, "the function is nil", "a typed publisher tells when it is used")
}

func TestPublisher_HonoursWatermillsDelays(t *testing.T) {
	until := time.Now().Add(90 * time.Minute)
	for name, c := range map[string]struct {
		set  func(*message.Message)
		want time.Time // the zero time: at once
	}{
		"for, in metadata":   {func(m *message.Message) { delay.Message(m, delay.For(time.Hour)) }, time.Now().Add(time.Hour)},
		"until, in metadata": {func(m *message.Message) { delay.Message(m, delay.Until(until)) }, until},
		"in the context": {func(m *message.Message) {
			m.SetContext(delay.WithContext(t.Context(), delay.For(time.Minute)))
		}, time.Now().Add(time.Minute)},
		"in the past": {func(m *message.Message) { delay.Message(m, delay.For(-time.Hour)) }, time.Time{}},
		"no delay":    {func(*message.Message) {}, time.Time{}},
		"only for":    {func(m *message.Message) { m.Metadata.Set(delay.DelayedForKey, "2h") }, time.Now().Add(2 * time.Hour)},
		"only until":  {func(m *message.Message) { m.Metadata.Set(delay.DelayedUntilKey, until.Format(time.RFC3339)) }, until},
		"published late": {func(m *message.Message) {
			delay.Message(m, delay.For(time.Hour))
			m.Metadata.Set(delay.DelayedUntilKey, time.Now().Add(10*time.Minute).Format(time.RFC3339))
		}, time.Now().Add(10 * time.Minute)},
	} {
		t.Run(name, func(t *testing.T) {
			store := newMemory(t)
			msg := newMessage("x", "")
			c.set(msg)
			publish(t, store, "topic", msg)
			row := pendingOf(t, store)[0]
			require.WithinDuration(t, c.want, row.AvailableAt, 2*time.Second)
			require.Empty(t, row.Headers, "the delay is for the outbox, not for who comes after it")
		})
	}
}

func TestPublisher_SaysInOneLineThatADelayIsNone(t *testing.T) {
	store, msg := newMemory(t), newMessage("x", "")
	msg.Metadata.Set(delay.DelayedForKey, "soon")
	err := store.Publisher(store.Begin()).Publish("topic", msg)
	require.ErrorIs(t, err, outbox.ErrInvalidMessage)
	require.NotContains(t, err.Error(), "\n")
}

func TestPublisher_TellsItsObserver(t *testing.T) {
	store, seen := newMemory(t), &events{}
	tx := store.Begin()
	require.NoError(t, store.Publisher(tx, outbox.WithObserver(seen)).Publish("topic", newMessage("x", "k")))
	saved := collect[outbox.SavedEvent](seen)
	require.Len(t, saved, 1)
	require.Equal(t, "k", saved[0].Messages[0].Key)
	require.Error(t, store.Publisher(nil, outbox.WithObserver(seen)).Publish("topic", newMessage("x", "k")))
	require.Len(t, collect[outbox.SavedEvent](seen), 1)
	require.NoError(t, tx.Rollback())
	require.ErrorIs(t, tx.Commit(), memory.ErrTxDone)
}
