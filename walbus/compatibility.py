"""The levels of compatibility that the subjects of a schema registry can keep; `walbus.topics.compatibility` checks."""

from __future__ import annotations

from typing import Final, Literal, get_args

Level = Literal["NONE", "BACKWARD", "BACKWARD_TRANSITIVE", "FORWARD", "FORWARD_TRANSITIVE", "FULL", "FULL_TRANSITIVE"]
LEVELS: Final[tuple[Level, ...]] = get_args(Level)
