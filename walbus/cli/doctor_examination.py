"""An examination by `walbus doctor`: the source, this machine and the log that is there, and what --fix does.

The source's part is `walbus.capture.doctor`'s. What concerns this machine is said even if the source cannot be
reached.
"""

from __future__ import annotations

import threading
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from pydantic import SecretStr

from walbus.capture.doctor import (
    Attempt,
    Finding,
    LogFacts,
    Wanted,
    apply_safe,
    diagnose,
    read_facts,
    too_old,
    wait_for_reload,
)
from walbus.capture.doctor.findings import advice, error
from walbus.capture.remembered import CATALOG_FILE, Remembered
from walbus.capture.sessions import Session, cut_off, open_session, place_of
from walbus.cli.doctor_machine import read_machine
from walbus.cli.doctor_report import Report
from walbus.cli.doctor_rules import log_findings, machine_findings
from walbus.config import Settings
from walbus.errors import ConfigError, LogMissing, SourceError, WalbusError
from walbus.relay import open_reader

#: Connections of capture beside the walsender, and of bootstrap beside its workers.
_CAPTURE_SESSIONS, _BOOTSTRAP_SESSIONS = 3, 2
#: Seconds until a source that hangs is given up.
_PATIENCE = 60.0


def examined(settings: Settings, file: Path | None, *, fix: bool, admin: SecretStr | None) -> Report:
    """The whole examination.

    Args:
        settings: the configuration.
        file: that it was read from.
        fix: whether the safe steps are run.
        admin: DSN of who runs them, if it is not source.dsn's role.

    Raises:
        ConfigError: a DSN cannot be parsed, or the administrator's names another database.
    """
    place = place_of(settings.source.dsn)
    log, log_problem = _log_of(settings.relay_dir)
    here = [*machine_findings(read_machine(settings, file)), *log_findings(log_problem), *_elsewhere(settings)]
    attempts: tuple[Attempt, ...] = ()
    try:
        with closing(open_session(settings.source.dsn)) as session:
            there = _diagnosed(session, settings, log)
            if fix:
                attempts = _mended(session, admin, there)
                if any(attempt.mend.restart and attempt.failed is None for attempt in attempts):
                    wait_for_reload(session)
                there = _diagnosed(session, settings, log)
    except SourceError as refused:
        mends = [advice(refused.mend)] if refused.mend else []
        there = [error("connection", f"{refused.what} (at {refused.where or place})", *mends)]
        return Report(place, False, (*there, *here), attempts)
    return Report(place, True, (*there, *here), attempts)


def _elsewhere(settings: Settings) -> list[Finding]:
    """Of the cluster and the registry, where the configuration names any."""
    if settings.relay.engine != "kafka" and settings.relay.schema_registry is None:
        return []
    from walbus.cli.doctor_kafka import elsewhere  # noqa: PLC0415 - others need none of it

    return list(elsewhere(settings))


def _diagnosed(session: Session, settings: Settings, log: LogFacts | None) -> list[Finding]:
    old = too_old(session.info.server_version)
    if old is not None:
        return [old]
    with cut_off(session, threading.Event(), _PATIENCE):
        facts = read_facts(session, settings.source, wanted_by(settings), log, time.time)
    after = _log_of(settings.relay_dir)[0]
    if facts.log is not None and after is not None:
        facts = replace(facts, log=replace(facts.log, bounds_after=after.bounds))
    return diagnose(facts)


def _mended(session: Session, admin: SecretStr | None, findings: list[Finding]) -> tuple[Attempt, ...]:
    """Runs the safe steps, as the administrator if one is given.

    Raises:
        ConfigError: the administrator cannot connect, or not to the same database.
    """
    if admin is None:
        return tuple(apply_safe(session, findings))
    with closing(_session_of(admin)) as theirs:
        if _identity(theirs) != _identity(session):
            mend = "name the database of source.dsn, on the same server"
            raise ConfigError("--admin leads to another database than source.dsn", where="option --admin", mend=mend)
        return tuple(apply_safe(theirs, findings))


def _session_of(admin: SecretStr) -> Session:
    """The administrator's; what keeps it from connecting is no finding about the source."""
    try:
        return open_session(admin)
    except SourceError as refused:
        raise ConfigError(refused.what, where="option --admin", mend=refused.mend) from None


def _identity(session: Session) -> object:
    """Which database of which running server this is."""
    return session.execute("SELECT current_database(), pg_postmaster_start_time()").fetchone()


def wanted_by(settings: Settings) -> Wanted:
    """What the configuration asks of the source."""
    source, bootstrap = settings.source, settings.bootstrap
    seeding = bootstrap.workers + _BOOTSTRAP_SESSIONS if bootstrap.enabled else 0
    return Wanted(
        slot=source.slot,
        publication=source.publication,
        tables=source.tables,
        two_phase=source.two_phase,
        failover=source.failover,
        streaming=source.streaming,
        catch_up=source.catch_up,
        bootstrap=bootstrap.enabled,
        sessions=_CAPTURE_SESSIONS + seeding,
    )


def _log_of(folder: Path) -> tuple[LogFacts | None, WalbusError | None]:
    """The log that is there, or why it cannot be read; neither where there is none."""
    try:
        with closing(open_reader(folder)) as reader:
            known = frozenset(schema.oid for schema in reader.schemas.all())
            remembered = Remembered(folder / CATALOG_FILE)
            remembered.open(reader.bounds().log_id, log_is_empty=True)
            return LogFacts(reader.source, reader.bounds(), known, remembered.state), None
    except LogMissing:
        return None, None
    except WalbusError as problem:
        return None, problem
