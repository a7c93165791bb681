"""Where tests and benchmarks keep the jars of servers: `.services/FOLDER`, which `make clean` removes."""

from __future__ import annotations

from pathlib import Path

#: The folder of all of them; see `walbus.demo.jars`.
JARS = Path(__file__).parents[2] / ".services"
