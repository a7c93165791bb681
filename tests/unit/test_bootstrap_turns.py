"""The ledger's lock goes round: nobody is kept out by a thread that always wants it again."""

from __future__ import annotations

import threading

from support.waiting import wait_for
from walbus.bootstrap.applier import BATCH_BYTES, next_batch_bytes
from walbus.bootstrap.turns import TurnLock


def test_a_loop_that_lets_go_for_a_moment_keeps_nobody_out() -> None:
    lock, stop, rounds, turns = TurnLock(), threading.Event(), [0], [0]

    def loop() -> None:
        while not stop.is_set():
            with lock:
                rounds[0] += 1
                sum(range(20_000))

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        wait_for(lambda: rounds[0] > 10, what="the loop runs")
        for _ in range(50):
            before = rounds[0]
            with lock:
                assert rounds[0] <= before + 2
                turns[0] += 1
    finally:
        stop.set()
        thread.join()
    assert turns[0] == 50


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
