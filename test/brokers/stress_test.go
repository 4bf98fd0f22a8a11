//go:build stress

package brokers_test

import (
	"testing"

	"github.com/ThreeDotsLabs/watermill/pubsub/tests"
)

// Watermill's suite STRESS_TEST_COUNT times at once, 10 by default, on each broker and store. `make stress-brokers` runs it.
func TestStress(t *testing.T) { forEachPubSub(t, tests.TestPubSubStressTest, bothStores) }
