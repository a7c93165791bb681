"""Checkpoints in Redis, as durable as that one is.

A Redis that comes back without its last writes has windows come again; one that comes back empty has the consumer begin
anew. One that may evict the key is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from walbus.consumer_reports import checked_name
from walbus.consumers.checkpoint_fence import FencedCheckpointStore, Replaced
from walbus.errors import CheckpointUnavailable, ConfigError

if TYPE_CHECKING:
    import redis

_TIMEOUT_SECONDS: Final = 5.0

#: KEYS: the checkpoint's. ARGV: 1 if a text is to be there, that text, the new one. Gives {1}, {0} or {0, text}.
_REPLACE: Final = """
local there = redis.call('GET', KEYS[1])
if (ARGV[1] == '1' and there == ARGV[2]) or (ARGV[1] == '0' and not there) then
  redis.call('SET', KEYS[1], ARGV[3])
  return {1}
end
if there then return {0, there} end
return {0}
"""


class RedisCheckpointStore(FencedCheckpointStore):
    """A text under one key.

    Args:
        url: of the server, as in `redis://127.0.0.1:6379/0`.
        name: of the consumer.
        key: where it lies; default: `walbus:checkpoint:NAME`.

    Raises:
        ConfigError: the extra `walbus[redis]` is not installed, or the address is none.
    """

    def __init__(self, url: str, name: str, key: str | None = None) -> None:
        self._key = key or f"walbus:checkpoint:{checked_name(name)}"
        super().__init__(f"Redis key {self._key}")
        self._url = url
        self._redis: redis.Redis | None = None
        with self._errors():
            self._connected()

    def close(self) -> None:
        """Closes the connection; the next call opens another one."""
        connection, self._redis = self._redis, None
        if connection is not None:
            connection.close()

    def _read(self) -> str | None:
        with self._errors():
            connection = self._connected()
            policy = connection.info("memory").get("maxmemory_policy", "noeviction")
            if policy.startswith("allkeys"):
                what = f"this Redis may evict the checkpoint (maxmemory-policy {policy})"
                raise ConfigError(
                    what, where=self._where, mend="set maxmemory-policy to noeviction, or use another Redis"
                )
            text: Any = connection.get(self._key)
        return None if text is None else text.decode()

    def _replace(self, before: str | None, text: str) -> Replaced:
        with self._errors():
            expected = ("0", "") if before is None else ("1", before)
            answer: Any = self._connected().eval(_REPLACE, 1, self._key, *expected, text)
        done, *there = answer
        return Replaced(bool(done), there[0].decode() if there else None)

    def _connected(self) -> redis.Redis:
        if self._redis is None:
            import redis  # noqa: PLC0415 - an extra
            from redis.backoff import NoBackoff  # noqa: PLC0415
            from redis.retry import Retry  # noqa: PLC0415

            self._redis = redis.Redis.from_url(
                self._url, socket_timeout=_TIMEOUT_SECONDS, socket_connect_timeout=_TIMEOUT_SECONDS,
                retry=Retry(NoBackoff(), 0),
            )  # fmt: skip
        return self._redis

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            import redis  # noqa: PLC0415 - an extra
        except ModuleNotFoundError:
            raise ConfigError("redis is not installed", where=self._where, mend="pip install 'walbus[redis]'") from None
        try:
            yield
        except ValueError as error:
            raise ConfigError(f"this is no address of a Redis: {error}", where=self._where) from None
        except (redis.AuthenticationError, redis.exceptions.AuthorizationError) as error:
            mend = "mend user and password in the address"
            raise ConfigError(
                f"Redis lets nobody in so ({type(error).__name__})", where=self._where, mend=mend
            ) from None
        except (redis.RedisError, OSError) as error:
            what = f"the checkpoint's Redis does not answer ({type(error).__name__})"
            raise CheckpointUnavailable(what, where=self._where) from None
