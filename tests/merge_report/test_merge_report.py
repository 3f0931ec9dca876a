"""Every number of a merge report against its formula on whole tensors in memory; the page, and whose its files are."""

from __future__ import annotations

import csv
import io
import json
import re

import pytest
import torch
from commands import call, call_json
from safetensors.torch import load_file
from tiny_models import save_family, save_model

import fastmerge
from fastmerge.analysis.spreading import workers_within
from fastmerge.merge_report import NAMES

MODELS = ("one", "two", "three")


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    return save_family(tmp_path_factory.mktemp("family"))


def tensors_of(folder):
    return {name: t for path in sorted(folder.glob("*.safetensors")) for name, t in load_file(path).items()}


def recipe(family, method, **more):
    models = [{"model": str(family / name), "parameters": {"weight": 0.5}} for name in MODELS]
    return {"merge_method": method, "models": models, **more}


@pytest.fixture(scope="module")
def merged(family, tmp_path_factory):
    """A ties merge with its report."""
    out = tmp_path_factory.mktemp("merged") / "out"
    given = recipe(family, "ties", base_model=str(family / "base"), parameters={"density": 0.5, "normalize": False})
    fastmerge.merge(given, out, report=True)
    return out


def rows_of(folder):
    return {row["tensor"]: row for row in csv.DictReader(io.StringIO((folder / "report.csv").read_text()))}


def numbers_of(delta, result):
    """Return what a report says of a model whose change is ``delta`` where the merge's is ``result``."""
    d, m = delta.double().flatten(), result.double().flatten()
    changed = d != 0
    return {
        "norm": float(d.norm()),
        "cosine": float(d @ m / (d.norm() * m.norm())),
        "kept": float(d @ m / (d @ d)),
        "same_direction": float(((d * m) > 0).sum() / changed.sum()),
        "reversed": float(((d * m) < 0).sum() / changed.sum()),
    }


def test_numbers_of_every_tensor_and_of_all(family, merged):
    base, out = tensors_of(family / "base"), tensors_of(merged)
    deltas = {m: {n: t.float() - base[n].float() for n, t in tensors_of(family / m).items()} for m in MODELS}
    result = {name: tensor.float() - base[name].float() for name, tensor in out.items()}
    rows, checksums = rows_of(merged), json.loads((merged / "fastmerge.json").read_text())["tensors"]
    assert rows.keys() == out.keys()
    for name, row in rows.items():
        norm = float(result[name].double().norm())
        assert float(row["norm"]) == pytest.approx(norm, rel=1e-12)
        assert float(row["relative_norm"]) == pytest.approx(norm / float(base[name].double().norm()), rel=1e-12)
        assert float(row["density"]) == int((result[name] != 0).sum()) / result[name].numel()
        assert (row["method"], row["dtype"], row["xxh3"]) == ("ties", "bfloat16", checksums[name])
        assert row["parameters"].startswith("weight 0.5; density 0.5; normalize false")
        for model in MODELS:
            for what, value in numbers_of(deltas[model][name], result[name]).items():
                assert float(row[f"{what}:{model}"]) == pytest.approx(value, rel=1e-6), (name, what)
    report = json.loads((merged / "report.json").read_text())
    whole = torch.cat([result[name].flatten() for name in sorted(out)])
    assert [effect["label"] for effect in report["effects"]] == list(MODELS)
    for effect in report["effects"]:
        delta = torch.cat([deltas[effect["label"]][name].flatten() for name in sorted(out)])
        for what, value in numbers_of(delta, whole).items():
            assert effect[what] == pytest.approx(value, rel=1e-6), what
    assert report["moved"]["norm"] == pytest.approx(float(whole.double().norm()), rel=1e-12)
    assert report["tensors"] == {"total": 21, "merged": 21, "copied": 0, "measured": 21, "left_out": 0}
    assert report["run"]["distance"] == report["run"]["seconds"] / report["run"]["bound_seconds"]


def test_a_merge_without_a_base_and_copies(family, tmp_path):
    fastmerge.merge(recipe(family, "linear"), tmp_path / "out", report=True)
    report, out = json.loads((tmp_path / "out" / "report.json").read_text()), tensors_of(tmp_path / "out")
    whole = torch.cat([out[name].double().flatten() for name in sorted(out)])
    for effect in report["effects_without_base"]:
        model = tensors_of(family / effect["label"])
        values = torch.cat([model[name].double().flatten() for name in sorted(out)])
        assert effect["distance"] == pytest.approx(float((values - whole).norm() / values.norm()), rel=1e-6)
        assert effect["cosine"] == pytest.approx(float(values @ whole / values.norm() / whole.norm()), rel=1e-9)
    assert report["effects"] == [] and report["moved"] is None
    sliced = {"merge_method": "passthrough", "slices": [
        {"sources": [{"model": str(family / "one"), "layer_range": [0, 2]}]},
        {"sources": [{"model": str(family / "two"), "layer_range": [1, 2]}]},
    ]}  # fmt: skip
    fastmerge.merge(sliced, tmp_path / "copy", report=True)
    page = (tmp_path / "copy" / "report.html").read_text()
    assert "passthrough of 2 models wrote 30 tensors" in page and "30 copied" in page
    assert '<td class="w">two: model.layers.1.mlp.up_proj.weight</td>' in page


def test_the_page_says_it_all_and_loads_nothing(merged):
    page = (merged / "report.html").read_text()
    titles = re.findall(r"<h2>(.*?)</h2>", page)
    assert titles == [
        "Recipe", "Before and after", "Norms before and after", "Cosine with each model", "Share kept of each model",
        "What happened to each tensor", "The run", "Provenance", "Files",
    ]  # fmt: skip
    assert set(re.findall(r"(?:src|href)=\"(.*?)\"", page)) == {"report.csv", "report.json"}
    assert "ties of 4 models wrote 21 tensors" in page and "merge_method: ties" in page
    assert "<title>mlp.up_proj, 1: " in page  # values on hover
    assert not re.search(r"\bnan\b", page.lower()) and "<script" not in page


def test_the_files_are_fastmerges_own(family, merged, tmp_path):
    given = tmp_path / "r.yml"
    given.write_text(json.dumps(recipe(family, "linear")))
    assert call("merge", given, tmp_path / "out", "--report").exit_code == 0
    assert call("verify", tmp_path / "out").exit_code == 0
    assert call("merge", given, tmp_path / "out", "--overwrite").exit_code == 0
    assert not any((tmp_path / "out" / name).exists() for name in NAMES)
    values = call_json("merge", given, tmp_path / "out", "--overwrite", "--report")
    assert values["page"] == str(tmp_path / "out" / "report.html")
    (tmp_path / "out" / "report.csv").write_text("mine")
    refused = call("merge", given, tmp_path / "out", "--overwrite")
    assert refused.exit_code == 2 and "report.csv (changed since fastmerge wrote it)" in refused.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "r.yml"]


def test_averages_and_all_kept_results_of_several_documents(family, tmp_path):
    result = call("average", *(family / name for name in MODELS), tmp_path / "mean", "--report")
    assert result.exit_code == 0 and f"\nreport       {tmp_path / 'mean' / 'report.html'}\n" in result.stdout
    first = f"name: half\nmerge_method: linear\nmodels: [{{model: {family / 'one'}}}, {{model: {family / 'two'}}}]\n"
    last = f"merge_method: linear\nmodels: [{{model: half}}, {{model: {family / 'three'}}}]\n"
    (tmp_path / "two.yml").write_text(f"{first}parameters: {{weight: 1}}\n---\n{last}parameters: {{weight: 1}}\n")
    told = []
    fastmerge.merge(tmp_path / "two.yml", tmp_path / "out", report=True, progress=lambda *now: told.append(now))
    assert told[-1][0] == told[-1][1] and len({total for _, total in told}) == 1
    assert json.loads((tmp_path / "out" / "report.json").read_text())["effects_without_base"][0]["label"] == "half"
    assert call("multi", tmp_path / "two.yml", tmp_path / "kept", "-I", tmp_path / "all", "--report").exit_code == 0
    assert (tmp_path / "all" / "half" / "report.html").exists() and (tmp_path / "kept" / "report.html").exists()


def test_what_cannot_be_measured_is_said(family, tmp_path):
    broken = tensors_of(family / "one")
    broken["model.norm.weight"][0] = float("inf")
    save_model(tmp_path / "one", broken)
    given = {"merge_method": "linear", "models": [
        {"model": str(folder), "parameters": {"weight": 1}} for folder in (tmp_path / "one", family / "two")
    ]}  # fmt: skip
    fastmerge.merge(given, tmp_path / "out", allow_nonfinite=True, report=True)
    assert rows_of(tmp_path / "out")["model.norm.weight"]["not_measured"] == "it holds NaN or infinity"
    assert "1 of the merged tensors are not measured" in (tmp_path / "out" / "report.html").read_text()
    with pytest.raises(fastmerge.FastmergeError, match=r"measuring .* for the report takes up to \d+ \(--ram\)"):
        fastmerge.merge(recipe(family, "linear"), tmp_path / "small", report=True, ram="2MB")
    assert not (tmp_path / "small").exists()  # it is known before the merge


def test_a_budget_that_is_too_small_is_named_as_it_was_given():
    """Adapters, which are held meanwhile, count to what is needed."""
    assert workers_within([(5, "a"), (7, "b")], 10, held=3) == 1
    with pytest.raises(fastmerge.FastmergeError, match=r"budget of 10 bytes is too small: b takes up to 11 \(--ram\)"):
        workers_within([(5, "a"), (7, "b")], 10, held=4)
