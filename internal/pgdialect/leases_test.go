package pgdialect

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/watermill-outbox/outbox/internal/pgtest"
)

// instance is a relay instance that does what it likes with its slots.
type instance struct {
	name   string
	db     *pgx.Conn
	run    func(name string) string // the text of a statement
	random *rand.Rand
	holds  map[int64]bool
}

// No statement about leases may fail, in particular by a deadlock, and of a slot there is one holder at a time: who is told
// that he has it has it until he gives it back. Every renewal says so.
func TestLeases_HaveOneHolderEach_WhileEightInstancesTakeRenewGiveAndLeave(t *testing.T) {
	t.Parallel()
	const instances, steps, ttl = 8, 200, 3_600_000
	for _, server := range []pgtest.Server{pgtest.V15, pgtest.V18} {
		t.Run(server.Name, func(t *testing.T) {
			t.Parallel()
			schema := migrated(t, server)
			var mu sync.Mutex
			holder := map[int64]string{}
			group, ctx := errgroup.WithContext(t.Context())
			for i := range instances {
				one := &instance{
					name: fmt.Sprint("instance ", i), db: connect(t, server), holds: map[int64]bool{},
					run:    func(name string) string { return query(t, schema, name) },
					random: rand.New(rand.NewPCG(rand.Uint64(), 0)),
				}
				aged := render(t, schema, "UPDATE outbox_relays SET expires_at = '-infinity' WHERE name = $1")
				group.Go(func() error {
					for range steps {
						var err error
						switch one.random.IntN(10) {
						case 0, 1, 2:
							err = one.take(ctx, ttl, func(slot int64) error {
								mu.Lock()
								defer mu.Unlock()
								if other := holder[slot]; other != "" {
									return fmt.Errorf("%s and %s have slot %d", one.name, other, slot)
								}
								holder[slot] = one.name
								return nil
							})
						case 3, 4, 5:
							err = one.renew(ctx, ttl)
						case 6, 7:
							err = one.give(ctx, one.random.IntN(10) == 0, func(slot int64) {
								mu.Lock()
								defer mu.Unlock()
								delete(holder, slot)
							})
						case 8:
							_, err = one.db.Exec(ctx, one.run([]string{"relay_appear", "relay_beat"}[one.random.IntN(2)]), one.name, ttl)
						case 9: // it was asleep
							_, err = one.db.Exec(ctx, aged, one.name)
						}
						if err != nil {
							return fmt.Errorf("%s: %w", one.name, err)
						}
					}
					return nil
				})
			}
			require.NoError(t, group.Wait())
			assert.NotEmpty(t, holder)
		})
	}
}

// some is some of all slots, in any order.
func (i *instance) some() []int64 {
	all := make([]int64, 64)
	for n := range all {
		all[n] = int64(n)
	}
	i.random.Shuffle(len(all), func(a, b int) { all[a], all[b] = all[b], all[a] })
	return all[:1+i.random.IntN(len(all)/2)]
}

func (i *instance) take(ctx context.Context, ttl int, taken func(slot int64) error) error {
	wanted := slices.DeleteFunc(i.some(), func(slot int64) bool { return i.holds[slot] })
	got, err := i.slots(ctx, i.run("slots_take"), i.name, ttl, wanted)
	for _, slot := range got {
		i.holds[slot] = true
		if err := taken(slot); err != nil {
			return err
		}
	}
	return err
}

func (i *instance) renew(ctx context.Context, ttl int) error {
	asked := i.some()
	got, err := i.slots(ctx, i.run("slots_renew"), i.name, ttl, asked)
	for _, slot := range asked {
		if err == nil && i.holds[slot] != slices.Contains(got, slot) {
			return fmt.Errorf("slot %d: held %t, renewed %t", slot, i.holds[slot], slices.Contains(got, slot))
		}
	}
	return err
}

func (i *instance) give(ctx context.Context, all bool, given func(slot int64)) (err error) {
	slots := i.some()
	for slot := range i.holds {
		if all || slices.Contains(slots, slot) {
			given(slot)
			delete(i.holds, slot)
		}
	}
	if all {
		_, err = i.db.Exec(ctx, i.run("slots_leave"), i.name)
		return err
	}
	_, err = i.db.Exec(ctx, i.run("slots_give"), i.name, slots)
	return err
}

func (i *instance) slots(ctx context.Context, sql string, args ...any) ([]int64, error) {
	rows, err := i.db.Query(ctx, sql, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (slot int64, err error) {
		return slot, row.Scan(&slot, nil)
	})
}
