"""Names of topics and subjects: what a table is called where its rows are in Kafka.

    topic     PREFIX.SCHEMA.TABLE
    subject   TOPIC-key, TOPIC-value             (TopicNameStrategy)

Kafka's names have letters, digits, `.`, `_` and `-` of ASCII only, and at most 249 of them; PostgreSQL's may have any
sign. In a schema's or a table's name a sign that is none of these, and `.` and `-` too, becomes `-HEX-`. So a `-`
never stands for itself, two dots part the three names, and no two tables have one topic. A name that becomes too long
ends with a digest of the whole. Names that the cluster has for something else, such as the log itself, are refused.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Final

from walbus.errors import ConfigError

#: Kafka's longest name of a topic.
MAX_TOPIC: Final = 249
MAX_PREFIX: Final = 64

_PREFIX = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\Z", re.ASCII)
_FOREIGN = re.compile(r"[^A-Za-z0-9_]", re.ASCII)
_LONGEST_PART = (MAX_TOPIC - MAX_PREFIX - 2) // 2
_DIGEST_SIGNS = 20


@dataclass(frozen=True, slots=True)
class TopicNames:
    """The names under one prefix.

    Attributes:
        prefix: what all topics of one source begin with.
        taken: topics of the same cluster that are something else.

    Raises:
        ConfigError: the prefix is none, or the topic of transactions' ends would be a taken one.
    """

    prefix: str
    taken: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        checked_prefix(self.prefix)
        self._free(self.transactions, "of transactions' ends")

    def of_table(self, namespace: str, name: str) -> str:
        """The topic of a table, whose names are unquoted.

        Raises:
            ConfigError: it is taken.
        """
        return self._free(f"{self.prefix}.{_part(namespace)}.{_part(name)}", f"of table {namespace}.{name}")

    def _free(self, topic: str, whose: str) -> str:
        if topic in self.taken:
            raise ConfigError(
                f"the topic {whose} would be {topic}, which is one of the log's own",
                where="keys relay.topic_prefix and relay.kafka.topic",
                mend="give one of the two another value",
            )
        return topic

    @property
    def transactions(self) -> str:
        """The topic of transactions' ends; no table has it, since it has one dot behind the prefix."""
        return f"{self.prefix}.transactions"


def checked_prefix(prefix: str) -> str:
    """A prefix as it is.

    Raises:
        ConfigError: Kafka's topics cannot begin with it, or it is too long.
    """
    if _PREFIX.match(prefix) is None or len(prefix) > MAX_PREFIX:
        raise ConfigError(
            f"{prefix[:80]!r} cannot be what names of topics begin with",
            where="topic_prefix",
            mend=f"use letters, digits, . _ and -, a letter or digit first, at most {MAX_PREFIX} in all",
        )
    return prefix


def key_subject(topic: str) -> str:
    """The subject of a topic's keys."""
    return f"{topic}-key"


def value_subject(topic: str) -> str:
    """The subject of a topic's values."""
    return f"{topic}-value"


def _part(name: str) -> str:
    safe = _FOREIGN.sub(lambda match: f"-{ord(match[0]):X}-", name)
    if len(safe) <= _LONGEST_PART:
        return safe
    digest = hashlib.sha256(name.encode()).hexdigest()[:_DIGEST_SIGNS]
    return f"{safe[: _LONGEST_PART - _DIGEST_SIGNS - 2]}-z{digest}"  # no code of a sign begins with a z
