package main

import (
	"bufio"
	"database/sql"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox/examples/internal/program"
	"github.com/watermill-outbox/outbox/store/sqlite"
)

// Lines of the program that tell how far it is.
const (
	outageBegun = "the broker is down"
	outageEnded = "the broker works again"
	wasKilled   = "the service was killed"
)

// parseReport takes a printed report apart.
func parseReport(t *testing.T, printed string) map[string]int {
	t.Helper()
	figures := map[string]int{}
	lines := bufio.NewScanner(strings.NewReader(printed))
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 {
			continue
		}
		if figure, err := strconv.Atoi(fields[len(fields)-1]); err == nil {
			figures[strings.Join(fields[:len(fields)-1], " ")] = figure
		}
	}
	return figures
}

func writeFile(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "records.jsonl")
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

// count returns the one number that query returns.
func count(t *testing.T, db *sql.DB, query string) int {
	t.Helper()
	var n int
	require.NoError(t, db.QueryRowContext(t.Context(), query).Scan(&n))
	return n
}

func TestQuickstart_KeepsItsPromises_WhileEverythingFails(t *testing.T) {
	t.Parallel()
	p := program.Start(t, binary)
	p.Await(outageBegun)
	p.Await(outageEnded)
	p.Await(wasKilled)
	stdout, stderr, status := p.End()
	require.Zero(t, status, "%s%s", stdout, stderr)
	figures := parseReport(t, stdout)
	require.Equal(t, 1900, figures["saved"], stdout)
	require.Equal(t, 100, figures["rolled back"], stdout)
	require.Equal(t, 1900, figures["handled"], stdout)
	require.GreaterOrEqual(t, figures["published"], 1900, stdout)
	// Every tenth message came twice, but for those that the broker was about to deliver when it was killed.
	require.GreaterOrEqual(t, figures["redeliveries absorbed"], 1900/redeliverEvery/2, stdout)
	for _, name := range []string{"left in the outbox", "handled twice", "lost", "phantom", "out of order per key"} {
		require.Contains(t, figures, name)
		require.Zero(t, figures[name], "%s: %s", name, stdout)
	}
}

func TestQuickstart_TakesRecordsOfAFile_AndKeepsTheDatabase(t *testing.T) {
	t.Parallel()
	var lines strings.Builder
	for i := range 60 {
		fmt.Fprintf(&lines, `{"n": %d, "customer": "c-%d"}`+"\n", i, i%7)
	}
	path := filepath.Join(t.TempDir(), "kept.db")
	input := writeFile(t, lines.String())
	stdout, stderr, status := program.Start(t, binary, "-input", input, "-key", "customer", "-db", path).End()
	require.Zero(t, status, "%s%s", stdout, stderr)
	require.Equal(t, 57, parseReport(t, stdout)["saved"], stdout)
	require.Contains(t, stdout, path)

	db, err := sqlite.Open(path)
	require.NoError(t, err)
	require.Equal(t, 57, count(t, db, `SELECT count(*) FROM handled`))
	require.Equal(t, 7, count(t, db, `SELECT count(DISTINCT key) FROM records`))
	require.NoError(t, db.Close())

	_, stderr, status = program.Start(t, binary, "-input", input, "-db", path).End()
	require.Equal(t, 1, status)
	require.Contains(t, stderr, "is there already", "a database of another run must not be mixed up with this one's")
}

func TestQuickstart_HandlesOneRecord(t *testing.T) {
	t.Parallel()
	stdout, stderr, status := program.Start(t, binary, "-input", writeFile(t, `{"without": "a key"}`)).End()
	require.Zero(t, status, "%s%s", stdout, stderr)
	require.Equal(t, 1, parseReport(t, stdout)["handled"], stdout)
}

func TestQuickstart_NamesTheLine_OfARecordThatItCannotTake(t *testing.T) {
	t.Parallel()
	t.Run("not JSON", func(t *testing.T) {
		t.Parallel()
		input := writeFile(t, "{\"origin\": \"LAX\"}\n\n{\"origin\": LAX}\n")
		stdout, stderr, status := program.Start(t, binary, "-input", input).End()
		require.Equal(t, 1, status)
		require.Empty(t, stdout)
		require.Regexp(t, `^quickstart: -input: .*records\.jsonl: line 3: not a JSON object: .*\n$`, stderr)
	})
	t.Run("a key too long for the outbox", func(t *testing.T) {
		t.Parallel()
		input := writeFile(t, "{}\n"+`{"origin": "`+strings.Repeat("x", 1000)+`"}`)
		_, stderr, status := program.Start(t, binary, "-input", input).End()
		require.Equal(t, 1, status)
		require.Contains(t, stderr, "line 2: ")
		require.Contains(t, stderr, "the key has 1000 bytes")
	})
}

// The report must be able to tell of broken promises: here the test breaks them, in the database of a running program.
func TestQuickstart_Fails_WhenPromisesAreBroken(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("it runs all of it a second time")
	}
	path := filepath.Join(t.TempDir(), "broken.db")
	p := program.Start(t, binary, "-db", path)
	p.Await(wasKilled)
	db, err := sqlite.Open(path)
	require.NoError(t, err)
	for _, statement := range []string{
		`DELETE FROM handled WHERE record = 1`,
		`INSERT INTO handled (record) VALUES (20)`, // which was rolled back
		// The first two records of a key change places.
		`CREATE TEMP TABLE swapped AS
			SELECT min(number) AS a, (SELECT min(number) FROM records WHERE key = 'ORD' AND number > min(r.number)) AS b
			FROM records r WHERE key = 'ORD';
		UPDATE handled SET record = (SELECT a + b FROM swapped) - record
			WHERE record IN (SELECT a FROM swapped UNION SELECT b FROM swapped)`,
	} {
		_, err := db.ExecContext(t.Context(), statement)
		require.NoError(t, err)
	}
	require.NoError(t, db.Close())
	stdout, stderr, status := p.End()
	require.Equal(t, 1, status, "%s%s", stdout, stderr)
	require.Contains(t, stderr, "0 left in the outbox, 0 handled twice, 1 lost, 1 phantom, 1 out of order")
}

func TestQuickstart_LeavesNothingBehind_WhenInterrupted(t *testing.T) {
	t.Parallel()
	p := program.Start(t, binary)
	p.Await(outageBegun) // the service is running
	p.Signal(os.Interrupt)
	stdout, stderr, status := p.End() // of both processes
	require.Equal(t, 1, status)
	require.Empty(t, stdout)
	require.Contains(t, stderr, "interrupted")
}

func TestQuickstart_EndsItsService_WhenItIsKilled(t *testing.T) {
	t.Parallel()
	p := program.Start(t, binary)
	p.Await(outageBegun)
	p.Signal(os.Kill)
	_, _, status := p.End() // of both processes
	require.Equal(t, -1, status)
}
