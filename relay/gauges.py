"""`/metrics`: the relay's own figures, and those that rooms without a server leave in their status files.

A status file's keys that are metric names become metrics: `capture.json` and `bootstrap.json` as they are,
`consumer-NAME.json` with the label `consumer`. A value that is an object has one figure a table (label `table`).
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from walbus.metrics import METRIC_NAMES, MetricName
from walbus.status import read_status

_CONSUMER = "consumer-"
_NAMES: dict[str, MetricName] = {name: name for name in METRIC_NAMES}  # type: ignore[misc]  # its members are these

Figures = Mapping[MetricName, float]

#: By metric, by the value of a label.
LabelledFigures = Mapping[MetricName, Mapping[str, float]]


class RelayMetrics:
    """A registry of its own.

    Args:
        figures: the relay's figures now.
        status_dir: folder of the status files.
        refusals: how many were turned away so far, by reason.
    """

    def __init__(self, figures: Callable[[], Figures], status_dir: Path, refusals: Mapping[str, int]) -> None:
        self._registry = CollectorRegistry()
        self._requests = _Requests()
        self._consumers, self._tables = _Labelled("consumer"), _Labelled("table")
        self._registry.register(self._requests)
        self._registry.register(_Own(figures))
        self._registry.register(Refusals("walbus_relay_refusals_total", refusals))
        self._registry.register(self._consumers)
        self._registry.register(self._tables)
        self._registry.register(_StatusFiles(status_dir))

    def count_request(self, route: str, status: int) -> None:
        """Counts an answered request."""
        self._requests.counts[route, str(status)] += 1

    def render(self, consumers: LabelledFigures, tables: LabelledFigures) -> bytes:
        """The text form.

        Args:
            consumers: figures of those known to the relay.
            tables: figures of what has come into the log.
        """
        self._consumers.figures, self._tables.figures = consumers, tables
        return generate_latest(self._registry)


class _Requests(Collector):
    def __init__(self) -> None:
        self.counts: collections.Counter[tuple[str, str]] = collections.Counter()

    def collect(self) -> Iterator[Metric]:
        family = _family("walbus_relay_requests_total", ["route", "status"])
        for labels, count in self.counts.items():
            family.add_metric(labels, count)
        yield family


class Refusals(Collector):
    """What a server turned away, by reason."""

    def __init__(self, name: MetricName, counts: Mapping[str, int]) -> None:
        self._name: MetricName = name
        self._counts = counts

    def collect(self) -> Iterator[Metric]:
        """As prometheus_client asks for it."""
        family = _family(self._name, ["reason"])
        for reason, count in dict(self._counts).items():
            family.add_metric([reason], count)
        yield family


class _Own(Collector):
    def __init__(self, figures: Callable[[], Figures]) -> None:
        self._figures = figures

    def collect(self) -> Iterator[Metric]:
        for name, value in self._figures().items():
            family = _family(name, [])
            family.add_metric([], value)
            yield family


class _Labelled(Collector):
    def __init__(self, label: str) -> None:
        self._label = label
        self.figures: LabelledFigures = {}

    def collect(self) -> Iterator[Metric]:
        for name, values in self.figures.items():
            family = _family(name, [self._label])
            for labelled, value in values.items():
                family.add_metric([labelled], value)
            yield family


class _StatusFiles(Collector):
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        families: dict[tuple[str, tuple[str, ...]], CounterMetricFamily | GaugeMetricFamily] = {}
        for path in sorted(self._folder.glob("*.json")):
            for name, labels, value in _figures_of(path.stem, read_status(path) or {}):
                key = (name, tuple(labels))
                family = families.setdefault(key, _family(_NAMES[name], list(labels)))
                family.add_metric(list(labels.values()), value)
        yield from families.values()


def _family(name: MetricName, labels: list[str]) -> CounterMetricFamily | GaugeMetricFamily:
    help_text = name.removeprefix("walbus_").replace("_", " ")
    if name.endswith("_total") and "chunks" not in name:
        return CounterMetricFamily(name, help_text, labels=labels)
    return GaugeMetricFamily(name, help_text, labels=labels)


def _figures_of(room: str, status: Mapping[str, object]) -> Iterator[tuple[str, dict[str, str], float]]:
    labels = {"consumer": room.removeprefix(_CONSUMER)} if room.startswith(_CONSUMER) else {}
    for name, value in status.items():
        if name not in METRIC_NAMES:
            continue
        if isinstance(value, (int, float)):
            yield name, labels, float(value)
        elif isinstance(value, Mapping):
            for table, figure in value.items():
                if isinstance(figure, (int, float)):
                    yield name, {**labels, "table": str(table)}, float(figure)
