// Package outboxtest helps to test code that publishes through an outbox: [Messages] shows what it has published,
// before or after the commit, and [Drain] has it forwarded and handled before the test goes on.
//
// Both work with every store of this module. Package store/memory is the quickest; with the store that the code under
// test is deployed on, its SQL is tested as well.
package outboxtest

import "time"

// patience is how long a helper waits for a database or a publisher before it fails the test.
const patience = 30 * time.Second
