"""Extraction of adapters: the best approximation of every delta, in files that PEFT and fastmerge fold."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from checkpoint_files import write_adapter
from deltas import KINDS, make_delta
from safetensors.torch import load_file
from tiny_models import make_tensors, save_model

import fastmerge
from fastmerge.errors import BudgetError, FastmergeError, InvalidInput, OutputError
from fastmerge.extraction import extract
from fastmerge.extraction.approximating import matrix_bytes
from fastmerge.extraction.selection import Wanted, select
from fastmerge.methods._spectral import PROJECTIONS

PREFIX = "base_model.model."
RANK = 6


def is_projection(name: str) -> bool:
    return name.split(".")[-2] in PROJECTIONS and ".layers." in name


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A base, and a fine-tune by deltas with the spectra of real ones; both float32, the fine-tune in two shards."""
    folder, generator = tmp_path_factory.mktemp("models"), torch.Generator().manual_seed(3)
    base = make_tensors(0, dtype=torch.float32)
    tuned = dict(base)
    for i, name in enumerate(filter(is_projection, base)):
        tuned[name] = base[name] + make_delta(KINDS[i % len(KINDS)], *base[name].shape, generator)
    save_model(folder / "base", base)
    save_model(folder / "tuned", tuned, shards=2)
    return folder


def tensors_of(folder):
    return {name: t for path in sorted(folder.glob("*.safetensors")) for name, t in load_file(path).items()}


def config_of(folder):
    return json.loads((folder / "adapter_config.json").read_text())


def least_error(delta: torch.Tensor, rank: int) -> float:
    """Distance of the best approximation, by the SVD in float64, relative to the norm."""
    squares = torch.linalg.svdvals(delta.double()).square()
    return float((squares[rank:].sum() / squares.sum()).sqrt())


def test_folded_adapter_is_the_base_and_the_best_approximation(models, tmp_path):
    report = extract(models / "base", models / "tuned", tmp_path / "adapter", rank=RANK)
    recipe = {
        "merge_method": "passthrough",
        "models": [{"model": f"{models / 'base'}+{tmp_path / 'adapter'}"}],
        "dtype": "float32",
    }
    fastmerge.merge(recipe, tmp_path / "folded")
    base, tuned, folded = (tensors_of(f) for f in (models / "base", models / "tuned", tmp_path / "folded"))
    assert [m.name for m in report.matrices] == [name for name in base if is_projection(name)]
    for matrix in report.matrices:
        delta = tuned[matrix.name] - base[matrix.name]
        least = least_error(delta, RANK)
        # The least error, and the rounding of the factors and of the folded weight to float32.
        rounding = 1e-6 + 2**-24 * float(tuned[matrix.name].norm() / delta.norm())
        found = float((delta - (folded[matrix.name].double() - base[matrix.name])).norm() / delta.double().norm())
        assert least * (1 - 1e-6) - rounding <= found <= least * (1 + 1e-6) + rounding
        assert matrix.error == pytest.approx(found, abs=rounding) and matrix.rank == RANK
        assert matrix.energy == pytest.approx(1 - least**2, abs=1e-6)
        assert matrix.norm == pytest.approx(float(delta.double().norm()), rel=1e-12)
    others = [name for name in base if not is_projection(name)]
    assert report.unchanged == len(others) and report.others == ()
    assert all(torch.equal(folded[name], base[name]) for name in others)
    norms = torch.tensor([m.norm for m in report.matrices]).double().square()
    shares = torch.tensor([m.energy for m in report.matrices]).double()
    assert report.energy == pytest.approx(float((shares * norms).sum() / norms.sum()))
    assert report.error == pytest.approx((1 - report.energy) ** 0.5, abs=1e-5)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft asks transformers for names that it gives up
@pytest.mark.parametrize("save_others", [False, True])
def test_peft_folds_the_adapter(models, tmp_path, save_others):
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    extract(models / "base", models / "tuned", tmp_path / "adapter", energy=0.9, rank=40, save_others=save_others)
    base, factors = tensors_of(models / "base"), tensors_of(tmp_path / "adapter")
    model = transformers.AutoModelForCausalLM.from_pretrained(models / "base", dtype=torch.float32)
    folded = peft.PeftModel.from_pretrained(model, tmp_path / "adapter").merge_and_unload().state_dict()
    assert len(config_of(tmp_path / "adapter")["rank_pattern"]) > 3
    for name, weight in base.items():
        key = PREFIX + name.removesuffix(".weight")
        wanted = weight
        if is_projection(name):
            wanted = (
                weight.double() + factors[f"{key}.lora_B.weight"].double() @ factors[f"{key}.lora_A.weight"].double()
            )
        assert torch.allclose(folded[name].double(), wanted.double(), rtol=0, atol=1e-7), name


def test_energy_gives_each_matrix_the_least_rank_that_holds_it(models, tmp_path):
    report = extract(models / "base", models / "tuned", tmp_path / "adapter", rank=48, energy=0.8)
    base, tuned = tensors_of(models / "base"), tensors_of(models / "tuned")
    for matrix in report.matrices:
        squares = torch.linalg.svdvals((tuned[matrix.name] - base[matrix.name]).double()).square()
        assert matrix.rank == int((squares.cumsum(0) < 0.8 * squares.sum()).sum()) + 1
    ranks = [matrix.rank for matrix in report.matrices]
    config = config_of(tmp_path / "adapter")
    assert len(set(ranks)) > 3 and config["r"] == config["lora_alpha"] == max(ranks)
    stated = {m.name.removesuffix(".weight"): m.rank for m in report.matrices if m.rank != max(ranks)}
    assert config["rank_pattern"] == config["alpha_pattern"] == stated
    capped = extract(models / "base", models / "tuned", tmp_path / "capped", rank=2, energy=0.8)
    assert [m.rank for m in capped.matrices] == [min(rank, 2) for rank in ranks]


def test_factors_in_half_the_bytes_miss_little_more(models, tmp_path):
    exact = extract(models / "base", models / "tuned", tmp_path / "exact", rank=RANK)
    half = extract(models / "base", models / "tuned", tmp_path / "half", rank=RANK, dtype="bfloat16")
    assert {t.dtype for t in tensors_of(tmp_path / "half").values()} == {torch.bfloat16}
    for wide, narrow in zip(exact.matrices, half.matrices, strict=True):
        # Each factor is rounded by at most 2^-9 of its elements.
        assert wide.error < narrow.error <= wide.error + 2**-8 * (1 + 2**-9)


def test_everything_that_differs_is_approximated_stored_or_named(tmp_path):
    base = make_tensors(0)
    base["model.layers.0.self_attn.q_proj.bias"] = torch.zeros(64, dtype=torch.bfloat16)
    base["model.layers.0.steps"] = torch.arange(3)
    tuned = make_tensors(1, base={n: t for n, t in base.items() if t.is_floating_point()})
    tuned["model.layers.0.steps"] = torch.arange(3) + 1
    tuned["model.layers.1.mlp.up_proj.weight"] = base["model.layers.1.mlp.up_proj.weight"]
    tuned["model.layers.1.input_layernorm.weight"] = base["model.layers.1.input_layernorm.weight"]
    tuned["lm_head.weight"] = torch.zeros(257, 64, dtype=torch.bfloat16)
    tuned["new.weight"] = torch.zeros(2, 2)
    del tuned["model.norm.weight"]
    for name, tensors in (("base", base), ("tuned", tuned)):
        save_model(tmp_path / name, tensors)
    report = extract(tmp_path / "base", tmp_path / "tuned", tmp_path / "adapter", rank=4, save_others=True)
    reasons = {other.name: (other.reason, other.saved) for other in report.others}
    norm = "model.layers.{}.{}_layernorm.weight"
    assert reasons == {
        "model.embed_tokens.weight": ("it is an embedding (--embeddings takes it)", True),
        norm.format(0, "input"): ("it is no matrix", True),
        norm.format(0, "post_attention"): ("it is no matrix", True),
        norm.format(1, "post_attention"): ("it is no matrix", True),
        "model.layers.0.self_attn.q_proj.bias": ("it is no matrix", False),
        "model.layers.0.steps": ("its dtype is int64", False),
        "lm_head.weight": ("its shape is [257, 64], in the base [256, 64]", False),
        "model.norm.weight": ("it is only in the base", False),
        "new.weight": ("it is only in the fine-tuned model", False),
    }
    assert report.unchanged == 2
    found = tensors_of(tmp_path / "adapter")
    saved = {name for name, (_, kept) in reasons.items() if kept}
    assert {name for name in found if "lora" not in name} == {PREFIX + name for name in saved}
    assert all(torch.equal(found[PREFIX + name], tuned[name]) for name in saved)
    config = config_of(tmp_path / "adapter")
    assert config["modules_to_save"] == sorted(name.removesuffix(".weight") for name in saved)
    # up_proj of layer 1 has no adapter, so the short name would say too much.
    assert "model.layers.0.mlp.up_proj" in config["target_modules"] and len(config["target_modules"]) == 13


def test_every_linear_layer_and_a_fine_tune_that_is_an_adapter(models, tmp_path):
    first = extract(models / "base", models / "tuned", tmp_path / "one", rank=3)
    again = extract(models / "base", f"{models / 'base'}+{tmp_path / 'one'}", tmp_path / "two", rank=5)
    for before, after in zip(first.matrices, again.matrices, strict=True):
        # It has rank 3 but for the rounding of the folded weights.
        assert after.name == before.name and after.error < 1e-5
    save_model(tmp_path / "head", tensors_of(models / "base") | {"lm_head.weight": torch.ones(256, 64)})
    report = extract(models / "base", tmp_path / "head", tmp_path / "all", rank=2, matrices="all")
    assert [m.name for m in report.matrices] == ["lm_head.weight"] and report.unchanged == 20
    assert config_of(tmp_path / "all")["target_modules"] == ["lm_head"]


def test_what_is_stored_whole_holds_the_adapter_of_the_fine_tune(tmp_path):
    base = make_tensors(0)
    save_model(tmp_path / "base", base)
    save_model(tmp_path / "tuned", make_tensors(1, base=base))
    write_adapter(tmp_path / "lora", {"lm_head": (256, 64), "model.layers.0.mlp.up_proj": (160, 64)})
    tuned = f"{tmp_path / 'tuned'}+{tmp_path / 'lora'}"
    extract(tmp_path / "base", tuned, tmp_path / "adapter", rank=2, dtype="bfloat16", save_others=True)
    folded = {"merge_method": "passthrough", "models": [{"model": tuned}], "dtype": "float32"}
    fastmerge.merge(folded, tmp_path / "folded")
    found, wanted = tensors_of(tmp_path / "adapter"), tensors_of(tmp_path / "folded")
    head = found[PREFIX + "lm_head.weight"]
    assert head.dtype == torch.float32 and torch.equal(head, wanted["lm_head.weight"])
    assert found[PREFIX + "model.norm.weight"].dtype == torch.bfloat16


def refused(models, tmp_path, error, match, **options):
    with pytest.raises(error, match=match):
        extract(options.pop("base", models / "base"), options.pop("tuned", models / "tuned"), tmp_path / "o", **options)
    assert list(tmp_path.glob("*o*")) == list(tmp_path.glob(".*")) == []


def test_refusals_leave_nothing_behind(models, tmp_path):
    refused(models, tmp_path, InvalidInput, "rank: is 0", rank=0)
    refused(models, tmp_path, InvalidInput, "energy: is 1.5", energy=1.5)
    refused(models, tmp_path, InvalidInput, "matrices: is 'some', expected one of attn_mlp, all", matrices="some")
    refused(models, tmp_path, InvalidInput, "dtype: is 'int8', expected one of float32", dtype="int8")
    refused(models, tmp_path, InvalidInput, "differ in no matrix", tuned=models / "base")
    refused(models, tmp_path, InvalidInput, "neither an existing folder nor a hub id", tuned=models / "there")
    refused(models, tmp_path, BudgetError, r"needs at least \d+, to decompose model.layers.0.mlp.\w+_proj", ram="50kB")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").touch()
    with pytest.raises(OutputError, match="exists; choose another folder"):
        extract(models / "base", models / "tuned", tmp_path / "out")


def test_a_delta_that_is_not_finite_and_a_transposed_model(models, tmp_path):
    broken = tensors_of(models / "tuned")
    name = next(filter(is_projection, broken))
    broken[name][3, 5] = float("nan")
    (tmp_path / "in").mkdir()
    work = tmp_path / "work"
    work.mkdir()
    save_model(tmp_path / "in" / "broken", broken)
    save_model(tmp_path / "in" / "conv", broken, model_type="gpt2")
    refused(
        models, work, FastmergeError, f"{name}: the difference of the models holds NaN", tuned=tmp_path / "in/broken"
    )
    refused(models, work, InvalidInput, "stores its matrices transposed", tuned=tmp_path / "in/conv")


RUN = """
import sys
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM:")) / 1024
import torch
before = peak()
from fastmerge.extraction import extract
report = extract(sys.argv[1], sys.argv[2], sys.argv[3], rank=int(sys.argv[4]), ram=int(sys.argv[5]))
print(before, peak(), *{m.method for m in report.matrices})
"""


@pytest.mark.slow
@pytest.mark.parametrize(("rank", "method"), [(16, "krylov"), (900, "exact")])
def test_peak_memory_stays_within_the_budget(tmp_path, rank, method):
    size = {"hidden": 1024, "inner": 1536, "layers": 1, "vocab": 32768}
    base, generator = make_tensors(0, **size), torch.Generator().manual_seed(1)
    save_model(tmp_path / "base", base)
    tuned = {"model.embed_tokens.weight": base["model.embed_tokens.weight"] + 1}
    matrices = [name for name in base if is_projection(name)]
    for name in matrices:
        tuned[name] = base[name] + make_delta("low_rank_noise", *base[name].shape, generator).bfloat16()
    save_model(tmp_path / "tuned", base | tuned)
    budget = int(1.1 * max(matrix_bytes(base[name].shape, rank) for name in matrices))
    folders = [tmp_path / name for name in ("base", "tuned", "out")]
    command = [sys.executable, "-c", RUN, *map(str, folders), str(rank), str(budget)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    before, peak, found = done.stdout.split()
    print(f"torch alone {before} MiB, peak {peak} MiB, budget {budget >> 20} MiB")
    assert found == method
    assert float(peak) <= float(before) + budget / 2**20 + 64


def test_buffers_that_transformers_computes_are_passed_over(models, tmp_path):
    from fastmerge.extraction.selection import open_pair

    save_model(tmp_path / "m", tensors_of(models / "base") | {"model.rotary_emb.inv_freq": torch.ones(8)})
    selection = select(*open_pair(str(tmp_path / "m"), str(models / "base"))[:2], Wanted())
    assert selection.unpaired == []


def test_modules_by_regular_expressions_and_embeddings(models, tmp_path):
    base = tensors_of(models / "base")
    tuned = tensors_of(models / "tuned")
    embedding = "model.embed_tokens.weight"
    tuned[embedding] = tuned[embedding] + 1e-3 * torch.randn(tuned[embedding].shape)
    save_model(tmp_path / "tuned", tuned)
    choice = {"include": [r"layers\.0\.", "o_proj"], "exclude": ["mlp"], "embeddings": True, "rank": 8}
    report = extract(models / "base", tmp_path / "tuned", tmp_path / "adapter", **choice)
    wanted = [n for n in base if is_projection(n) and (".layers.0." in n or "o_proj" in n) and ".mlp." not in n]
    assert [m.name for m in report.matrices] == [embedding, *wanted]
    stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    vocab, hidden = tuned[embedding].shape
    assert stored[f"{PREFIX}model.embed_tokens.lora_embedding_A"].shape == (8, vocab)
    assert stored[f"{PREFIX}model.embed_tokens.lora_embedding_B"].shape == (hidden, 8)
    recipe = (
        f"merge_method: passthrough\ndtype: float32\nmodels: [{{model: {models / 'base'}+{tmp_path / 'adapter'}}}]\n"
    )
    fastmerge.merge(recipe, tmp_path / "folded")
    delta = tuned[embedding].double() - base[embedding].double()
    missed = tensors_of(tmp_path / "folded")[embedding].double() - tuned[embedding].double()
    assert float(missed.norm() / delta.norm()) == pytest.approx(least_error(delta, 8), rel=1e-3)
    with pytest.raises(ValueError, match=r"'\(' is no regular expression"):
        extract(models / "base", tmp_path / "tuned", tmp_path / "other", include=["("])
