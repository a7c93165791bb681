"""Builds the sdist, the wheel from the sdist, and proves both: contents against the tree, then a fresh install.

    python .ci/wheel.py [--keep FOLDER]

setuptools leaves a package that its list does not name out of the wheel without a word, so the wheel's files are
compared with the tree's. The wheel is built from the unpacked sdist, which has no links in walbus/: the rooms arrive by
the mapping in pyproject.toml alone. The wheel is installed into an environment of its own, where every module is found.

The native core must be in the wheel, and in use after the installation. A second build, with a compiler that always
fails, must end well too: with a wheel of Python alone, whose core is the twin.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
#: Where the compiled core lies in a wheel, and how the files of a build begin and end.
EXTENSION, COMPILED, GENERATED = "walbus/native/_core.", (".so", ".pyd"), ".c"

#: Modules of extras that a plain install does without; importing them there may fail, finding them may not.
FIND_EVERY_MODULE = """
import importlib.util, sys, walbus
for name in sys.argv[1:]:
    spec = importlib.util.find_spec(name)
    assert spec and spec.origin and "site-packages" in spec.origin, f"{name} is not found in the fresh environment"
import walbus.capture, walbus.relay, walbus.bootstrap, walbus.consumers, walbus.cli
from walbus.native import core_in_use
print(f"wheel: {len(sys.argv) - 1} modules found, every room imports; the core is {core_in_use()}")
assert core_in_use() == "native", core_in_use()
"""


def tree_files() -> set[str]:
    """Every file that a wheel must hold, as its path in site-packages; read from the rooms' folders.

    What a build in the tree left behind is not of the tree.
    """
    roots = {Path("walbus"): ROOT / "walbus"}
    roots |= {Path("walbus") / link.name: link.resolve() for link in (ROOT / "walbus").iterdir() if link.is_symlink()}
    return {
        str(prefix / file.relative_to(folder))
        for prefix, folder in roots.items()
        for file in folder.rglob("*")
        if file.is_file()
        and "__pycache__" not in file.parts
        and not file.name.startswith(".")
        and not file.name.endswith((*COMPILED, GENERATED))
    }


def module_names(files: set[str]) -> list[str]:
    """The dotted names of the Python files."""
    sources = sorted(name for name in files if name.endswith(".py"))
    return [name.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for name in sources]


def wheel_files(wheel: Path) -> set[str]:
    """The wheel's files without its metadata."""
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def without_extension(files: set[str]) -> set[str]:
    """The files but for the compiled core."""
    return {name for name in files if not (name.startswith(EXTENSION) and name.endswith(COMPILED))}


def sdist_files(sdist: Path) -> set[str]:
    """The sdist's files, by the place in site-packages that pyproject.toml's mapping gives them."""
    with tarfile.open(sdist) as archive:
        names = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    rooms = tuple(f"{link.name}/" for link in (ROOT / "walbus").iterdir() if link.is_symlink())
    return {f"walbus/{name}" if name.startswith(rooms) else name for name in names}


def build(folder: Path) -> tuple[Path, Path]:
    """The sdist, and the wheel built from it, with the setuptools of this environment."""
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"wheel: the build failed\n{done.stdout}{done.stderr}")
    return next(folder.glob("*.tar.gz")), next(folder.glob("*.whl"))


def build_without_compiler(sdist: Path, folder: Path) -> Path:
    """A wheel from the sdist, on a machine whose compiler always fails."""
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, sdist]
    environment = {**os.environ, "CC": "false", "CXX": "false"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        sys.exit(f"wheel: without a compiler the build failed\n{done.stdout}{done.stderr}")
    return next(folder.glob("*.whl"))


def compare(what: str, expected: set[str], found: set[str]) -> None:
    """Ends the process if the archive's files are not the tree's."""
    if missing := sorted(expected - found):
        sys.exit(f"wheel: {what} lacks (is the package in [tool.setuptools] packages?)\n" + "\n".join(missing))
    if what == "the wheel" and (extra := sorted(found - expected)):
        sys.exit("wheel: the wheel holds more than the tree\n" + "\n".join(extra))


def install(wheel: Path, folder: Path, modules: list[str]) -> None:
    """Installs the wheel into a fresh environment, and finds every module there."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    subprocess.run([python, "-m", "pip", "--disable-pip-version-check", "install", "-q", str(wheel)], check=True)
    subprocess.run([python, "-I", "-c", FIND_EVERY_MODULE, *modules], check=True, cwd=folder)
    subprocess.run([folder / "bin" / "walbus", "--help"], check=True, cwd=folder, stdout=subprocess.DEVNULL)


def main() -> None:
    """Builds, compares, installs; exits with 1 and a reason at the first difference."""
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--keep", type=Path, metavar="FOLDER", help="leave sdist and wheel here")
    keep: Path | None = arguments.parse_args().keep
    with tempfile.TemporaryDirectory() as temporary:
        folder = keep or Path(temporary) / "dist"
        folder.mkdir(parents=True, exist_ok=True)
        sdist, wheel = build(folder)
        expected = tree_files()
        compare("the sdist", expected, sdist_files(sdist))
        found = wheel_files(wheel)
        compare("the wheel", expected, without_extension(found))
        if found == without_extension(found):
            sys.exit("wheel: the native core was not built (is there a compiler?)")
        bare = wheel_files(build_without_compiler(sdist, Path(temporary) / "bare"))
        compare("the wheel", expected, bare)
        print(f"wheel: sdist and wheel hold all {len(expected)} files of the tree; without a compiler they do too")
        install(wheel, Path(temporary) / "fresh", module_names(expected))


if __name__ == "__main__":
    main()
