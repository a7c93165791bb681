"""Bootstrap: the latest row of every key, for consumers that come late.

The way of the data, in the order of the files:

    applier.py, batch.py   the log's events            ─┐
                                                        ├─► ledger.py ─► staging.py ─► store.py (rocks*.py)
    seeder.py      what is to be seeded, and when       │      │           ▲
      requests.py  who asks for it                      │      └─ fold.py: the rule of who wins
      seeding.py   one job: plan, chunk, read again    ─┴─► bulk.py ───────┘ past the fold
        chunks.py, catalog.py: the source; pace.py         entry.py, visibility.py: what the rule speaks of
    generations.py      which generations a table has; the ledger's other half
    net_difference.py   what separates two of them ─► telling.py, handing.py ─► files for capture, and by it the log
    verifying.py        store and source compared, by key_ranges.py; judging.py, seen_rows.py: what is really wrong
      verify_requests.py  who asks for it
    completions.py      what rows were before their changes ─► completing.py: records with whole rows
      completed_log.py, completed_routes.py: the log so, over HTTP
    state.py, runs.py   where each table stands: stored, and at work
    serving.py     a view of the store as records ─► server.py (HTTP); seq_at.py: the seq of a place in the log
    keeper.py      once a second: sync, hold (file_hold.py), figures, upkeep.py (change_index.py, horizon.py)
    service.py     the process, which is one life.py after the other (store_folder.py, threads.py);
      allocator.py   its memory

`change_index`, `completing`, `fold`, `horizon`, `visibility`, `entry`, `unseen`, `net_difference`, `seen_rows` and
`pace` do no I/O; COPY's rows are encoded by `walbus.native`. `docs/bootstrap.md` explains the rule.
"""

from __future__ import annotations

from walbus.bootstrap.service import run_bootstrap

__all__ = ["run_bootstrap"]
