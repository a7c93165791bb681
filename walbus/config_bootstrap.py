"""What the section of the bootstrap has to do with that of the relay."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from walbus.config import BootstrapConfig, RelayConfig


def check_bootstrap(bootstrap: BootstrapConfig, relay: RelayConfig) -> None:
    """Sees that the bootstrap can read where it is told to.

    Raises:
        ValueError: names the keys.
    """
    if bootstrap.read_from == "relay":
        return
    if relay.engine != "kafka":
        raise ValueError('bootstrap.read_from = "kafka" needs engine = "kafka" in the section relay')
    if bootstrap.complete:
        raise ValueError(
            'bootstrap.complete is served from the files of a relay, which read_from = "kafka" is without:'
            " take one of the two out"
        )
