"""State dicts in the host's memory that devices merge: the bits of a merge where they lie, within the budget."""

from __future__ import annotations

import pytest
import torch
from mirrors import compute_on_mirrors

from fastmerge import merge_, merge_state_dicts
from fastmerge.devices import gpus
from fastmerge.errors import BudgetError, FastmergeError, InvalidInput

# Budgets here are those of the compiled kernels.
pytestmark = pytest.mark.compiled

SHAPES = {
    "model.embed_tokens.weight": (515, 256), "model.layers.0.mlp.up_proj.weight": (640, 256),
    "model.layers.0.norm.weight": (257,), "scale": (), "none": (0, 3),
    "model.layers.0.mlp.down_proj.weight": (256, 640),
}  # fmt: skip
CASES = {
    "linear": {"weight": [0.3, 0.9]},
    "ties": {"weight": 0.5, "density": 0.4},
    "dare_ties": {"weight": 0.5, "density": 0.4, "seed": 3},
    "model_stock": {},
    "iso_c": {"weight": 0.5},
    "task_arithmetic": {"weight": 0.5, "lines": {"beta": 0.5, "auto": True}},
    "magnitude_prune": {"weight": 0.5, "density": 0.3, "scope": "model"},
}


def states(generator, models=2):
    base = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    found = [
        {name: (t + 0.01 * torch.randn(t.shape, generator=generator)).bfloat16() for name, t in base.items()}
        for _ in range(models + 1)
    ]
    for state in found:
        state["steps"] = torch.tensor([7])
        state["scale"] = state["scale"].float()
    return found


def same(found, wanted):
    return list(found) == list(wanted) and all(
        found[name].dtype == tensor.dtype and torch.equal(found[name], tensor) for name, tensor in wanted.items()
    )


@pytest.fixture(autouse=True)
def lent_pages(monkeypatch):
    """Devices read what is larger than a page where it lies."""
    monkeypatch.setattr("fastmerge.engine.devices.LENT_BYTES", 4096)


# With regions for tensors that are surveyed, and without; what is taken whole needs one.
@pytest.mark.parametrize(
    ("method", "vram"),
    [(name, vram) for name in CASES for vram in (64 << 20, 14 << 20 if name == "iso_c" else 5 << 20)],
)
def test_bits_are_those_of_a_merge_in_place(generator, monkeypatch, method, vram):
    base, *models = states(generator)
    base = None if method == "linear" else base
    wanted = merge_state_dicts(base, models, method=method, **CASES[method])
    driver = compute_on_mirrors(monkeypatch, 1 if vram > 32 << 20 else 2, speed="overtaking")
    found = merge_state_dicts(base, models, method=method, device="cuda", vram=vram, **CASES[method])
    assert same(found, wanted)
    merged = sum(t.nbytes for t in found.values() if t.is_floating_point())
    assert driver.downloaded == merged and driver.uploaded >= (3 if base else 2) * merged


@pytest.mark.parametrize("target", ["base", "model"])
def test_in_place(generator, monkeypatch, target):
    base, *models = states(generator)
    wanted = merge_state_dicts(base, models, method="ties", **CASES["ties"])
    compute_on_mirrors(monkeypatch, speed="overtaking")
    into = base if target == "base" else models[1]
    before = dict(into)
    merge_(into, models, base=base, method="ties", device="cuda:0", vram=32 << 20, **CASES["ties"])
    assert same(into, wanted) and all(into[name] is tensor for name, tensor in before.items())


def test_another_dtype_and_names_that_are_tied(generator, monkeypatch):
    every = states(generator)
    for state in every:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    given = {"method": "ties", "dtype": torch.float16, **CASES["ties"]}
    wanted = merge_state_dicts(every[0], every[1:], **given)
    driver = compute_on_mirrors(monkeypatch)
    assert same(merge_state_dicts(every[0], every[1:], device="cuda", vram=32 << 20, **given), wanted)
    merged = sum(tensor.nbytes for name, tensor in wanted.items() if name not in ("lm_head.weight", "steps"))
    assert driver.downloaded == merged


def test_memory_that_is_in_several_inputs_is_locked_by_nobody(generator, monkeypatch):
    """The mirrors refuse to lock pages twice."""
    base, model, _ = states(generator)
    model["part"], base["part"] = model["model.embed_tokens.weight"][100:400], base["model.embed_tokens.weight"][:300]
    given = {"method": "ties", **CASES["ties"]}
    wanted = merge_state_dicts(base, [model, model], **given)
    compute_on_mirrors(monkeypatch, speed="overtaking")
    assert same(merge_state_dicts(base, [model, model], device="cuda", vram=32 << 20, **given), wanted)


def test_what_a_method_refuses_is_the_error_of_a_merge_in_place(generator, monkeypatch):
    base, model, _ = states(generator)
    model["model.embed_tokens.weight"][3, 3] = torch.nan
    with pytest.raises(ValueError, match="holds NaN or infinity") as wanted:
        merge_state_dicts(base, [model], method="arcee_fusion")
    compute_on_mirrors(monkeypatch)
    with pytest.raises(ValueError, match="holds NaN or infinity") as found:
        merge_state_dicts(base, [model], method="arcee_fusion", device="cuda", vram=256 << 20)
    assert str(found.value) == str(wanted.value)


def test_too_little_memory_says_how_much(generator, monkeypatch):
    base, *models = states(generator)
    compute_on_mirrors(monkeypatch)
    with pytest.raises(BudgetError, match=r"needs at least \d+ \(--vram\)"):
        merge_state_dicts(base, models, method="ties", device="cuda", vram=64 << 10, **CASES["ties"])


def test_devices_that_cannot_be(generator, monkeypatch):
    base, *models = states(generator)
    given = {"method": "ties", **CASES["ties"]}
    with pytest.raises(InvalidInput, match="device: 'tpu' names no devices; expected auto"):
        merge_state_dicts(base, models, device="tpu", **given)
    with pytest.raises(InvalidInput, match="vram: 'much' is not a size"):
        merge_state_dicts(base, models, device="cuda", vram="much", **given)
    monkeypatch.setattr(gpus, "why_none", lambda: "there is none")
    with pytest.raises(FastmergeError, match="--device cuda: there is none"):
        merge_state_dicts(base, models, device="cuda", **given)
    wanted = merge_state_dicts(base, models, **given)
    for device in ("auto", "cpu", torch.device("cpu")):
        assert same(merge_state_dicts(base, models, device=device, **given), wanted)
