package result

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestReplace_LeavesTheRestAsItIs(t *testing.T) {
	for name, c := range map[string]struct{ before, after string }{
		"empty":        {sectionBegin + "\n" + sectionEnd, sectionBegin + "\nnew\n" + sectionEnd},
		"on one line":  {sectionBegin + sectionEnd, sectionBegin + "\nnew\n" + sectionEnd},
		"no last line": {"# T\n" + sectionBegin + "\nold\n" + sectionEnd + "\nrest", "# T\n" + sectionBegin + "\nnew\n" + sectionEnd + "\nrest"},
		"CRLF and bytes that are no UTF-8": {
			"\xff\r\n\t" + sectionBegin + "\r\nold\r\n" + sectionEnd + " \r\n\r\n\xfe",
			"\xff\r\n\t" + sectionBegin + "\nnew\n" + sectionEnd + " \r\n\r\n\xfe",
		},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "README.md")
			require.NoError(t, os.WriteFile(file, []byte(c.before), 0o640))
			for range 2 { // the second time there is nothing to change
				require.NoError(t, Replace(file, "\nnew\n\n"))
				got, err := os.ReadFile(file)
				require.NoError(t, err)
				require.Equal(t, c.after, string(got))
			}
			info, err := os.Stat(file)
			require.NoError(t, err)
			require.Equal(t, os.FileMode(0o640), info.Mode().Perm())
		})
	}
}

func TestReplace_SaysWhatIsMissing(t *testing.T) {
	for _, c := range []struct{ text, section, want string }{
		{"", "new", "must have the line <!-- benchmarks:begin --> once, and has it 0 times"},
		{sectionBegin, "new", "must have the line <!-- benchmarks:end --> once, and has it 0 times"},
		{sectionEnd, "new", "must have the line <!-- benchmarks:begin --> once, and has it 0 times"},
		{sectionBegin + sectionBegin + sectionEnd, "new", "must have the line <!-- benchmarks:begin --> once, and has it 2 times"},
		{sectionBegin + sectionEnd + sectionEnd, "new", "must have the line <!-- benchmarks:end --> once, and has it 2 times"},
		{sectionEnd + sectionBegin, "new", "<!-- benchmarks:end --> before <!-- benchmarks:begin -->"},
		{sectionBegin + sectionEnd, "a" + sectionEnd, "could not be replaced again"},
	} {
		file := filepath.Join(t.TempDir(), "README.md")
		require.NoError(t, os.WriteFile(file, []byte(c.text), 0o600))
		err := Replace(file, c.section)
		require.ErrorContains(t, err, c.want)
		require.ErrorContains(t, err, file)
		got, err := os.ReadFile(file)
		require.NoError(t, err)
		require.Equal(t, c.text, string(got))
	}
	require.ErrorIs(t, Replace(filepath.Join(t.TempDir(), "none.md"), ""), os.ErrNotExist)
}
