"""What the doctor says of a machine, and how it is printed: on facts alone."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from support.certificates import Authority
from walbus.capture.doctor import Attempt, Finding, Mend, Severity, in_order
from walbus.capture.doctor.findings import advice, error, info, ok, safe_statement, warning
from walbus.cli.doctor_access import CertificateFacts, TokensFacts
from walbus.cli.doctor_machine import read_machine, sync_times
from walbus.cli.doctor_mounts import Mount, mount_of
from walbus.cli.doctor_report import Report, document, lines
from walbus.cli.doctor_rules import (
    ConfigFileFacts,
    FolderFacts,
    ListenFacts,
    MachineFacts,
    log_findings,
    machine_findings,
)
from walbus.config import ClientConfig, Settings
from walbus.demo.postgres import free_port
from walbus.errors import ConfigError, DamagedRecord

GIB = 1 << 30
LOG = FolderFacts("log", "/data/relay", True, None, Mount("ext4", "/", "/dev/vda"), 80 * GIB, 250 * GIB, (0.001,) * 20)
HEALTHY = MachineFacts(
    folders=(LOG,),
    segment_bytes=64 << 20,
    open_files=(20_000, 20_000),
    core="native",
    packages={"walbus": "0.1"},
    config_file=ConfigFileFacts("walbus.toml", 0o600, True),
    listeners=(ListenFacts("relay.listen", "127.0.0.1:7070", None, "", ours=False),),
    sinks=(),
)

MOUNTS = """\
22 28 0:20 / /proc rw,nosuid shared:5 - proc proc rw
28 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
31 28 0:25 / /dev/shm rw shared:7 - tmpfs tmpfs rw
40 28 0:44 / /srv/two\\040words rw - nfs4 far:/export rw
41 28 0:45 / /srv/two\\040words rw master:3 - ext4 /dev/vdb rw
nonsense
"""


def log(**changes: object) -> MachineFacts:
    return replace(HEALTHY, folders=(replace(LOG, **changes),))  # type: ignore[arg-type]


def tokens(**changes: object) -> MachineFacts:
    healthy = TokensFacts("/etc/walbus/tokens.toml", None, 0o640, 2)
    return replace(HEALTHY, tokens=(replace(healthy, **changes),))  # type: ignore[arg-type]


def certificate(**changes: object) -> MachineFacts:
    healthy = CertificateFacts("relay.tls_cert", "/etc/walbus/cert.pem", None, 90 * 86_400.0, "/etc/walbus/key.pem")
    return replace(HEALTHY, certificates=(replace(healthy, **changes),))  # type: ignore[arg-type]


def only(facts: MachineFacts, code: str) -> Finding:
    return in_order(finding for finding in machine_findings(facts) if finding.code == code)[0]


@pytest.mark.parametrize("facts", [HEALTHY, tokens(), certificate(), certificate(left=None, key_path="")])
def test_a_healthy_machine_has_nothing_but_ok(facts: MachineFacts) -> None:
    assert {finding.severity for finding in machine_findings(facts)} == {Severity.OK}


@pytest.mark.parametrize(("hard", "command"), [(4096, "ulimit -n 4096"), (-1, "ulimit -n 65536")])
def test_a_limit_of_open_files_is_mended_by_what_the_shell_takes(hard: int, command: str) -> None:
    assert only(replace(HEALTHY, open_files=(256, hard)), "open-files").mends[0].text == command


def settings_with(tmp_path: Path, **relay: object) -> Settings:
    return Settings(
        data_dir=tmp_path,
        source={"dsn": "postgresql://nobody@127.0.0.1/nothing"},
        relay={"listen": f"127.0.0.1:{free_port()}", **relay},
        bootstrap={"enabled": False},
    )  # type: ignore[arg-type]


def access_codes(settings: Settings) -> list[tuple[str, str]]:
    found = machine_findings(read_machine(settings, None))
    return [(f.code, f.severity.value) for f in found if f.code in {"tokens-file", "certificate"}]


def test_the_tokens_file_is_looked_at_as_the_servers_read_it(tmp_path: Path) -> None:
    file = tmp_path / "tokens.toml"
    settings = settings_with(tmp_path, tokens_file=file)
    assert access_codes(settings) == [("tokens-file", "error")]
    file.write_text("")
    file.chmod(0o600)
    assert access_codes(settings) == [("tokens-file", "warning")]
    line = f'sha256 = "{"0" * 64}"\ntables = ["*.*"]\n'
    file.write_text(f"[app]\n{line}")
    assert access_codes(settings) == [("tokens-file", "ok")]
    file.write_text(f"[app]\n{line}expires = 2020-01-01T00:00:00Z\n")
    assert access_codes(settings) == [("tokens-file", "warning")]
    file.write_text("[app")
    assert access_codes(settings) == [("tokens-file", "error")]


@pytest.mark.parametrize(("days", "severity"), [(200, "ok"), (3, "warning"), (-3, "error")])
def test_a_certificate_is_looked_at_as_the_servers_load_it(tmp_path: Path, days: float, severity: str) -> None:
    files = Authority(tmp_path).server("localhost", ends_in_days=days)
    files["tls_key"].chmod(0o600)
    assert access_codes(settings_with(tmp_path, **files)) == [("certificate", severity)]


def test_a_key_of_another_certificate_and_authorities_that_are_none_are_errors(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    one, other = authority.server("localhost"), authority.server("localhost")
    assert access_codes(settings_with(tmp_path, **{**one, "tls_key": other["tls_key"]})) == [("certificate", "error")]
    client = ClientConfig(ca_file=tmp_path / "nothing.pem")
    assert access_codes(settings_with(tmp_path).model_copy(update={"client": client})) == [("certificate", "error")]


@pytest.mark.parametrize(
    ("facts", "code", "severity", "said"),
    [
        (log(problem="this user may not write to /data"), "log-folder", "error", "may not write"),
        (log(free=100 << 20), "log-disk-space", "error", "100.0 MiB of 250.0 GiB"),
        (log(free=3 * GIB), "log-disk-space", "warning", "3.0 GiB"),
        (log(role="spool", free=100 << 20), "spool-folder", "warning", "100.0 MiB"),
        (log(role="store", free=100 << 20), "store-folder", "warning", "100.0 MiB"),
        (log(mount=Mount("tmpfs", "/dev/shm", "tmpfs")), "log-file-system", "error", "gone after a restart"),
        (log(mount=Mount("nfs4", "/srv", "far:/x")), "log-file-system", "warning", "another machine"),
        (log(mount=Mount("overlay", "/", "overlay")), "log-file-system", "warning", "container"),
        (log(syncs=(0.05,) * 5), "log-sync-speed", "warning", "50 ms"),
        (log(syncs=(0.000_005,) * 5), "log-sync-speed", "info", "no disk"),
        (replace(HEALTHY, open_files=(256, 4096)), "open-files", "warning", "256 files, 4,096 at most"),
        (replace(HEALTHY, core="pure (extension not built)"), "native-core", "info", "extension not built"),
        (
            replace(HEALTHY, config_file=ConfigFileFacts("walbus.toml", 0o644, True)),
            "config-permissions",
            "warning",
            "mode 644",
        ),
        (
            replace(
                HEALTHY, listeners=(ListenFacts("relay.listen", "h:1", "Address already in use", "…", ours=False),)
            ),
            "listen-address",
            "error",
            "already in use",
        ),
        (replace(HEALTHY, sinks=(ConfigError("there is no sink 'x'"),)), "sinks", "error", "no sink"),
        (tokens(problem=ConfigError("the file of tokens is not TOML")), "tokens-file", "error", "not TOML"),
        (tokens(mode=0o664), "tokens-file", "warning", "mode 664"),
        (tokens(count=0), "tokens-file", "warning", "everybody is turned away"),
        (tokens(expired=("old",)), "tokens-file", "warning", "have expired"),
        (tokens(expiring=("soon",)), "tokens-file", "warning", "within 14 d"),
        (certificate(problem=ConfigError("that is no key")), "certificate", "error", "that is no key"),
        (certificate(left=-1.0), "certificate", "error", "has expired"),
        (certificate(left=5 * 86_400.0), "certificate", "warning", "expires in 5 d"),
        (certificate(key_mode=0o644), "certificate", "warning", "everybody may read the private key"),
    ],
)
def test_a_finding_names_what_is_wrong_with_this_machine(
    facts: MachineFacts, code: str, severity: str, said: str
) -> None:
    finding = only(facts, code)
    assert finding.severity == severity
    assert said in finding.found


def test_a_port_where_walbus_itself_runs_is_right() -> None:
    facts = replace(HEALTHY, listeners=(ListenFacts("relay.listen", "h:1", "Address already in use", "", ours=True),))
    assert only(facts, "listen-address").severity is Severity.OK


def test_a_file_without_password_may_be_read_by_all() -> None:
    facts = replace(HEALTHY, config_file=ConfigFileFacts("walbus.toml", 0o644, False))
    assert "config-permissions" not in {finding.code for finding in machine_findings(facts)}


def test_a_log_that_cannot_be_read_is_an_error_with_its_place() -> None:
    [finding] = log_findings(DamagedRecord("checksum", where="1.seg, offset 40"))
    assert (finding.severity, finding.code) == (Severity.ERROR, "log-folder")
    assert "offset 40" in finding.found
    assert list(log_findings(None)) == []


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/data/relay", "ext4"),
        ("/dev/shm", "tmpfs"),
        ("/dev/shm/deep/er", "tmpfs"),
        ("/dev/shmem", "ext4"),
        ("/srv/two words/log", "ext4"),
    ],
)
def test_the_longest_and_last_mount_holds_a_path(path: str, kind: str) -> None:
    mount = mount_of(path, MOUNTS)
    assert mount is not None
    assert mount.kind == kind


def test_without_mounts_there_is_none() -> None:
    assert mount_of("/data", "") is None


def test_syncs_are_measured_within_bounds_and_leave_nothing(tmp_path: Path) -> None:
    ticks = iter(range(1000))
    times = sync_times(tmp_path, lambda: next(ticks) * 0.1)
    assert 1 <= len(times) <= 20
    assert list(tmp_path.iterdir()) == []
    assert sync_times(tmp_path / "missing", lambda: 0.0) == ()


BAD = error("wal-level", "wal_level is replica", Mend("sql", "ALTER SYSTEM SET wal_level = 'logical'", True, True))
REPORT = Report("db:5432, database shop", True, (ok("encoding", "UTF8"), info("slot", "none yet"), BAD))


@pytest.mark.parametrize(
    ("findings", "reached", "code"),
    [
        ((ok("encoding", "UTF8"), info("slot", "none yet")), True, 0),
        ((warning("clock", "2 h apart"),), True, 3),
        ((BAD,), True, 3),
        ((BAD,), False, 1),
    ],
)
def test_the_exit_code_follows_the_worst_finding(findings: tuple[Finding, ...], reached: bool, code: int) -> None:
    assert replace(REPORT, findings=findings, reached=reached).exit_code == code


def test_the_document_has_the_members_that_the_page_describes() -> None:
    page = (Path(__file__).parents[2] / "docs/doctor.md").read_text().split("## The JSON form")[1]
    attempt = Attempt("wal-level", BAD.mends[0], "permission denied")
    told = document(replace(REPORT, attempts=(attempt,)))
    first = told["findings"][0]
    names = {*told, *told["source"], *first, *first["mends"][0], *told["fixed"][0]}
    assert [name for name in names if f"{name}" not in page] == []
    assert (first["code"], told["counts"], told["exit_code"]) == (
        "wal-level",
        {"error": 1, "warning": 0, "info": 1, "ok": 1},
        3,
    )
    json.dumps(told)


def shown(report: Report) -> str:
    return "\n".join(line.text.plain for line in lines(report))


def test_people_see_the_worst_first_and_what_is_right_last() -> None:
    text = shown(REPORT)
    assert text.index("wal-level") < text.index("none yet") < text.index("encoding")
    assert "ALTER SYSTEM SET wal_level = 'logical';   -- done by --fix, then restart PostgreSQL" in text
    assert text.endswith("1 error; walbus doctor --fix runs 1 statement of the above")


def test_people_see_what_fix_did_and_what_it_could_not() -> None:
    done = Attempt("wal-level", BAD.mends[0], None)
    refused = Attempt("replication-privilege", safe_statement("ALTER ROLE app REPLICATION"), "permission denied")
    text = shown(replace(REPORT, attempts=(done, refused)))
    assert "done    ALTER SYSTEM" in text
    assert "failed  ALTER ROLE app REPLICATION;\n           permission denied" in text
    assert "restart PostgreSQL, and run walbus doctor again" in text


def test_people_see_a_few_of_many_and_where_the_rest_is() -> None:
    names = [f"public.t{number}" for number in range(200)]
    many = error("identity", "no replica identity", *(advice(f"key for {name}") for name in names), of=names)
    text = shown(replace(REPORT, findings=(many,)))
    assert "and 192 more" in text
    assert "192 steps more, which --json lists" in text


def test_a_source_that_could_not_be_looked_at_is_never_called_well() -> None:
    text = shown(Report("db", False, (error("connection", "refused"),)))
    assert text.endswith("the source could not be looked at")
    assert "nothing found" in shown(Report("db", True, (ok("encoding", "UTF8"),)))


@pytest.mark.parametrize(("width", "terminal", "most"), [(60, True, 60), (60, False, 999)])
def test_prose_is_wrapped_under_its_label_on_a_terminal_and_statements_never_are(
    width: int, terminal: bool, most: int
) -> None:
    console = Console(width=width, force_terminal=terminal, file=io.StringIO())
    grant = safe_statement(f"GRANT SELECT ON {', '.join(['public.orders'] * 9)} TO app")
    report = replace(REPORT, findings=(error("select-privilege", "role app may not read " + "tables " * 30, grant),))
    parts = [part.plain for line in lines(report) for part in line.wrapped(console)]
    assert any(grant.text in part for part in parts)
    prose = [part for part in parts if "tables" in part and "read tables through SQL" not in part]
    assert max(map(len, prose)) <= most
    assert (len(prose) > 1) is terminal
    assert all(part.startswith(" " * 11) for part in prose[1:])
