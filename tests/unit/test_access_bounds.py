"""Audit lines, certificates' dates and bounds, without a server."""

from __future__ import annotations

import datetime

import pytest
import trustme

from support.guarded_relay import listened
from walbus.relay.audit import LINES_A_PERIOD, PERIOD_SECONDS, Audit, Refusal
from walbus.relay.bounds import Bounds, counted_as
from walbus.relay.certificate_dates import valid_until


def test_a_flood_of_refusals_writes_few_lines_and_loses_no_count():
    audit = Audit()
    with listened() as events:
        for i in range(100_000):
            audit.note(Refusal("token unknown", f"192.0.2.{i % 250}", "GET /v1/stream"), 1.0 + i * 1e-6)
        assert len(events) == LINES_A_PERIOD
        audit.flush(1.5 + PERIOD_SECONDS)
        audit.flush(1.6 + PERIOD_SECONDS)
    assert len(events) == LINES_A_PERIOD + 1
    assert events[0] == {
        "event": "access_refused", "level": "warning", "reason": "token unknown", "address": "192.0.2.0",
        "route": "GET /v1/stream", "token_name": None,
    }  # fmt: skip
    assert events[-1]["count"] == events[-1]["token_unknown"] == 100_000 - LINES_A_PERIOD
    assert events[-1]["addresses"] == 250
    assert audit.counts == {"token unknown": 100_000}


def test_a_new_period_tells_again_one_by_one():
    audit = Audit()
    with listened() as events:
        for period in range(3):
            for _ in range(LINES_A_PERIOD + 5):
                audit.note(Refusal("token missing", "::1"), period * 2 * PERIOD_SECONDS + 1)
    assert [event["event"] for event in events].count("access_refused_more") == 2
    assert [event["event"] for event in events].count("access_refused") == 3 * LINES_A_PERIOD


@pytest.mark.parametrize("year", [2030, 2049, 2050, 2061])  # from 2050 on the date has another form
def test_a_certificates_end_is_read_from_its_own_bytes(year):
    end = datetime.datetime(year, 7, 8, 9, 10, 11, tzinfo=datetime.UTC)
    made = trustme.CA(key_type=trustme.KeyType.ECDSA).issue_cert("relay.example", not_after=end)
    pem = made.cert_chain_pems[0].bytes().decode()
    assert valid_until(f"a remark\n{pem}{pem}") == end.timestamp()
    for cut in range(60, len(pem), 97):
        with pytest.raises(ValueError):  # and nothing else
            valid_until(pem[:cut])


@pytest.mark.parametrize(
    ("address", "counted"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9%eth0", "2001:db8:1:2::/64"),
        ("unix", "unix"),
    ],
)
def test_a_client_is_counted_by_what_it_cannot_have_many_of(address, counted):
    assert counted_as(address) == counted


def test_connections_leave_descriptors_for_the_server():
    assert Bounds(connections=4096).within(1024).connections == 480
    assert Bounds(connections=100).within(1 << 20).connections == 100
    assert Bounds(connections=4096).within(64).connections == 16
