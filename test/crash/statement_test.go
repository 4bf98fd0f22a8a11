package crash_test

import "regexp"

// statements are those of the outbox, and of the application around it, by what they are called here.
var statements = []struct {
	name string
	is   *regexp.Regexp
}{
	{"take slots", regexp.MustCompile(`UPDATE \S*outbox_slots\S*\s+SET owner = [$?]`)},
	{"give up slots", regexp.MustCompile(`UPDATE \S*outbox_slots\S*\s+SET owner = ''`)},
	{"renew slots", regexp.MustCompile(`UPDATE \S*outbox_slots\S*\s+SET expires_at`)},
	{"appear", regexp.MustCompile(`INSERT INTO \S*outbox_relays`)},
	{"leave", regexp.MustCompile(`DELETE FROM \S*outbox_relays`)},
	{"insert", regexp.MustCompile(`INSERT INTO \S*outbox_messages`)},
	{"settle", regexp.MustCompile(`WITH archived AS`)},
	{"archive", regexp.MustCompile(`INSERT OR REPLACE INTO \S*outbox_archive`)},
	{"delete", regexp.MustCompile(`DELETE FROM \S*outbox_messages`)},
	{"retry", regexp.MustCompile(`UPDATE \S*outbox_messages`)},
	{"read", regexp.MustCompile(`SELECT id, (0 AS )?slot,[^;]+FROM \S*outbox_messages`)},
	{"record", regexp.MustCompile(`INSERT INTO \S*outbox_processed`)},
	{"order", regexp.MustCompile(`INSERT INTO orders`)},
	{"effect", regexp.MustCompile(`INSERT INTO effects`)},
	{"begin", regexp.MustCompile(`^begin`)},
	{"commit", regexp.MustCompile(`^commit`)},
	{"rollback", regexp.MustCompile(`^rollback`)},
}

// aLook is what every other statement is called: it looks at the schema, the leases or the server, and changes nothing.
const aLook = "a look"

// nameOf returns what a statement is called.
func nameOf(text string) string {
	for _, s := range statements {
		if s.is.MatchString(text) {
			return s.name
		}
	}
	return aLook
}
