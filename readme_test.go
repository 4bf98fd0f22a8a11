package outbox_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// What the README's snippets take as given.
const readmeProgram = `package main

import (
	"context"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/message/router/middleware"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/store/sqlite"
)

func main() {}

func snippets(ctx context.Context, orderID string, payload []byte, kafkaPublisher message.Publisher,
	subscriber message.Subscriber, router *message.Router, poisonQueue message.HandlerMiddleware, retry middleware.Retry,
) error {
`

func TestREADME_SnippetsCompile(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	require.NoError(t, err)
	blocks := regexp.MustCompile("(?s)```go\n(.*?)```").FindAllStringSubmatch(string(readme), -1)
	require.Len(t, blocks, 4)
	var program strings.Builder
	program.WriteString(readmeProgram)
	for _, block := range blocks {
		program.WriteString(block[1])
	}
	program.WriteString("return err\n}\n")
	file := filepath.Join(t.TempDir(), "main.go")
	require.NoError(t, os.WriteFile(file, []byte(program.String()), 0o600))
	out, err := exec.Command("go", "vet", file).CombinedOutput()
	require.NoError(t, err, "%s", out)
}
