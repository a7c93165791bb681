"""Fuzzes what reads the walsender's bytes: intake, assembler, both cores, and the log that they write.

    python tests/fuzz/pgoutput.py --minutes 5 [--keep]

Each input is a stream of messages (`support.pgoutput_streams`), fed to the native core and to its pure twin. It is a
find if one of them raises anything but a typed refusal, if they differ in one byte, if the log cannot be read back, or
if the process dies, hangs, or grows beyond its bound. Coverage of the Python code leads the way (atheris, libFuzzer);
the native core is not instrumented, and its twin, which must agree with it, leads for both.

A find is left in `.services/fuzz/`, and belongs into `corpus/`, which `test_streams.py` replays in every ordinary run.
`--keep` adds the inputs of this run that reach new code.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
sys.path[:0] = [str(TESTS), str(ROOT)]

CORPUS = Path(__file__).parent / "corpus"
FOUND = ROOT / ".services" / "fuzz"
LONGEST = 12_000  # bytes of an input
MEMORY_MIB = 700  # of the whole process, atheris and both cores included
NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def main() -> None:
    """Fuzzes in a child process; exits with 1 and names the file if something was found."""
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--minutes", type=float, default=5)
    arguments.add_argument("--seed", type=int, default=0, help="0 draws one, which is printed")
    arguments.add_argument("--keep", action="store_true", help="add what reaches new code to the corpus")
    arguments.add_argument("--worker", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.worker is not None:
        fuzz(given.worker)
        return
    fresh = FOUND / "corpus"
    fresh.mkdir(parents=True, exist_ok=True)
    limits = [f"-max_total_time={round(given.minutes * 60)}", f"-rss_limit_mb={MEMORY_MIB}", f"-max_len={LONGEST}"]
    limits += ["-timeout=20", f"-seed={given.seed}", f"-artifact_prefix={FOUND}/", "-print_final_stats=1"]
    code = subprocess.run([sys.executable, __file__, "--worker", *limits, fresh, CORPUS], check=False).returncode
    if given.keep and code == 0:
        code = subprocess.run([sys.executable, __file__, "--worker", "-merge=1", CORPUS, fresh], check=False).returncode
    if code:
        sys.exit(f"fuzz: found something, see {FOUND}")


def fuzz(arguments: list[str]) -> None:
    """Runs libFuzzer in this process; does not return."""
    import atheris

    with atheris.instrument_imports(include=["walbus.capture", "walbus.native", "walbus.values"]):
        from support.pgoutput_streams import outcome_of, pack_stream, unpack_stream
        from walbus.native import native_implementation, pure_implementation

    both = native_implementation(), pure_implementation("fuzzed")
    seeds = [m for path in sorted(CORPUS.iterdir()) for m in unpack_stream(path.read_bytes())]

    def one_input(data: bytes) -> None:
        messages = unpack_stream(data)
        native, pure = (outcome_of(implementation, messages) for implementation in both)
        if native != pure:
            raise AssertionError(f"the cores differ: {native} and {pure}")

    def mutated(data: bytes, longest: int, seed: int) -> bytes:
        dice, messages = random.Random(seed), unpack_stream(data)
        if not messages or dice.random() < 0.05:
            return bytes(atheris.Mutate(data, longest))
        mutate(messages, dice, seeds, lambda message: bytes(atheris.Mutate(message, len(message) + 8)))
        return pack_stream(messages)[:longest]

    atheris.Setup([sys.argv[0], *arguments], one_input, custom_mutator=mutated)
    atheris.Fuzz()


def mutate(messages: list[bytes], dice: random.Random, seeds: list[bytes], of_library) -> None:
    """Changes a stream in place, mostly so that its messages stay messages."""
    for _ in range(dice.choice((1, 1, 2, 4))):
        at = dice.randrange(len(messages))
        message = messages[at]
        match dice.randrange(8):
            case 0:
                messages[at] = of_library(message) if message else b""
            case 1:
                messages[at] = message[: dice.randrange(len(message) + 1)]
            case 2 | 3:
                size, number = dice.choice((1, 2, 4, 8)), dice.choice((*NUMBERS, dice.getrandbits(32)))
                place = dice.randrange(len(message) + 1)
                number &= (1 << 8 * size) - 1
                messages[at] = message[:place] + number.to_bytes(size, "big") + message[place + size :]
            case 4:
                messages.insert(at, dice.choice(seeds))
            case 5:
                messages[at] = dice.choice(seeds)
            case 6:
                other = dice.randrange(len(messages))
                messages[at], messages[other] = messages[other], message
            case 7 if len(messages) > 1:
                del messages[at]
            case _:
                messages.insert(at, message)


if __name__ == "__main__":
    main()
