package main

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// Half of the messages come twice in a shop with this trigger, the second time two seconds later. (Were it all of them,
// one that is lost would not show.)
var twice = []string{
	`CREATE FUNCTION shop.send_again() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
		INSERT INTO shop.outbox_messages (uuid, topic, key, payload, headers, available_at)
			VALUES (NEW.uuid, NEW.topic, NEW.key, NEW.payload, NEW.headers, clock_timestamp() + interval '2 s');
		RETURN NULL;
	END $$`,
	`CREATE TRIGGER send_again AFTER INSERT ON shop.outbox_messages
		FOR EACH ROW WHEN (pg_trigger_depth() = 0 AND hashtext(NEW.uuid) % 2 = 0) EXECUTE FUNCTION shop.send_again()`,
}

// customers are those whose orders were answered with 201.
type customers struct {
	mu    sync.Mutex
	names []string
}

// place places an order, and returns whether there was an answer.
func (c *customers) place(t *testing.T, p *process, customer string) bool {
	status, answer, err := p.request(http.MethodPost, "/orders", fmt.Sprintf(`{"customer": %q, "amount": 1990}`, customer))
	if err != nil {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if status != http.StatusCreated {
		t.Errorf("%s: %d %s", customer, status, answer) // and not require, since this is called by many goroutines
	}
	c.names = append(c.names, customer)
	return true
}

func (c *customers) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.names)
}

func TestShop_BillsEachOrderOnce_WhenItIsStoppedInTheMiddle(t *testing.T) {
	t.Parallel()
	db := newDatabase(t)
	first := start(t, db)
	db.exec(twice...)

	var accepted customers
	var clients sync.WaitGroup
	for client := range 16 {
		clients.Go(func() { // ends when the shop takes no more
			for i := 0; accepted.place(t, first, fmt.Sprintf("client %d, order %d", client, i)); i++ {
				if accepted.count() >= 100 {
					first.terminate()
				}
			}
		})
	}
	clients.Wait()
	first.awaitEnd()
	require.NotEmpty(t, db.texts(`SELECT uuid FROM shop.outbox_messages`), "this is for the next to do")

	second := start(t, db)
	for i := range 100 {
		clients.Go(func() { accepted.place(t, second, fmt.Sprintf("late client %d", i)) })
	}
	clients.Wait()
	eventually(t, func() bool { return db.text(`SELECT count(*)::text FROM shop.outbox_messages`) == "0" },
		"all is handled, and nothing set aside")
	second.terminate()
	second.awaitEnd()

	require.GreaterOrEqual(t, len(accepted.names), 200)
	require.ElementsMatch(t, accepted.names, db.texts(`SELECT customer FROM shop.orders`), "what was accepted is there")
	require.Equal(t, []string{"shipped"}, db.texts(`SELECT DISTINCT status FROM shop.orders`))
	require.Empty(t, db.texts(`SELECT id || ' has ' || (SELECT count(*) FROM shop.bills WHERE order_id = o.id) || ' bills'
		FROM shop.orders o WHERE (SELECT count(*) FROM shop.bills WHERE order_id = o.id) <> 1`))
	require.Equal(t, fmt.Sprint(2*len(accepted.names)), db.text(`SELECT count(*)::text FROM shop.outbox_processed`),
		"one message that an order was placed, one that it was billed")
	require.Empty(t, db.texts(`SELECT uuid FROM shop.outbox_archive`), "nothing was set aside")
}

func TestShop_FinishesRequestsUnderWay_WhenItIsStopped(t *testing.T) {
	t.Parallel()
	db := newDatabase(t)
	p := start(t, db)
	unlock := db.lock("shop.orders")
	var accepted customers
	var client sync.WaitGroup
	client.Go(func() { accepted.place(t, p, "ada") })
	db.awaitWaiting("shop.orders")

	p.terminate()
	p.await("msg=Stopping")
	unlock()
	client.Wait()
	p.awaitEnd()
	require.Equal(t, []string{"ada"}, accepted.names)
	require.Equal(t, []string{"ada"}, db.texts(`SELECT customer FROM shop.orders`))
}

func TestShop_HandlesAgain_WhatWasBeingHandledWhenItWasStopped(t *testing.T) {
	t.Parallel()
	db := newDatabase(t)
	p := start(t, db)
	unlock := db.lock("shop.bills")
	var accepted customers
	require.True(t, accepted.place(t, p, "ada"))
	db.awaitWaiting("shop.bills")

	p.terminate()
	p.await("msg=Stopping")
	p.await(`msg="Closing router"`) // which ends the handler's context
	unlock()
	p.awaitEnd()

	second := start(t, db)
	eventually(t, func() bool { return db.text("SELECT status FROM shop.orders") == "shipped" }, "Kafka delivers it again")
	require.Equal(t, "1", db.text("SELECT count(*)::text FROM shop.bills"))
	second.terminate()
	second.awaitEnd()
}

func TestShop_RefusesBadInput(t *testing.T) {
	t.Parallel()
	db := newDatabase(t)
	p := start(t, db)
	for _, body := range []string{
		``, `x`, `null`, `[]`, `{}`, `{"customer": "ada", "amount": 1} {}`,
		`{"amount": 1}`, `{"customer": "", "amount": 1}`, `{"customer": "a\u0000", "amount": 1}`,
		`{"customer": "` + strings.Repeat("a", 201) + `", "amount": 1}`,
		`{"customer": "ada"}`, `{"customer": "ada", "amount": 0}`, `{"customer": "ada", "amount": -1}`,
		`{"customer": "ada", "amount": 1.5}`, `{"customer": "ada", "amount": "1"}`,
		`{"customer": "ada", "amount": 10000001}`, `{"customer": "ada", "amount": 99999999999999999999}`,
		strings.Repeat(" ", 100_000) + `{"customer": "ada", "amount": 1}`,
	} {
		status, answer, err := p.request(http.MethodPost, "/orders", body)
		require.NoError(t, err)
		require.Equal(t, http.StatusBadRequest, status, body)
		require.Contains(t, answer, `{"error":"`, body)
	}
	require.Empty(t, db.texts(`SELECT customer FROM shop.orders`))

	status, _ := p.get("/orders/x")
	require.Equal(t, http.StatusBadRequest, status)
	status, _ = p.get("/orders/1")
	require.Equal(t, http.StatusNotFound, status)
}

func TestShop_IsAliveAndNotReady_WhileTheDatabaseIsDown(t *testing.T) {
	t.Parallel()
	db := newDatabase(t)
	p := start(t, db)
	status, _ := p.get("/readyz")
	require.Equal(t, http.StatusOK, status)

	db.on(db.admin, "ALTER DATABASE "+db.name+" ALLOW_CONNECTIONS false",
		"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '"+db.name+"'")
	status, _ = p.get("/readyz")
	require.Equal(t, http.StatusServiceUnavailable, status)
	status, _ = p.get("/healthz")
	require.Equal(t, http.StatusOK, status)

	db.on(db.admin, "ALTER DATABASE "+db.name+" ALLOW_CONNECTIONS true")
	eventually(t, func() bool {
		status, _ := p.get("/readyz")
		return status == http.StatusOK
	}, "it is ready again")
	var accepted customers
	require.True(t, accepted.place(t, p, "ada"))
	eventually(t, func() bool {
		_, order := p.get("/orders/1")
		return order == `{"id":1,"customer":"ada","amount":1990,"status":"shipped"}`
	}, "the order is handled")
	p.terminate()
	p.awaitEnd()
}

func TestShop_SaysThatAnOrderHasFailed_WhenItsMessageCannotBeHandled(t *testing.T) {
	t.Parallel()
	db := newDatabase(t)
	p := start(t, db)
	db.exec(`INSERT INTO shop.orders (customer, amount) VALUES ('ada', 1990)`,
		`INSERT INTO shop.outbox_messages (topic, key, payload) VALUES ('`+db.name+`.placed', '1', 'nonsense')`)
	eventually(t, func() bool {
		_, order := p.get("/orders/1")
		return strings.Contains(order, `"status":"failed"`)
	}, "the order has failed")
	require.Contains(t, p.logged(), `msg="An order needs somebody to look at it" order=1`)
	p.terminate()
	p.awaitEnd()
}
