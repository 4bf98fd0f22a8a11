package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/watermill-outbox/outbox/store/pgxstore"
)

type order struct {
	ID       int64  `json:"id"`
	Customer string `json:"customer"`
	Amount   int64  `json:"amount"` // in cents
	Status   string `json:"status"`
}

type api struct {
	pool   *pgxpool.Pool
	store  *pgxstore.Store
	topics topics
}

func newAPI(pool *pgxpool.Pool, store *pgxstore.Store, topics topics) http.Handler {
	a := api{pool, store, topics}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /orders", a.place)
	mux.HandleFunc("GET /orders/{id}", a.get)
	mux.HandleFunc("GET /healthz", a.healthz)
	mux.HandleFunc("GET /readyz", a.readyz)
	return http.TimeoutHandler(mux, requestTimeout, `{"error": "this takes too long"}`)
}

// place writes the order and the event about it in one transaction: both are there, or neither is. It takes orders while
// the broker is down, too.
func (a api) place(w http.ResponseWriter, r *http.Request) {
	var o order
	if err := o.read(http.MaxBytesReader(w, r.Body, 64<<10)); err != nil {
		answer(w, http.StatusBadRequest, problem{err.Error()})
		return
	}
	ctx := r.Context()
	err := pgx.BeginFunc(ctx, a.pool, func(tx pgx.Tx) error {
		const insert = `INSERT INTO orders (customer, amount) VALUES ($1, $2) RETURNING id`
		if err := tx.QueryRow(ctx, insert, o.Customer, o.Amount).Scan(&o.ID); err != nil {
			return err
		}
		msg, err := event{OrderID: o.ID, Amount: o.Amount}.message()
		if err != nil {
			return err
		}
		return a.store.Publisher(tx).Publish(a.topics.placed, msg)
	})
	if err != nil {
		fail(w, "Placing an order failed", err)
		return
	}
	w.Header().Set("Location", "/orders/"+strconv.FormatInt(o.ID, 10))
	answer(w, http.StatusCreated, map[string]int64{"id": o.ID})
}

// read sets what a client may say of an order. Its errors are for the client.
func (o *order) read(body io.Reader) error {
	data, err := io.ReadAll(body)
	if err != nil {
		return err
	}
	if json.Unmarshal(data, o) != nil {
		return errors.New(`the body must be JSON like {"customer": "ada", "amount": 1990}`)
	}
	switch {
	case o.Customer == "" || len(o.Customer) > 200 || strings.ContainsRune(o.Customer, 0): // which PostgreSQL refuses
		return errors.New("customer must have 1 to 200 bytes, without NUL")
	case o.Amount < 1 || o.Amount > 100_000_00:
		return errors.New("amount must be 1 to 10000000 cents")
	}
	return nil
}

func (a api) get(w http.ResponseWriter, r *http.Request) {
	id, err := strconv.ParseInt(r.PathValue("id"), 10, 64)
	if err != nil {
		answer(w, http.StatusBadRequest, problem{"the id of an order is a number"})
		return
	}
	rows, _ := a.pool.Query(r.Context(), `SELECT id, customer, amount, status FROM orders WHERE id = $1`, id)
	switch o, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByName[order]); {
	case errors.Is(err, pgx.ErrNoRows):
		answer(w, http.StatusNotFound, problem{"there is no such order"})
	case err != nil:
		fail(w, "Getting an order failed", err)
	default:
		answer(w, http.StatusOK, o)
	}
}

// healthz tells whether the process should live. A database that is down is no reason to restart it.
func (a api) healthz(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) }

// readyz tells whether requests should come here. They need the database, and nothing else.
func (a api) readyz(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), time.Second)
	defer cancel()
	if err := a.pool.Ping(ctx); err != nil {
		slog.Warn("Not ready", "err", err)
		answer(w, http.StatusServiceUnavailable, problem{"the database does not answer"})
	}
}

type problem struct {
	Error string `json:"error"`
}

func fail(w http.ResponseWriter, what string, err error) {
	slog.Error(what, "err", err) // which is not for the client
	answer(w, http.StatusInternalServerError, problem{"something went wrong"})
}

func answer(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	if err := json.NewEncoder(w).Encode(body); err != nil {
		slog.Info("A client has gone", "err", err)
	}
}
