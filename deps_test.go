package outbox_test

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// Who imports the root package gets no driver, store or broker client with it.
func TestRootPackage_DependsOnWatermillAndNoDriverStoreOrBroker(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", ".").Output()
	require.NoError(t, err)
	for dep := range strings.FieldsSeq(string(out)) {
		for _, unwanted := range []string{
			"sqlite", "pgx", "lib/pq", "mysql", "goose", "kafka", "sarama", "nats", "amqp", "redis",
			"outbox/store", "outbox/migrations", "outbox/internal", "testify",
		} {
			require.NotContains(t, dep, unwanted)
		}
	}
}
