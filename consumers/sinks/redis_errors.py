"""What goes wrong with a Redis, as a sink's errors: it is away for now, or it refuses."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import redis
from redis.exceptions import RedisClusterException

from walbus.errors import SinkRefused, SinkUnavailable

_AWAY = (
    redis.exceptions.OutOfMemoryError,
    redis.exceptions.ReadOnlyError,
    redis.exceptions.NoScriptError,  # restarted meanwhile
    redis.exceptions.MasterDownError,
    redis.exceptions.TryAgainError,
    redis.exceptions.AskError,  # or MOVED: a slot is on its way, or has come to another master
    redis.exceptions.ClusterError,  # it is down, or a slot does not get to its new master
    RedisClusterException,  # no node answers, or slots are without a master
)
#: States of a server that pass, told by an error's first word: its disk is full, a script runs, replicas are missing.
_PASSING = frozenset({"MISCONF", "BUSY", "NOREPLICAS", "CLUSTERDOWN", "OOM", "READONLY"})
#: What helps against an error, by its first word.
_MENDS = {
    "DB": "name a database that the server has in the sink's url",
    "NOPERM": "let the user of the sink's url run commands and scripts on the keys that the documentation names",
    "NOAUTH": "give the sink's url user and password",
}
#: Before Redis 7 the error of a command in a script stands inside of one that says so.
_IN_SCRIPT = re.compile(r"Error running script \(.*: -([A-Z]+) ")


@contextmanager
def redis_errors(where: str) -> Iterator[None]:
    """Translates the client's errors.

    Args:
        where: what an error tells of the place.

    Raises:
        SinkUnavailable, SinkRefused
    """
    try:
        yield
    except (redis.AuthenticationError, redis.exceptions.AuthorizationError) as error:
        mend = "mend user and password in the sink's url"
        raise SinkRefused(f"Redis lets nobody in so ({type(error).__name__})", where=where, mend=mend) from None
    except (redis.ConnectionError, redis.TimeoutError, OSError) as error:
        raise SinkUnavailable(f"Redis does not answer ({type(error).__name__})", where=where) from None
    except _AWAY as error:
        raise SinkUnavailable(f"Redis cannot write now ({type(error).__name__})", where=where) from None
    except redis.RedisError as error:
        # Of a server's message only the first word is told: the rest may quote a key or a value. In a pipeline,
        # redis-py writes the whole command before it.
        text = str(error).rpartition("caused error: ")[2]
        word = found[1] if (found := _IN_SCRIPT.match(text)) else text.partition(" ")[0]
        if word in _PASSING:
            raise SinkUnavailable(f"Redis cannot write now ({word})", where=where) from None
        raise SinkRefused(
            f"Redis refuses ({type(error).__name__}: {word})", where=where, mend=_MENDS.get(word)
        ) from None
