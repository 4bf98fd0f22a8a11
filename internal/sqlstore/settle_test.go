package sqlstore

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox"
)

// After a restored backup an id may be another row's: what is told of the former must not take the place of the newer one's.
func TestOnePerRow_TellsRowsOfOneIDApart(t *testing.T) {
	of := func(id, uuid string, status outbox.MessageStatus) settlement {
		return settlement{outbox.Outcome{ID: id, Status: status}, &outbox.Message{ID: id, UUID: uuid}, 7}
	}
	former, newer := of("7", "a", outbox.StatusProcessed), of("7.1", "b", outbox.StatusPending)
	require.Equal(t, []settlement{former, newer}, onePerRow([]settlement{former, newer}))
	newer.msg.UUID = "a"
	require.Equal(t, []settlement{former}, onePerRow([]settlement{newer, former}))
}
