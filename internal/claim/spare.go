package claim

const (
	// maxSpare is how many entries, and lists, are kept to be used again.
	maxSpare = 16_384
	// maxSpareEntries is how long a list may have been.
	maxSpareEntries = 16
)

func (q *Queue) newEntry() *entry {
	n := len(q.spareEntries)
	if n == 0 {
		return &entry{}
	}
	e := q.spareEntries[n-1]
	q.spareEntries = q.spareEntries[:n-1]
	return e
}

// spareEntry takes an entry that nothing points to any more.
func (q *Queue) spareEntry(e *entry) {
	*e = entry{}
	if len(q.spareEntries) < maxSpare {
		q.spareEntries = append(q.spareEntries, e)
	}
}

func (q *Queue) newList(slot int, key string) *list {
	n := len(q.spareLists)
	if n == 0 {
		return &list{slot: slot, key: key}
	}
	l := q.spareLists[n-1]
	q.spareLists = q.spareLists[:n-1]
	l.slot, l.key = slot, key
	return l
}

// spareList takes an empty list that nothing points to any more.
func (q *Queue) spareList(l *list) {
	*l = list{entries: l.entries[:0]}
	if len(q.spareLists) < maxSpare && cap(l.entries) <= 2*maxSpareEntries {
		q.spareLists = append(q.spareLists, l)
	}
}
