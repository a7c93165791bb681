"""The shop's tables, and the statements that make their rows."""

from __future__ import annotations

from typing import LiteralString

#: Tables in the order in which their rows can be made.
TABLES = ("customers", "products", "orders", "order_lines", "reviews")

SCHEMA: LiteralString = """
CREATE TABLE customers (
    id bigint PRIMARY KEY,
    email text NOT NULL,
    name text,
    balance numeric(12,2) NOT NULL DEFAULT 0,
    vip boolean NOT NULL DEFAULT false,
    born date,
    preferences jsonb,
    created_at timestamptz NOT NULL
);
CREATE TABLE products (
    sku text PRIMARY KEY,
    title text NOT NULL,
    description text,
    price numeric(10,2) NOT NULL,
    stock integer NOT NULL,
    weight double precision,
    tags text[],
    updated_at timestamptz
);
CREATE TABLE orders (
    id bigint PRIMARY KEY,
    customer_id bigint NOT NULL REFERENCES customers ON UPDATE CASCADE ON DELETE CASCADE,
    status text NOT NULL,
    total numeric NOT NULL,
    token uuid,
    note text,
    placed_at timestamptz NOT NULL
);
CREATE TABLE order_lines (
    order_id bigint REFERENCES orders ON UPDATE CASCADE ON DELETE CASCADE,
    line integer,
    sku text NOT NULL REFERENCES products ON UPDATE CASCADE,
    quantity smallint NOT NULL,
    price numeric(10,2) NOT NULL,
    PRIMARY KEY (order_id, line)
);
CREATE TABLE reviews (
    id bigint PRIMARY KEY,
    sku text NOT NULL REFERENCES products ON UPDATE CASCADE ON DELETE CASCADE,
    stars smallint NOT NULL,
    title text,
    body text NOT NULL,
    photo bytea,
    written_at timestamp NOT NULL
);
CREATE INDEX ON orders (customer_id);
CREATE INDEX ON order_lines (sku);
CREATE INDEX ON reviews (sku);
"""

NEW_CUSTOMER: LiteralString = (
    "INSERT INTO customers (id, email, name, balance, vip, born, preferences, created_at)"
    " VALUES (%s, %s, %s, %s, %s, %s::date, %s::jsonb, %s)"
)
NEW_PRODUCT: LiteralString = (
    "INSERT INTO products (sku, title, description, price, stock, weight, tags, updated_at)"
    " VALUES (%s, %s, %s, %s, %s, %s, %s, %s)"
)
NEW_ORDER: LiteralString = (
    "INSERT INTO orders (id, customer_id, status, total, token, note, placed_at) VALUES (%s, %s, %s, %s, %s, %s, %s)"
)
NEW_LINE: LiteralString = "INSERT INTO order_lines (order_id, line, sku, quantity, price) VALUES (%s, %s, %s, %s, %s)"
NEW_REVIEW: LiteralString = (
    "INSERT INTO reviews (id, sku, stars, title, body, photo, written_at) VALUES (%s, %s, %s, %s, %s, %s, %s)"
)
