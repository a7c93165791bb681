"""A file of tokens that is read again whenever it has changed, without a restart.

It has changed if another file lies under its name (inode), or its time or size is another one. A file that is broken or
gone leaves the tokens as they were, which is said once for each change: a slip of an editor locks nobody out, and lets
nobody in either. One that cannot be read is tried again each time: for want of a descriptor, no token that was taken
out may stay. At the start there is nothing to keep, so there the error is the caller's.
"""

from __future__ import annotations

from pathlib import Path

import structlog

from walbus.errors import ConfigError
from walbus.relay.tokens import Token, find_token, parse_tokens

_log = structlog.get_logger(__name__)

_LARGEST = 4 << 20  # bytes; some twenty thousand tokens

Signature = tuple[int, int, int, int] | None


def signature_of(path: Path) -> Signature:
    """What tells one state of a file from the next; None if it cannot be looked at."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size


class TokenFile:
    """The tokens of one file.

    Args:
        path: the file.
        key: the configuration's key that names it, for errors.

    Raises:
        ConfigError: it cannot be read, or is broken.
    """

    def __init__(self, path: Path, key: str) -> None:
        self._path = path
        self._key = key
        self._signature = signature_of(path)
        self._told: Signature | tuple[()] = ()  # of the state that is told to be of no use
        try:
            self.tokens: tuple[Token, ...] = self._parsed(self._read())
        except OSError as error:
            raise self._unreadable(error) from None

    def refresh(self) -> bool:
        """Reads the file if it has changed; whether the tokens are other ones now."""
        signature = signature_of(self._path)
        if signature == self._signature:
            return False
        before = self.tokens
        try:
            data = self._read()
            self._signature = signature
            self.tokens = self._parsed(data)
        except OSError as error:
            self._tell(signature, self._unreadable(error))
            return False
        except ConfigError as error:
            self._tell(signature, error)
            return False
        self._told = ()
        _log.info("tokens_read", file=str(self._path), count=len(self.tokens))
        return self.tokens != before

    def find(self, shown: str) -> Token | None:
        """The token that a client shows; one that has expired is found too."""
        return find_token(self.tokens, shown)

    def _tell(self, signature: Signature, error: ConfigError) -> None:
        if signature != self._told:
            _log.error("tokens_kept", error=error.what, where=error.where, mend=error.mend, kept=len(self.tokens))
        self._told = signature

    @property
    def _where(self) -> str:
        return f"{self._path}, key {self._key}"

    def _unreadable(self, error: OSError) -> ConfigError:
        mend = "make it with `walbus token new NAME --file FILE`"
        return ConfigError(f"cannot read the tokens: {error.strerror}", where=self._where, mend=mend)

    def _read(self) -> bytes:
        with self._path.open("rb") as file:
            return file.read(_LARGEST + 1)

    def _parsed(self, data: bytes) -> tuple[Token, ...]:
        where = self._where
        if len(data) > _LARGEST:
            raise ConfigError("the file of tokens is larger than 4 MiB", where=where, mend="take out what is not used")
        try:
            return parse_tokens(data.decode(), where)
        except UnicodeDecodeError:
            raise ConfigError("the file of tokens is not UTF-8", where=where, mend="write it anew") from None
