"""Minor versions of PostgreSQL whose logical decoding is known to lose, stop or crash. Pure.

Each entry was read in PostgreSQL's release notes of the version that mends it, where its sentence stands; the links
lead there. Only what concerns a slot that is read through pgoutput is listed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from walbus.capture.doctor.facts import Facts, Wanted
from walbus.capture.doctor.findings import Finding, Severity, advice, info, ok

OLDEST, NEWEST = 14, 18
RELEASE_NOTES = "https://www.postgresql.org/docs/release"


@dataclass(frozen=True, slots=True)
class KnownBug:
    """A bug that a minor release mended.

    Attributes:
        what: happens, a sentence without a full stop.
        severity: for whom it concerns.
        mended: the first good minor version, by major version.
        since: the first bad one where it is not 0, by major version.
        only: of the configuration's switches, the one that meets the bug; None for everybody.
    """

    what: str
    severity: Severity
    mended: Mapping[int, int]
    since: Mapping[int, int] | None = None
    only: str | None = None

    def hits(self, major: int, minor: int, wanted: Wanted) -> bool:
        """Whether this version has it, under this configuration."""
        first = (self.since or {}).get(major, 0)
        has = major in self.mended and first <= minor < self.mended[major]
        return has and (self.only is None or bool(getattr(wanted, self.only)))


KNOWN_BUGS: tuple[KnownBug, ...] = (
    KnownBug(
        "changes are lost or decoded with an old layout when ALTER PUBLICATION, ALTER TYPE or other DDL without a"
        " strong lock runs beside open transactions",
        Severity.ERROR,
        mended={14: 18, 15: 13, 16: 9, 17: 5},
    ),
    KnownBug(
        "after DDL, invalidation messages multiply from transaction to transaction until decoding ends with"
        " 'invalid memory alloc request size'",
        Severity.ERROR,
        mended={14: 19, 15: 14, 16: 10, 17: 6},
        since={14: 18, 15: 13, 16: 9, 17: 5},
    ),
    KnownBug(
        "after a crash of the server, decoding waits for ever behind a WAL record that was written in part",
        Severity.WARNING,
        mended={14: 19, 15: 14, 16: 10, 17: 6},
    ),
    KnownBug(
        "a checkpoint that runs while the slot advances removes WAL that a crash right after it would need",
        Severity.WARNING,
        mended={14: 19, 15: 14, 16: 10, 17: 6},
    ),
    KnownBug(
        "a new slot can be invalidated at once, when a checkpoint runs while it is made",
        Severity.WARNING,
        mended={14: 21, 15: 16, 16: 12, 17: 8, 18: 2},
    ),
    KnownBug(
        "memory of the walsender grows without bound (leaks in pgoutput)",
        Severity.WARNING,
        mended={15: 11, 16: 7, 17: 3},
    ),
    KnownBug(
        "an error while changes are read through SQL can crash the next read in the same session",
        Severity.WARNING,
        mended={14: 20, 15: 15, 16: 11, 17: 7, 18: 1},
        only="catch_up",
    ),
    KnownBug(
        "a prepared transaction without decodable changes sends COMMIT PREPARED without its PREPARE, and capture stops",
        Severity.WARNING,
        mended={15: 19, 16: 15, 17: 11, 18: 6},
        only="two_phase",
    ),
)


def too_old(version: int) -> Finding | None:
    """What is said of a server whose catalogs the other facts could not even be read from."""
    if version >= OLDEST * 10_000:
        return None
    found = f"PostgreSQL {version // 10_000} is too old: {OLDEST} is the oldest that capture can read"
    return Finding("server-version", Severity.ERROR, found, mends=(advice(f"upgrade to {NEWEST}"),))


def version_findings(facts: Facts) -> Iterator[Finding]:
    """What is known of the server's version."""
    version = facts.server.version
    major, minor = divmod(version, 10_000)
    name = f"PostgreSQL {major}.{minor}"
    hit = [bug for bug in KNOWN_BUGS if bug.hits(major, minor, facts.wanted)]
    if major > NEWEST:
        yield info("server-version", f"{name} is newer than what Walbus was tested with ({OLDEST} to {NEWEST})")
    elif not hit:
        yield ok("server-version", f"{name}, without a known bug that concerns capture")
    for bug in hit:
        good = bug.mended[major]
        mend = advice(f"update PostgreSQL to {major}.{good} or later ({RELEASE_NOTES}/{major}.{good}/)")
        yield Finding("server-version", bug.severity, f"{name}: {bug.what}", mends=(mend,))
