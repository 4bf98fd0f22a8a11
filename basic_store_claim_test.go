package outbox

import (
	"context"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"
)

// pile gives out what it has, once.
type pile struct {
	Store

	msgs []Message
	err  error
}

func (p *pile) FetchPending(_ context.Context, limit int) ([]Message, error) {
	if p.err != nil {
		return nil, p.err
	}
	n := min(limit, len(p.msgs))
	msgs := p.msgs[:n]
	p.msgs = p.msgs[n:]
	return msgs, nil
}

const plenty = 1 << 20

// claim returns the ids.
func (s *basicStore) claim(t *testing.T, maxBytes int) []string {
	t.Helper()
	msgs, err := s.Claim(t.Context(), 10, maxBytes)
	require.NoError(t, err)
	var ids []string
	for _, m := range msgs {
		ids = append(ids, m.ID)
	}
	return ids
}

func TestBasicStore_WhatIsPausedUsesUpNoBudget(t *testing.T) {
	small := Message{Topic: "works"}
	s := newBasicStore(&pile{msgs: []Message{
		{ID: "1", Topic: "down", Payload: make([]byte, 1000)}, {ID: "2", Topic: "works"}, {ID: "3", Topic: "works"},
	}})
	require.Equal(t, []string{"1", "2", "3"}, s.claim(t, plenty))
	require.NoError(t, s.Release(t.Context(), "1", "2", "3"))
	s.PauseTopics("down")
	require.Equal(t, []string{"2", "3"}, s.claim(t, 3*small.Size()))
}

func TestBasicStore_TellsThatTheStoreFails_WhileSomethingWaits(t *testing.T) {
	p := &pile{msgs: []Message{{ID: "1"}}}
	s := newBasicStore(p)
	require.Equal(t, []string{"1"}, s.claim(t, plenty))
	require.NoError(t, s.Release(t.Context(), "1"))
	p.err = errors.New("database is locked")
	_, err := s.Claim(t.Context(), 10, plenty)
	require.ErrorIs(t, err, p.err)
	p.err = nil
	require.Equal(t, []string{"1"}, s.claim(t, plenty), "and keeps what waits")
}
