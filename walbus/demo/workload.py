"""The shop: a workload that does everything to rows that a change feed must survive. No I/O; randomness is passed in.

A `Shop` deals out transactions, one after another, as SQL with parameters. It remembers which keys live, so that
every statement finds its rows, and plays each transaction on a copy of that memory first: what is rolled back, to a
savepoint or whole, is forgotten again.

Several shops work at once on the same tables, each on keys of its own (`worker` of `workers`), so that their
transactions lie interleaved in the WAL and never wait for each other.

    customers    bigint key that changes now and then (orders follow by ON UPDATE CASCADE)
    products     text key that changes, arrays, floats
    orders       several rows a transaction with their lines; cancelled ones go by ON DELETE CASCADE
    order_lines  key of two columns
    reviews      a body of 9 to 12 KB that does not compress, so that PostgreSQL stores it out of line (TOAST); most
                 updates do not touch it, and even the key changes without it
"""

from __future__ import annotations

import base64
import json
import random
import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import LiteralString, TypeVar

from walbus.demo.shop_schema import NEW_CUSTOMER, NEW_LINE, NEW_ORDER, NEW_PRODUCT, NEW_REVIEW

K = TypeVar("K")

_WORDS = re.findall(
    r"\S+",
    "quick brown lazy fox dog river stone paper copper silver velvet winter summer morning lantern harbour garden"
    " thunder whisper ember meadow saddle compass bottle candle anchor pepper ginger naïve façade Zürich žluťoučký"
    ' 東京 🦊 o\'clock "quoted" back\\slash comma,comma {brace} <tag>',
)
_NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Statement:
    """One SQL statement with its parameters, in psycopg's form."""

    sql: LiteralString
    parameters: tuple[object, ...] = ()


@dataclass(frozen=True, slots=True)
class Work:
    """One transaction: its statements (savepoints among them), and whether it commits."""

    statements: tuple[Statement, ...]
    commits: bool = True


@dataclass
class _Memory:
    """Which keys live, and what refers to what."""

    customers: dict[int, None] = field(default_factory=dict)
    products: dict[str, None] = field(default_factory=dict)
    orders: dict[int, int] = field(default_factory=dict)  # to the customer
    lines: dict[tuple[int, int], str] = field(default_factory=dict)  # to the product
    reviews: dict[int, str] = field(default_factory=dict)  # to the product

    def copy(self) -> _Memory:
        """The same keys, to be changed on trial."""
        return _Memory(
            dict(self.customers), dict(self.products), dict(self.orders), dict(self.lines), dict(self.reviews)
        )

    def forget_order(self, order: int) -> None:
        """An order goes, with its lines."""
        del self.orders[order]
        for key in [key for key in self.lines if key[0] == order]:
            del self.lines[key]


class Shop:
    """One session's share of the shop.

    Args:
        rng: decides everything; equal generators give equal work.
        worker: number of this session, from 0.
        workers: how many sessions there are.
    """

    def __init__(self, rng: random.Random, worker: int = 0, workers: int = 1) -> None:
        self._rng = rng
        self._worker = worker
        self._workers = workers
        self._memory = _Memory()
        self._last_id = 0  # never goes back, so that the id of a row that was rolled back is not used again
        self._actions, self._weights = zip(*self._choices(), strict=True)

    def opening(self, rows: int) -> Iterator[Statement]:
        """Inserts that fill the tables with about `rows` rows, table after table; always the first thing asked."""
        for _ in range(rows // 8):
            yield from self._new_customer()
        for _ in range(rows // 16):
            yield from self._new_product()
        orders = [list(self._new_order()) for _ in range(rows // 5)]
        for sql in (NEW_ORDER, NEW_LINE):
            yield from (s for order in orders for s in order if s.sql == sql)
        for _ in range(rows // 25):
            yield from self._new_review()

    def work(self) -> Iterator[Work]:
        """Transactions without end."""
        while True:
            yield self._transaction()

    def _choices(self) -> list[tuple[Callable[[], Iterator[Statement]], int]]:
        return [
            (self._new_order, 30),
            (self._advance_order, 18),
            (self._reprice_product, 12),
            (self._edit_customer, 10),
            (self._new_customer, 8),
            (self._star_review, 8),
            (self._new_review, 5),
            (self._cancel_order, 7),
            (self._rewrite_review, 2),
            (self._delete_review, 3),
            (self._drop_line, 2),
            (self._delete_customer, 2),
            (self._new_product, 2),
            (self._change_customer_key, 1),
            (self._change_sku, 2),
            (self._renumber_review, 2),
            (self._reprice_many, 1),
            (self._replace_order, 1),
        ]

    def _transaction(self) -> Work:
        dice = self._rng.random()
        if dice < 0.05:
            return Work(tuple(self._on_trial()), commits=False)
        statements = self._several()
        if dice < 0.12:
            statements += [Statement("SAVEPOINT doubt"), *self._on_trial(), Statement("ROLLBACK TO SAVEPOINT doubt")]
            statements += self._several()
        return Work(tuple(statements))

    def _on_trial(self) -> list[Statement]:
        kept, self._memory = self._memory, self._memory.copy()
        try:
            return self._several()
        finally:
            self._memory = kept

    def _several(self) -> list[Statement]:
        count = self._rng.choices((1, 2, 5), (80, 15, 5))[0]
        actions = self._rng.choices(self._actions, self._weights, k=count)
        return [statement for action in actions for statement in action()]

    # Inserts

    def _new_customer(self) -> Iterator[Statement]:
        rng, key = self._rng, self._next_id()
        self._memory.customers[key] = None
        born = rng.choice((None, "infinity", "0044-03-15 BC", f"19{rng.randrange(10, 99)}-0{rng.randrange(1, 9)}-12"))
        name = rng.choice((None, "", self._title()))
        preferences = json.dumps({"theme": rng.choice(_WORDS), "limits": [1, None, rng.random()]})
        yield Statement(
            NEW_CUSTOMER,
            (key, f"{key}@example.org", name, self._money(), rng.random() < 0.1, born, preferences, self._moment()),
        )

    def _new_product(self) -> Iterator[Statement]:
        rng, sku = self._rng, self._new_sku()
        self._memory.products[sku] = None
        tags = rng.choice((None, [], [rng.choice(_WORDS), None, rng.choice(_WORDS)]))
        weight = rng.choice((None, float("nan"), 0.1 + rng.random()))
        yield Statement(
            NEW_PRODUCT,
            (sku, self._title(), self._title(30), self._money(), rng.randrange(1000), weight, tags, self._moment()),
        )

    def _new_order(self) -> Iterator[Statement]:
        if not self._memory.products or not self._memory.customers:
            yield from self._new_product()
            yield from self._new_customer()
        yield from self._order_of(self._next_id())

    def _order_of(self, order: int) -> Iterator[Statement]:
        rng, customer = self._rng, self._any(self._memory.customers)
        self._memory.orders[order] = customer
        token = uuid.UUID(int=rng.getrandbits(128))
        note = rng.choice((None, "", self._title(8)))
        yield Statement(NEW_ORDER, (order, customer, "new", self._money(), token, note, self._moment()))
        for line in range(1, rng.randrange(2, 6)):
            sku = self._any(self._memory.products)
            self._memory.lines[order, line] = sku
            quantity = rng.randrange(1, 9)
            yield Statement(NEW_LINE, (order, line, sku, quantity, self._money()))
            yield Statement("UPDATE products SET stock = stock - %s WHERE sku = %s", (quantity, sku))

    def _new_review(self) -> Iterator[Statement]:
        if not self._memory.products:
            yield from self._new_product()
        rng, key, sku = self._rng, self._next_id(), self._any(self._memory.products)
        self._memory.reviews[key] = sku
        photo = rng.choice((None, b"", rng.randbytes(40)))
        yield Statement(
            NEW_REVIEW,
            (
                key,
                sku,
                rng.randrange(1, 6),
                self._title(),
                self._long_text(),
                photo,
                self._moment().replace(tzinfo=None),
            ),
        )

    # Updates

    def _advance_order(self) -> Iterator[Statement]:
        if self._memory.orders:
            status = self._rng.choice(("paid", "packed", "sent", "delivered", "returned"))
            yield Statement("UPDATE orders SET status = %s WHERE id = %s", (status, self._any(self._memory.orders)))

    def _reprice_product(self) -> Iterator[Statement]:
        if self._memory.products:
            yield Statement(
                "UPDATE products SET price = %s, updated_at = %s WHERE sku = %s",
                (self._money(), self._moment(), self._any(self._memory.products)),
            )

    def _reprice_many(self) -> Iterator[Statement]:
        skus = self._rng.sample(list(self._memory.products), min(25, len(self._memory.products)))
        yield Statement(
            "UPDATE products SET price = round(price * 1.01 + 0.01, 2) %% 9999 WHERE sku = ANY (%s)", (skus,)
        )

    def _edit_customer(self) -> Iterator[Statement]:
        if self._memory.customers:
            yield Statement(
                "UPDATE customers SET name = %s, balance = balance + %s, vip = NOT vip WHERE id = %s",
                (self._title(), Decimal(self._rng.randrange(-500, 500)) / 100, self._any(self._memory.customers)),
            )

    def _star_review(self) -> Iterator[Statement]:
        if self._memory.reviews:
            yield Statement(
                "UPDATE reviews SET stars = %s, title = %s WHERE id = %s",
                (self._rng.randrange(1, 6), self._title(), self._any(self._memory.reviews)),
            )

    def _rewrite_review(self) -> Iterator[Statement]:
        if self._memory.reviews:
            key = self._any(self._memory.reviews)
            yield Statement("UPDATE reviews SET body = %s WHERE id = %s", (self._long_text(), key))

    # Changes of the key

    def _change_customer_key(self) -> Iterator[Statement]:
        if self._memory.customers:
            old, new = self._any(self._memory.customers), self._next_id()
            del self._memory.customers[old]
            self._memory.customers[new] = None
            for order, customer in self._memory.orders.items():
                if customer == old:
                    self._memory.orders[order] = new
            yield Statement("UPDATE customers SET id = %s WHERE id = %s", (new, old))

    def _change_sku(self) -> Iterator[Statement]:
        if self._memory.products:
            old, new = self._any(self._memory.products), self._new_sku()
            del self._memory.products[old]
            self._memory.products[new] = None
            for key, sku in self._memory.lines.items():
                if sku == old:
                    self._memory.lines[key] = new
            for review, sku in self._memory.reviews.items():
                if sku == old:
                    self._memory.reviews[review] = new
            yield Statement("UPDATE products SET sku = %s WHERE sku = %s", (new, old))

    def _renumber_review(self) -> Iterator[Statement]:
        if self._memory.reviews:
            old, new = self._any(self._memory.reviews), self._next_id()
            self._memory.reviews[new] = self._memory.reviews.pop(old)
            yield Statement("UPDATE reviews SET id = %s WHERE id = %s", (new, old))

    # Deletes

    def _cancel_order(self) -> Iterator[Statement]:
        if self._memory.orders:
            order = self._any(self._memory.orders)
            self._memory.forget_order(order)
            yield Statement("DELETE FROM orders WHERE id = %s", (order,))

    def _replace_order(self) -> Iterator[Statement]:
        if self._memory.orders and self._memory.products:
            order = self._any(self._memory.orders)
            self._memory.forget_order(order)
            yield Statement("DELETE FROM orders WHERE id = %s", (order,))
            yield from self._order_of(order)  # the same key lives again in the same transaction

    def _drop_line(self) -> Iterator[Statement]:
        if self._memory.lines:
            order, line = key = self._any(self._memory.lines)
            del self._memory.lines[key]
            yield Statement("DELETE FROM order_lines WHERE order_id = %s AND line = %s", (order, line))

    def _delete_review(self) -> Iterator[Statement]:
        if self._memory.reviews:
            key = self._any(self._memory.reviews)
            del self._memory.reviews[key]
            yield Statement("DELETE FROM reviews WHERE id = %s", (key,))

    def _delete_customer(self) -> Iterator[Statement]:
        if len(self._memory.customers) > 1:
            key = self._any(self._memory.customers)
            del self._memory.customers[key]
            for order in [order for order, customer in self._memory.orders.items() if customer == key]:
                self._memory.forget_order(order)
            yield Statement("DELETE FROM customers WHERE id = %s", (key,))

    # Values

    def _next_id(self) -> int:
        self._last_id += 1
        return self._last_id * self._workers + self._worker

    def _new_sku(self) -> str:
        return f"{self._rng.choice('ABCDEF')}-{self._next_id()}"

    def _any(self, keys: Mapping[K, object]) -> K:
        return self._rng.choice(list(keys))

    def _money(self) -> Decimal:
        return Decimal(self._rng.randrange(1, 999_999)) / 100

    def _moment(self) -> datetime:
        return _NOON + timedelta(microseconds=self._rng.randrange(10**13))

    def _title(self, words: int = 4) -> str:
        return " ".join(self._rng.choices(_WORDS, k=words))

    def _long_text(self) -> str:
        noise = base64.b64encode(self._rng.randbytes(self._rng.randrange(7_000, 9_000))).decode()
        return f"{self._title(12)}\n{noise}"
