package result

import (
	"image/color"
	"math"

	xfont "golang.org/x/image/font"
	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
)

// Colours, of which ours is the one with a hue. The strong one of a pair is of what counts, the faint one is beside it.
var (
	white = color.RGBA{R: 0xff, G: 0xff, B: 0xff, A: 0xff}
	ink   = color.RGBA{R: 0x1f, G: 0x23, B: 0x28, A: 0xff}
	faded = color.RGBA{R: 0x59, G: 0x63, B: 0x6e, A: 0xff}
	lines = color.RGBA{R: 0xe1, G: 0xe4, B: 0xe8, A: 0xff}

	oursStrong   = color.RGBA{R: 0x09, G: 0x69, B: 0xda, A: 0xff}
	oursFaint    = color.RGBA{R: 0x8c, G: 0xc2, B: 0xff, A: 0xff}
	theirsStrong = color.RGBA{R: 0x81, G: 0x8b, B: 0x98, A: 0xff}
	theirsFaint  = color.RGBA{R: 0xd1, G: 0xd9, B: 0xe0, A: 0xff}
)

func strong(ours bool) color.Color {
	if ours {
		return oursStrong
	}
	return theirsStrong
}

func faint(ours bool) color.Color {
	if ours {
		return oursFaint
	}
	return theirsFaint
}

// Lengths in points.
const (
	titleSize  = 11.5
	textSize   = 8.7
	headHeight = 42 // title and legend
	axisHeight = 16
	swatch     = 7
)

func style(size font.Length, weight xfont.Weight, c color.Color) text.Style {
	return text.Style{
		Color:   c,
		Font:    font.Font{Typeface: "Liberation", Variant: "Sans", Weight: weight, Size: size},
		YAlign:  draw.YCenter,
		Handler: plot.DefaultTextHandler,
	}
}

// panel is a plot with a row for each peer, from the top, below a title and a legend.
type panel struct {
	title  string
	legend []legendEntry
	plot   *plot.Plot
	rows   int
	row    vg.Length // height of one
	names  []plot.Tick
}

// legendEntry explains what mark draws, around a point.
type legendEntry struct {
	mark func(c draw.Canvas, at vg.Point, ours bool)
	text string
}

// newPanel makes one with nothing in it. The plot has the n-th peer at y = -n.
func newPanel(title string, peers []string, row vg.Length) *panel {
	p := &panel{title: title, plot: plot.New(), rows: len(peers), row: row}
	for n, peer := range peers {
		if t, ok := peerTitles[peer]; ok {
			peer = t
		}
		p.names = append(p.names, plot.Tick{Value: float64(-n), Label: peer})
	}
	p.plot.BackgroundColor = color.Transparent
	x, y := &p.plot.X, &p.plot.Y
	x.Tick.Label = style(textSize, xfont.WeightNormal, faded)
	x.Tick.Label.XAlign, x.Tick.Label.YAlign = draw.XCenter, draw.YTop
	x.Width, x.Tick.Length, x.Padding = 0, 0, 3
	y.Tick.Label = style(textSize, xfont.WeightNormal, ink)
	y.Tick.Label.XAlign = draw.XRight
	y.Tick.Marker = plot.ConstantTicks(p.names)
	y.Color, y.Tick.Length, y.Padding = lines, 0, 0
	grid := plotter.NewGrid()
	grid.Horizontal.Color = nil
	grid.Vertical = draw.LineStyle{Color: lines, Width: 0.6}
	p.plot.Add(grid)
	return p
}

func (p *panel) height() vg.Length { return headHeight + vg.Length(p.rows)*p.row + axisHeight }

func (p *panel) namesWidth() vg.Length {
	var width vg.Length
	for _, name := range p.names {
		width = max(width, p.plot.Y.Tick.Label.Width(name.Label))
	}
	return width
}

// draw draws the panel with as much room for names as the panels of a chart need to have their plots in line.
func (p *panel) draw(c draw.Canvas, names vg.Length) {
	c.FillText(style(titleSize, xfont.WeightBold, ink), vg.Point{X: c.Min.X, Y: c.Max.Y - titleSize/2}, p.title)
	explanation := style(textSize, xfont.WeightNormal, faded)
	descent := explanation.FontExtents().Descent
	at := vg.Point{X: c.Min.X + swatch/2, Y: c.Max.Y - titleSize - 13}
	for _, entry := range p.legend {
		if entry.mark != nil {
			entry.mark(c, at, true)
			at.X += swatch + 3
			entry.mark(c, at, false)
			at.X += swatch + 1
		}
		c.FillText(explanation, vg.Point{X: at.X, Y: at.Y + descent}, entry.text)
		at.X += explanation.Width(entry.text) + 18
	}
	// Adding to a plot has widened the axis to what was added; rows have half a row's room above and below.
	p.plot.Y.Min, p.plot.Y.Max = 0.5-float64(p.rows), 0.5
	p.plot.Draw(draw.Crop(c, names-p.namesWidth(), 0, 0, -headHeight))
}

// label writes a text beside a point of the plot, to its left where dx is negative.
func (p *panel) label(x, y float64, dx vg.Length, s string, st text.Style) {
	st.XAlign = draw.XLeft
	if dx < 0 {
		st.XAlign = draw.XRight
	}
	p.plot.Add(&plotter.Labels{
		XYs: plotter.XYs{{X: x, Y: y}}, Labels: []string{s}, TextStyle: []text.Style{st},
		Offset: vg.Point{X: dx, Y: st.FontExtents().Descent}, // as axes have it: letters seldom reach down
	})
}

const (
	drainHeight = 26  // of a row
	barHeight   = 9.5 // of one of its bars
	barOffset   = 0.2 // of a row
)

// drainPanel has two bars for each peer.
func drainPanel(rows []drainRow, repetitions string) *panel {
	peers := make([]string, len(rows))
	for n, row := range rows {
		peers[n] = row.peer
	}
	p := newPanel("Messages a second from a backlog in PostgreSQL", peers, drainHeight)
	p.legend = []legendEntry{
		{mark: swatchOf(strong), text: "to Kafka"},
		{mark: swatchOf(faint), text: "to a publisher that does nothing"},
		{text: "median of " + repetitions + ", lowest and highest"},
	}
	for n, row := range rows {
		y := float64(-n)
		switch {
		case row.noop.median == 0:
			p.bar(y, row.kafka, strong(row.ours))
		case row.kafka.median == 0:
			p.bar(y, row.noop, faint(row.ours))
		default:
			p.bar(y+barOffset, row.kafka, strong(row.ours))
			p.bar(y-barOffset, row.noop, faint(row.ours))
		}
	}
	p.plot.X.Min = 0
	p.plot.X.Tick.Marker = plot.TickerFunc(evenTicks)
	return p
}

func swatchOf(c func(ours bool) color.Color) func(draw.Canvas, vg.Point, bool) {
	return func(canvas draw.Canvas, at vg.Point, ours bool) {
		h := vg.Length(swatch) / 2
		canvas.FillPolygon(c(ours), []vg.Point{
			{X: at.X - h, Y: at.Y - h}, {X: at.X - h, Y: at.Y + h}, {X: at.X + h, Y: at.Y + h}, {X: at.X + h, Y: at.Y - h},
		})
	}
}

func (p *panel) bar(y float64, s span, c color.Color) {
	p.plot.Add(&plotter.BarChart{Values: plotter.Values{s.median}, XMin: y, Width: barHeight, Color: c, Horizontal: true})
	if number(s.low) != number(s.high) {
		p.plot.Add(&plotter.XErrorBars{
			XYs:       plotter.XYs{{X: s.median, Y: y}},
			XErrors:   plotter.XErrors{{Low: s.median - s.low, High: s.high - s.median}},
			LineStyle: draw.LineStyle{Color: ink, Width: 0.8},
			CapWidth:  4,
		})
	}
	p.label(s.high, y, 4, number(s.median), style(textSize, xfont.WeightNormal, ink))
}

const (
	latencyHeight = 19  // of a row
	dot           = 3.2 // its radius
)

// latencyPanel has a line for each peer, from one percentile to the other, since a bar on a logarithmic axis has no
// beginning.
func latencyPanel(rows []latencyRow) *panel {
	peers := make([]string, len(rows))
	for n, row := range rows {
		peers[n] = row.peer
	}
	p := newPanel("Milliseconds from commit to Kafka's log, at 500 messages a second", peers, latencyHeight)
	p.legend = []legendEntry{
		{mark: dotOf(strong), text: "p50"},
		{mark: dotOf(faint), text: "p99"},
		{text: "of all repetitions together, on a logarithmic axis"},
	}
	for n, row := range rows {
		p.latency(float64(-n), row)
	}
	p.plot.X.Scale = plot.LogScale{}
	p.plot.X.Min, p.plot.X.Max = roundDown(p.plot.X.Min), roundUp(p.plot.X.Max)
	if p.plot.X.Min == p.plot.X.Max {
		p.plot.X.Max = roundUp(1.01 * p.plot.X.Max) // an axis of no length is made to begin below zero
	}
	p.plot.Y.Padding = 6 // the first label is left of its dot
	p.plot.X.Tick.Marker = plot.TickerFunc(logTicks)
	return p
}

func dotOf(c func(ours bool) color.Color) func(draw.Canvas, vg.Point, bool) {
	return func(canvas draw.Canvas, at vg.Point, ours bool) {
		canvas.DrawGlyphNoClip(draw.GlyphStyle{Color: c(ours), Radius: dot, Shape: draw.CircleGlyph{}}, at)
	}
}

func (p *panel) latency(y float64, row latencyRow) {
	p.plot.Add(&plotter.Line{
		XYs: plotter.XYs{{X: row.p50, Y: y}, {X: row.p99, Y: y}}, LineStyle: draw.LineStyle{Color: faint(row.ours), Width: 2},
	})
	for _, point := range []struct {
		x float64
		c color.Color
	}{{row.p99, faint(row.ours)}, {row.p50, strong(row.ours)}} {
		p.plot.Add(&plotter.Scatter{
			XYs:        plotter.XYs{{X: point.x, Y: y}},
			GlyphStyle: draw.GlyphStyle{Color: point.c, Radius: dot, Shape: draw.CircleGlyph{}},
		})
	}
	st := style(textSize, xfont.WeightNormal, ink)
	p.label(row.p50, y, -6, number(row.p50), st)
	p.label(row.p99, y, 6, number(row.p99), st)
}

// steps are the round numbers of a decade.
var steps = []float64{1, 2, 5, 10}

// roundDown and roundUp return the next round number from a positive one.
func roundDown(v float64) float64 {
	decade := math.Pow10(int(math.Floor(math.Log10(v))))
	best := decade
	for _, s := range steps {
		if s*decade <= v {
			best = s * decade
		}
	}
	return best
}

func roundUp(v float64) float64 {
	down := roundDown(v)
	if down == v {
		return v
	}
	decade := math.Pow10(int(math.Floor(math.Log10(v))))
	for _, s := range steps {
		if s*decade >= v {
			return s * decade
		}
	}
	return 10 * decade
}

// evenTicks are at most six, at round numbers.
func evenTicks(low, high float64) []plot.Tick {
	step := roundUp((high - low) / 6)
	var ticks []plot.Tick
	for n := 0; float64(n)*step <= high; n++ {
		v := float64(n) * step
		ticks = append(ticks, plot.Tick{Value: v, Label: shortest(v)})
	}
	return ticks
}

// logTicks are at powers of ten, or at all round numbers where those would be too few.
func logTicks(low, high float64) []plot.Tick {
	inDecade := steps[:1]
	if high/low <= 1000 {
		inDecade = steps[:3]
	}
	var ticks []plot.Tick
	for e := int(math.Floor(math.Log10(low))); math.Pow10(e) <= high*1.001; e++ {
		for _, s := range inDecade {
			if v := s * math.Pow10(e); v >= low*0.999 && v <= high*1.001 {
				ticks = append(ticks, plot.Tick{Value: v, Label: shortest(v)})
			}
		}
	}
	return ticks
}
