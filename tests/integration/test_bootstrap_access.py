"""Tokens on the bootstrap's server: a narrow one reads its tables' snapshots, and learns of no other."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from support import plain_http
from support.bootstrap_rig import ITEMS, BootstrapRig
from support.database import Database
from support.guarded_relay import new_token, token_section
from support.model_source import ModelSource, items_layout
from support.serving_bootstrap import ServingBootstrap
from support.waiting import wait_for
from walbus.relay.access import RULES

pytestmark = pytest.mark.one_version


def test_without_tokens_no_route_of_the_bootstrap_answers_to_a_strangers_name() -> None:
    with ServingBootstrap(ModelSource(layouts=(items_layout(),)), allowed_hosts=["cdc.internal"]) as bootstrap:
        paths = {route.split()[1] for route in RULES if route.startswith("GET ")} | {"/", "/v1/nothing"}
        for path in paths:
            assert bootstrap.get(path, Host=f"evil.example:{bootstrap.port}")[0] == 421, path
            assert bootstrap.get(path, Host="cdc.internal")[0] != 421, path
        assert b'reason="host not known"' in bootstrap.get("/metrics")[2]


def test_the_bootstraps_routes_ask_for_tokens_and_keep_to_their_tables(database: Database, tmp_path: Path) -> None:
    database.execute(ITEMS)
    database.execute("CREATE TABLE public.secrets (id int PRIMARY KEY)")
    database.execute("INSERT INTO public.items SELECT i, i FROM generate_series(1, 50) i")
    narrow, metrics, everything = new_token(), new_token(), new_token()
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(
        token_section("narrow", narrow, ["public.items"])
        + token_section("all", everything, ["*.*"])
        + token_section("metrics", metrics, [], ["metrics"])
    )
    with BootstrapRig(tmp_path, database, tokens_file=str(tokens), complete=["public.items"]) as rig:
        rig.start()

        def get(path: str, token: str = "") -> httpx.Response:
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            return plain_http.get(f"{rig.url}{path}", headers=headers)

        def ready() -> bool:
            try:
                return get("/readyz").status_code == 200
            except httpx.TransportError:
                return False

        wait_for(ready, 60, what="every table to be seeded")
        for path in ("/v1/tables", "/v1/snapshot?table=public.items", "/metrics", "/", "/v1/nothing"):
            assert get(path).status_code == 401, path
            assert get(path, new_token()).status_code == 401, path
        listed = get("/v1/tables", narrow).json()
        assert [table["table"] for table in listed["tables"]] == ["public.items"]
        assert listed["scope"] == ["public.items"]
        assert len(get("/v1/tables", everything).json()["tables"]) == 2
        assert get("/v1/snapshot?table=public.items", narrow).status_code == 200
        for table in ("public.secrets", "public.nothing", "public.*", "*.*", "public.items%00", "public.items.x"):
            refused = get(f"/v1/snapshot?table={table}", narrow)
            assert refused.status_code == 403, table
            assert "the token narrow does not reach" in refused.json()["error"]
        assert get("/v1/snapshot?table=public.secrets", everything).status_code == 200
        stream = "/v1/stream?complete=true&until=latest&tables="
        assert get(f"{stream}public.items", narrow).status_code == 200
        for tables in ("public.secrets", "*.*", "public.items&tables=public.secrets"):
            refused = get(f"{stream}{tables}", narrow)
            assert refused.status_code == 403, tables
            assert "public.secrets" not in refused.json()["error"] or tables != "*.*"
        assert "public.secrets" in get(f"{stream}*.*", everything).json()["error"]
        assert [get("/metrics", token).status_code for token in (narrow, everything, metrics)] == [403, 403, 200]
        assert 'walbus_bootstrap_refusals_total{reason="beyond the scope"} 9.0' in get("/metrics", metrics).text
        assert narrow not in rig.log()
