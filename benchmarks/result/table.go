package result

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// project is the name that this project has among the peers.
const project = "outbox"

// scenarioTitles are what people call the scenarios; one that is not here goes by its name.
var scenarioTitles = map[string]string{
	"drain-noop":    "Drain of a backlog to a publisher that does nothing",
	"drain-kafka":   "Drain of a backlog to Kafka",
	"latency-50":    "Latency at 50 messages/s, from commit to Kafka's log",
	"latency-500":   "Latency at 500 messages/s, from commit to Kafka's log",
	"latency-5000":  "Latency at 5,000 messages/s, from commit to Kafka's log",
	"latency-20000": "Latency at 20,000 messages/s, from commit to Kafka's log",
	"steady-noop":   "5,000 messages/s to a publisher that does nothing",
	"silence":       "First message after silence",
	"caller-1":      "What the caller pays, 1 client",
	"caller-16":     "What the caller pays, 16 clients",
	"caller-64":     "What the caller pays, 64 clients",
	"held":          "Drain while a snapshot is held open",
	"backlog-10m":   "Drain of 10,000,000 messages",
	"slow-broker":   "Drain to a slow broker, 5 ms an ack",
	"hot-key":       "Drain of one hot key",
	"zipf":          "Drain of skewed keys (Zipf)",
	"payload-100":   "Drain of payloads of 100 B",
	"payload-1k":    "Drain of payloads of 1 KB",
	"payload-100k":  "Drain of payloads of 100 KB",
	"instances-1":   "Drain by 1 instance",
	"instances-2":   "Drain by 2 instances",
	"instances-4":   "Drain by 4 instances",
	"consumer":      "Consumers that handle each message once",
	"sqlite":        "Drain of a backlog in SQLite",
	"sqlite-caller": "What the caller pays in SQLite",
}

// metricTitles are what people call the metrics, without their units, in the order of a table's columns. One that is not
// here goes by its name and comes last.
var metricTitles = []struct{ metric, title string }{
	{"rate_per_s", "messages"},
	{"tx_per_s", "transactions"},
	{"p50_ms", "p50"},
	{"p90_ms", "p90"},
	{"p99_ms", "p99"},
	{"p999_ms", "p99.9"},
	{"max_ms", "max"},
	{"wal_bytes", "WAL of a transaction"},
	{"cpu_s_per_million", "CPU of relay and database"},
	{"cpu_relay_s_per_million", "CPU of the relay"},
	{"cpu_database_s_per_million", "CPU of the database"},
	{"cpu_kafka_s_per_million", "CPU of Kafka"},
	{"memory_peak_mb", "peak memory"},
	{"last_to_first_million", "rate of the last million to that of the first"},
	{"lowest_to_first_million", "rate of the slowest million to that of the first"},
	{"handlers_per_s", "handlers"},
	{"duplicates", "duplicates"},
}

// peerTitles say of a peer what its name leaves open; one that is not here goes by its name.
var peerTitles = map[string]string{
	"watermill-kafka": "watermill-kafka, no outbox",
	"franz-go":        "franz-go, no outbox",
}

// Markdown returns what a README shows of the result: the ratios that have a goal, all figures by scenario, and where,
// when and with what they were measured.
func (r *Result) Markdown() string {
	var b strings.Builder
	r.writeGoals(&b)
	b.WriteString("<details>\n<summary>All figures</summary>\n")
	for _, scenario := range r.scenarios() {
		r.writeScenario(&b, scenario)
	}
	r.writePeers(&b)
	b.WriteString("\n</details>\n\n")
	r.writeOrigin(&b)
	return b.String()
}

func (r *Result) writeGoals(b *strings.Builder) {
	var rows [][]string
	for _, ratio := range r.Ratios {
		if ratio.Goal != "" {
			rows = append(rows, r.goalRow(ratio))
		}
	}
	if len(rows) == 0 {
		return
	}
	writeTable(b, []string{"", "ours", "theirs", "ratio", "goal", "met"}, rows)
	fmt.Fprintf(b, "\nFigures are medians of %s, with the lowest and the highest. Ratios are ours to theirs in the same repetition.\n\n",
		r.repetitions(r.scenarios()...))
}

func (r *Result) goalRow(ratio Ratio) []string {
	met := "no"
	if ratio.Met {
		met = "yes"
	}
	name := title(scenarioTitles, ratio.Scenario) + ": " + metricTitle(ratio.Metric)
	if ratio.Ours != project {
		name += " of " + title(peerTitles, ratio.Ours)
	}
	u := unitOf(ratio.Metric).figure
	ours := r.Values(ratio.Scenario, ratio.Ours, ratio.Metric)
	theirs := r.Values(ratio.Scenario, ratio.Theirs, ratio.Metric)
	value := withRange(ratio.Value, ratio.Low, ratio.High, "")
	if len(ours) == 0 || len(theirs) == 0 {
		value = none // a goal that could not be measured is for all to see
	}
	return []string{
		name + " against " + title(peerTitles, ratio.Theirs), spread(ours, u), spread(theirs, u), value,
		strings.NewReplacer(">=", "at least", "<=", "at most", "<", "below").Replace(ratio.Goal),
		met,
	}
}

// repetitions says how many the peers have in some scenarios, from the one with the fewest to the one with the most; one that
// failed does not count.
func (r *Result) repetitions(scenarios ...string) string {
	good := map[[2]string]int{} // of each peer in each scenario
	for _, run := range r.Runs {
		if slices.Contains(scenarios, run.Scenario) && run.Error == "" {
			good[[2]string{run.Scenario, run.Peer}]++
		}
	}
	if len(good) == 0 {
		return "no repetitions"
	}
	counts := slices.Sorted(maps.Values(good))
	low, high := counts[0], counts[len(counts)-1]
	switch {
	case low != high:
		return fmt.Sprintf("%d to %d repetitions in turns", low, high)
	case high == 1:
		return "1 repetition"
	}
	return fmt.Sprintf("%d repetitions in turns", high)
}

func (r *Result) writeScenario(b *strings.Builder, scenario string) {
	metrics := r.metrics(scenario)
	head := []string{""}
	for _, m := range metrics {
		head = append(head, metricTitle(m))
	}
	var rows [][]string
	for _, peer := range r.peers(scenario) {
		row := []string{r.peerCell(peer)}
		for _, m := range metrics {
			row = append(row, spread(r.Values(scenario, peer, m), ""))
		}
		rows = append(rows, row)
	}
	fmt.Fprintf(b, "\n**%s**\n\n", title(scenarioTitles, scenario))
	if len(metrics) > 0 {
		writeTable(b, head, rows)
	}
	notes := slices.Concat(r.notes(scenario), r.writeLatencies(b, scenario))
	if len(notes) > 0 {
		fmt.Fprintf(b, "\n%s\n", strings.Join(notes, "<br>\n"))
	}
}

// metrics are those of a scenario. Of latencies that writeLatencies shows whole, only two are there to show how far they
// spread between repetitions.
func (r *Result) metrics(scenario string) []string {
	found := make(map[string]bool)
	for _, run := range r.Runs {
		if run.Scenario == scenario && run.Error == "" {
			for m := range run.Metrics {
				found[m] = true
			}
		}
	}
	if r.hasLatencies(scenario) {
		for _, m := range []string{"p90_ms", "p999_ms", "max_ms"} {
			delete(found, m)
		}
	}
	return slices.SortedFunc(maps.Keys(found), func(x, y string) int {
		if c := columnOf(x) - columnOf(y); c != 0 {
			return c
		}
		return strings.Compare(x, y)
	})
}

// notes are what went wrong in a scenario, each once.
func (r *Result) notes(scenario string) []string {
	var notes []string
	for _, run := range r.Runs {
		if run.Scenario != scenario || run.Error == "" {
			continue
		}
		if n := note(run.Peer, run.Error); !slices.Contains(notes, n) {
			notes = append(notes, n)
		}
	}
	return notes
}

func note(peer, err string) string {
	return title(peerTitles, peer) + ": " + strings.NewReplacer("\n", " ", "<", `\<`).Replace(err)
}

// writeLatencies writes the percentiles of a scenario's histograms, if it has any, and returns what it could not read.
func (r *Result) writeLatencies(b *strings.Builder, scenario string) (notes []string) {
	var rows [][]string
	for _, peer := range r.peers(scenario) {
		l, ok, err := r.Latency(scenario, peer)
		if err != nil {
			notes = append(notes, note(peer, err.Error()))
		}
		if ok {
			rows = append(rows, []string{
				r.peerCell(peer), count(l.Messages),
				number(l.P50), number(l.P90), number(l.P99), number(l.P999), number(l.Max),
			})
		}
	}
	if len(rows) > 0 {
		b.WriteString("\n")
		writeTable(b, []string{"all repetitions together, ms", "count", "p50", "p90", "p99", "p99.9", "max"}, rows)
	}
	return notes
}

func (r *Result) writePeers(b *strings.Builder) {
	if len(r.Peers) == 0 {
		return
	}
	b.WriteString("\n**What was compared**\n\n")
	for _, peer := range r.peers("") {
		if about := r.Peers[peer]; about != "" {
			fmt.Fprintf(b, "- %s: %s\n", r.peerCell(peer), strings.ReplaceAll(about, "\n", " "))
		}
	}
}

// writeOrigin says where the figures are from and how to have one's own.
func (r *Result) writeOrigin(b *strings.Builder) {
	var versions []string
	for _, name := range slices.Sorted(maps.Keys(r.Versions)) {
		version := r.Versions[name]
		if strings.Contains(version, ",") {
			version = "(" + version + ")"
		}
		versions = append(versions, strings.ReplaceAll(name, "_", " ")+" "+version)
	}
	with := ""
	if len(versions) > 0 {
		with = ", with " + strings.Join(versions, ", ")
	}
	command := "make bench"
	mode, _, _ := strings.Cut(r.Mode, ",") // what follows says how it has ended
	switch mode {
	case "quick":
		command = "make bench-quick"
	case "soak":
		command = "make soak"
	}
	took := time.Duration(r.Took * float64(time.Second)).Round(time.Second)
	fmt.Fprintf(b, "Measured on %s%s%s; mode %s, seed %d, took %v. `%s` repeats it.\n",
		r.Started.UTC().Format("2 January 2006"), r.Machine.describe(), with, r.Mode, r.Seed, took, command)
}

// describe leaves out what a system did not tell.
func (m Machine) describe() string {
	var parts []string
	if m.CPU != "" {
		parts = append(parts, m.CPU)
	}
	if m.Cores > 0 {
		parts = append(parts, fmt.Sprintf("%d cores", m.Cores))
	}
	if m.Memory > 0 {
		parts = append(parts, number(float64(m.Memory)/(1<<30))+" GiB")
	}
	if m.OS != "" {
		parts = append(parts, m.OS)
	}
	if len(parts) == 0 {
		return ""
	}
	return " (" + strings.Join(parts, ", ") + ")"
}

// scenarios are in the order in which they ran first.
func (r *Result) scenarios() []string {
	var all []string
	for _, run := range r.Runs {
		if !slices.Contains(all, run.Scenario) {
			all = append(all, run.Scenario)
		}
	}
	return all
}

// peers are those of a scenario, or of all where it is empty: ours first, the others in the order in which they ran first.
func (r *Result) peers(scenario string) []string {
	var ours, theirs []string
	for _, run := range r.Runs {
		if (scenario != "" && run.Scenario != scenario) || slices.Contains(ours, run.Peer) || slices.Contains(theirs, run.Peer) {
			continue
		}
		if r.isOurs(run.Peer) {
			ours = append(ours, run.Peer)
		} else {
			theirs = append(theirs, run.Peer)
		}
	}
	return append(ours, theirs...)
}

func (r *Result) isOurs(peer string) bool {
	return peer == project || slices.ContainsFunc(r.Ratios, func(ratio Ratio) bool { return ratio.Ours == peer })
}

func (r *Result) peerCell(peer string) string {
	if r.isOurs(peer) {
		return "**" + title(peerTitles, peer) + "**"
	}
	return title(peerTitles, peer)
}

func title(titles map[string]string, name string) string {
	if t, ok := titles[name]; ok {
		return t
	}
	return name
}

// metricTitle is a metric's title with its unit.
func metricTitle(metric string) string {
	if n := columnOf(metric); n < len(metricTitles) {
		return metricTitles[n].title + unitOf(metric).title
	}
	return metric
}

func columnOf(metric string) int {
	for n, t := range metricTitles {
		if t.metric == metric {
			return n
		}
	}
	return len(metricTitles)
}

// writeTable writes rows with the first column to the left and figures to the right.
func writeTable(b *strings.Builder, head []string, rows [][]string) {
	rule := append([]string{"---"}, slices.Repeat([]string{"---:"}, len(head)-1)...)
	for _, row := range slices.Concat([][]string{head, rule}, rows) {
		for _, cell := range row {
			b.WriteString("| " + strings.NewReplacer("|", `\|`, "\n", " ").Replace(cell) + " ")
		}
		b.WriteString("|\n")
	}
}
