package main

import (
	"fmt"
	"os"

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
	r.Ratios = ratios(r.Runs)
	if c.Chart != "" {
		if err := writeChart(r, c.Chart); err != nil {
			return err
		}
	}
	if c.Readme != "" {
		return result.Replace(c.Readme, r.Markdown())
	}
	fmt.Print(r.Markdown()) //nolint:forbidigo // what the command is for
	return nil
}

func writeChart(r *result.Result, name string) error {
	file, err := os.Create(name) //nolint:gosec // the user's own choice
	if err != nil {
		return err
	}
	defer file.Close() //nolint:errcheck // an error of the second Close says nothing
	if err := r.Chart(file); err != nil {
		return err
	}
	return file.Close()
}
