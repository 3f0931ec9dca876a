"""The report: one page that opens alone, pictures with values, words that say what to try, and a recipe that holds."""

from __future__ import annotations

import itertools
import json
import math
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from commands import call
from tiny_models import make_tensors, save_model

from fastmerge.analysis import analyze
from fastmerge.pages import clustered, model_panels
from fastmerge.pages.svg import Scale, cells, lines

FILES = {
    "report.html", "analysis.json", "recipe.yml", "tensors.csv", "pairs.csv", "leading.csv", "spectra.csv",
    "directions.csv", "theorem.csv",
}  # fmt: skip
TITLES = [
    "Agreement of the models", "Cosine by layer", "Sign conflicts", "Norms", "Densities", "Stable rank",
    "Collapse as models are added", "Singular values", "Directions in common", "Shared and own directions",
    "Rank collapse of synthetic task vectors", "Files",
]  # fmt: skip


def made(family, out, **options):
    models = [str(family / name) for name in ("one", "two", "other")]
    return analyze(models, str(family / "base"), out, **options)


class Page(HTMLParser):
    """A page whose tags close in order, and what it loads from elsewhere."""

    def __init__(self, path: Path):
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.text = path.read_text(encoding="utf-8")
        self.feed(self.text)
        self.pictures = [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", self.text, re.S)]
        self.titles = re.findall(r"<h2>(.*?)</h2>", self.text)

    def handle_starttag(self, tag, attributes):
        if tag != "meta":
            self.open.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href")]

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def of_tag(picture, tag):
    return [element for element in picture.iter() if element.tag.endswith(f"}}{tag}")]


def test_the_page_is_whole_and_needs_nothing_else(family, tmp_path):
    report = made(family, tmp_path / "report", ho_gsvd=True, theorem=True, choose_models=2)
    page = Page(Path(report.folder) / "report.html")
    assert set(report.files) == FILES and report.notes == ()
    assert page.open == [] and page.titles == TITLES and set(page.links) == FILES - {"report.html"}
    assert len(page.text) < 500_000 and "nan" not in page.text.lower().replace("nano", "")
    assert "least in common are " in page.text and "N to the power -0." in page.text
    for picture in page.pictures:
        width, height = float(picture.get("width")), float(picture.get("height"))
        assert 100 < width < 1300 and 60 < height < 900
        assert of_tag(picture, "title") and len(of_tag(picture, "text")) > 4
    assert {path.stat().st_mode & 0o777 for path in Path(report.folder).iterdir()} == {0o644}


def test_what_is_written_is_what_was_found(family, tmp_path):
    report = made(family, tmp_path / "report")
    page = Page(tmp_path / "report" / "report.html")
    written = json.loads((tmp_path / "report" / "analysis.json").read_text())
    assert written == {"schema": 1, **report.summary}
    cosine = next(p for p in page.pictures if of_tag(p, "text")[0].text == "cosine of the deltas")
    hovers = [title.text for title in of_tag(cosine, "title")]
    assert len(hovers) == 6  # the diagonal is blank
    assert f"one, two: {written['cosines'][0][1]:.3g}" in hovers
    assert "closest are one and two" in page.text
    assert f"{written['cosines'][0][1]:.2f}" in page.text and "No model is redundant" in page.text


def test_the_drafted_recipe_is_accepted_and_follows_the_models(family, tmp_path):
    made(family, tmp_path / "report")
    assert call("check", tmp_path / "report" / "recipe.yml").exit_code == 0
    assert "merge_method: " in (tmp_path / "report" / "recipe.yml").read_text()


@pytest.mark.parametrize(
    ("shares", "method", "left_out"),
    [((1.0, 1.0), "linear", 0), ((1.0, 0.01), "task_arithmetic", 1), ((0.0, 1.0), "task_arithmetic", 1),
     ((1.0, -1.0), "ties", 0)],
)  # fmt: skip
def test_advice_follows_from_the_deltas(shares, method, left_out, tmp_path, generator):
    base = make_tensors(0, dtype=torch.float32, layers=1)
    save_model(tmp_path / "base", base)
    common = {name: torch.randn(tensor.shape, generator=generator) for name, tensor in base.items()}
    noise = 0.6 if method == "linear" else 0.001
    for k, share in enumerate(shares):
        own = {n: noise * abs(share) * torch.randn(t.shape, generator=generator) for n, t in base.items()}
        save_model(tmp_path / f"m{k}", {n: t + 0.01 * (share * common[n] + own[n]) for n, t in base.items()})
    analyze([str(tmp_path / "m0"), str(tmp_path / "m1")], str(tmp_path / "base"), tmp_path / "r")
    recipe = (tmp_path / "r" / "recipe.yml").read_text()
    assert f"merge_method: {method}\n" in recipe and recipe.count("- model:") == 2 - left_out
    assert call("check", tmp_path / "r" / "recipe.yml").exit_code == 0
    page = (tmp_path / "r" / "report.html").read_text()
    assert f"Try first: {method} of " in page
    assert ("can be left out" in page) == (0.0 in shares) and ("Redundant beside" in page) == (0.01 in shares)


def test_maps_of_many_models_leave_out_what_is_not_known():
    panels = model_panels([str(k) for k in range(9)])
    for values in ([math.nan, 1.0, 3.0], [1.0, 3.0, math.nan]):
        assert [value(values) for value in panels.values()] == [2.0, 1.0, 3.0]
    assert all(math.isnan(value([math.nan] * 9)) for value in panels.values())


def test_many_models_are_ordered_by_nearness_and_fit_the_page(tmp_path, generator):
    base = make_tensors(0, dtype=torch.float32, layers=1, vocab=64)
    save_model(tmp_path / "base", base)
    kinds = [{n: 1e-3 * torch.randn(t.shape, generator=generator) for n, t in base.items()} for _ in range(3)]
    for k in range(13):
        own = {n: 1e-3 * torch.randn(t.shape, generator=generator) for n, t in base.items()}
        save_model(tmp_path / f"m{k}", {n: t + kinds[k % 3][n] + own[n] for n, t in base.items()})
    models = [str(tmp_path / f"m{k}") for k in range(13)]
    report = analyze(models, str(tmp_path / "base"), tmp_path / "r")
    root, cosine = clustered(report.summary["cosines"]), report.summary["cosines"]
    order, (one, other) = root.leaves, root.parts
    between = [cosine[i][j] for i in one.leaves for j in other.leaves]
    assert root.height == pytest.approx(sum(between) / len(between)) and root.height == min(root.joins())
    kinds_in_order = [k % 3 for k in order]
    assert sum(a != b for a, b in itertools.pairwise(kinds_in_order)) == 2
    page = Page(tmp_path / "r" / "report.html")
    assert "mean cosine of a group" in page.text and "mean cosine with the other models" in page.text
    assert max(float(picture.get("width")) for picture in page.pictures) < 1100


def test_no_title_or_name_is_cut():
    """About 7.9 pixels a letter of a title, twice as many for one of East Asia; every layer of few has its number."""
    title = "a title that is far longer than its picture"
    for text, letters in ((title, len(title)), ("標題" * 20, 80)):
        drawn = cells([[0.0]], ["row"], ["0"], Scale(0, 1), text, "")
        assert float(ElementTree.fromstring(drawn).get("width")) >= 7.9 * letters
    drawn = cells([[0.0] * 4], ["row"], list("0123"), Scale(0, 1), "", "")
    texts = [item.text for item in ElementTree.fromstring(drawn).iter() if item.tag.endswith("text")]
    assert [text for text in texts if text in list("0123")] == ["0", "1", "2", "3", "1", "0"]  # the last two: its scale


def test_a_folder_may_be_named_from_home(family, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    report = analyze([str(family / "one")], str(family / "base"), "~/report")
    assert report.page == f"{tmp_path}/report/report.html" and os.path.isfile(report.recipe)


def test_one_model_and_the_theorem_alone(family, tmp_path):
    report = analyze([str(family / "one")], str(family / "base"), tmp_path / "one")
    page = Page(tmp_path / "one" / "report.html")
    assert page.titles == ["Norms", "Densities", "Stable rank", "Singular values", "Files"]
    assert (
        report.summary["stable_ranks"][0] > 1 and "Try first: task_arithmetic of one. It is the only model" in page.text
    )
    assert call("check", tmp_path / "one" / "recipe.yml").exit_code == 0
    alone = analyze([], None, tmp_path / "theorem", theorem=True)
    assert set(alone.files) == {"theorem.csv", "report.html", "analysis.json"}
    assert alone.summary["theorem"]["exponent"] == pytest.approx(-0.5, abs=0.03)


def test_scales_and_pictures_of_little():
    scale = Scale.about(0.5, [0.4, float("nan"), 0.52])
    assert (scale.low, scale.high) == pytest.approx((0.4, 0.6))
    assert scale.colour(0.5) == (247, 247, 247) and scale.colour(0.4) == scale.colour(-9) != scale.colour(0.6)
    assert Scale.rising([0.0, float("nan")]).high == 1
    nan = float("nan")
    picture = ElementTree.fromstring(cells([[nan, 0.5]], ["<a>"], ["0", "1"], scale, "t & u", "%"))
    assert [title.text for title in of_tag(picture, "title")] == ["<a>, 1: 0.5"]
    for points in ([], [(1, 0.0)], [(1, 2.0)], [(1, nan), (2, 1e-9), (3, 1.0)]):
        for log in (False, True):
            drawn = ElementTree.fromstring(lines({"x": points}, "", "a", "b", log_y=log, zero=not log))
            assert len(of_tag(drawn, "polyline")) == 1
