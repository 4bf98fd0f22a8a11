package docs_test

import (
	"flag"
	"fmt"
	"go/ast"
	"go/format"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// update copies the code into the pages: go test ./docs -run Pages -update
var update = flag.Bool("update", false, "copy the code into the pages")

// root is the repository's.
const root = "../.."

// page is a file of docs, and README.md for its links.
type page struct {
	path string // from root
	text string
}

func pages(t *testing.T) (all []page) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(root, "docs", "*.md"))
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, file := range files {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		all = append(all, page{"docs/" + filepath.Base(file), string(text)})
	}
	return all
}

var (
	// block is code in a page, with the line before it.
	block = regexp.MustCompile("(?m)^(.*)\n```(\\w+)\n((?s:.*?))^```$")
	// goCode begins such a block.
	goCode = regexp.MustCompile("(?m)^```go$")
	// source is the line that says where the code is from.
	source = regexp.MustCompile(`^<!-- code: (\S+) (\S+) -->$`)
)

// Invariant: the Go code of a page is code that the tests compile, and so is other code that names its source, as the
// scripts of the move do.
func TestPages_ShowCodeOfTheTests(t *testing.T) {
	for _, p := range pages(t) {
		t.Run(p.path, func(t *testing.T) {
			require.Len(t, goCode.FindAllString(p.text, -1), strings.Count(p.text, "```go"), "a block begins with ```go and no more")
			text := block.ReplaceAllStringFunc(p.text, func(found string) string {
				parts := block.FindStringSubmatch(found)
				before, language, shown := parts[1], parts[2], parts[3]
				named := source.FindStringSubmatch(before)
				if named == nil {
					if language == "go" || language == "sql" && p.path == "docs/moving-over.md" {
						t.Errorf("the line before this block is not <!-- code: FILE NAME -->:\n%s", shown)
					}
					return found
				}
				code, err := excerpt(named[1], named[2])
				if err != nil {
					t.Errorf("%v", err)
					return found
				}
				if !*update && code != shown {
					t.Errorf("the code is no longer that of %s %s, which is:\n%s", named[1], named[2], code)
				}
				return before + "\n```" + language + "\n" + code + "```"
			})
			if *update && text != p.text {
				require.NoError(t, os.WriteFile(filepath.Join(root, p.path), []byte(text), 0o600))
			}
		})
	}
}

// excerpt returns the lines between docs:begin and docs:end of a name, less what all of them are indented by.
func excerpt(file, name string) (string, error) {
	text, err := os.ReadFile(filepath.Join(root, file))
	if err != nil {
		return "", err
	}
	marker := `(?m)^\s*(?://|--|#) docs:` // of Go, SQL and shells
	begin, end := regexp.MustCompile(marker+`begin `+name+`\n`), regexp.MustCompile(marker+`end `+name+`$`)
	begins, ends := begin.FindAllIndex(text, -1), end.FindAllIndex(text, -1)
	if len(begins) != 1 || len(ends) != 1 || ends[0][0] < begins[0][1] {
		return "", fmt.Errorf("%s has no code between docs:begin %s and docs:end %s, or several", file, name, name)
	}
	lines := strings.SplitAfter(strings.Trim(string(text[begins[0][1]:ends[0][0]]), "\n")+"\n", "\n")
	indent := -1
	for _, line := range lines {
		if tabs := len(line) - len(strings.TrimLeft(line, "\t")); strings.TrimSpace(line) != "" && (indent < 0 || tabs < indent) {
			indent = tabs
		}
	}
	var code strings.Builder
	for _, line := range lines {
		code.WriteString(strings.TrimPrefix(line, strings.Repeat("\t", max(indent, 0))))
	}
	if filepath.Ext(file) != ".go" {
		return code.String(), nil
	}
	formatted, err := format.Source([]byte(code.String()))
	if err != nil {
		return "", fmt.Errorf("%s %s: %w", file, name, err)
	}
	return string(formatted), nil
}

// Code that no page shows is for nobody.
func TestPages_ShowAllCodeThatIsMeantForThem(t *testing.T) {
	shown := map[string]bool{}
	for _, p := range pages(t) {
		for _, parts := range block.FindAllStringSubmatch(p.text, -1) {
			if named := source.FindStringSubmatch(parts[1]); named != nil {
				shown[named[1]+" "+named[2]] = true
			}
		}
	}
	begin := regexp.MustCompile(`(?m)^\s*(?://|--) docs:begin (\S+)$`)
	for _, pattern := range []string{
		"docs/*.go", "brokers/*.go", "router/*.go", "movingover/*.go", "movingover/*/*.go", "movingover/*/*.sql",
	} {
		files, err := filepath.Glob(filepath.Join(root, "test", pattern))
		require.NoError(t, err)
		require.NotEmpty(t, files, pattern)
		for _, file := range files {
			text, err := os.ReadFile(file)
			require.NoError(t, err)
			name, err := filepath.Rel(root, file)
			require.NoError(t, err)
			meant := begin.FindAllStringSubmatch(string(text), -1)
			require.False(t, filepath.Ext(file) == ".sql" && len(meant) == 0, "%s is for a page, and has no docs:begin", name)
			for _, begin := range meant {
				require.True(t, shown[name+" "+begin[1]], "no page shows %s of %s", begin[1], name)
			}
		}
	}
}

var (
	link    = regexp.MustCompile(`\[[^\]]*\]\(([^)\s]+)\)`)
	heading = regexp.MustCompile(`(?m)^#+ +(.*)$`)
	fenced  = regexp.MustCompile("(?ms)^```.*?^```$")
)

// Links lead to files of the repository that exist, and to headings that they have.
func TestPages_LinkToWhatExists(t *testing.T) {
	readme, err := os.ReadFile(filepath.Join(root, "README.md"))
	require.NoError(t, err)
	for _, p := range append(pages(t), page{"README.md", string(readme)}) {
		for _, found := range link.FindAllStringSubmatch(fenced.ReplaceAllString(p.text, ""), -1) {
			target, anchor, _ := strings.Cut(found[1], "#")
			if strings.Contains(target, "://") {
				continue
			}
			file := p.path
			if target != "" {
				file = filepath.Join(filepath.Dir(p.path), target)
			}
			text, err := os.ReadFile(filepath.Join(root, file))
			if info, statErr := os.Stat(filepath.Join(root, file)); statErr == nil && info.IsDir() {
				continue
			}
			if err != nil {
				t.Errorf("%s links to %s: %v", p.path, found[1], err)
				continue
			}
			if anchor != "" && !anchors(string(text))[anchor] {
				t.Errorf("%s links to %s, and there is no such heading", p.path, found[1])
			}
		}
	}
}

// anchors are the names that GitHub gives to headings.
func anchors(text string) map[string]bool {
	names := map[string]bool{}
	for _, found := range heading.FindAllStringSubmatch(fenced.ReplaceAllString(text, ""), -1) {
		name := regexp.MustCompile(`[^\p{L}\p{N} _-]`).ReplaceAllString(strings.ToLower(found[1]), "")
		names[strings.ReplaceAll(name, " ", "-")] = true
	}
	return names
}

func TestPages_AreAllInTheIndex(t *testing.T) {
	index, err := os.ReadFile(filepath.Join(root, "docs", "README.md"))
	require.NoError(t, err)
	for _, p := range pages(t) {
		if name := filepath.Base(p.path); name != "README.md" {
			require.Contains(t, string(index), "]("+name+")", "the index does not link to it")
		}
	}
	readme, err := os.ReadFile(filepath.Join(root, "README.md"))
	require.NoError(t, err)
	require.Contains(t, string(readme), "](docs/README.md)")
}

// What the pages call by a package's name, the package has. (Their code is compiled.)
func TestPages_NameWhatThereIs(t *testing.T) {
	packages := map[string]map[string]bool{}
	for name, folder := range map[string]string{
		"outbox": ".", "outboxtest": "outboxtest", "storetest": "storetest", "migrations": "migrations",
		"memory": "store/memory", "sqlite": "store/sqlite", "postgres": "store/postgres", "pgxstore": "store/pgxstore",
	} {
		packages[name] = exported(t, filepath.Join(root, folder))
	}
	name := regexp.MustCompile(`\b([a-z]+)\.([A-Z]\w*)`)
	for _, p := range pages(t) {
		for _, found := range name.FindAllStringSubmatch(fenced.ReplaceAllString(p.text, ""), -1) {
			if known, ours := packages[found[1]]; ours && !known[found[2]] {
				t.Errorf("%s: there is no %s", p.path, found[0])
			}
		}
	}
}

// exported are the names that a package declares.
func exported(t *testing.T, folder string) map[string]bool {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(folder, "*.go"))
	require.NoError(t, err)
	names := map[string]bool{}
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
		require.NoError(t, err)
		for _, declared := range parsed.Decls {
			switch d := declared.(type) {
			case *ast.FuncDecl:
				if d.Recv == nil {
					names[d.Name.Name] = true
				}
			case *ast.GenDecl:
				for _, spec := range d.Specs {
					switch s := spec.(type) {
					case *ast.TypeSpec:
						names[s.Name.Name] = true
					case *ast.ValueSpec:
						for _, n := range s.Names {
							names[n.Name] = true
						}
					}
				}
			}
		}
	}
	return names
}

func TestPages_HaveLinesOf120ColumnsAtMost(t *testing.T) {
	for _, p := range pages(t) {
		code := false // which has tabs, and is as wide as its source
		for i, line := range strings.Split(p.text, "\n") {
			if strings.HasPrefix(line, "```") {
				code = !code
			}
			if columns := len([]rune(line)); columns > 120 && !code && !strings.HasPrefix(line, "|") {
				t.Errorf("%s:%d has %d columns", p.path, i+1, columns)
			}
		}
	}
}

// The error messages that the questions begin with are those of the code, and of the brokers' clients.
func TestPages_QuoteErrorsAsTheyAre(t *testing.T) {
	var code strings.Builder
	folders := []string{root, root + "/internal/sqlstore", root + "/store/sqlite", root + "/store/pgxstore"}
	for module, folder := range map[string]string{
		"github.com/eapache/go-resiliency":           "breaker", // sarama's
		"github.com/ThreeDotsLabs/watermill-amqp/v3": "pkg/amqp",
		"github.com/nats-io/nats.go":                 ".",
		"github.com/redis/go-redis/v9":               "internal/pool",
	} {
		dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", module).Output()
		require.NoError(t, err)
		folders = append(folders, filepath.Join(strings.TrimSpace(string(dir)), folder))
	}
	for _, folder := range folders {
		files, err := filepath.Glob(filepath.Join(folder, "*.go"))
		require.NoError(t, err)
		for _, file := range files {
			text, err := os.ReadFile(file)
			require.NoError(t, err)
			code.WriteString(regexp.MustCompile(`" \+\n\s*"`).ReplaceAllString(string(text), ""))
		}
	}
	text, err := os.ReadFile(filepath.Join(root, "docs", "faq.md"))
	require.NoError(t, err)
	quoted := regexp.MustCompile("(?m)^### `(.*)`$").FindAllStringSubmatch(string(text), -1)
	require.NotEmpty(t, quoted)
	for _, found := range quoted {
		require.Contains(t, code.String(), found[1])
	}
}
