"""A Redis that loses everything before a consumer's first checkpoint, when there is none yet that would be missed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from support.model_source import ITEMS, ModelSource, insert, update
from support.sink_writing import MARKS, following, windows
from support.sinks_under_test import SinkUnderTest, redis_cluster_under_test, redis_under_test
from walbus.consumers.steps import Sweep
from walbus.errors import SinkUnavailable
from walbus.events import window_of

pytestmark = pytest.mark.one_version

Flush = Callable[[], object]


@pytest.fixture(params=["hash", "json", "string", "expiring", "pointer", "cluster"])
def under_test(request: pytest.FixtureRequest, tmp_path: Path) -> SinkUnderTest:
    if request.param == "cluster":
        return redis_cluster_under_test(tmp_path, request.getfixturevalue("redis_cluster"), "hash")
    url = request.getfixturevalue("redis_url")
    if request.param == "pointer":
        return redis_under_test(tmp_path, url, "hash", pointer="items:live")
    return redis_under_test(tmp_path, url, request.param)


@pytest.fixture
def flush(under_test: SinkUnderTest, request: pytest.FixtureRequest) -> Flush:
    if request.node.callspec.params["under_test"] != "cluster":
        return request.getfixturevalue("client").flushdb  # type: ignore[no-any-return]
    cluster = request.getfixturevalue("redis_cluster")

    def everywhere() -> None:
        with cluster.client() as client:
            client.flushall(target_nodes="primaries")

    return everywhere


@pytest.mark.parametrize("written", ["nothing", "a layout", "rows"])
def test_what_was_lost_before_the_first_checkpoint_is_written_again(
    under_test: SinkUnderTest, flush: Flush, source: ModelSource, written: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("walbus.consumers.sinks.redis._GATHERED", 2)  # a transaction of these is sent as it comes
    source.commit([insert(ITEMS, n, "first") for n in range(6)])
    source.commit([insert(ITEMS, 7, "second"), update(ITEMS, 3, name="changed")])
    source.tell_again(1)
    first, second, layout = windows(source)
    with closing(under_test.open()) as sink:
        sink.write({"nothing": [], "a layout": [layout], "rows": [first]}[written], MARKS)
        flush()
        with pytest.raises(SinkUnavailable, match=r"came back empty|has lost what was written last"):
            sink.write([second] if written == "rows" else [first, second], MARKS)
            sink.commit(following(source))
        sink.rollback()
        assert sink.checkpoint() is None
        after = following(source)
        sink.write([window_of(h, r, source.layouts.__getitem__) for h, r in source.snapshot(ITEMS, None)], MARKS)
        sink.sweep(Sweep(ITEMS, source.last_seq, MARKS, after))
        sink.commit(after)
        assert sink.incomplete() == ()
        assert under_test.rows() == source.rows()
    with closing(under_test.open()) as sink:
        assert sink.checkpoint() == following(source)
