package movingover_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// (That its Go code is that of the applications is a test of test/docs.)
func TestGuide_ShowsTheScriptsThatWereTested(t *testing.T) {
	guide, err := os.ReadFile("../../docs/moving-over.md")
	require.NoError(t, err)
	files, err := filepath.Glob("after/*.sql")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".sql")
		text := script(t, filepath.Base(file))
		text = strings.TrimPrefix(text, "-- docs:begin "+name+"\n")
		text = strings.TrimSuffix(text, "-- docs:end "+name+"\n")
		require.Contains(t, string(guide), "<!-- code: test/movingover/"+file+" "+name+" -->\n```sql\n"+text+"```\n")
	}
	require.Equal(t, len(files), strings.Count(string(guide), "```sql\n"))
}
