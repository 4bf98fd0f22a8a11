package migrations

import (
	"io"
	"io/fs"
	"path"
	"strings"

	"github.com/watermill-outbox/outbox/internal/sqlname"
)

// renderedFS is files with the names of tables and indexes in its .sql files replaced. Sizes are those of the
// originals.
type renderedFS struct {
	files fs.FS
	names sqlname.Names
	// first is put before the statements of each direction, if it is not empty.
	first string
}

func (r renderedFS) Open(name string) (fs.File, error) {
	file, err := r.files.Open(name)
	if err != nil || path.Ext(name) != ".sql" {
		return file, err
	}
	text, err := io.ReadAll(file)
	if err != nil {
		_ = file.Close()
		return nil, err
	}
	withFirst := strings.NewReplacer(
		annotation+"Up\n", annotation+"Up\n"+r.first,
		annotation+"Down\n", annotation+"Down\n"+r.first)
	rendered := withFirst.Replace(r.names.Render(string(text)))
	return renderedFile{File: file, text: strings.NewReader(rendered)}, nil
}

type renderedFile struct {
	fs.File
	text *strings.Reader
}

func (f renderedFile) Read(p []byte) (int, error) { return f.text.Read(p) }
