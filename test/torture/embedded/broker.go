//go:build linux

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"strconv"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
)

// line is a message in the broker's file.
type line struct {
	Topic    string            `json:"topic"`
	ID       string            `json:"id"`
	Metadata map[string]string `json:"metadata"`
	Payload  []byte            `json:"payload"`
}

// fileBroker keeps messages as the lines of a file, which any number of processes append to.
type fileBroker struct{ file *os.File }

func openBroker(path string) (*fileBroker, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600) //nolint:gosec // the caller's
	return &fileBroker{f}, err
}

// Publish writes each message with one call of the operating system: a process that is killed has written it or not.
func (b *fileBroker) Publish(topic string, msgs ...*message.Message) error {
	for _, msg := range msgs {
		text, err := json.Marshal(line{topic, msg.UUID, msg.Metadata, msg.Payload})
		if err != nil {
			return err
		}
		if _, err := b.file.Write(append(text, '\n')); err != nil {
			return err
		}
	}
	return nil
}

func (b *fileBroker) Close() error { return b.file.Close() }

// follow delivers what is in the file, and what comes, until ctx ends. Now and then it writes down up to where it has, for
// whoever begins next: what comes after that is delivered again.
func (b *fileBroker) follow(ctx context.Context, offsets string, deliver func(topic string, msg *message.Message)) error {
	f, err := os.Open(b.file.Name())
	if err != nil {
		return err
	}
	defer f.Close()                     //nolint:errcheck // it was only read
	text, _ := os.ReadFile(offsets)     //nolint:gosec // the caller's; nobody has begun where there is none
	at, _ := strconv.Atoi(string(text)) // nor where it was being written
	if _, err := f.Seek(int64(at), io.SeekStart); err != nil {
		return err
	}
	lines := bufio.NewReader(f)
	for n := 1; ; n++ {
		text, err := lines.ReadBytes('\n')
		for errors.Is(err, io.EOF) && sleep(ctx, time.Millisecond) {
			var rest []byte
			rest, err = lines.ReadBytes('\n')
			text = append(text, rest...)
		}
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return err
		}
		var next line
		if err := json.Unmarshal(text, &next); err != nil {
			return err
		}
		msg := message.NewMessage(next.ID, next.Payload)
		msg.Metadata = next.Metadata
		deliver(next.Topic, msg)
		if at += len(text); n%100 == 0 && ctx.Err() == nil {
			if err := os.WriteFile(offsets, []byte(strconv.Itoa(at)), 0o600); err != nil {
				return err
			}
		}
	}
}
