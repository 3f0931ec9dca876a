"""The report: pictures that are not empty, text that says what they show, and tables alone without matplotlib."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from fastmerge.analysis import analyze

PICTURES = {
    "agreement.png", "norms.png", "densities.png", "conflicts.png", "stable_rank.png", "collapse.png", "spectra.png",
    "overlap.png", "directions.png", "theorem.png",
}  # fmt: skip
TABLES = {"tensors.csv", "pairs.csv", "spectra.csv", "directions.csv", "theorem.csv"}


def made(family, out, **options):
    models = [str(family / name) for name in ("one", "two", "other")]
    return analyze(models, str(family / "base"), out, ho_gsvd=True, theorem=True, **options)


def test_pictures_are_drawn_and_explained(family, tmp_path):
    pytest.importorskip("matplotlib")
    from matplotlib.image import imread

    report = made(family, tmp_path / "report", choose_models=2)
    folder = Path(report.folder)
    assert set(report.files) == PICTURES | TABLES | {"index.md"} and report.notes == ()
    text = (folder / "index.md").read_text()
    assert set(re.findall(r"\]\((\w+\.png)\)", text)) == PICTURES
    assert all(f"`{name}`" in text for name in TABLES)
    assert "least in common are **" in text and "N to the power -0." in text
    for name in PICTURES:
        pixels = imread(folder / name)
        assert min(pixels.shape[:2]) > 300
        ink = (pixels[..., :3].min(axis=2) < 0.9).mean()
        assert 0.01 < ink < 0.95, name
        border = pixels[[0, -1], :, :3].min(), pixels[:, [0, -1], :3].min()
        assert min(border) > 0.9, f"{name}: something is cut off at the edge"
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o644}


def test_without_matplotlib_there_are_tables_and_a_sentence(family, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    report = made(family, tmp_path / "report")
    assert set(report.files) == TABLES | {"index.md"}
    assert report.notes == (
        "matplotlib is not installed, so the report has tables only (pip install 'fastmerge[plot]')",
    )
    text = (Path(report.folder) / "index.md").read_text()
    assert ".png" not in text and "Matplotlib is not installed" in text and "## Sign conflicts" in text


def test_one_model_and_the_theorem_alone(family, tmp_path):
    report = analyze([str(family / "one")], str(family / "base"), tmp_path / "one")
    assert not {"agreement.png", "conflicts.png", "collapse.png", "pairs.png"} & set(report.files)
    assert report.summary["stable_ranks"][0] > 1
    alone = analyze([], None, tmp_path / "theorem", theorem=True)
    assert set(alone.files) - {"theorem.png"} == {"theorem.csv", "index.md"}
    assert alone.summary["theorem"]["exponent"] == pytest.approx(-0.5, abs=0.03)
