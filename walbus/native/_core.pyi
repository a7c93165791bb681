# Types of the native core; `walbus.native.interface` says what they do.

from collections.abc import Callable

from walbus.native import interface

INTERFACE: int
Core: Callable[[], interface.Core]

def seal(records: bytes, base: int) -> bytes: ...
