"""`walbus snapshot`: tables are seeded again because somebody asks."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.bootstrap_rig import BootstrapRig
from support.database import Database
from support.walbus_command import walbus

pytestmark = pytest.mark.one_version

TABLES = """
CREATE TABLE public.t (id int PRIMARY KEY, n int);
INSERT INTO public.t SELECT i, i FROM generate_series(1, 500) i;
CREATE TABLE public.keyless (a int); ALTER TABLE public.keyless REPLICA IDENTITY FULL;
"""


def test_a_table_is_seeded_again_and_the_command_waits_for_it(database: Database, tmp_path: Path) -> None:
    database.execute(TABLES)
    with BootstrapRig(tmp_path, database) as rig:
        rig.start()
        rig.assert_equals_source("public.t")
        ended = walbus("snapshot", "public.t", "-c", str(rig.config))
        assert (ended.code, ended.stdout) == (0, "public.t: generation 2\n"), ended.stderr
        told = rig.tables()["public.t"]
        assert (told["generation"], told["state"], told["stale"]) == (2, "consistent", None)
        ended = walbus("snapshot", "--no-wait", "public.t", "public.t", "-c", str(rig.config))
        assert (ended.code, ended.stdout) == (0, "public.t: generation 3\n"), ended.stderr
        rig.assert_settles("public.t")
        assert not list((rig.data_dir / "requests").iterdir())


def test_what_cannot_be_seeded_is_refused_with_the_reason(database: Database, tmp_path: Path) -> None:
    database.execute(TABLES)
    with BootstrapRig(tmp_path, database) as rig:
        rig.start()
        rig.wait_consistent("public.t")
        unknown = walbus("snapshot", "public.t", "public.nothing", "-c", str(rig.config))
        assert unknown.code == 2 and "public.nothing" in unknown.one_line()
        keyless = walbus("snapshot", "public.keyless", "-c", str(rig.config))
        assert keyless.code == 2 and "no key" in keyless.one_line()
        assert rig.tables()["public.t"]["generation"] == 1


def test_without_a_bootstrap_the_command_says_so(database: Database, tmp_path: Path) -> None:
    with BootstrapRig(tmp_path, database) as rig:
        waits = {"walbus.cli.snapshot._ANSWER_SECONDS": 0.5}
        ended = walbus("snapshot", "public.t", "-c", str(rig.config), constants=waits)
        assert ended.code == 1 and "start `walbus bootstrap`" in ended.one_line()
        assert not list((rig.data_dir / "requests").iterdir())
