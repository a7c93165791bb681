"""Every route of every server has a rule: one that is added without is refused to everybody, and found here."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest
from aiohttp import web

from walbus.bootstrap.ledger import Ledger
from walbus.bootstrap.report import Report
from walbus.bootstrap.server import BootstrapServer
from walbus.config import RelayConfig
from walbus.relay.access import RULES, Need
from walbus.relay.server import RelayServer


def applications() -> dict[str, web.Application]:
    bootstrap = BootstrapServer(cast(Ledger, None), cast(Report, None))
    relay = RelayServer(Path("nowhere"), RelayConfig(), None, Path("nowhere"), {})
    return {"relay": relay.application(), "bootstrap": bootstrap.application()}


def routes() -> set[str]:
    return {
        f"{route.method} {route.resource.canonical}"
        for application in applications().values()
        for route in application.router.routes()
        if route.resource is not None
    }


def test_every_route_has_a_rule_and_every_rule_a_route() -> None:
    assert len(routes()) >= 9
    assert routes() == set(RULES)


@pytest.mark.parametrize("route", sorted(routes()))
def test_only_what_probes_ask_needs_no_token(route: str) -> None:
    assert (RULES[route] is Need.NOTHING) == (route in {"GET /healthz", "GET /readyz"})


def test_a_route_that_deletes_or_changes_needs_an_admin() -> None:
    assert all(RULES[route] is Need.ADMIN for route in routes() if route.startswith("DELETE "))
