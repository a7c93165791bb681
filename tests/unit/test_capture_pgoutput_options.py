"""What a server is asked for, by its version and the configuration."""

from __future__ import annotations

import pytest

from walbus.capture.pgoutput_options import check_two_phase, options_for
from walbus.config import SourceConfig
from walbus.errors import SourceMisconfigured

BASE = "publication_names '\"p\"', messages 'true'"


@pytest.mark.parametrize(
    ("version", "streaming", "two_phase", "sql"),
    [
        (140_023, False, False, f"(proto_version '1', {BASE})"),
        (140_023, True, False, f"(proto_version '2', {BASE}, streaming 'on')"),
        (150_018, True, False, f"(proto_version '3', {BASE}, streaming 'on')"),
        (150_018, False, True, f"(proto_version '3', {BASE}, two_phase 'true')"),
        (160_014, False, False, f"(proto_version '1', {BASE}, origin 'any')"),
        (180_004, True, True, f"(proto_version '4', {BASE}, streaming 'on', two_phase 'true', origin 'any')"),
    ],
)
def test_the_newest_protocol_is_taken_where_anything_of_it_is_used(version, streaming, two_phase, sql):
    assert options_for(version, streaming=streaming, two_phase=two_phase).sql("p") == sql


@pytest.mark.parametrize(
    ("version", "wanted", "slot", "mend"),
    [
        (140_023, True, None, "set source.two_phase = false (15 and newer can)"),
        (150_018, False, True, "set source.two_phase = true"),
        (150_018, True, None, None),
        (150_018, True, False, None),
        (150_018, True, True, None),
        (140_023, False, None, None),
    ],
)
def test_two_phase_is_refused_where_server_or_slot_cannot_do_as_configured(version, wanted, slot, mend):
    source = SourceConfig(dsn="postgresql://", two_phase=wanted)
    if mend is None:
        check_two_phase(source, version, slot_two_phase=slot)
        return
    with pytest.raises(SourceMisconfigured) as caught:
        check_two_phase(source, version, slot_two_phase=slot)
    assert (caught.value.where, caught.value.mend) == ("source.two_phase", mend)
