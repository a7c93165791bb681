"""On a cluster with ACLs, a process that was not granted all that it needs: it says what it lacks."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from support.guarded_kafka import GuardedKafka
from support.kafka_access import Doors, granted, grants_of, without
from walbus.errors import WalbusError

pytestmark = pytest.mark.one_version


@pytest.mark.parametrize(("role", "kind", "operation"), granted())
def test_a_grant_that_is_missing_is_named(
    role: str, kind: str, operation: str, guarded: GuardedKafka, tmp_path: Path
) -> None:
    doors = Doors(guarded, tmp_path)
    names = doors.prepared(role)
    with pytest.raises(WalbusError) as refused:
        doors.run(role, names, doors.admitted(without(grants_of(role, names), kind, operation)))
    assert re.search(rf"grant [^;]*{operation} on the {kind}", str(refused.value)), refused.value
