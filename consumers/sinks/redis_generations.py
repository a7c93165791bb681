"""Generations of a consumer's rows in one Redis: which one is live, and where each one lies.

The first one, 0, lies where `key` says. Each later one was filled by `walbus rebuild`, and lies below a prefix of its
own, which the pointer names to readers. The sink's own keys for it lie apart in the same way.

    generation                  0                   1
    a row                       KEY                 walbus:NAME:rows:1:KEY
    the sink's own keys         walbus:NAME:…       walbus:NAME:1:…

The key `walbus:NAME:checkpoint` has the checkpoint of the live one, and its number before that. So whoever writes
another generation than the live one never finds there what it stored last, and is fenced; and who reads the key knows
both at once. Until there is a checkpoint a sign stands in its place, which is another one each time: it is lost with
what is written meanwhile, and one copy is told by it from the next one of its number. No I/O.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

_BEGUN: Final = "begun "


@dataclass(frozen=True, slots=True)
class Generation:
    """One generation of a consumer's rows."""

    consumer: str
    number: int = 0

    @property
    def own(self) -> str:
        """What the sink's own keys for it begin with."""
        return f"walbus:{self.consumer}:{f'{self.number}:' if self.number else ''}"

    @property
    def rows(self) -> str:
        """What its rows' keys begin with, before what the sink's `key` makes of them."""
        return f"{rows_of(self.consumer)}{self.number}:" if self.number else ""


def rows_of(consumer: str) -> str:
    """What the rows of all generations but the first begin with."""
    return f"walbus:{consumer}:rows:"


def pointed(consumer: str, prefix: str) -> Generation:
    """The generation that a pointer names; the first one if it names none of the consumer's."""
    match = re.fullmatch(rf"{re.escape(rows_of(consumer))}(\d+):", prefix)
    return Generation(consumer, int(match[1]) if match else 0)


def stamped(generation: Generation, checkpoint: str) -> str:
    """The text that is stored of a generation's checkpoint."""
    return f"{generation.number} {checkpoint}" if generation.number else checkpoint


def unstamped(text: str) -> tuple[int, str]:
    """The inverse of `stamped`: number and checkpoint; of what is no such text, 0 and all of it."""
    number, _, checkpoint = text.partition(" ")
    return (int(number), checkpoint) if number.isdecimal() and checkpoint else (0, text)


def begun(sign: str) -> str:
    """What stands in the place of a checkpoint that there is none of yet."""
    return f"{_BEGUN}{sign}"


def is_begun(stored: str) -> bool:
    """Whether a stored text is that."""
    return unstamped(stored)[1].startswith(_BEGUN)


__all__ = ["Generation", "begun", "is_begun", "pointed", "rows_of", "stamped", "unstamped"]
