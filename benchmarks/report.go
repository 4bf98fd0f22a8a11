package main

import (
	"bytes"
	"fmt"
	"os"
	"slices"

	"github.com/watermill-outbox/outbox/benchmarks/result"
)

// reportCommand shows a result.
type reportCommand struct {
	File   string `arg:"" help:"A file that run has written." type:"existingfile"`
	Readme string `help:"A Markdown file to put the tables into, between its two markers." type:"existingfile"`
	Chart  string `help:"A file for the chart, which is an SVG."`
}

func (c *reportCommand) Run() error {
	r, err := result.Read(c.File)
	if err != nil {
		return err
	}
	if c.Readme != "" && !slices.Contains([]string{"quick", "full"}, r.Mode) {
		return fmt.Errorf("%s is of a run of mode %q: for a README it takes a whole one", c.File, r.Mode)
	}
	r.Ratios = ratios(r.Runs)
	if c.Chart != "" {
		var chart bytes.Buffer
		if err := r.Chart(&chart); err != nil {
			return err
		}
		if err := os.WriteFile(c.Chart, chart.Bytes(), 0o644); err != nil { //nolint:gosec // for everybody to read
			return err
		}
	}
	if c.Readme != "" {
		return result.Replace(c.Readme, r.Markdown())
	}
	fmt.Print(r.Markdown()) //nolint:forbidigo // what the command is for
	return nil
}
