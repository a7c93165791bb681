"""Secrets that are known to the test are searched for in everything that a run of Walbus says, writes and answers."""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator
from pathlib import Path

import httpx
import psycopg.conninfo
import pytest

from support.certificates import Authority
from support.database import Database
from support.guarded_relay import new_token, token_section
from support.waiting import wait_for
from support.walbus_command import Ended, Running, walbus, write_config
from walbus.demo.postgres import free_port

pytestmark = pytest.mark.one_version

PASSWORD = "canary-of-the-database"


@pytest.fixture
def dsn(database: Database) -> Iterator[str]:
    """Of a role whose password is the canary."""
    role = f"canary_{database.name}"
    database.execute(f"CREATE ROLE {role} SUPERUSER LOGIN PASSWORD '{PASSWORD}'")
    yield psycopg.conninfo.make_conninfo(database.dsn, user=role, password=PASSWORD)
    database.execute(f"REASSIGN OWNED BY {role} TO CURRENT_USER; DROP ROLE {role}")


def test_no_secret_turns_up_in_output_logs_files_figures_or_errors(
    database: Database, dsn: str, tmp_path: Path
) -> None:
    database.execute("CREATE TABLE public.orders (id int PRIMARY KEY, note text)")
    database.execute("INSERT INTO public.orders SELECT i, 'note' FROM generate_series(1, 20) i")
    operator, consumer, stranger, expired = (new_token() for _ in range(4))
    secrets = [PASSWORD, operator, consumer, stranger, expired]
    private = tmp_path / "private"  # what an operator keeps: configuration, tokens, keys
    private.mkdir()
    (tmp_path / "public").mkdir()
    authority = Authority(private)
    tokens = private / "tokens.toml"
    tokens.write_text(
        token_section("operator", operator, [], ["admin"])
        + token_section("consumer", consumer, ["public.orders"])
        + token_section("expired", expired, ["*.*"], expires=1.0)
    )
    server = {"tokens_file": str(tokens), **{key: str(path) for key, path in authority.server("localhost").items()}}
    relay, bootstrap = (f"localhost:{free_port()}" for _ in range(2))
    sections: dict[str, dict[str, object]] = {
        "source": {"dsn": dsn},
        "relay": {"listen": relay, "url": f"https://{relay}", **server},
        "bootstrap": {"listen": bootstrap, "url": f"https://{bootstrap}", **server},
        "client": {"token": operator, "ca_file": str(authority.pem)},
        "log": {"level": "debug", "format": "json"},
        "consumer.cache": {"sink": "sqlite", "tables": ["public.orders"], "relay_token": consumer},
        "consumer.barred": {"sink": "sqlite", "tables": ["public.orders"], "relay_token": stranger},
    }
    data = tmp_path / "public" / "data"
    config = write_config(private / "walbus.toml", sections, data)
    said: list[str] = []

    def keep(ended: Ended) -> Ended:
        said.extend((ended.stdout, ended.stderr))
        return ended

    running = Running("run", "-c", str(config), log=tmp_path / "public" / "run.log", WALBUS_DEBUG="1")
    try:

        def caught_up() -> bool:
            status = json.loads(keep(walbus("status", "--json", "-c", str(config))).stdout)
            online = status["consumers"]["cache"].get("status", {}).get("phase") == "online"
            return status["relay"]["state"] == "up" and online and "the token is not known here (401)" in running.log()

        wait_for(caught_up, 150, what="one consumer to be online, and the other to be barred", every=0.5)
        context = ssl.create_default_context(cafile=authority.pem)
        with httpx.Client(verify=context, trust_env=False, timeout=30) as client:
            for token in secrets[1:]:
                for url in (f"https://{relay}", f"https://{bootstrap}"):
                    for path in ("/v1/info", "/v1/tables", "/metrics", f"/v1/{token}", "/v1/schemas", "/v1/stream?x=1"):
                        answer = client.get(url + path, headers={"Authorization": f"Bearer {token}"})
                        said.append(answer.text + str(dict(answer.headers)))
            for odd in ({"Authorization": f"Basic {operator}"}, {"Cookie": operator}, {"X": operator}):
                said.append(client.get(f"https://{relay}/v1/info", headers=odd).text)
        for variables in ({}, {"WALBUS_CLIENT__TOKEN": stranger}, {"WALBUS_CLIENT__TOKEN": f"{stranger} x"}):
            keep(walbus("tail", "--from", "earliest", "--until", "latest", "-c", str(config), **variables))
        keep(walbus("--debug", "doctor", "-c", str(config)))
        broken = config.with_name("broken.toml")
        broken.write_text(config.read_text().replace("[log]", "[log]\nlevle = 1").replace("relay_token", "relay_tokn"))
        keep(walbus("run", "-c", str(broken)))
        tokens.write_text(f'[broken\nsha256 = "{stranger}"')
        wait_for(lambda: "tokens_kept" in running.log(), 60, what="the servers to look at the file")
    finally:
        running.stop()
    assert "access_refused" in running.log()
    found = [secret for secret in secrets for text in said if secret in text]
    for path in (path for path in (tmp_path / "public").rglob("*") if path.is_file()):
        content = path.read_bytes()
        found += [f"{secret} in {path}" for secret in secrets if secret.encode() in content]
    assert found == []
    assert any(path.suffix == ".json" for path in data.rglob("*"))
