package pgdialect_test

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	_ "github.com/jackc/pgx/v5/stdlib" // "pgx" of database/sql
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/internal/pgtest"
	"github.com/watermill-outbox/outbox/internal/sqlstore"
	"github.com/watermill-outbox/outbox/store/pgxstore"
	"github.com/watermill-outbox/outbox/store/postgres"
)

const (
	migrating  = "migrating"
	publishing = "publishing"
	relaying   = "relaying"
	handling   = "handling"
	inspecting = "inspecting"

	insufficientPrivilege = "42501"
	leaseTTL              = 2 * time.Second
	patience              = time.Minute
)

// client is a store of either package, and what is to be closed with it.
type client struct {
	sqlStore

	processed outbox.ProcessedStore
	end       func()
}

type sqlStore interface {
	outbox.LeasedStore
	outbox.Transactor
	outbox.SchemaChecker
	outbox.Inspector
	outbox.StatsReporter
	Migrate(ctx context.Context) error
	Close() error
}

// clients open a store at an address.
var clients = map[string]func(t *testing.T, address, schema string) client{
	"pgxstore": func(t *testing.T, address, schema string) client {
		t.Helper()
		pool, err := pgxpool.New(t.Context(), address)
		require.NoError(t, err)
		store, err := pgxstore.New(pool, pgxstore.WithSchema(schema), pgxstore.WithLeaseTTL(leaseTTL), sweepOften)
		require.NoError(t, err)
		return client{store, store.Processed(), pool.Close}
	},
	"postgres": func(t *testing.T, address, schema string) client {
		t.Helper()
		db, err := sql.Open("pgx", address)
		require.NoError(t, err)
		store, err := postgres.New(db, postgres.WithSchema(schema), postgres.WithLeaseTTL(leaseTTL), sweepOften)
		require.NoError(t, err)
		return client{store, store.Processed(), func() { _ = db.Close() }}
	},
}

func sweepOften(o *sqlstore.Options) { o.SweepInterval = 20 * time.Millisecond }

// page is what docs/operations.md has about privileges, with a schema and roles of the test's own.
type page struct {
	server pgtest.Server
	schema string
	open   func(t *testing.T, address, schema string) client
	hears  bool              // the store is an outbox.Notifier
	roles  map[string]string // their logins
	grants []grant
}

// grant is one privilege of one role, on one column if it is on some.
type grant struct{ role, privilege, on string }

func (g grant) String() string { return g.privilege + " ON " + g.on + " TO " + g.role }

var (
	grantStatement = regexp.MustCompile(`(?s)^GRANT (.+) ON (.+) TO (.+)$`)
	privilegeOf    = regexp.MustCompile(`([A-Z]+)(?: \(([^)]+)\))?(?:, |$)`)
)

// privileges splits what is granted into one of each column.
func privileges(text string) (all []string) {
	for _, match := range privilegeOf.FindAllStringSubmatch(text, -1) {
		if match[2] == "" {
			all = append(all, match[1])
			continue
		}
		for column := range strings.SplitSeq(match[2], ", ") {
			all = append(all, match[1]+" ("+column+")")
		}
	}
	return all
}

// readPage takes the statements from the page, one privilege of one role at a time.
func readPage(t *testing.T) (grants []grant) {
	t.Helper()
	text, err := os.ReadFile("../../docs/operations.md")
	require.NoError(t, err)
	_, section, found := strings.Cut(string(text), "\n## Privileges\n")
	require.True(t, found)
	section, _, _ = strings.Cut(section, "\n## ")
	for _, block := range strings.Split(section, "```sql\n")[1:] {
		block, _, _ = strings.Cut(block, "```")
		for statement := range strings.SplitSeq(block, ";") {
			if statement = strings.TrimSpace(statement); statement == "" {
				continue
			}
			parts := grantStatement.FindStringSubmatch(statement)
			require.NotNil(t, parts, "the test takes GRANT alone: %s", statement)
			on, kind := parts[2], ""
			if schema, ok := strings.CutPrefix(on, "SCHEMA "); ok {
				on, kind = schema, "SCHEMA "
			}
			for role := range strings.SplitSeq(parts[3], ",") {
				for object := range strings.SplitSeq(on, ",") {
					for _, privilege := range privileges(parts[1]) {
						grants = append(grants, grant{strings.TrimSpace(role), privilege, kind + strings.TrimSpace(object)})
					}
				}
			}
		}
	}
	return grants
}

func newPage(t *testing.T, server pgtest.Server, kind string) *page {
	t.Helper()
	p := &page{
		server: server, schema: pgtest.Schema(t, server), open: clients[kind], hears: kind == "pgxstore",
		roles: map[string]string{}, grants: readPage(t),
	}
	for _, g := range p.grants {
		if p.roles[g.role] != "" {
			continue
		}
		p.login(t, g.role)
	}
	return p
}

// run grants a privilege, or revokes it.
func (p *page) run(t *testing.T, verb, preposition string, g grant) {
	t.Helper()
	on := p.schema + "." + g.on
	if strings.HasPrefix(g.on, "SCHEMA ") {
		on = "SCHEMA " + p.schema
	}
	pgtest.Exec(t, p.server, verb+" "+g.privilege+" ON "+on+" "+preposition+" "+p.roles[g.role])
}

// login makes one that has the roles, for what is called by this name.
func (p *page) login(t *testing.T, name string, roles ...string) {
	t.Helper()
	login := name + "_" + strings.ToLower(rand.Text()[:16])
	p.roles[name] = login
	pgtest.Exec(t, p.server, "CREATE ROLE "+login+" LOGIN PASSWORD '"+login+"'")
	for _, role := range roles {
		pgtest.Exec(t, p.server, "GRANT "+p.roles[role]+" TO "+login)
	}
	t.Cleanup(func() {
		pgtest.Exec(t, p.server, "DROP OWNED BY "+login)
		pgtest.Exec(t, p.server, "DROP ROLE "+login)
	})
}

// as opens a store with the role's own login.
func (p *page) as(t *testing.T, role string) (store client, end func()) {
	t.Helper()
	return p.at(t, p.address(t, role))
}

// address is the server's for the role's own login.
func (p *page) address(t *testing.T, role string) string {
	t.Helper()
	address, err := url.Parse(p.server.URL())
	require.NoError(t, err)
	address.User = url.UserPassword(p.roles[role], p.roles[role])
	return address.String()
}

// asAdmin opens one that may do everything.
func (p *page) asAdmin(t *testing.T) (store client, end func()) {
	t.Helper()
	return p.at(t, p.server.URL())
}

func (p *page) at(t *testing.T, address string) (store client, end func()) {
	t.Helper()
	store = p.open(t, address, p.schema)
	return store, func() {
		_ = store.Close() // it may not be allowed to
		store.end()
	}
}

// task is what somebody does with an outbox. The roles of may are all who can.
type task struct {
	name string
	may  []string
	run  func(t *testing.T, p *page, store client) error
}

// tasks are all that the statements of the stores are for. The migrating role owns the tables, and so may do everything.
var tasks = []task{
	{"migrate", []string{migrating}, func(t *testing.T, _ *page, store client) error {
		t.Helper()
		return store.Migrate(t.Context())
	}},
	{"publish and notify", []string{publishing}, func(t *testing.T, _ *page, store client) error {
		t.Helper()
		return publishTo(t, store, 1)
	}},
	{"publish many and notify", []string{publishing}, func(t *testing.T, _ *page, store client) error {
		t.Helper()
		return publishTo(t, store, 3)
	}},
	{"publish without notifying", []string{publishing}, func(t *testing.T, _ *page, store client) error {
		t.Helper()
		return errors.Join(publishTo(t, store, 1), publishTo(t, store, 1), publishTo(t, store, 3)) // within 100 ms of the first
	}},
	{"listen", []string{publishing, relaying, handling, inspecting}, listen},
	{"relay", []string{relaying}, relay},
	{"forward", []string{relaying}, forward},
	{"purge the archive", []string{relaying, inspecting}, func(t *testing.T, _ *page, store client) error {
		t.Helper()
		_, err := store.DeleteProcessedBefore(t.Context(), time.Now())
		return err
	}},
	{"inspect", []string{relaying, inspecting}, inspect},
	{"discard", []string{relaying, inspecting}, func(t *testing.T, p *page, store client) error {
		t.Helper()
		_, err := store.Discard(t.Context(), p.setAside(t))
		return err
	}},
	{"requeue", []string{inspecting}, func(t *testing.T, p *page, store client) error {
		t.Helper()
		_, err := store.Requeue(t.Context(), p.setAside(t))
		return err
	}},
	{"deduplicate", []string{handling}, deduplicate},
	{"look up what was handled", []string{relaying, handling}, func(t *testing.T, _ *page, store client) error {
		t.Helper()
		_, err := store.processed.IsProcessed(t.Context(), nil, "billing", "1")
		return err
	}},
	{"forget what was handled", []string{handling}, func(t *testing.T, _ *page, store client) error {
		t.Helper()
		_, err := store.processed.PurgeProcessedBefore(t.Context(), nil, time.Now())
		return err
	}},
}

func publishTo(t *testing.T, store client, n int) error {
	t.Helper()
	msgs := make([]*message.Message, n)
	for i := range msgs {
		msgs[i] = message.NewMessage(watermill.NewUUID(), []byte("payload"))
		outbox.SetKey(msgs[i], "key")
	}
	return store.RunInTx(t.Context(), func(_ context.Context, tx any) error {
		return outbox.PublisherWithTx(store.sqlStore, tx).Publish("topic", msgs...)
	})
}

// listen hears itself, where the store does.
func listen(t *testing.T, _ *page, store client) error {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	err := store.sqlStore.(outbox.Notifier).Notify(ctx, cancel)
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// relay claims, and settles in all the ways there are, renews its leases, and finds what was inserted by hand.
func relay(t *testing.T, p *page, store client) error {
	t.Helper()
	missed := make(chan struct{})
	var once sync.Once
	ctx := outbox.ContextWithObserver(t.Context(), outbox.ObserverFunc(func(_ context.Context, event outbox.Event) {
		if _, ok := event.(outbox.MissedEvent); ok {
			once.Do(func() { close(missed) })
		}
	}))
	admin, end := p.asAdmin(t)
	defer end()
	pgtest.Exec(t, p.server, "DELETE FROM "+p.schema+".outbox_messages") // of the other tasks
	require.NoError(t, publishTo(t, admin, 5))
	delayed := outbox.Message{Topic: "topic", UUID: "delayed", AvailableAt: time.Now().Add(50 * time.Millisecond)}
	require.NoError(t, admin.Save(ctx, nil, delayed))
	var claimed []outbox.Message
	claim := func(n int) error {
		claimed = nil
		for end := time.Now().Add(patience); len(claimed) < n; time.Sleep(time.Millisecond) {
			require.True(t, time.Now().Before(end), "%d of %d messages", len(claimed), n)
			msgs, err := store.Claim(ctx, 100, 1<<20) // fewer would be shared out among the keys
			if err != nil && !errors.Is(err, outbox.ErrNoLease) {
				return err
			}
			claimed = append(claimed, msgs...)
		}
		return nil
	}
	if err := claim(6); err != nil {
		return err
	}
	outcomes := make([]outbox.Outcome, len(claimed))
	for i, m := range claimed {
		outcomes[i] = outbox.Outcome{ID: m.ID, Status: outbox.StatusProcessed}
	}
	if err := store.Settle(ctx, outcomes[:2]...); err != nil { // a DELETE
		return err
	}
	outcomes[2].Archive = true
	outcomes[3].Status, outcomes[3].Err = outbox.StatusFailed, errors.New("refused")
	outcomes[4].Status, outcomes[4].Err = outbox.StatusPending, errors.New("down")
	if err := store.Settle(ctx, outcomes[2:]...); err != nil {
		return err
	}
	if err := claim(1); err != nil { // what has failed is read again by its id
		return err
	}
	if err := store.Settle(ctx, outbox.Outcome{ID: claimed[0].ID, Status: outbox.StatusProcessed}); err != nil {
		return err
	}
	p.awaitRenewal(t)
	pgtest.Exec(t, p.server, "INSERT INTO "+p.schema+".outbox_messages (id, topic) OVERRIDING SYSTEM VALUE VALUES (1, 'topic')")
	select {
	case <-missed:
	case <-time.After(patience):
		require.Fail(t, "no sweep has found the message")
	}
	if err := claim(1); err != nil {
		return err
	}
	return errors.Join(
		store.Settle(ctx, outbox.Outcome{ID: claimed[0].ID, Status: outbox.StatusProcessed}),
		store.Release(ctx),
	)
}

// awaitRenewal returns when the leases have been.
func (p *page) awaitRenewal(t *testing.T) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), p.server.URL())
	require.NoError(t, err)
	defer conn.Close(context.Background()) //nolint:errcheck // it has nothing to say
	var first, now time.Time
	for end := time.Now().Add(patience); first.IsZero() || !now.After(first); time.Sleep(10 * time.Millisecond) {
		require.True(t, time.Now().Before(end))
		require.NoError(t, conn.QueryRow(t.Context(), "SELECT min(expires_at) FROM "+p.schema+".outbox_slots").Scan(&now))
		if first.IsZero() {
			first = now
		}
	}
}

// forward has a Forwarder do it.
func forward(t *testing.T, p *page, store client) error {
	t.Helper()
	if err := store.CheckSchema(t.Context()); err != nil { // a Forwarder would try for half a second
		return err
	}
	admin, end := p.asAdmin(t)
	defer end()
	require.NoError(t, publishTo(t, admin, 10))
	errRefused := errors.New("refused")
	forwarder, err := outbox.NewForwarder(store.sqlStore, refusing{errRefused}, outbox.WithLogger(watermill.NopLogger{}),
		outbox.WithRetention(time.Hour), outbox.WithPermanentError(func(err error) bool { return errors.Is(err, errRefused) }))
	require.NoError(t, err)
	if _, err = forwarder.Drain(t.Context()); errors.Is(err, errRefused) {
		return nil
	}
	return err
}

// refusing is a broker's publisher.
type refusing struct{ err error }

func (r refusing) Publish(string, ...*message.Message) error { return r.err }
func (refusing) Close() error                                { return nil }

func inspect(t *testing.T, _ *page, store client) error {
	t.Helper()
	_, listErr := store.ListFailed(t.Context(), "", 10)
	_, countErr := store.CountFailed(t.Context())
	_, statsErr := store.Stats(t.Context())
	return errors.Join(listErr, countErr, statsErr)
}

// setAside returns the id of a message that was.
func (p *page) setAside(t *testing.T) string {
	t.Helper()
	pgtest.Exec(t, p.server, "INSERT INTO "+p.schema+".outbox_archive VALUES (1, 'uuid', 'topic', '', '', '{}', 10, NULL, "+
		"'refused', now(), 'failed', now()) ON CONFLICT DO NOTHING")
	return "1"
}

func deduplicate(t *testing.T, _ *page, store client) error {
	t.Helper()
	var errs []error
	for name, opts := range map[string][]outbox.DeduplicatorOption{"inside": nil, "elsewhere": {outbox.WithEffectElsewhere()}} {
		dedup, err := outbox.NewDeduplicator(store.processed, name, opts...)
		require.NoError(t, err)
		id, calls := watermill.NewUUID(), 0
		handle := dedup.Middleware(func(*message.Message) ([]*message.Message, error) { calls++; return nil, nil })
		for range 2 {
			_, err := handle(message.NewMessage(id, nil))
			errs = append(errs, err)
		}
		if err := errors.Join(errs...); err == nil {
			require.Equal(t, 1, calls)
		}
	}
	return errors.Join(errs...)
}

// The statements of the page are what each role needs for its work, all of them, and no role can do the work of another.
func TestPrivileges_OnThePageAreWhatEachRoleNeeds(t *testing.T) {
	t.Parallel()
	for _, server := range []pgtest.Server{pgtest.V15, pgtest.V18} {
		for kind := range clients {
			if testing.Short() && (server != pgtest.V15 || kind != "pgxstore") {
				continue
			}
			t.Run(server.Name+"/"+kind, func(t *testing.T) {
				t.Parallel()
				p := newPage(t, server, kind)
				require.Len(t, p.roles, 5)
				p.grantAll(t)
				for _, role := range []string{publishing, relaying, handling, inspecting} {
					t.Run(role, func(t *testing.T) { p.tryEverything(t, role) })
				}
			})
		}
	}
}

// grantAll has the tables made by who migrates, and grants all the others need.
func (p *page) grantAll(t *testing.T) {
	t.Helper()
	store, end := p.as(t, migrating)
	defer end()
	for _, g := range p.grants {
		if g.role == migrating {
			require.Equal(t, insufficientPrivilege, sqlstore.SQLState(store.Migrate(t.Context())), "before %s", g)
			p.run(t, "GRANT", "TO", g)
		}
	}
	require.NoError(t, store.Migrate(t.Context()))
	pgtest.Exec(t, p.server, "SELECT setval('"+p.schema+".outbox_messages_id_seq', 1000)") // leaves ids to insert by hand
	for _, g := range p.grants {
		if g.role != migrating {
			p.run(t, "GRANT", "TO", g)
		}
	}
}

// tryEverything has a role do each task, and its own ones again without each of its privileges.
func (p *page) tryEverything(t *testing.T, role string) {
	t.Helper()
	attempt := func(task task) error {
		store, end := p.as(t, role)
		defer end()
		return task.run(t, p, store)
	}
	var own []task
	for _, task := range tasks {
		if task.name == "listen" && !p.hears {
			continue
		}
		err := attempt(task)
		if slices.Contains(task.may, role) {
			require.NoError(t, err, "%s: %s", role, task.name)
			own = append(own, task)
		} else {
			require.Error(t, err, "%s may %s", role, task.name)
			require.Equal(t, insufficientPrivilege, sqlstore.SQLState(err), "%s: %s: %v", role, task.name, err)
		}
	}
	for _, g := range p.grants {
		if g.role != role {
			continue
		}
		t.Log("without ", g)
		p.run(t, "REVOKE", "FROM", g)
		needed := slices.ContainsFunc(own, func(task task) bool {
			return sqlstore.SQLState(attempt(task)) == insufficientPrivilege
		})
		assert.True(t, needed, "nothing needs %s", g)
		p.run(t, "GRANT", "TO", g)
	}
}

// Invariant: nobody but who migrates chooses ids. The relays go by them in order, so one that is too high would stop them
// all, and those that come next would stop whoever publishes.
func TestPrivileges_LetNobodyChooseIDs(t *testing.T) {
	t.Parallel()
	p := newPage(t, pgtest.V15, "pgxstore")
	p.grantAll(t)
	for _, role := range []string{publishing, relaying, handling, inspecting} {
		conn, err := pgx.Connect(t.Context(), p.address(t, role))
		require.NoError(t, err)
		for _, values := range []string{
			"(id, topic) OVERRIDING SYSTEM VALUE VALUES (9223372036854775807, 'topic')",
			"OVERRIDING SYSTEM VALUE VALUES (9223372036854775807)",
		} {
			_, err = conn.Exec(t.Context(), "INSERT INTO "+p.schema+".outbox_messages "+values)
			require.Equal(t, insufficientPrivilege, sqlstore.SQLState(err), "%s: %s: %v", role, values, err)
		}
		_, err = conn.Exec(t.Context(), "SELECT setval('"+p.schema+".outbox_messages_id_seq', 5000)")
		require.Equal(t, insufficientPrivilege, sqlstore.SQLState(err), "%s: %v", role, err)
		require.NoError(t, conn.Close(t.Context()))
	}
}
