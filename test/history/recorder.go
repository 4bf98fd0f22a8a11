package history

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Now is the time on a clock that all processes of the machine share, that nobody sets, and that goes on while a process
// is frozen.
func Now() (nanoseconds int64) {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
		panic(err) // it is there on all Linux machines
	}
	return t.Nano()
}

// Recorder writes the events of one process to a file, each with one call of the operating system: what a killed process
// has recorded is there. It is safe for concurrent use.
type Recorder struct {
	process string
	file    *os.File
}

// Record opens a file of the folder for the events of a process. The name must be new.
func Record(folder, process string) (*Recorder, error) {
	f, err := os.OpenFile(filepath.Join(folder, process+extension), os.O_CREATE|os.O_EXCL|os.O_WRONLY|os.O_APPEND, 0o600) //nolint:gosec // the caller's folder
	return &Recorder{process, f}, err
}

const extension = ".jsonl"

// Add records an event, as of now.
func (r *Recorder) Add(e Event) {
	e.Process, e.At = r.process, Now()
	line, err := json.Marshal(e)
	if err == nil {
		_, err = r.file.Write(append(line, '\n'))
	}
	if err != nil {
		panic(fmt.Errorf("record what has happened: %w", err)) // a history with gaps proves nothing
	}
}

// Close ends the record.
func (r *Recorder) Close() error { return r.file.Close() }

// Read returns the events of all processes that have recorded to a folder, in no order. The last line of a process that
// was killed may be a part of one.
func Read(folder string) ([]Event, error) {
	files, err := filepath.Glob(filepath.Join(folder, "*"+extension))
	if err != nil {
		return nil, err
	}
	var events []Event
	for _, name := range files {
		if events, err = readFile(name, events); err != nil {
			return nil, fmt.Errorf("read %s: %w", name, err)
		}
	}
	return events, nil
}

func readFile(name string, events []Event) ([]Event, error) {
	f, err := os.Open(name) //nolint:gosec // the caller's folder
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // it was only read
	lines := bufio.NewReaderSize(f, 1<<20)
	for {
		line, err := lines.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return events, nil
		}
		if err != nil {
			return nil, err
		}
		var e Event
		if err := json.Unmarshal(line, &e); err != nil {
			return nil, err
		}
		events = append(events, e)
	}
}
