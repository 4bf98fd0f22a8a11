// Package result is what a run of the benchmarks has found, as it stands in its JSON file, and what is made of it: a
// table and a chart.
package result

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"time"
)

// Result is one run of the program.
type Result struct {
	Started time.Time `json:"started"`
	Took    float64   `json:"took_s"`
	// Mode is "quick" or "full".
	Mode     string            `json:"mode"`
	Seed     int64             `json:"seed"`
	Machine  Machine           `json:"machine"`
	Versions map[string]string `json:"versions"` // of servers and modules
	Peers    map[string]string `json:"peers"`    // what each is and how it is configured, by its name
	Runs     []Run             `json:"runs"`     // every repetition, in the order in which they ran
	Ratios   []Ratio           `json:"ratios"`
}

// Machine is where it ran.
type Machine struct {
	CPU    string `json:"cpu"`
	Cores  int    `json:"cores"`
	Memory uint64 `json:"memory_bytes"`
	OS     string `json:"os"`
}

// Run is one repetition of one scenario with one peer.
type Run struct {
	Scenario   string    `json:"scenario"`
	Peer       string    `json:"peer"`
	Repetition int       `json:"repetition"` // from 1
	Started    time.Time `json:"started"`
	Took       float64   `json:"took_s"` // with its preparation
	// Metrics by name; each name ends with its unit. What came to no finite number is not there.
	Metrics map[string]float64 `json:"metrics"`
	// Latencies is an HDR histogram of microseconds in its standard encoding (V2, compressed, base64), where the scenario has one.
	Latencies string `json:"latencies,omitempty"`
	// Error says why there are no metrics: a peer that cannot do what the scenario asks, or broke.
	Error string `json:"error,omitempty"`
}

// Ratio compares a metric of two peers, repetition by repetition.
type Ratio struct {
	Name     string `json:"name"` // scenario, peer compared with and metric, joined by dots
	Scenario string `json:"scenario"`
	Metric   string `json:"metric"`
	Ours     string `json:"ours"`
	Theirs   string `json:"theirs"`
	// Value is the median of the repetitions' ratios, ours to theirs. It is not there where nothing could be compared.
	Value float64 `json:"value,omitempty"`
	Low   float64 `json:"low,omitempty"`
	High  float64 `json:"high,omitempty"`
	// Repetitions is how many could be compared.
	Repetitions int    `json:"repetitions"`
	Goal        string `json:"goal,omitempty"` // such as ">= 1.8"; empty where there is none
	// Met is false where there is no goal, or where fewer than three repetitions could be compared.
	Met bool `json:"met"`
}

// value returns a metric of a run that has not failed. One that failed late may have metrics, which count for nothing.
func (run *Run) value(metric string) (v float64, ok bool) {
	v, ok = run.Metrics[metric]
	return v, ok && run.Error == "" && finite(v)
}

// Values returns a metric of one peer in one scenario, by repetition, where it could be measured.
func (r *Result) Values(scenario, peer, metric string) []float64 {
	var values []float64
	for _, run := range r.Runs {
		if v, ok := run.value(metric); ok && run.Scenario == scenario && run.Peer == peer {
			values = append(values, v)
		}
	}
	return values
}

// Median returns the median and the range of values, which are at least one.
func Median(values []float64) (median, low, high float64) {
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2, sorted[0], sorted[n-1]
}

// Read reads a file that Write has written.
func Read(file string) (*Result, error) {
	data, err := os.ReadFile(file) //nolint:gosec // the caller's file
	if err != nil {
		return nil, err
	}
	var r Result
	err = json.Unmarshal(data, &r)
	if err == nil && (r.Mode == "" || r.Started.IsZero() || len(r.Runs) == 0) {
		err = errors.New("it has no mode, no time or no runs")
	}
	if err != nil {
		return nil, fmt.Errorf("%s is no result of the benchmarks: %w", file, err)
	}
	return &r, nil
}

// CheckWritable returns an error if a file could not be written: better before a run than behind it.
func CheckWritable(file string) error {
	if info, err := os.Stat(file); err == nil && info.IsDir() {
		return fmt.Errorf("%s is a folder", file)
	}
	f, err := os.Create(file + ".new") //nolint:gosec // the caller's file
	if err != nil {
		return err
	}
	return errors.Join(f.Close(), os.Remove(f.Name()))
}

// replace writes a file, whole or not at all. One that is there keeps who may read it.
func replace(file string, data []byte) error {
	mode := os.FileMode(0o644)
	if info, err := os.Stat(file); err == nil {
		mode = info.Mode().Perm()
	}
	if err := os.WriteFile(file+".new", data, mode); err != nil { //nolint:gosec // the caller's file
		return err
	}
	return os.Rename(file+".new", file)
}

// Write writes the file, whole or not at all. JSON has no NaN and no infinity: metrics that are one are taken out of the
// result.
func (r *Result) Write(file string) error {
	for _, run := range r.Runs {
		maps.DeleteFunc(run.Metrics, func(_ string, v float64) bool { return !finite(v) })
	}
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return replace(file, append(data, '\n'))
}
