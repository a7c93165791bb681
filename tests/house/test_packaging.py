"""A package that is missing from the list vanishes from the wheel without a word; here it has a word."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
ROOMS = ("bootstrap", "capture", "consumers", "relay")


def folders_with_python(top: Path) -> set[Path]:
    return {file.parent for file in top.rglob("*.py") if "__pycache__" not in file.parts}


def test_every_folder_with_python_is_a_listed_package() -> None:
    tree = {"walbus" / folder.relative_to(ROOT / "walbus") for folder in folders_with_python(ROOT / "walbus")}
    for room in ROOMS:
        tree |= {"walbus" / folder.relative_to(ROOT) for folder in folders_with_python(ROOT / room)}
    assert sorted(SETUPTOOLS["packages"]) == sorted({".".join(folder.parts) for folder in tree})


def test_every_package_below_a_room_is_mapped_to_its_folder() -> None:
    for package in SETUPTOOLS["packages"]:
        _, _, below = package.partition(".")
        if below.partition(".")[0] in ROOMS:
            assert SETUPTOOLS["package-dir"][package] == below.replace(".", "/")


def test_each_room_is_linked_into_the_package_by_a_relative_link() -> None:
    links = {link.name: link.readlink() for link in (ROOT / "walbus").iterdir() if link.is_symlink()}
    assert links == {room: Path("..") / room for room in ROOMS}


def test_the_native_core_is_built_from_all_of_its_sources_and_may_be_missing() -> None:
    (extension,) = SETUPTOOLS["ext-modules"]
    folder = ROOT / "walbus/native"
    sources = {str(file.relative_to(ROOT)) for file in (*folder.glob("*.pyx"), *folder.glob("*.pxi"))}
    assert {*extension["sources"], *extension["depends"]} == sources
    assert extension["optional"] is True


def test_the_sources_of_the_native_core_are_shipped() -> None:
    shipped = SETUPTOOLS["package-data"]["walbus.native"]
    assert set(shipped) == {"*.pyi", "*.pyx", "*.pxi"}


def test_ruff_sees_each_file_once() -> None:
    command = [sys.executable, "-m", "ruff", "check", "--show-files"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    files = [Path(line).resolve() for line in shown]
    assert len(files) == len(set(files))
    assert {file.parent.relative_to(ROOT).parts[0] for file in files if file.parent != ROOT} >= {
        *ROOMS,
        "walbus",
        "tests",
    }
