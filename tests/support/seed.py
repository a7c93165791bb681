"""The seed of random tests: new for each run, printed, and repeated with WALBUS_TEST_SEED=N."""

from __future__ import annotations

import os
import random


def announced_seed(what: str) -> int:
    """The run's seed, printed (pytest shows it with a failure)."""
    seed = int(os.environ.get("WALBUS_TEST_SEED") or random.SystemRandom().randrange(10**6))
    print(f"seed of {what}: WALBUS_TEST_SEED={seed}")
    return seed
