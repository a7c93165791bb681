"""The cores that a suite runs on: the native one, and its twin in Python."""

from __future__ import annotations

import os

import pytest

from walbus.native import Implementation, native_implementation, pure_implementation

NAMES = ("native", "pure")


def implementation(name: str) -> Implementation:
    """Skips where the extension was not built; fails instead where everything is required."""
    if name == "pure":
        return pure_implementation("for a test")
    try:
        return native_implementation()
    except ImportError as error:
        if os.environ.get("WALBUS_REQUIRE_SERVICES"):
            raise
        pytest.skip(f"the native core was not built: {error}")
