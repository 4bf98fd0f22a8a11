package result

import (
	"fmt"
	"os"
	"strings"
)

// What Replace writes stands between these two comments.
const (
	sectionBegin = "<!-- benchmarks:begin -->"
	sectionEnd   = "<!-- benchmarks:end -->"
)

// Replace puts a section of Markdown between the comments benchmarks:begin and benchmarks:end of a file, in place of what
// is there. The rest of the file stays as it is. It returns an error, and writes nothing, unless each comment is in the
// file once, in that order, and neither is in the section.
func Replace(file, section string) error {
	data, err := os.ReadFile(file) //nolint:gosec // the caller's file
	if err != nil {
		return err
	}
	text := string(data)
	for _, marker := range []string{sectionBegin, sectionEnd} {
		if n := strings.Count(text, marker); n != 1 {
			return fmt.Errorf("%s must have the line %s once, and has it %d times", file, marker, n)
		}
		if strings.Contains(section, marker) {
			return fmt.Errorf("the section for %s has the line %s itself, so that it could not be replaced again", file, marker)
		}
	}
	begin, rest, _ := strings.Cut(text, sectionBegin)
	_, end, ok := strings.Cut(rest, sectionEnd)
	if !ok {
		return fmt.Errorf("%s has %s before %s, and needs them the other way round", file, sectionEnd, sectionBegin)
	}
	text = begin + sectionBegin + "\n" + strings.Trim(section, "\n") + "\n" + sectionEnd + end
	return replace(file, []byte(text))
}
