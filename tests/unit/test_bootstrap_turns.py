"""The ledger's lock goes round: nobody is kept out by a thread that always wants it again."""

from __future__ import annotations

import threading

from support.waiting import wait_for
from walbus.bootstrap.applier import BATCH_BYTES, next_batch_bytes
from walbus.bootstrap.turns import TurnLock


def test_a_loop_that_lets_go_for_a_moment_keeps_nobody_out() -> None:
    lock, stop, rounds, turns, met, kept_out = TurnLock(), threading.Event(), [0], [0], [0], list[int]()

    def loop() -> None:
        owed = -1  # how many turns there were when the lock was let go of while somebody waited
        while not stop.is_set():
            with lock:
                rounds[0] += 1
                if owed == turns[0]:
                    kept_out.append(rounds[0])
                sum(range(20_000))
                owed = turns[0] if lock.waiting else -1
                met[0] += owed >= 0

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        wait_for(lambda: rounds[0] > 10, what="the loop runs")
        while met[0] < 50:
            with lock:
                turns[0] += 1
    finally:
        stop.set()
        thread.join()
    assert kept_out == []
    assert turns[0] >= 49


def test_it_goes_to_those_who_wait_in_their_order_and_to_one_at_a_time() -> None:
    lock, order, inside = TurnLock(), list[int](), [0]

    def take(number: int) -> None:
        with lock, lock:  # again, while it is held
            inside[0] += 1
            assert inside[0] == 1
            order.append(number)
            inside[0] -= 1

    threads = [threading.Thread(target=take, args=(number,)) for number in range(8)]
    with lock:
        for number, thread in enumerate(threads):
            thread.start()
            wait_for(lambda number=number: lock.waiting == number + 1, what="it waits")
    for thread in threads:
        thread.join()
    assert order == list(range(8))
    with lock:
        assert lock.waiting == 0


def test_a_batch_shrinks_where_it_locks_the_ledger_for_long_and_grows_again() -> None:
    limit = BATCH_BYTES
    for _ in range(20):
        limit = next_batch_bytes(limit, limit, 5.0)
    assert 0 < limit <= 64 << 10
    assert next_batch_bytes(limit, limit // 2, 0.0) == limit  # the log had no more
    for _ in range(20):
        limit = next_batch_bytes(limit, limit, 0.01)
    assert limit == BATCH_BYTES
