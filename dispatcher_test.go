package outbox

import (
	"errors"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// What TestDispatcher_AgreesWithAModel has found or finds only in one of many histories.

func newTestDispatcher() *dispatcher {
	cfg := DefaultConfig()
	return newDispatcher(&cfg, func(Event) {})
}

// publish sends the next message, which must be the one with the given id, and has its call end after d with err.
func (d *dispatcher) publish(t *testing.T, id string, err error, after time.Duration) {
	t.Helper()
	it := d.next(time.Now())
	require.NotNil(t, it)
	require.Equal(t, id, it.msg.ID)
	time.Sleep(after)
	d.returned(it, err, time.Now())
}

func TestDispatcher_KeepsTheOrderOfAKey_WhenTheLeaseGoesAwayTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newTestDispatcher()
		msgs := []Message{{ID: "1", Key: "k"}, {ID: "2", Key: "k"}}
		d.claimed(msgs, 0, time.Now())
		d.claimed(msgs, 0, time.Now()) // the lease was lost and taken again
		for range 2 {                  // and was lost again before a worker got there
			if it := d.next(time.Now()); it != nil {
				d.returned(it, errLost, time.Now())
			}
		}
		d.claimed(msgs, 0, time.Now())
		d.publish(t, "1", nil, 0)
		d.publish(t, "2", nil, 0)
	})
}

func TestDispatcher_StopsWhenTheLeaseGoesAwayTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newTestDispatcher()
		d.claimed([]Message{{ID: "1", Key: "k"}}, 0, time.Now())
		it := d.next(time.Now())
		d.claimed([]Message{{ID: "1", Key: "k"}}, 0, time.Now())
		d.releaseWaiting(time.Now())
		d.returned(it, errLost, time.Now())
		d.marked(d.takeMarks())
		require.True(t, d.idle(), "nobody will send it, so it must not wait")
	})
}

func TestDispatcher_WhatWasSentBeforeAFailureProvesNothing(t *testing.T) {
	for name, sentAfter := range map[string]bool{"sent before": false, "sent after": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var counted []bool
				d := newTestDispatcher()
				d.observe = func(e Event) { counted = append(counted, e.(FailedEvent).Counted) }
				var other *item
				send := func() {
					d.claimed([]Message{{ID: "2"}}, 0, time.Now())
					other = d.next(time.Now())
				}
				if !sentAfter {
					send()
				}
				d.claimed([]Message{{ID: "1"}}, 0, time.Now())
				d.publish(t, "1", errFails, time.Second)
				time.Sleep(time.Second)
				if sentAfter {
					send()
				}
				d.returned(other, nil, time.Now())
				d.claimed([]Message{{ID: "1"}}, 0, time.Now())
				d.publish(t, "1", errFails, time.Second)
				require.Equal(t, []bool{false, sentAfter}, counted)
			})
		})
	}
}

func TestDispatcher_ForgetsTopicsThatNothingIsSentToAnyMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newTestDispatcher()
		var begun, ended int
		d.outages.observe = func(e Event) {
			switch e.(type) {
			case OutageBegunEvent:
				begun++
			case OutageEndedEvent:
				ended++
			}
		}
		for i := range 100 { // are deleted by hand
			id := strconv.Itoa(i)
			d.claimed([]Message{{ID: id, Topic: id}}, 0, time.Now())
			d.publish(t, id, errFails, 0)
		}
		for i := range tripAfter { // another instance has the lease soon after
			id := "down" + strconv.Itoa(i)
			d.claimed([]Message{{ID: id, Topic: "down"}}, 0, time.Now())
			d.publish(t, id, errFails, 0)
		}
		require.Len(t, d.outages.topics, 101)
		time.Sleep(forgetTopicAfter / 2)
		d.outages.tick(time.Now())
		d.claimed([]Message{{ID: "busy", Topic: "0"}}, 0, time.Now())
		d.publish(t, "busy", errFails, 0)
		require.Len(t, d.outages.topics, 101, "they may come again")
		require.Zero(t, ended)
		time.Sleep(forgetTopicAfter / 2)
		d.outages.tick(time.Now())
		require.Len(t, d.outages.topics, 1)
		require.Equal(t, 2, d.outages.failing)
		require.Equal(t, []int{1, 1}, []int{begun, ended}, "who waits for the end hears of it")
	})
}

func TestDispatcher_DoesNotForgetATopicWhileItsProbeIsOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newTestDispatcher()
		for i := range tripAfter {
			id := strconv.Itoa(i)
			d.claimed([]Message{{ID: id}}, 0, time.Now())
			d.publish(t, id, errFails, 0)
		}
		time.Sleep(probeInterval + 2*time.Millisecond)
		d.outages.tick(time.Now())
		d.claimed([]Message{{ID: "probe"}, {ID: "other"}}, 0, time.Now())
		require.NotNil(t, d.next(time.Now()))
		time.Sleep(2 * forgetTopicAfter)
		d.outages.tick(time.Now())
		require.Nil(t, d.next(time.Now()), "it is still down")
	})
}

func TestDispatcher_RemembersABoundedNumberOfAttempts_OverAllTopics(t *testing.T) {
	d := newTestDispatcher()
	for i := range maxFailing + 100 {
		id := strconv.Itoa(i)
		d.claimed([]Message{{ID: id, Topic: id}}, 0, time.Now())
		d.publish(t, id, errFails, 0)
	}
	require.Equal(t, maxFailing, d.outages.failing)
}

func TestDispatcher_AProbeThatWasNotSentMakesRoomForAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newTestDispatcher()
		for i := range tripAfter {
			id := strconv.Itoa(i)
			d.claimed([]Message{{ID: id}}, 0, time.Now())
			d.publish(t, id, errFails, 0)
		}
		for range 3 {
			require.NotEmpty(t, d.outages.paused(time.Now()))
			time.Sleep(probeInterval + 2*time.Millisecond)
			require.Empty(t, d.outages.paused(time.Now()))
			d.claimed([]Message{{ID: "1"}}, 0, time.Now())
			d.publish(t, "1", errLost, 0)
		}
	})
}

func TestDispatcher_FailuresThatAreTheMessagesOwnSayNothingAboutTheTopic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newTestDispatcher()
		d.outages.observe = func(e Event) { t.Errorf("%T", e) }
		for range 5 {
			for i := range 2 * tripAfter {
				if d.outages.failing < 2*tripAfter { // a first attempt is nobody's own failure
					d.claimed([]Message{{ID: "healthy"}}, 0, time.Now())
					d.publish(t, "healthy", nil, time.Millisecond)
				}
				id := strconv.Itoa(i)
				d.claimed([]Message{{ID: id}}, 0, time.Now())
				d.publish(t, id, errFails, time.Millisecond)
			}
			d.claimed([]Message{{ID: "healthy"}}, 0, time.Now())
			d.publish(t, "healthy", nil, time.Millisecond)
		}
	})
}

func TestDispatcher_CallsThatWereSlowAndSucceedEndTheOutageThatTheySeemedToBe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newTestDispatcher()
		var slow []*item
		for i := range 2 * tripAfter {
			d.claimed([]Message{{ID: strconv.Itoa(i)}}, 0, time.Now())
			slow = append(slow, d.next(time.Now()))
		}
		time.Sleep(d.cfg.PublishTimeout)
		d.tick(time.Now())
		require.NotEmpty(t, d.outages.paused(time.Now()))
		for _, it := range slow {
			d.returned(it, nil, time.Now())
		}
		require.Empty(t, d.outages.paused(time.Now()))
		d.claimed([]Message{{ID: "a"}, {ID: "b"}}, 0, time.Now())
		require.NotNil(t, d.next(time.Now()))
		require.NotNil(t, d.next(time.Now()), "not only as a probe")
	})
}

func TestDispatcher_WhatIsRefusedForGoodDoesNotHoldUpItsTopic(t *testing.T) {
	d := newTestDispatcher()
	d.cfg.PermanentError = func(err error) bool { return errors.Is(err, errRefused) }
	for i := range 2 * tripAfter {
		id := strconv.Itoa(i)
		for _, err := range []error{errFails, errRefused} {
			d.claimed([]Message{{ID: id}}, 0, time.Now())
			d.publish(t, id, err, 0)
		}
	}
	d.claimed([]Message{{ID: "other"}}, 0, time.Now())
	d.publish(t, "other", nil, 0)
}
