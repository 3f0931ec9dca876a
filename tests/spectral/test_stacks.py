"""Matrices of one shape in batches, as on a GPU: they change as each does by itself."""

from __future__ import annotations

import pytest
import torch
from deltas import make_delta, relative_error

from fastmerge import merge_state_dicts
from fastmerge.kernels import spectral
from fastmerge.steps import driver, stacks
from fastmerge.steps.stacks import alike, batch_bytes, matrices_at_once

SHAPES = {
    "model.layers.0.self_attn.k_proj.weight": (24, 32),
    "model.layers.0.self_attn.v_proj.weight": (24, 32),
    "model.layers.0.mlp.up_proj.weight": (40, 32),
    "model.layers.0.mlp.experts.up_proj": (3, 24, 32),
    "model.layers.1.self_attn.k_proj.weight": (24, 32),
    "model.norm.weight": (32,),
}
CALLS = {
    "task_arithmetic_sb": ("subspace_boost", {"weight": 0.5, "beta": 0.2}),
    "ties_sb": ("subspace_boost", {"weight": 0.5, "density": 0.5}),
    "iso_c": ("flatten_spectrum", {"lambda_": 0.5}),
}


@pytest.fixture
def models(generator):
    def model():
        return {
            name: torch.stack([make_delta("gaussian", *shape[-2:], generator) for _ in range(shape[0])])
            if len(shape) == 3
            else torch.randn(shape, generator=generator) * 1e-3
            for name, shape in SHAPES.items()
        }

    return [{name: tensor.bfloat16() for name, tensor in model().items()} for _ in range(3)]


@pytest.fixture
def batched(monkeypatch):
    monkeypatch.setattr(stacks, "BATCHING", {"cpu"})


def seen(monkeypatch, function):
    """The shapes of what an operation is given from now on."""
    shapes, operation = [], getattr(spectral, function)

    def spy(matrices, *arguments, **options):
        shapes.append(tuple(matrices.shape))
        return operation(matrices, *arguments, **options)

    monkeypatch.setattr(spectral, function, spy)
    return shapes


@pytest.mark.parametrize("method", CALLS)
def test_state_dicts_are_merged_in_batches_of_one_shape(method, models, monkeypatch, batched):
    function, parameters = CALLS[method]
    shapes = seen(monkeypatch, function)
    found = merge_state_dicts(models[0], models[1:], method=method, dtype=torch.float32, **parameters)
    assert sorted(shapes) == [(1, 40, 32), (6, 24, 32)]
    monkeypatch.setattr(stacks, "BATCHING", set())
    expected = merge_state_dicts(models[0], models[1:], method=method, dtype=torch.float32, **parameters)
    for name, tensor in expected.items():
        # A batched product may sum in another order: the last bits of a decomposition in float64, rounded to float32.
        assert relative_error(found[name] - models[0][name].float(), tensor - models[0][name].float()) < 2e-7, name
    assert torch.equal(found["model.norm.weight"], expected["model.norm.weight"])


def test_a_batch_is_no_larger_than_its_memory(models, monkeypatch, batched):
    monkeypatch.setattr(stacks, "STACK_BYTES", 2 * 4 * (6 * 24 * 32 + 9 * 24 * 24))
    shapes = seen(monkeypatch, "subspace_boost")
    merge_state_dicts(models[0], models[1:], method="task_arithmetic_sb", weight=0.5)
    # The stack of three is a batch of two, and one more.
    assert sorted(shapes) == [(1, 24, 32), (1, 24, 32), (1, 40, 32), (2, 24, 32), (2, 24, 32)]
    assert batch_bytes((3, 24, 32)) == 4 * (6 * 24 * 32 + 9 * 24 * 24) and batch_bytes((24, 32)) == 0


def test_windows_gather_one_shape_up_to_a_limit(models, monkeypatch, batched):
    monkeypatch.setattr(driver, "WHOLE_WINDOW_BYTES", 2 * 3 * 2 * 24 * 32)
    shapes = seen(monkeypatch, "subspace_boost")
    merge_state_dicts(models[0], models[1:], method="task_arithmetic_sb", weight=0.5)
    assert sorted(shapes) == [(1, 24, 32), (1, 40, 32), (2, 24, 32), (3, 24, 32)]


def test_what_cannot_be_told_from_one_matrix_is_named(models, batched):
    models[1]["model.layers.0.self_attn.v_proj.weight"][3, 4] = torch.nan
    with pytest.raises(ValueError, match=r"layers\.0\.self_attn\.v_proj\.weight: a delta holds NaN"):
        merge_state_dicts(models[0], models[1:], method="task_arithmetic_sb", weight=0.5)


@pytest.mark.parametrize("method", ["tsvm", "task_arithmetic+boost+svc", "task_arithmetic_sb"])
def test_what_has_no_batch_is_changed_one_by_one(method, models, monkeypatch, batched):
    options = {"boost.beta": 0.2} if "+" in method else {"splitting": "heads", "heads": 4} if "_sb" in method else {}
    weight = {} if method == "tsvm" else {"weight": 0.5}
    if "+" in method:
        options, method = {"boost": {"beta": 0.2}, "svc": {}}, "task_arithmetic"
    states = [{name: s[name] for name in SHAPES if "self_attn" in name} for s in models]
    found = merge_state_dicts(states[0], states[1:], method=method, **weight, **options)
    monkeypatch.setattr(stacks, "BATCHING", set())
    expected = merge_state_dicts(states[0], states[1:], method=method, **weight, **options)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_alike():
    assert list(alike(["a", None, "a", "b", "a"], [1, 5, 1, 4, 1], [2, 2, 2, 2, 2])) == [[1], [0, 2], [4], [3]]
    assert list(alike([], [], [])) == []
    assert matrices_at_once((8192, 1024)) == 8 and matrices_at_once((64, 2048, 768)) == 36
    assert matrices_at_once((8192, 8192)) == 1
