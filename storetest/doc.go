// Package storetest is the contract of the store interfaces as a test suite: what [outbox.Store] and the interfaces
// beside it promise, one subtest for each promise. Every store of this module passes it, and a store of your own is
// tested by a function of some lines:
//
//	func TestStore(t *testing.T) {
//		storetest.Run(t, func(t *testing.T) storetest.Harness {
//			db := emptyDatabase(t)
//			return storetest.Harness{
//				Open:    func(t *testing.T) outbox.Store { return mystore.New(db) },
//				Begin:   ...,
//				Write:   ...,
//				Written: ...,
//			}
//		}, storetest.Features{Transactor: true})
//	}
//
// What stores may differ in is declared in [Features]. A feature that is off skips only what means nothing without it;
// where a promise can be checked in another form, it is. A hook of the [Harness] that is nil skips what needs it, and
// the skipped test says which one.
//
// Run it with the race detector, and from a test that is not parallel itself: one part looks for goroutines that a
// closed store has left behind.
package storetest
