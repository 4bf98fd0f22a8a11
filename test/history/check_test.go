package history_test

import (
	"errors"
	"os"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox/test/history"
)

// story builds histories of a few lines. Each step is a second later than the one before, and what lands goes to the only
// partition of its topic.
type story struct {
	history.History

	now    int64
	offset int64
}

func newStory() *story {
	return &story{History: history.History{Sent: map[string]history.Message{}, Slots: map[string]int{}, Concurrency: 1}}
}

func (s *story) add(e history.Event) {
	s.now++
	e.At = s.now
	s.Events = append(s.Events, e)
}

// publishes has a transaction publish messages of a key, in one call.
func (s *story) publishes(tx, key string, ids ...string) {
	var msgs []history.Message
	for _, id := range ids {
		msgs = append(msgs, history.Message{ID: id, Key: key})
	}
	s.add(history.Event{Kind: history.Publishing, Tx: tx, Messages: msgs})
}

func (s *story) commits(tx string) {
	s.add(history.Event{Kind: history.Committed, Tx: tx})
	s.keep(tx)
}

// keep has the row of each of a transaction's messages in the table.
func (s *story) keep(tx string) {
	for _, e := range s.Events {
		if e.Tx == tx {
			for _, m := range e.Messages {
				s.Sent[m.ID] = m
			}
		}
	}
}

func (s *story) rollsBack(tx string) { s.add(history.Event{Kind: history.RolledBack, Tx: tx}) }

func (s *story) lands(topic string, ids ...string) {
	for _, id := range ids {
		s.offset++
		s.now++
		s.Landings = append(s.Landings, history.Landing{ID: id, Topic: topic, Offset: s.offset, Time: s.now})
		s.add(history.Event{Kind: history.Attempt, Process: "any", Messages: []history.Message{{ID: id}}})
	}
}

func (s *story) handles(group, id, output string) {
	s.Effects = append(s.Effects, history.Effect{Group: group, ID: id, Output: output})
}

func (s *story) gains(relay string, slots ...int) {
	s.add(history.Event{Kind: history.Gained, Process: relay, Slots: slots})
}

func (s *story) loses(relay string, slots ...int) {
	s.add(history.Event{Kind: history.Dropped, Process: relay, Slots: slots})
}

// attempts has a relay begin to publish. What nobody has told of yet was published before, and lands.
func (s *story) attempts(relay, key string, ids ...string) {
	for _, id := range ids {
		if !slices.ContainsFunc(s.Events, func(e history.Event) bool {
			return e.Kind == history.Publishing && slices.ContainsFunc(e.Messages, func(m history.Message) bool { return m.ID == id })
		}) {
			s.publishes("tx-"+id, key, id)
			s.keep("tx-" + id)
			s.offset++
			s.Landings = append(s.Landings, history.Landing{ID: id, Offset: s.offset, Time: s.now})
		}
		s.add(history.Event{Kind: history.Attempt, Process: relay, Messages: []history.Message{{ID: id, Key: key}}})
	}
}

func TestCheck_FindsNothing_WhereNothingIsWrong(t *testing.T) {
	for name, tell := range map[string]func(s *story){
		"nothing has happened": func(*story) {},
		"one message": func(s *story) {
			s.publishes("a", "k", "1")
			s.commits("a")
			s.lands("t", "1")
		},
		"a transaction that was rolled back": func(s *story) {
			s.publishes("a", "k", "1")
			s.rollsBack("a")
		},
		"a transaction whose process was killed, and that has committed": func(s *story) {
			s.publishes("a", "k", "1")
			s.keep("a")
			s.lands("t", "1")
		},
		"a transaction whose process was killed, and that has not": func(s *story) { s.publishes("a", "k", "1") },
		"transactions that were open together, in one order": func(s *story) {
			s.publishes("a", "k", "1")
			s.publishes("b", "k", "2")
			s.commits("a")
			s.commits("b")
			s.lands("t", "1", "2")
		},
		"and in the other": func(s *story) {
			s.publishes("a", "k", "1")
			s.publishes("b", "k", "2")
			s.commits("a")
			s.commits("b")
			s.lands("t", "2", "1")
		},
		"transactions of which nobody heard how the first has ended": func(s *story) {
			s.publishes("a", "k", "1")
			s.keep("a")
			s.publishes("b", "k", "2")
			s.commits("b")
			s.lands("t", "2", "1")
		},
		"two keys": func(s *story) {
			s.publishes("a", "k", "1")
			s.commits("a")
			s.publishes("b", "l", "2")
			s.commits("b")
			s.lands("t", "2", "1")
		},
		"duplicates, whose first landings are in order": func(s *story) {
			s.publishes("a", "k", "1", "2")
			s.commits("a")
			s.lands("t", "1", "2", "1", "2")
		},
		"an effect with an output": func(s *story) {
			s.publishes("a", "k", "1")
			s.commits("a")
			s.lands("t", "1")
			s.publishes("h", "k", "1/out")
			s.commits("h")
			s.lands("u", "1/out")
			s.handles("g", "1", "1/out")
		},
		"a delayed message that comes when it is due": func(s *story) {
			s.add(history.Event{Kind: history.Publishing, Tx: "a", Messages: []history.Message{{ID: "1", Key: "k", Delay: 3}}})
			s.commits("a")
			s.publishes("b", "k", "2")
			s.commits("b")
			s.lands("t", "2", "1")
		},
		"a slot that goes from one relay to another and back": func(s *story) {
			s.gains("r", 1)
			s.attempts("r", "k", "1")
			s.loses("r", 1)
			s.gains("q", 1)
			s.attempts("q", "k", "2", "3")
			s.loses("q", 1)
			s.gains("r", 1)
			s.attempts("r", "k", "4", "5")
		},
		"a call that a relay begins late, since it was frozen": func(s *story) {
			s.gains("r", 1)
			s.attempts("r", "k", "1")
			s.gains("q", 1)
			s.attempts("q", "k", "1")
			s.attempts("r", "k", "2")
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStory()
			s.Slots["k"] = 1
			tell(s)
			report := history.Check(&s.History)
			require.True(t, report.OK(), report)
		})
	}
}

func TestCheck_FindsEachViolation(t *testing.T) {
	one := func(s *story) {
		s.publishes("a", "k", "1")
		s.commits("a")
	}
	two := func(s *story) {
		one(s)
		s.publishes("b", "k", "2")
		s.commits("b")
	}
	for name, c := range map[string]struct {
		want history.Violation
		tell func(s *story)
	}{
		"a message that never lands": {history.Lost, one},
		"a message of a transaction whose end nobody heard of, which never lands": {history.Lost, func(s *story) {
			s.publishes("a", "k", "1")
			s.keep("a")
		}},
		"a message of a transaction that was rolled back": {history.Phantom, func(s *story) {
			s.publishes("a", "k", "1")
			s.rollsBack("a")
			s.lands("t", "1")
		}},
		"a message that nobody has published": {history.Phantom, func(s *story) { s.lands("t", "1") }},
		"a commit that was confirmed and is gone": {history.Undone, func(s *story) {
			one(s)
			delete(s.Sent, "1")
		}},
		"a roll-back that has committed": {history.Impossible, func(s *story) {
			one(s)
			s.rollsBack("a")
			s.lands("t", "1")
		}},
		"messages of one transaction, the second first": {history.OutOfOrder, func(s *story) {
			s.publishes("a", "k", "1", "2")
			s.commits("a")
			s.lands("t", "2", "1")
		}},
		"calls of one transaction, the second first": {history.OutOfOrder, func(s *story) {
			s.publishes("a", "k", "1")
			s.publishes("a", "k", "2")
			s.commits("a")
			s.lands("t", "2", "1")
		}},
		"transactions one after the other, the second first": {history.OutOfOrder, func(s *story) {
			two(s)
			s.lands("t", "2", "1")
		}},
		"the second first, in another topic": {history.OutOfOrder, func(s *story) {
			two(s)
			s.lands("u", "2")
			s.lands("t", "1")
		}},
		"the second first, and both again in order": {history.OutOfOrder, func(s *story) {
			two(s)
			s.lands("t", "2", "1", "1", "2")
		}},
		"the third first, with another transaction in between": {history.OutOfOrder, func(s *story) {
			two(s)
			s.publishes("c", "k", "3")
			s.commits("c")
			s.lands("t", "3", "1", "2")
		}},
		"a higher number first, of transactions that were open together": {history.OutOfOrder, func(s *story) {
			s.add(history.Event{Kind: history.Publishing, Tx: "a", Messages: []history.Message{{ID: "1", Key: "k", Number: 1}}})
			s.add(history.Event{Kind: history.Publishing, Tx: "b", Messages: []history.Message{{ID: "2", Key: "k", Number: 2}}})
			s.commits("a")
			s.commits("b")
			s.lands("t", "2", "1")
		}},
		"an effect that came about twice": {history.EffectTwice, func(s *story) {
			one(s)
			s.lands("t", "1")
			s.handles("g", "1", "")
			s.handles("g", "1", "")
		}},
		"a message that was not handled": {history.EffectMissing, func(s *story) {
			one(s)
			s.lands("t", "1")
			s.handles("other", "1", "")
			s.Wanted = func(history.Landing) []string { return []string{"g"} }
		}},
		"an effect of what was never delivered": {history.EffectOfNothing, func(s *story) { s.handles("g", "1", "") }},
		"an effect without its output": {history.OutputMissing, func(s *story) {
			one(s)
			s.lands("t", "1")
			s.handles("g", "1", "1/out")
		}},
		"a message that is published before its transaction commits": {history.Phantom, func(s *story) {
			s.publishes("a", "k", "1")
			s.lands("t", "1")
			s.add(history.Event{Kind: history.Committing, Tx: "a"})
			s.commits("a")
		}},
		"a message of a transaction that was rolled back, which is handed over and does not land": {history.Phantom, func(s *story) {
			s.publishes("a", "k", "1")
			s.rollsBack("a")
			s.attempts("r", "k", "1")
		}},
		"half of a call": {history.Torn, func(s *story) {
			s.publishes("a", "k", "1", "2")
			s.keep("a")
			delete(s.Sent, "2")
			s.lands("t", "1")
		}},
		"the second first, of a transaction whose end nobody heard of, and that was published before the second's": {history.OutOfOrder, func(s *story) {
			s.publishes("a", "k", "1")
			s.keep("a")
			s.attempts("r", "k", "1")
			s.publishes("b", "k", "2")
			s.commits("b")
			s.lands("t", "2", "1")
		}},
		"a delayed message that is published at once": {history.Early, func(s *story) {
			s.add(history.Event{Kind: history.Publishing, Tx: "a", Messages: []history.Message{{ID: "1", Delay: 100}}})
			s.commits("a")
			s.lands("t", "1")
		}},
		"a message that is not what it was": {history.Altered, func(s *story) {
			one(s)
			s.lands("t", "1")
			sent := s.Sent["1"]
			sent.Topic = "t"
			s.Landings[0].Altered = sent.Difference("t", "k", history.Payload("2"))
		}},
		"a message that no relay has published": {history.Impossible, func(s *story) {
			one(s)
			s.lands("t", "1")
			s.Events = slices.DeleteFunc(s.Events, func(e history.Event) bool { return e.Kind == history.Attempt })
		}},
		"a message that no producer has told of": {history.Impossible, func(s *story) {
			s.Sent["1"] = history.Message{ID: "1"}
			s.lands("t", "1")
		}},
		"a message with two numbers": {history.Impossible, func(s *story) {
			one(s)
			s.Sent["1"] = history.Message{ID: "1", Key: "k", Number: 2}
			s.lands("t", "1")
		}},
		"a message that was told of twice": {history.Impossible, func(s *story) {
			one(s)
			s.publishes("b", "k", "1")
			s.lands("t", "1")
		}},
		"rows that are left": {history.Stuck, func(s *story) { s.Left = 1 }},
		"a relay that goes on after another has taken over": {history.WithoutLease, func(s *story) {
			s.gains("r", 1)
			s.attempts("r", "k", "1")
			s.gains("q", 1)
			s.attempts("q", "k", "1")
			s.attempts("r", "k", "2", "3") // one would be forgiven
		}},
		"a relay that goes on in two slots, by a call each, and makes one at a time": {history.WithoutLease, func(s *story) {
			s.Slots["l"] = 2
			s.gains("r", 1, 2)
			s.attempts("r", "k", "1")
			s.attempts("r", "l", "2")
			s.gains("q", 1, 2)
			s.attempts("q", "k", "1")
			s.attempts("q", "l", "2")
			s.attempts("r", "k", "3")
			s.attempts("r", "l", "4")
		}},
		"a relay that goes on, though it was told that it has lost the slot": {history.WithoutLease, func(s *story) {
			s.gains("r", 1)
			s.attempts("r", "k", "1")
			s.gains("q", 1)
			s.attempts("q", "k", "1")
			s.attempts("r", "k", "2")
			s.loses("r", 1)
			s.attempts("r", "k", "3", "4")
		}},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStory()
			s.Slots["k"] = 1
			c.tell(s)
			report := history.Check(&s.History)
			require.NotZero(t, report.Counts[c.want], report)
			require.Contains(t, report.String(), string(c.want)+": ")
			delete(report.Counts, c.want)
			delete(report.Counts, history.Lost) // what the story does not go on to tell of
			require.Empty(t, report.Counts, report)
		})
	}
}

func TestMessage_TellsWhatIsNotAsItWasSent(t *testing.T) {
	m := history.Message{ID: "1", Key: "k", Topic: "t"}
	require.Empty(t, m.Difference("t", "k", history.Payload("1")))
	require.NotEmpty(t, m.Difference("u", "k", history.Payload("1")))
	require.NotEmpty(t, m.Difference("t", "l", history.Payload("1")))
	require.NotEmpty(t, m.Difference("t", "k", history.Payload("1")[1:]))
	require.NotEmpty(t, m.Difference("t", "k", nil))
}

// What a process has recorded is read back, but for a last line that it did not finish.
func TestRecorder_KeepsWhatAKilledProcessHasRecorded(t *testing.T) {
	folder := t.TempDir()
	r, err := history.Record(folder, "relay-1")
	require.NoError(t, err)
	before := history.Now()
	r.Add(history.Event{Kind: history.Attempt, Messages: []history.Message{{ID: "1", Key: "k", Number: 3}}})
	r.Add(history.Event{Kind: history.Gained, Slots: []int{0, 63}})
	require.NoError(t, r.Close())
	_, err = history.Record(folder, "relay-1")
	require.Error(t, err, "a second process of one name")
	f, err := os.OpenFile(folder+"/relay-1.jsonl", os.O_APPEND|os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = f.WriteString(`{"k":"att`)
	require.NoError(t, errors.Join(err, f.Close()))

	events, err := history.Read(folder)
	require.NoError(t, err)
	require.Len(t, events, 2)
	require.GreaterOrEqual(t, events[0].At, before)
	require.Equal(t, "relay-1", events[0].Process)
	require.Equal(t, []history.Message{{ID: "1", Key: "k", Number: 3}}, events[0].Messages)
	require.Equal(t, []int{0, 63}, events[1].Slots)
}
