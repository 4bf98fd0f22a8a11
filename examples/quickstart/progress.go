package main

import (
	"fmt"
	"os"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"
)

// progress tells what happens: a line for each event and, on a terminal, a bar below them.
type progress struct {
	out   *os.File
	bar   *progressbar.ProgressBar // nil if out is not a terminal
	begun time.Time
	last  state
}

func newProgress(out *os.File, total int) *progress {
	p := &progress{out: out, begun: time.Now()}
	if term.IsTerminal(int(out.Fd())) {
		p.bar = progressbar.NewOptions(total, progressbar.OptionSetWriter(out),
			progressbar.OptionSetDescription("handled"), progressbar.OptionShowCount(), progressbar.OptionFullWidth(),
			progressbar.OptionSetPredictTime(false), progressbar.OptionClearOnFinish())
	}
	return p
}

// sayf prints a line.
func (p *progress) sayf(format string, args ...any) {
	if p.bar != nil {
		_ = p.bar.Clear() // a terminal that is gone cannot be told
	}
	_, _ = fmt.Fprintf(p.out, "%5.1fs  %s\n", time.Since(p.begun).Seconds(), fmt.Sprintf(format, args...))
	if p.bar != nil {
		_ = p.bar.RenderBlank()
	}
}

// show tells what is new in s.
func (p *progress) show(s state) {
	if s.outage != p.last.outage {
		switch s.outage {
		case eventOutageBegun:
			p.sayf("the broker is down: messages stay in the outbox, and their attempts do not count")
		case eventOutageEnded:
			p.sayf("the broker works again, after %s", s.detail)
		}
	}
	if p.bar != nil && s.handled != p.last.handled {
		_ = p.bar.Set(s.handled)
	}
	p.last = s
}

// end removes the bar.
func (p *progress) end() {
	if p.bar != nil {
		_ = p.bar.Clear()
	}
}
