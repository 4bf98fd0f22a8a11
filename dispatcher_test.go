package outbox

import (
	"errors"
	"strconv"
	"strings"
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

// claim takes messages of key k in, in the term that their IDs' suffix says.
func (d *dispatcher) claim(ids ...string) {
	msgs := make([]Message, len(ids))
	for i, id := range ids {
		msgs[i] = Message{ID: id, UUID: rowID(id), Key: "k"}
	}
	_, suffix, _ := strings.Cut(ids[0], ".")
	term, _ := strconv.Atoi(suffix) // nothing is none
	d.claimed(msgs, int64(term), time.Now())
}

// told returns what the store is told: "1 processed", "1.1 pending 30s", "2.1 released".
func (d *dispatcher) told() (told []string) {
	m := d.takeMarks()
	for _, o := range m.outcomes {
		one := o.ID + " " + string(o.Status)
		if o.Status == StatusPending {
			one += " " + o.RetryAfter.String()
		}
		told = append(told, one)
	}
	for _, id := range m.released {
		told = append(told, id+" released")
	}
	d.marked(m)
	return told
}

func TestDispatcher_KeepsNothingBehindACallThatHangs_WhenTheLeaseGoesAwayAndComesBack(t *testing.T) {
	for name, claimsBefore := range map[string]bool{"after it was noticed": false, "before": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := newTestDispatcher()
				d.claim("1", "2", "3")
				hung := d.next(time.Now())
				if claimsBefore {
					d.claim("1.1", "2.1", "3.1")
					d.claim("1.2", "2.2", "3.2")
				}
				time.Sleep(d.cfg.PublishTimeout)
				d.tick(time.Now())
				if claimsBefore {
					require.Equal(t, []string{
						"1.2 pending 30s", "2 released", "3 released", "1.1 released", "2.1 released", "3.1 released",
						"2.2 released", "3.2 released",
					}, d.told())
				} else {
					require.Equal(t, []string{"2 released", "3 released"}, d.told())
				}
				for range 3 {
					d.claim("1.3", "2.3", "3.3")
					require.Nil(t, d.next(time.Now()))
					require.Equal(t, []string{"1.3 pending 30s", "2.3 released", "3.3 released"}, d.told(),
						"or the store would give them out again at once")
					require.Zero(t, d.inFlight)
					require.Zero(t, d.inFlightBytes)
				}
				d.returned(hung, nil, time.Now())
				require.Equal(t, []string{"1 processed"}, d.told())
				require.True(t, d.idle())
				d.claim("2.3", "3.3")
				d.publish(t, "2.3", nil, 0)
				d.publish(t, "3.3", nil, 0)
			})
		})
	}
}

// What was claimed again ends only together with the outcome of the lost claim.
func TestDispatcher_WhatIsClaimedAgainWaitsForWhatComesOfTheLostClaim(t *testing.T) {
	for name, c := range map[string]struct {
		err  error
		told []string
	}{
		"published": {nil, []string{"1 processed", "1.1 pending 0s", "2.1 released"}},
		"refused":   {errRefused, []string{"1 failed", "1.1 pending 0s", "2.1 released"}},
		"lost":      {errLost, []string{"1.1 pending 0s", "1 released", "2.1 released"}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := newTestDispatcher()
				d.cfg.PermanentError = func(err error) bool { return errors.Is(err, errRefused) }
				d.claim("1")
				it := d.next(time.Now())
				d.claim("1.1", "2.1")
				d.returned(it, c.err, time.Now())
				require.Nil(t, d.next(time.Now()), "it would be published twice")
				require.Equal(t, c.told, d.told())
				require.True(t, d.idle())
			})
		})
	}
}

func TestDispatcher_KeepsBackoffAndCount_WhenTheLeaseGoesAwayAndComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newTestDispatcher()
		var failures []FailedEvent
		d.observe = func(e Event) { failures = append(failures, e.(FailedEvent)) }
		healthy := func() {
			time.Sleep(time.Millisecond) // it is sent after the failure
			d.claimed([]Message{{ID: "healthy"}}, 0, time.Now())
			d.publish(t, "healthy", nil, time.Millisecond)
			d.told()
		}
		d.claim("1")
		d.publish(t, "1", errFails, time.Millisecond)
		d.told()
		healthy()
		for i := range 10 {
			d.claim("1." + strconv.Itoa(2*i+1))
			it := d.next(time.Now())
			again := "1." + strconv.Itoa(2*i+2)
			d.claim(again, "2."+strconv.Itoa(2*i+2))
			d.returned(it, errFails, time.Now())
			last := failures[len(failures)-1]
			require.True(t, last.Counted)
			require.Equal(t, again+" pending "+last.RetryAfter.String(), d.told()[1])
			healthy()
		}
		require.Equal(t, 1, d.outages.failing, "it is one message")
	})
}

// A store may give a message out under the ID that it had, against the contract.
func TestDispatcher_KeepsTheOrderOfAKey_WhenTheLeaseGoesAwayTwice(t *testing.T) {
	for name, ids := range map[string][][]string{
		"other IDs": {{"1", "2"}, {"1.1", "2.1"}, {"1.2", "2.2"}},
		"same IDs":  {{"1", "2"}, {"1", "2"}, {"1", "2"}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := newTestDispatcher()
				d.claim(ids[0]...)
				d.claim(ids[1]...) // the lease was lost and taken again
				for range 2 {      // and was lost again before a worker got there
					if it := d.next(time.Now()); it != nil {
						d.returned(it, errLost, time.Now())
					}
				}
				d.claim(ids[2]...)
				d.publish(t, ids[2][0], nil, 0)
				d.publish(t, ids[2][1], nil, 0)
				d.told()
				require.True(t, d.idle())
			})
		})
	}
}

// So it seems of a store without terms that gives out more of a key while some of it is claimed, against the contract.
func TestDispatcher_GoesOnWithAKey_WhenMoreOfItIsClaimedInTheSameTerm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newTestDispatcher()
		d.claim("1")
		d.claim("2")
		d.claim("3")
		for _, id := range []string{"1", "2", "3"} {
			d.publish(t, id, nil, 0)
		}
		require.Equal(t, []string{"1 processed", "2 processed", "3 processed"}, d.told())
	})
}

func TestDispatcher_StopsWhenTheLeaseGoesAwayTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newTestDispatcher()
		d.claim("1")
		it := d.next(time.Now())
		d.claim("1.1")
		d.releaseWaiting(time.Now())
		d.returned(it, errLost, time.Now())
		d.told()
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
