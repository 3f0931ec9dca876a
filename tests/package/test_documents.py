"""The pages for contributors name what is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(not (ROOT / "docs").is_dir(), reason="needs the sources")


@pytest.mark.parametrize(("page", "folder"), [("CONTRIBUTING.md", "."), ("docs/engine.md", "fastmerge/engine")])
def test_files_and_links_exist(page, folder):
    text = (ROOT / page).read_text()
    named = {name for name in re.findall(r"`([\w./]+(?:\.\w+|/))`", text) if "NAME" not in name and name[0] != "."}
    files = {name for name in named if name.endswith(("/", ".py", ".h", ".cpp", ".toml", ".md"))}
    assert len(files) > 5
    for name in files:
        inside = [ROOT / folder / name, ROOT / name, *(ROOT / "csrc" / "cpu").glob(name)]
        assert any(path.exists() for path in inside), name
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / page).parent.joinpath(target).exists() or (ROOT / target).exists(), target


def test_every_room_is_on_the_map():
    """That of CONTRIBUTING.md: the folders of the package, and what lies beside them."""
    named = set(re.findall(r"^([a-z_/]+)/ ", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE))
    rooms = {f"fastmerge/{path.parent.name}" for path in ROOT.glob("fastmerge/*/__init__.py")}
    assert named == rooms | {"csrc", "kernels", "benchmarks", "tests"}
