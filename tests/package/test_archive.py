"""The source archive: the same files on every machine, one version, links that lead somewhere from anywhere."""

from __future__ import annotations

import email
import importlib.metadata
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import fastmerge

ROOT = Path(__file__).resolve().parents[2]
# What an archive must hold beside the packages.
FOLDERS = ("csrc", "tests", "docs", "benchmarks")
FILES = (
    "setup.py", "pyproject.toml", "MANIFEST.in", "constraints.txt", ".ci/run", "fastmerge/py.typed",
    "README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md",
)  # fmt: skip

pytestmark = pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="needs the sources")


def make_archive(folder: Path, **environment: str) -> tarfile.TarFile:
    """Return the archive that is made under ``folder``, where the notes of earlier archives are not read."""
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", folder, "sdist", "--dist-dir", folder]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("*.tar.gz")
    return tarfile.open(path)


def names_in(archive: tarfile.TarFile) -> set[str]:
    """Return the paths of the archive's files below its one folder."""
    return {member.name.split("/", 1)[1] for member in archive.getmembers() if member.isfile()}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> tarfile.TarFile:
    """The archive of a machine that compiles nothing."""
    nothing = {"FASTMERGE_CUDA": "0", "FASTMERGE_CPU": "0", "PATH": ""}
    with make_archive(tmp_path_factory.mktemp("archive"), **nothing) as archive:
        yield archive


def test_it_holds_every_source(archive):
    inside = names_in(archive)
    wanted = {path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.is_file()}
    made = {"__pycache__", ".pytest_cache", ".hypothesis"}
    wanted = {path.relative_to(ROOT).as_posix() for path in wanted if not made & set(path.parts)}
    assert {"csrc/cuda/sparse_merge.cu", "csrc/fastmerge_math.h", "csrc/cuda/grid.h"} <= wanted
    assert wanted | set(FILES) <= inside
    assert not [name for name in inside if name.endswith((".so", ".pyc", ".o"))]


def test_it_is_the_same_where_everything_is_compiled(archive, tmp_path):
    with make_archive(tmp_path) as other:
        assert names_in(other) == names_in(archive)


@pytest.mark.slow
def test_a_wheel_from_it_holds_the_package_alone(archive, tmp_path):
    # Not imported: pip takes the distutils of setuptools away from the other tests.
    if not list(importlib.metadata.distributions(name="pip")):
        pytest.skip("needs pip")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-index", "--no-deps", "--no-build-isolation"]
    nothing = {"FASTMERGE_CUDA": "0", "FASTMERGE_CPU": "0"}
    done = subprocess.run(
        [*command, "-w", tmp_path, archive.name], env=os.environ | nothing, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"fastmerge/py.typed", "fastmerge/functional.pyi", "fastmerge/kernels/spectral/boost.py"} <= names
    assert {name.split("/")[0].partition("-")[0] for name in names} == {"fastmerge"}
    sources = {name for name in names_in(archive) if name.startswith(("fastmerge/", "kernels/"))}
    assert {
        name.replace("kernels/", "fastmerge/kernels/", 1) if name.startswith("kernels/") else name for name in sources
    } <= names


def test_its_description(archive):
    (member,) = (member for member in archive.getmembers() if re.fullmatch(r"[^/]+/PKG-INFO", member.name))
    facts = email.message_from_bytes(archive.extractfile(member).read())
    assert facts["Version"] == fastmerge.__version__
    assert facts["Description-Content-Type"] == "text/markdown"
    assert "Typing :: Typed" in facts.get_all("Classifier")
    repository = dict(url.split(", ") for url in facts.get_all("Project-URL"))["Repository"]
    text = facts.get_payload()
    assert f"]({repository}/blob/HEAD/docs/methods.md)" in text
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert target.startswith("https://"), target


def test_the_first_change_is_that_of_this_version():
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert re.fullmatch(rf"{re.escape(fastmerge.__version__)} \(\d{{4}}-\d\d-\d\d\)", headings[0])


def test_one_that_lacks_sources_is_refused(tmp_path):
    for name in ("setup.py", "pyproject.toml", "README.md"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "setup.py", "--name"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0
    assert "csrc/*.cpp: no such file; these sources of fastmerge are not complete" in done.stderr
