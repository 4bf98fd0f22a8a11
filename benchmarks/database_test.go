package main

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// A second run is told to wait, and does not drop what the first has; when that is through, there is room.
func TestClaimServer_IsOneRunsAtATime(t *testing.T) {
	first, err := claimServer(t.Context())
	require.NoError(t, err)
	t.Cleanup(func() { _ = first.Close(t.Context()) })
	_, err = createDatabase(t.Context())
	require.ErrorContains(t, err, "another run of the benchmarks has PostgreSQL on ")
	require.ErrorContains(t, err, "its session is process ")
	require.ErrorContains(t, err, "wait until it is through")
	require.NoError(t, dropDatabase(t.Context()))
	require.NoError(t, first.Ping(t.Context()))
	require.NoError(t, first.Close(t.Context()))
	require.Eventually(t, func() bool { // the server frees it when it has seen the end
		second, err := claimServer(t.Context())
		return err == nil && second.Close(t.Context()) == nil
	}, 10*time.Second, 50*time.Millisecond)
}
