"""Waiting for a condition with a deadline: what tests do instead of sleeping."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_for(condition: Callable[[], T], deadline: float = 60.0, *, what: str = "", every: float = 0.01) -> T:
    """Calls `condition` until its result is true, and returns that result.

    An exception of the condition counts as "not yet" and is shown when time is up.

    Args:
        condition: called again and again.
        deadline: seconds from now; the usual ones only keep a test from hanging, on however busy a machine.
        what: what is waited for, for the failure's message.
        every: seconds between two calls.

    Raises:
        AssertionError: it did not become true in time.
    """
    end = time.monotonic() + deadline
    while True:
        failure: BaseException | None = None
        result: T | None = None
        try:
            result = condition()
        except Exception as error:
            failure = error
        if result:
            return result
        if time.monotonic() >= end:
            seen = f"raised {failure!r}" if failure else f"was {result!r}"
            raise AssertionError(f"not within {deadline} s: {what or condition} (last {seen})") from failure
        time.sleep(every)
