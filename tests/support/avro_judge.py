"""Apache Avro's own SchemaCompatibility, in Java, as the judge of what a reader's schema can read.

Maven fetches the jars once into `.services/avro`; see `walbus.demo.jars`. It takes a JDK of 17 or later.

judged([(reader, writer), …])           which of the pairs of schemas, as JSON, go together
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from support.maven_jars import JARS
from walbus.demo.jars import Kind, check_java, fetched

AVRO = Kind(Path(__file__).with_name("avro"), "1.12.0", "AvroJudge")


def judged(pairs: Sequence[tuple[str, str]]) -> list[bool]:
    """Whether the first of each pair can read what was written by the second.

    Raises:
        UsageError: it cannot be had here; says why.
    """
    check_java(17)
    classes = fetched(AVRO, JARS)
    sent = "".join(f"{reader}\n{writer}\n" for reader, writer in pairs)
    command = ["java", "-Xshare:auto", "-XX:TieredStopAtLevel=1", "-cp", f"{classes}:{classes}/*", AVRO.node]
    done = subprocess.run(command, input=sent, capture_output=True, text=True, check=True)
    answers = done.stdout.split()
    assert len(answers) == len(pairs) and set(answers) <= {"COMPATIBLE", "INCOMPATIBLE"}, done
    return [answer == "COMPATIBLE" for answer in answers]
