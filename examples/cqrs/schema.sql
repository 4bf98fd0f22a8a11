-- Nothing is unique, so that a message that has its effect twice would show.
CREATE TABLE requests (order_id TEXT NOT NULL);
CREATE TABLE orders (id TEXT NOT NULL, amount INTEGER NOT NULL);
CREATE TABLE invoices (order_id TEXT NOT NULL, amount INTEGER NOT NULL);
CREATE TABLE sales (orders INTEGER NOT NULL, amount INTEGER NOT NULL);
INSERT INTO sales VALUES (0, 0);
