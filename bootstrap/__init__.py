"""Bootstrap: the latest row of every key, for consumers that come late.

The way of the data, in the order of the files:

    applier.py     the log's events                  ─┐
                                                      ├─► ledger.py ─► staging.py ─► store.py (rocks.py, rocks_bulk.py)
    seeder.py      what is to be seeded, and when     │      │
      seeding.py   one job: plan, chunk, read again  ─┘      └─ fold.py: the rule of who wins
        chunks.py, catalog.py, copytext.py: the source           entry.py, visibility.py: what it speaks of
    state.py, runs.py   where each table stands: stored, and at work
    serving.py     a view of the store as records ─► server.py (HTTP)
    service.py     the process

`fold`, `visibility`, `entry`, `unseen`, `copytext` and `pace` do no I/O. `docs/bootstrap.md` explains the rule.
"""

from __future__ import annotations

from walbus.bootstrap.service import run_bootstrap

__all__ = ["run_bootstrap"]
