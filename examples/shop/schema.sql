CREATE TABLE IF NOT EXISTS orders (
    id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    customer text   NOT NULL,
    amount   bigint NOT NULL,                  -- in cents
    status   text   NOT NULL DEFAULT 'placed'  -- then billed, shipped; or failed
);

-- Nothing here keeps an order from being billed twice: the Deduplicator does.
CREATE TABLE IF NOT EXISTS bills (
    id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    order_id bigint NOT NULL REFERENCES orders,
    amount   bigint NOT NULL
);
