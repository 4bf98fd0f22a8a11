package scan

// Spans returns the number of ranges in which something may come late.
func (r *Reader) Spans() int { return len(r.spans) }
