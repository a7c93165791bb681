"""The seed of random tests: new for each run, printed, and repeated with WALBUS_TEST_SEED=N."""

from __future__ import annotations

import os
import random


def announced_seed(what: str) -> int:
    """The run's seed, or one for this test alone; printed (pytest shows it with a failure)."""
    seed = int(os.environ.get("WALBUS_TEST_SEED") or _new())
    print(f"seed of {what}: WALBUS_TEST_SEED={seed}")
    return seed


def shared_seed() -> int:
    """The run's seed, which programs started from here on have too."""
    return int(os.environ.setdefault("WALBUS_TEST_SEED", str(_new())))


def _new() -> int:
    return random.SystemRandom().randrange(10**6)
