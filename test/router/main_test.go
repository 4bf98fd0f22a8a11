// Package router runs the outbox under what Watermill's users build on its router: CQRS, middleware, Kafka in and Kafka
// out, requests that wait for a reply. The code in docs/cqrs.md is from here.
package router_test

import (
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		goleak.IgnoreTopFunction("github.com/rcrowley/go-metrics.(*meterArbiter).tick")) // sarama's, for the whole process
}
