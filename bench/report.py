"""Results: ratios one a line for people and scripts, and the section of docs/benchmarks.md that a run rewrites."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs" / "benchmarks.md"


@dataclass
class Report:
    """What one benchmark found.

    Attributes:
        name: of the benchmark, as in `make bench-NAME`.
        title: heading in the document.
        ratios: lines `name/reference ratio`.
        header, rows: a table of the figures behind them.
        notes: sentences below the table.
    """

    name: str
    title: str
    header: Sequence[str]
    ratios: list[str] = field(default_factory=list)
    rows: list[Sequence[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def ratio(self, name: str, value: float) -> None:
        """Adds a ratio, and prints it at once."""
        self.ratios.append(f"{name} {value:.2f}")
        print(self.ratios[-1], flush=True)

    def row(self, *cells: str) -> None:
        """Adds a row of figures."""
        self.rows.append(cells)

    def table(self) -> str:
        """The figures for a terminal, in columns."""
        widths = [max(map(len, column)) for column in zip(self.header, *self.rows, strict=True)]
        lines = [
            [cell.rjust(width) for cell, width in zip(cells, widths, strict=True)]
            for cells in (self.header, *self.rows)
        ]
        return "\n".join("  ".join(line) for line in lines)

    def section(self, command: str) -> str:
        """The section as Markdown."""
        table = [self.header, ["---"] * len(self.header), *self.rows]
        lines = [f"| {' | '.join(cells)} |" for cells in table]
        parts = [f"## {self.title}", f"`{command}`, {_where()}.", "\n".join(lines)]
        parts += ["```text\n" + "\n".join(self.ratios) + "\n```"] if self.ratios else []
        return "\n\n".join([*parts, *self.notes])


def write(reports: Sequence[Report], command: str) -> None:
    """Replaces the sections of these benchmarks in docs/benchmarks.md; the others stay."""
    text = DOCUMENT.read_text()
    for report in reports:
        marked = re.compile(rf"(<!-- {report.name} -->\n).*?(<!-- end {report.name} -->)", re.DOTALL)
        section = report.section(command)
        if not marked.search(text):
            raise SystemExit(f"{DOCUMENT} has no place marked <!-- {report.name} -->")
        text = marked.sub(lambda found, new=section: f"{found[1]}{new}\n{found[2]}", text)
    DOCUMENT.write_text(text)


def _where() -> str:
    day = datetime.now(UTC).strftime("%Y-%m-%d")
    cpus = len(os.sched_getaffinity(0))
    machine = f"{cpus} cores of {_processor()}, {_memory()}, Python {platform.python_version()}"
    return f"commit {_commit()}, {day}, {machine}"


def _commit() -> str:
    """The commit, with a + if the tree differs from it in more than the results."""
    commit = _git("rev-parse", "--short", "HEAD")
    changed = _git("status", "--porcelain", "--", ".", ":!docs/benchmarks.md")
    return f"{commit or 'unknown'}{'+' if changed else ''}"


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()


def _processor() -> str:
    found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else platform.machine()


def _memory() -> str:
    found = re.search(r"^MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return f"{int(found[1]) / (1 << 20):.0f} GiB" if found else "unknown memory"
