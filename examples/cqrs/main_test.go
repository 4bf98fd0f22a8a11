package main

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/watermill-outbox/outbox/examples/internal/program"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// output is that of every run.
const output = `3 orders requested
3 orders placed
3 invoices sent
3 orders in the sales figures
60 in total
0 messages left in the outbox
9 redeliveries absorbed
`

func TestRun_HandlesEverythingOnce(t *testing.T) {
	var out strings.Builder
	require.NoError(t, run(t.Context(), &out))
	require.Equal(t, output, out.String())
}

func TestProgram_RunsToItsEnd(t *testing.T) {
	binary, err := program.Build(t.TempDir())
	require.NoError(t, err)
	stdout, stderr, status := program.Start(t, binary).End()
	require.Zero(t, status, stderr)
	require.Equal(t, output, stdout)
	require.Empty(t, stderr)
}
