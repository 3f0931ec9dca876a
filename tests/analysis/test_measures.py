"""Every number of a report against its formula on whole tensors in memory."""

from __future__ import annotations

import csv
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from commands import call
from deltas import make_delta
from safetensors.torch import load_file
from tiny_models import make_tensors, save_model

from fastmerge.analysis import analyze, rank_collapse
from fastmerge.analysis.experts import choose
from fastmerge.analysis.family import open_family
from fastmerge.analysis.matrices import boosted_values, directions_bytes, ranks, ranks_bytes, spectra_bytes
from fastmerge.engine.reading import DeltaReader
from fastmerge.errors import BudgetError, FastmergeError, InvalidInput, OutputError
from fastmerge.kernels.spectral import higher_order_gsvd, spectrum, subspace_boost

NAMES = ("one", "two", "other")


def tensors_of(folder):
    return {name: t for path in sorted(folder.glob("*.safetensors")) for name, t in load_file(path).items()}


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def path_of(report, name):
    return Path(report.folder) / name


@pytest.fixture(scope="module")
def report(family, tmp_path_factory):
    out = tmp_path_factory.mktemp("report") / "report"
    return analyze([str(family / name) for name in NAMES], str(family / "base"), out, choose_models=2)


@pytest.fixture(scope="module")
def deltas(family):
    """[name][model] float32 differences."""
    base, models = tensors_of(family / "base"), [tensors_of(family / name) for name in NAMES]
    return {name: [model[name].float() - tensor for model in models] for name, tensor in base.items()}


def test_norms_densities_and_conflicts_of_every_tensor(report, deltas, family):
    base, rows = tensors_of(family / "base"), rows_of(path_of(report, "tensors.csv"))
    assert [row["tensor"] for row in rows] == sorted(deltas)
    for row in rows:
        found = deltas[row["tensor"]]
        stacked = torch.stack(found)
        assert float(row["base_norm"]) == pytest.approx(float(base[row["tensor"]].double().norm()), rel=1e-12)
        for label, delta in zip(NAMES, found, strict=True):
            norm = float(delta.double().norm())
            assert float(row[f"norm:{label}"]) == pytest.approx(norm, rel=1e-12)
            assert float(row[f"relative_norm:{label}"]) == pytest.approx(norm / float(row["base_norm"]), rel=1e-12)
            assert float(row[f"density:{label}"]) == int((delta != 0).sum()) / delta.numel()
        shared = (stacked != 0).sum(0) >= 2
        apart = (stacked > 0).any(0) & (stacked < 0).any(0)
        assert (int(row["changed_by_two_or_more"]), int(row["of_these_in_conflict"])) == (shared.sum(), apart.sum())
        assert float(row["conflict_share"]) == int(apart.sum()) / int(shared.sum())
        pairs = [(found[i], found[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
        opposed, both = sum(int((a * b < 0).sum()) for a, b in pairs), sum(int((a * b != 0).sum()) for a, b in pairs)
        assert float(row["opposed_pairs"]) == opposed / both
        products = [(a.double() * b.double()).flatten() for a, b in pairs]
        weights = sum(float(product.abs().sum()) for product in products), -sum(float(p[p < 0].sum()) for p in products)
        assert float(row["opposed_pairs_weighted"]) == pytest.approx(weights[1] / weights[0], abs=1e-5)
    layered = {row["tensor"]: (row["layer"], row["module"]) for row in rows}
    assert layered["model.layers.2.mlp.up_proj.weight"] == ("2", "mlp.up_proj")
    assert layered["lm_head.weight"] == ("", "lm_head")


def test_pairs_of_models_over_all_tensors(report, deltas):
    flat = torch.stack([torch.cat([deltas[name][k].flatten() for name in deltas]) for k in range(3)])
    wide = flat.double()
    norms = wide.norm(dim=1)
    for row in rows_of(path_of(report, "pairs.csv")):
        i, j = NAMES.index(row["a"]), NAMES.index(row["b"])
        inner = float(wide[i] @ wide[j])
        assert float(row["inner_product"]) == pytest.approx(inner, rel=1e-9)
        assert float(row["cosine"]) == pytest.approx(inner / float(norms[i] * norms[j]), rel=1e-9)
        both, opposed = int((flat[i] * flat[j] != 0).sum()), int((flat[i] * flat[j] < 0).sum())
        assert (int(row["changed_by_both"]), int(row["of_these_opposed"])) == (both, opposed)
        assert float(row["opposed_share"]) == opposed / both
        product = wide[i] * wide[j]
        weighted = float(product[product < 0].abs().sum() / product.abs().sum())
        assert float(row["opposed_share_weighted"]) == pytest.approx(weighted, abs=1e-5)
    assert report.summary["cosines"][0][1] > 0.5 > report.summary["cosines"][0][2]


def test_stable_ranks_as_models_are_added(report, deltas):
    rows = {row["tensor"]: row for row in rows_of(path_of(report, "tensors.csv"))}
    means = []
    for name, found in deltas.items():
        ranks = [rows[name][f"stable_rank_of_mean_of_{k}"] for k in (1, 2, 3)]
        if "proj" not in name:
            assert ranks == ["", "", ""]
            continue
        for k, rank in enumerate(ranks, 1):
            s = torch.linalg.svdvals(torch.stack(found[:k]).double().mean(0))
            assert float(rank) == pytest.approx(float(s.square().sum() / s[0].square()), rel=1e-5)
        means.append([float(rank) for rank in ranks])
    assert report.summary["stable_ranks"] == pytest.approx([sum(c) / len(c) for c in zip(*means, strict=True)])


def test_ranks_of_every_model_searched_and_exact(family, deltas, tmp_path):
    name = "model.layers.1.mlp.up_proj.weight"
    with DeltaReader((opened := open_family(str(family / "base"), [str(family / n) for n in NAMES])).files) as reader:
        (tensor,) = [tensor for tensor in opened.tensors if tensor.name == name]
        searched, exact = (ranks(reader, tensor, exact) for exact in (False, True))
    for found in (searched, exact):
        for k, delta in enumerate(deltas[name]):
            s = torch.linalg.svdvals(delta.double())
            assert found.leading[k] == pytest.approx(s[:8].tolist(), rel=1e-5)
            assert found.models[k] == pytest.approx(float(s.square().sum() / s[0].square()), rel=1e-5)
        assert found.models[0] == found.means[0] and found.missed == found.residual == 0
        assert max(found.means) <= min(deltas[name][0].shape)


def test_large_matrices_are_searched_within_the_bound(tmp_path, generator, monkeypatch):
    base = make_tensors(0, dtype=torch.float32, hidden=320, inner=384, layers=1)
    save_model(tmp_path / "base", base)
    tuned = {n: t + make_delta("low_rank_noise", *t.shape, generator) if t.dim() == 2 else t for n, t in base.items()}
    save_model(tmp_path / "one", tuned)
    monkeypatch.setattr("fastmerge.analysis.matrices.WHOLE", 64)
    name = "model.layers.0.mlp.up_proj.weight"
    exact = torch.linalg.svdvals((tuned[name] - base[name]).double())
    for full in (False, True):
        report = analyze(
            [str(tmp_path / "one")], str(tmp_path / "base"), tmp_path / f"r{full}", exact=full, show=["up"]
        )
        (row,) = [row for row in rows_of(path_of(report, "tensors.csv")) if row["tensor"] == name]
        wanted, found = float(exact.square().sum() / exact[0].square()), float(row["stable_rank_of_mean_of_1"])
        bound = report.summary["missed"]
        assert (bound == 0) == full
        assert wanted * (1 - 1e-5) <= found <= wanted * (1 + max(bound, 1e-5)) and found < wanted * 1.01
        shown = [float(row["mean"]) for row in rows_of(path_of(report, "spectra.csv"))]
        assert len(shown) == (320 if full else 64)
        assert shown == pytest.approx(exact[: len(shown)].tolist(), rel=1e-2)


def test_singular_values_before_and_after(report, deltas):
    rows = rows_of(path_of(report, "spectra.csv"))
    shown = list(dict.fromkeys(row["tensor"] for row in rows))
    assert shown == ["model.layers.1.mlp.down_proj.weight", "model.layers.1.self_attn.k_proj.weight"]
    for name in shown:
        mine = [row for row in rows if row["tensor"] == name]
        mean = torch.stack(deltas[name]).double().mean(0).float()
        curves = {f"model:{label}": delta for label, delta in zip(NAMES, deltas[name], strict=True)}
        curves |= {"mean": mean, "boosted": subspace_boost(mean, 0.2)[0]}
        for column, matrix in curves.items():
            exact = torch.linalg.svdvals(matrix.double())
            found = torch.tensor([float(row[column]) for row in mine]).double()
            assert torch.allclose(found, exact, rtol=0, atol=3e-6 * float(exact[0])), column


@pytest.mark.parametrize("beta", [0.0, 0.01, 0.2, 0.5, 1.0])
def test_boosted_values_are_those_of_the_operation(beta, generator):
    delta = make_delta("power_half", 60, 40, generator)
    found = boosted_values(spectrum(delta), beta)
    assert torch.allclose(found, torch.linalg.svdvals(subspace_boost(delta, beta)[0].double()), rtol=1e-4)
    assert torch.equal(boosted_values(torch.tensor([8.0, 4, 2, 1, 1]), 0.8), torch.tensor([8.0, 4, 2, 2, 2]))
    assert torch.equal(boosted_values(torch.zeros(3), beta), torch.zeros(3))


def test_directions_in_common_and_the_choice(report, deltas):
    names = report.summary["compared"]
    assert len(names) == 21  # all of three layers
    total = sum(float(delta.double().square().sum()) for name in names for delta in deltas[name])
    wanted = torch.zeros(2, 3, 3).double()
    for name in names:
        matrices = [delta if delta.shape[0] >= delta.shape[1] else delta.mT for delta in deltas[name]]
        result = higher_order_gsvd(matrices)
        energy = sum(float(delta.double().square().sum()) for delta in deltas[name])
        wanted += torch.stack([result.overlap(), result.alignment(matrices)]) * energy / total
    for key, table in zip(("overlap", "alignment"), wanted, strict=True):
        assert torch.allclose(torch.tensor(report.summary[key]).double(), table, atol=1e-6)
    alignment = report.summary["alignment"]
    assert alignment[0][1] > 2 * alignment[0][2]
    assert 1 <= report.summary["users"] <= 3
    choice = report.summary["choice"]
    assert "other" in choice["models"] and choice["every"] and choice["score"] < choice["usual"]
    assert len(rows_of(path_of(report, "directions.csv"))) == sum(min(deltas[name][0].shape) for name in names)


def test_choosing_a_subset():
    overlap = torch.tensor([[1, 0.9, 0.1, 0.4], [0.9, 1, 0.2, 0.3], [0.1, 0.2, 1, 0.8], [0.4, 0.3, 0.8, 1]])
    choice = choose(overlap, 2)
    assert choice.models == (0, 2) and choice.score == pytest.approx(0.1)
    assert choice.usual == pytest.approx((0.9 + 0.1 + 0.4 + 0.2 + 0.3 + 0.8) / 6)
    assert choose(overlap, 4).score == pytest.approx(choice.usual)


def test_choosing_among_too_many_subsets_leaves_out_the_closest(generator):
    points = torch.randn(40, 3, generator=generator)
    table = torch.exp(-torch.cdist(points, points))
    choice = choose(table, 12)
    assert not choice.every and len(choice.models) == 12 and choice.score < choice.usual


def test_noise_of_averaged_task_vectors_falls_as_the_root_of_their_number():
    found = rank_collapse(size=96)
    assert found.exponent == pytest.approx(-0.5, abs=0.02)
    assert all(a > b for a, b in zip(found.ranks, found.ranks[1:], strict=False))
    assert found.ranks[0] > 2 * found.floor and found.ranks[-1] == pytest.approx(found.floor, rel=0.1)
    assert found.noise[0] < found.common


def refused(error, match, models, base, tmp_path, **options):
    with pytest.raises(error, match=match):
        analyze([str(model) for model in models], base and str(base), tmp_path / "r", **options)
    assert list(tmp_path.glob("*r*")) == list(tmp_path.glob(".*")) == []


def test_refusals_leave_nothing_behind(family, tmp_path):
    base, one, two = (family / name for name in ("base", "one", "two"))
    refused(InvalidInput, "base: is missing", [one], None, tmp_path)
    refused(InvalidInput, "there are no models", [], base, tmp_path)
    refused(InvalidInput, "one: is given twice", [one, one], base, tmp_path)
    refused(InvalidInput, "base: is given twice", [one, base], base, tmp_path)
    refused(InvalidInput, "beta: is 2", [one], base, tmp_path, beta=2)
    refused(InvalidInput, "--show nothing", [one], base, tmp_path, show=["nothing"])
    refused(InvalidInput, "--ho-gsvd: there is one model", [one], base, tmp_path, ho_gsvd=True)
    refused(InvalidInput, "base: is missing", [], None, tmp_path, theorem=True, ho_gsvd=True)
    refused(InvalidInput, "analyze: model .*nope: neither an existing folder", [one, tmp_path / "nope"], base, tmp_path)
    refused(InvalidInput, r"choose: is 3 \(there are 2 models", [one, two], base, tmp_path, choose_models=3)
    refused(BudgetError, r"counting changes and signs takes up to \d+ \(--ram\)", [one, two], base, tmp_path, ram="2MB")
    (tmp_path / "full" / "of").mkdir(parents=True)
    with pytest.raises(OutputError, match="exists; choose another folder"):
        analyze([str(one)], str(base), tmp_path / "full")


def test_models_that_do_not_match_the_base_or_are_broken_are_named(family, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "work").mkdir()
    tensors = tensors_of(family / "one")
    name = "model.layers.1.mlp.up_proj.weight"
    narrow, broken = tmp_path / "in" / "narrow", tmp_path / "in" / "broken"
    save_model(narrow, tensors | {name: torch.zeros(100, 64)})
    tensors[name][5, 5] = float("inf")
    save_model(broken, tensors)
    base, two, work = family / "base", family / "two", tmp_path / "work"
    refused(InvalidInput, rf"narrow: {name}: shape \[100, 64\]", [two, narrow], base, work)
    refused(FastmergeError, f"{name}: .* holds NaN or infinity in broken", [two, broken], base, work)


def test_a_model_with_an_adapter_and_one_that_changes_nothing(family, tmp_path):
    made = call("extract", family / "base", family / "one", "--out", tmp_path / "adapter", "--rank", 3, "--quiet")
    assert made.exit_code == 0, made.output
    tuned, base = f"{family / 'base'}+{tmp_path / 'adapter'}", str(family / "base")
    save_model(tmp_path / "same", tensors_of(family / "base"))
    report = analyze([tuned, str(tmp_path / "same")], base, tmp_path / "report", ho_gsvd=True)
    rows = {row["tensor"]: row for row in rows_of(path_of(report, "tensors.csv"))}
    rank = float(rows["model.layers.0.self_attn.q_proj.weight"]["stable_rank_of_mean_of_1"])
    assert 1 <= rank <= 3.001
    adapted, same = report.summary["models"]
    assert adapted["norm"] > 0 and same["norm"] == same["density"] == 0
    assert report.summary["cosines"][0][1] is None and report.summary["opposed_shares"][0][1] is None
    assert report.summary["opposition"] is None
    assert {row["opposed_pairs"] for row in rows.values()} == {""}
    assert report.summary["alignment"] == [pytest.approx([1, 0]), pytest.approx([0, 1])]


def test_layers_outside_the_main_stack_and_experts(tmp_path):
    base = make_tensors(0, dtype=torch.float32)
    for i in range(2):
        for expert in range(2):
            base[f"model.layers.{i}.mlp.experts.{expert}.w1.weight"] = torch.randn(8, 16)
    base["vision.layers.0.proj.weight"] = torch.randn(4, 4)
    save_model(tmp_path / "base", base)
    save_model(tmp_path / "one", {name: tensor + 0.01 for name, tensor in base.items()})
    family = open_family(str(tmp_path / "base"), [str(tmp_path / "one")])
    places = {tensor.name: (tensor.layer, tensor.module) for tensor in family.tensors}
    assert places["model.layers.1.mlp.experts.0.w1.weight"] == (1, "mlp.experts.*.w1")
    assert places["vision.layers.0.proj.weight"] == (None, "vision.layers.*.proj")
    assert family.layers == 2 and len(family.matrices) == 14 + 4


RUN = """
import sys
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM:")) / 1024
import torch, jinja2
from fastmerge.analysis import analyze
import fastmerge.analysis.report, fastmerge.kernels.spectral, fastmerge.plan.build
torch.linalg.eigh(torch.eye(8, dtype=torch.float64))  # loads the library of linear algebra
before = peak()
analyze(sys.argv[3:], sys.argv[2], sys.argv[1], ho_gsvd=True, ram=RAM)
print(before, peak())
"""


@pytest.mark.slow
def test_peak_memory_stays_within_the_budget(tmp_path):
    size = {"hidden": 768, "inner": 1024, "layers": 1, "vocab": 40000}
    base = make_tensors(0, **size)
    save_model(tmp_path / "base", base)
    for k in range(2):
        save_model(tmp_path / f"model{k}", make_tensors(k + 1, base=base))
    models = [str(tmp_path / f"model{k}") for k in range(2)]
    matrices = open_family(str(tmp_path / "base"), models).matrices
    needed = max(ranks_bytes(matrices, False), spectra_bytes(matrices), directions_bytes(matrices))
    ram = int(1.1 * needed) + (4 << 20)
    command = [sys.executable, "-c", RUN.replace("RAM", str(ram)), tmp_path / "report", tmp_path / "base", *models]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    before, peak = map(float, done.stdout.split())
    print(f"packages alone {before:.0f} MiB, peak {peak:.0f} MiB, budget {ram >> 20} MiB, needed {needed >> 20} MiB")
    assert peak <= before + ram / 2**20 + 64
    assert math.prod(base["lm_head.weight"].shape) * 4 * 3 > ram  # the largest tensor never fits whole
