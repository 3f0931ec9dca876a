"""Surveys of a whole model: one answer for all tensors, and what methods make of it."""

from __future__ import annotations

import json

import pytest
import torch
from golden_cases import FOLDER
from safetensors.torch import load_file
from torch import Tensor

from fastmerge import functional, merge_state_dicts
from fastmerge.kernels import GRID
from fastmerge.methods import Group, get_method
from fastmerge.steps.driver import solve_without_data

SHAPES = {"b": (2 * GRID + 5,), "a": (7, 33), "c": (1,), "d": (40, 9)}
PREFIX = "model.layers.{}.mlp.up_proj.weight"


def deltas_of(generator, count=2, noise=1e-3):
    """Return deltas with many equal magnitudes, as fine-tunes in bfloat16 have them."""
    return [
        {name: (noise * torch.randn(shape, generator=generator)).bfloat16().float() for name, shape in SHAPES.items()}
        for _ in range(count)
    ]


def flat(model: dict[str, Tensor]) -> Tensor:
    """Return a model in one vector, tensors by name."""
    return torch.cat([model[name].flatten() for name in sorted(model)])


def merge(deltas, method, **parameters):
    zeros = {name: torch.zeros_like(delta) for name, delta in deltas[0].items()}
    return merge_state_dicts(zeros, deltas, method=method, **parameters)


def paper_ties(deltas: list[Tensor], density: float, merge_func: str) -> Tensor:
    """The rule of the paper's code, written out for the vectors of a model."""
    ranks = [min(int(density * len(delta)) + 1, len(delta)) for delta in deltas]
    thresholds = [delta.abs().sort(descending=True).values[rank - 1] for delta, rank in zip(deltas, ranks, strict=True)]
    kept = torch.stack([delta * (delta.abs() >= t) for delta, t in zip(deltas, thresholds, strict=True)])
    sign = kept.sum(0).sign()
    sign[sign == 0] = 1.0 if sign.sum() > 0 else -1.0
    chosen = kept * torch.where(sign > 0, kept > 0, kept < 0)
    if merge_func == "max":
        return chosen.abs().amax(0) * sign
    return chosen.sum(0) / ((chosen != 0).sum(0).clamp(min=1) if merge_func == "mean" else 1)


@pytest.mark.parametrize("merge_func", ["mean", "sum", "max"])
@pytest.mark.parametrize("density", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("majority", [-1, 1])
def test_ties_of_the_paper(density, merge_func, majority, generator):
    deltas = deltas_of(generator)
    # Half of one tensor cancels, and the others decide what that elects.
    deltas[1]["b"][::2] = -deltas[0]["b"][::2]
    for delta in deltas:
        delta["b"][1::2] = majority * delta["b"][1::2].abs()
    merged = merge(deltas, "ties", semantics="paper", density=density, merge_func=merge_func)
    assert torch.equal(flat(merged), paper_ties([flat(delta) for delta in deltas], density, merge_func))
    if density == 1:
        # The sum of opposite deltas elects the majority, and one of them is merged.
        assert (merged["b"][::2].sign() == majority * (deltas[0]["b"][::2] != 0)).all()


@pytest.mark.parametrize("name", ["ties_dis-mean.far", "ties_dis-sum.far", "ties_dis-max.far"])
def test_ties_is_fusionbenchs(name):
    case = json.loads((FOLDER / "profiles.json").read_text())[f"fusionbench/{name}"]
    check_golden(FOLDER, f"fusionbench/{name}", case)


def test_ties_is_all_of_fusionbenchs(shared):
    cases = json.loads((shared / "goldens" / "profiles.json").read_text())
    found = [name for name in cases if name.startswith("fusionbench/")]
    assert len(found) == 6
    for name in found:
        check_golden(shared / "goldens", name, cases[name])


def check_golden(folder, name, case):
    """Compare every bit: thresholds are exact, and a sum of three deltas has one order."""
    stored = load_file(folder / f"{name}.safetensors")
    outs = {key.removeprefix("out."): out for key, out in stored.items() if key.startswith("out.")}
    deltas = [{tensor: stored[f"delta{i}.{tensor}"] for tensor in outs} for i in range(3)]
    for semantics in ("paper", "fusionbench"):
        merged = merge(
            deltas, "ties", semantics=semantics, density=case["keep_percent"] / 100, lambda_=1,
            merge_func=case["merge_func"].removeprefix("dis-"),
        )  # fmt: skip
        assert all(torch.equal(merged[tensor], out) for tensor, out in outs.items())


def test_profiles_have_their_own_defaults(generator):
    deltas = deltas_of(generator)
    explicit = merge(deltas, "ties", semantics="paper", density=0.2, lambda_=0.3, merge_func="sum")
    own = merge(deltas, "ties", semantics="fusionbench")
    assert all(torch.equal(own[name], explicit[name]) for name in SHAPES)
    defaults = {p.name: p.default for p in get_method("ties").parameters_of("mergekit")}
    assert defaults["density"] == defaults["lambda"] == 1.0 and "merge_func" not in defaults


@pytest.mark.parametrize("density", [0.0, 1e-6, 0.1, 0.5, 0.9999, 1.0])
def test_exactly_so_many_elements_of_a_model_are_kept(density, generator):
    deltas = deltas_of(generator, noise=1e-5)
    total = flat(deltas[0]).numel()
    for k, delta in enumerate(deltas):
        weight = [float(k == i) for i in range(2)]
        merged = flat(
            merge(deltas, "magnitude_prune", scope="model", weight=weight, density=[density, 0.3 + density / 2])
        )
        kept = int((density, 0.3 + density / 2)[k] * total)
        # Of equal magnitudes the first ones, tensors by name.
        order = flat(delta).abs().sort(descending=True, stable=True).indices[:kept]
        expected = torch.zeros(total)
        expected[order] = flat(delta)[order]
        assert torch.equal(merged, expected)


def test_a_tensor_by_itself_is_a_model(generator):
    deltas = [delta["b"] for delta in deltas_of(generator)]
    base = torch.zeros_like(deltas[0])
    merged = functional.ties(base, deltas, semantics="paper", density=0.3)
    assert torch.equal(merged, paper_ties(deltas, 0.3, "mean"))
    whole = functional.magnitude_prune(base, deltas, weight=1, density=0.3, scope="model")
    assert torch.equal(whole, functional.magnitude_prune(base, deltas, weight=1, density=0.3))


def test_what_a_census_found_is_not_asked_again():
    values = {"density": (0.5,), "lambda": 1.0, "merge_func": "mean"}
    group = Group("w", (9,), 1, values, semantics="paper")
    assert solve_without_data(get_method("ties"), group) is None
    known = {"signs (1.0,)": [3.0, 1.0]}
    whole = Group("w", (9,), 1, values | {"density": (1.0,)}, semantics="paper", censuses=known)
    assert solve_without_data(get_method("ties"), whole) is not None


@pytest.mark.parametrize("method", ["ties", "tsvm", "consensus", "model_stock", "sce"])
def test_lines_takes_its_alpha_from_norms_of_the_model(method, generator):
    names = [PREFIX.format(layer) for layer in range(3)] + ["lm_head.weight"]
    base = {name: 0.02 * torch.randn(12, 8, generator=generator) for name in names}
    tuned = [{name: t + 1e-3 * torch.randn(12, 8, generator=generator) for name, t in base.items()} for _ in range(3)]
    values = {
        "ties": {"weight": [1.0, 0.5, 1.0], "density": 0.4, "lambda_": 0.8}, "consensus": {"threshold": 1}
    }.get(method, {})  # fmt: skip
    plain = merge_state_dicts(base, tuned, method=method, **values)
    merged_norm = sum((plain[name].double() - base[name].double()).abs().sum() for name in names)
    norm = sum(sum(model[name].double() - base[name].double() for model in tuned).abs().sum() for name in names)
    alpha = 2 * (norm / merged_norm / 3).item()
    merged = merge_state_dicts(base, tuned, method=method, lines={"alpha": 2, "beta": 0.5, "auto": True}, **values)
    expected = merge_state_dicts(base, tuned, method=method, lines={"alpha": alpha, "beta": 0.5}, **values)
    for name in names:
        # The norms here are those of rounded sums with the base.
        assert torch.allclose(merged[name] - base[name], expected[name] - base[name], rtol=1e-4, atol=1e-8), name


def test_lines_of_a_sum_is_one_over_the_number_of_models(generator):
    deltas = [{PREFIX.format(i): torch.randn(6, 5, generator=generator) for i in range(2)} for _ in range(4)]
    merged = merge(deltas, "task_arithmetic", weight=1, lines={"beta": 0.25, "auto": True})
    for layer, factor in ((0, 0.25), (1, 0.5)):
        name = PREFIX.format(layer)
        assert torch.allclose(merged[name], factor * sum(delta[name] for delta in deltas), rtol=1e-6, atol=1e-7)


def test_ties_is_that_of_sd_mecha():
    """Every bit: thresholds are exact, and the deltas are added in their order."""
    folder = FOLDER / "sd-mecha"
    stored = load_file(folder / "ties_sum.safetensors")
    for name, case in json.loads((folder / "cases.json").read_text()).items():
        for tensor in ("m", "v"):
            deltas = [stored[f"delta{i}.{tensor}"] for i in range(4)]
            vote = "total" if case["vote_sgn"] else "frequency"
            merged = functional.ties(
                torch.zeros_like(deltas[0]), deltas, semantics="sd-mecha", density=case["k"], majority_sign_method=vote
            )
            assert torch.equal(merged, stored[f"{name}.{tensor}"]), (name, tensor)
