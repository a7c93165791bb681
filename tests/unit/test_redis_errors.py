"""Which trouble of a Redis passes, by what servers of several versions say, and what is told of the rest."""

from __future__ import annotations

import pytest
import redis

from walbus.consumers.sinks.redis_errors import redis_errors
from walbus.errors import SinkRefused, SinkUnavailable

#: As Redis 6.2 tells what a command of a script met.
IN_SCRIPT = "Error running script (call to f_0b1758ff1ca1a3a8556bdf62c322fdf2eb821e28): @user_script:4: "


@pytest.mark.parametrize(
    ("text", "word"),
    [
        (f"{IN_SCRIPT}@user_script: 4: -OOM command not allowed when used memory > 'maxmemory'.", "OOM"),
        (f"{IN_SCRIPT}@user_script: 4: -READONLY You can't write against a read only replica.", "READONLY"),
        (f"{IN_SCRIPT}@user_script: 4: -NOREPLICAS Not enough good replicas to write.", "NOREPLICAS"),
        (f"Command # 2 (EVALSHA a 3) of pipeline caused error: {IN_SCRIPT}@user_script: 4: -OOM command not", "OOM"),
        ("NOREPLICAS Not enough good replicas to write.", "NOREPLICAS"),
    ],
)
def test_what_passes_is_waited_for(text: str, word: str) -> None:
    with pytest.raises(SinkUnavailable, match=rf"cannot write now \({word}\)"), redis_errors("Redis"):
        raise redis.ResponseError(text)


@pytest.mark.parametrize(
    "text",
    [
        f"{IN_SCRIPT}WRONGTYPE Operation against a key holding the wrong kind of value",
        "Command # 2 (SET k a -OOM b) of pipeline caused error: NOPERM this user has no permissions",
    ],
)
def test_what_does_not_pass_is_refused_and_no_value_is_told(text: str) -> None:
    with pytest.raises(SinkRefused, match="Redis refuses") as refused, redis_errors("Redis"):
        raise redis.ResponseError(text)
    assert "OOM" not in str(refused.value)


@pytest.mark.parametrize(
    ("error", "mend"),
    [
        (redis.ResponseError("DB index is out of range"), "name a database"),
        (redis.exceptions.NoPermissionError("NOPERM User canary has no permissions"), "let the user"),
        (redis.AuthenticationError("invalid username-password pair canary"), "mend user and password"),
    ],
)
def test_a_refusal_that_an_operator_can_mend_says_how_and_quotes_nothing(error: redis.RedisError, mend: str) -> None:
    with pytest.raises(SinkRefused) as caught, redis_errors("Redis at h:1"):
        raise error
    assert "(at Redis at h:1); " + mend in str(caught.value)
    assert "canary" not in str(caught.value)
