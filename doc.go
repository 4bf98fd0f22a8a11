// Package outbox is a transactional outbox and an idempotent consumer for
// Watermill (https://watermill.io).
//
// It has three parts, each of use without the others:
//
//   - [Publisher] is a message.Publisher that writes messages into an outbox
//     table within the caller's database transaction. A message is in the
//     outbox if and only if that transaction committed.
//   - [Forwarder] relays what is in the outbox to any other Watermill
//     message.Publisher, at least once, and in order for messages of one key.
//   - [Deduplicator] is a router middleware that records each handled message
//     in the same transaction as the handler's writes and the messages it
//     produced, so that a redelivered message has no second effect.
//
// All three work over a [Store]: store/sqlite for SQLite, store/memory for
// tests, or one of your own. A store is made from the database handle that an
// application has already.
//
// The word claim is used for a message that one relay instance has taken to
// publish, lease for the right to claim, slot for the share of the messages
// that one lease covers, and set aside for a message that has used up its
// retries and waits for a person to look at it.
package outbox
