"""Parts of all keys: what a consumer of one is called, and what is to be its own alone.

    name = "orders", partition = "3/8"      is the consumer orders.3-of-8

Each part is a consumer by itself: under that name the relay knows it, and its checkpoint and its dead letters lie; the
checkpoint says which part it is of. Another number of parts has other names, and none of them continues an earlier one:
a key would be read by two of them, or by none. So where this machine has consumers of the same name with another number
of parts, that is refused.

A sink's rows are swept behind a snapshot: what the snapshot did not bring is deleted. That is right where all rows are
the consumer's, so a sink of one part has a place of its own: `{partition}` stands for `3-of-8` in the sink's options.
Redis can have the rows of a group's parts together, for its rows tell which part wrote them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from walbus.config import ConsumerConfig
from walbus.consumer_reports import checked_name
from walbus.consumers.checkpoint import Checkpoint, token_of
from walbus.errors import ConfigError, UsageError

#: What stands for the part in a sink's options.
PLACEHOLDER: Final = "{partition}"

#: The option of a sink on a server that says where rows lie.
_PLACES: Final = {"redis": "key", "postgres": "into", "opensearch": "index", "elasticsearch": "index"}

#: Sinks on a server that can have the rows of a group's parts in one place.
_TOGETHER: Final = ("redis",)

#: Options of which two sinks must not have the same.
_OWN: Final = ("pointer", "keys")

#: Those of which there is one by table.
_BY_TABLE: Final = ("keys",)

#: Sinks whose rows lie in the consumer's folder, unless this option says otherwise.
_IN_FOLDER: Final = {"sqlite": "path", "tantivy": "path"}

#: Sinks that hand changes on, and hold none that could be swept.
_PASSING_ON: Final = ("stdout", "webhook")

_FOLDER = re.compile(r"\.\d{1,5}-of-(\d{1,5})\Z", re.ASCII)


@dataclass(frozen=True, slots=True)
class GroupPart:
    """A part of all keys that members of a group have after each other, as its sink sees it.

    Attributes:
        partition: `i/n`.
        together: whether the rows of all parts lie in one place.
    """

    partition: str
    together: bool

    @property
    def word(self) -> str:
        """`i-of-n`."""
        return _word(self.partition)


def part_name(name: str, partition: str | None) -> str:
    """What the consumer of a part is called; the name itself where it reads all keys.

    Args:
        name: that the parts share.
        partition: `i/n`, or None.

    Raises:
        UsageError: no consumer may be called so.
    """
    return checked_name(checked_name(name) if partition is None else f"{name}.{_word(partition)}")


def partitions_of(config: ConsumerConfig) -> tuple[str | None, ...]:
    """What a configured consumer is made of: all parts of a group, the one that it has, or None for all keys."""
    return tuple(f"{part}/{config.parts}" for part in range(config.parts)) if config.parts else (config.partition,)


def part_of(config: ConsumerConfig, partition: str | None) -> GroupPart | None:
    """The part that a configured consumer's sink holds, if members of a group have it; None: one process has it."""
    if config.parts is None or partition is None:
        return None
    option = _PLACES.get(config.sink, "")
    apart = PLACEHOLDER in str(config.options.get(option, ""))
    return GroupPart(partition, config.sink in _TOGETHER and not apart)


def options_of(config: ConsumerConfig, partition: str | None, name: str) -> dict[str, Any]:
    """The options of a configured consumer's sink for one part, or for all keys.

    Args:
        config: the consumer's section.
        partition: `i/n`; None: all keys.
        name: of the consumer, for the error.

    Raises:
        ConfigError: as `own_place`; or the rows of all parts lie together, and an option is about those of one.
    """
    part = part_of(config, partition)
    if part is None or not part.together:
        return own_place(config.sink, config.options, partition, name)
    if "pointer" in config.options:
        raise ConfigError(
            "the rows of all parts lie together, and this is about those of one",
            where=f"key consumer.{name}.pointer",
            mend=f"leave it out; or write {PLACEHOLDER} into it and into {_PLACES[config.sink]}",
        )
    return _filled(config.options, part.partition)


def names_of(name: str, config: ConsumerConfig) -> tuple[str, ...]:
    """What a configured consumer is called at the relay: each of its parts by itself."""
    return tuple(part_name(name, partition) for partition in partitions_of(config))


def require_same_parts(folder: Path, name: str, partition: str | None) -> None:
    """Sees to it that this machine has no consumer of the same name with another number of parts.

    Args:
        folder: of the consumers' folders.
        name: that the parts share.
        partition: `i/n` of the consumer that begins; None: it reads all keys.

    Raises:
        UsageError: it has.
    """
    parts = None if partition is None else partition.partition("/")[2]
    others = {
        match[1] for path in folder.glob(f"{name}.*-of-*") if (match := _FOLDER.match(path.name.removeprefix(name)))
    }
    whole = {"1"} if (folder / name / "checkpoint.json").exists() and parts is not None else set()
    if different := sorted((others | whole) - {parts}):
        now = "all keys at once" if parts is None else f"{parts} parts"
        before = "as one" if different[0] == "1" and not others else f"in {different[0]} parts"
        raise UsageError(
            f"the consumer was read {before} before, and is to read {now}: keys would be missed, or handled twice",
            where=str(folder / name),
            mend=f"take another name; or, to read all rows again, end all of its parts and remove {name}.*-of-* "
            "and its checkpoint here",
        )


def require_same_part(checkpoint: Checkpoint | None, partition: str | None, name: str, token: int = 0) -> None:
    """Sees to it that a checkpoint is of the part that is asked for.

    Args:
        checkpoint: what is stored.
        partition: `i/n`; None: all keys.
        name: of the consumer, for the error.
        token: under which a member of a group has the part; 0: it is read without a group.

    Raises:
        UsageError: it is of another one, or members of a group have it.
    """
    if checkpoint is None:
        return
    stored = None if checkpoint.part is None else checkpoint.part.partition
    if stored != partition:
        raise UsageError(
            f"the checkpoint is of {part_told(stored)}, and the consumer is to read {part_told(partition)}",
            where=f"consumer {name}",
            mend="give each part a checkpoint of its own; remove this one to start again",
        )
    if token_of(checkpoint) and not token:
        raise UsageError(
            "the checkpoint is that of a group, whose members have the part after each other",
            where=f"consumer {name}",
            mend="join the group, or take another name",
        )


def own_place(sink: str, options: Mapping[str, Any], partition: str | None, name: str) -> dict[str, Any]:
    """A sink's options for one part: `{partition}` is filled in.

    Args:
        sink: its name.
        options: its own keys.
        partition: `i/n`; None: all keys, and the options are as they were.
        name: of the consumer, for the error.

    Raises:
        ConfigError: the sink would share its rows with other parts, which its sweeps would delete.
    """
    if partition is None:
        return dict(options)
    told = {key: _texts(value) for key, value in options.items() if isinstance(value, str) or key in _BY_TABLE}
    placed = {key for key, texts in told.items() if texts and all(PLACEHOLDER in text for text in texts)}
    key = _PLACES.get(sink) or _IN_FOLDER.get(sink)
    shared = key not in placed if key else not placed
    if shared and sink not in _PASSING_ON and not (sink in _IN_FOLDER and key not in options):
        raise ConfigError(
            "the rows of all parts would lie in one place, where each part's sweep deletes those of the others",
            where=f"key consumer.{name}.{key or 'partition'}",
            mend=f"write {PLACEHOLDER} into {key or 'the option that says where rows lie'}: it stands for "
            f"{_word(partition)}",
        )
    for own in set(_OWN).intersection(options).difference(placed):
        raise ConfigError(
            "all parts would have one",
            where=f"key consumer.{name}.{own}",
            mend=f"write {PLACEHOLDER} into it: it stands for {_word(partition)}",
        )
    return _filled(options, partition)


def _filled(options: Mapping[str, Any], partition: str) -> dict[str, Any]:
    """The options of a part. Those by table are filled in where they name a place: in `values` it may be a column's."""
    word = _word(partition)
    return {
        key: _with(value, word) if isinstance(value, str) or key in _BY_TABLE else value
        for key, value in options.items()
    }


def _texts(value: object) -> list[str]:
    """That of an option, or those that it has by table."""
    values = list(value.values()) if isinstance(value, Mapping) else [value]
    return [text for text in values if isinstance(text, str)]


def _with(value: object, word: str) -> object:
    if isinstance(value, Mapping):
        return {table: _with(text, word) for table, text in value.items()}
    return value.replace(PLACEHOLDER, word) if isinstance(value, str) else value


def _word(partition: str) -> str:
    return partition.replace("/", "-of-")


def part_told(partition: str | None) -> str:
    """The words for a part; None: all keys."""
    return "all keys" if partition is None else f"part {partition}"
