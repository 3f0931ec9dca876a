"""The block ``svc:`` against its formula in float64, by hand, and beside the other blocks."""

from __future__ import annotations

import pytest
import torch
from deltas import boost_oracle, make_delta, relative_error

from fastmerge import functional
from fastmerge.methods import Group, all_methods, get_method, why_not
from fastmerge.methods._svc import calibrate

FIRST = "model.layers.0.mlp.up_proj.weight"
ERROR = 2e-5


def fine_tunes(generator, shape=(48, 32), models=3):
    base = 0.02 * torch.randn(shape, generator=generator)
    shared = make_delta("low_rank_noise", *shape, generator)
    return base, [base + shared + make_delta("low_rank_noise", *shape, generator) for _ in range(models)]


def oracle(merged, deltas, alpha=None):
    """The formula, written out."""
    u, s, vh = torch.linalg.svd(merged.double(), full_matrices=False)
    for r in range(len(s)):
        a, total = s[r] * vh[r], 0.0
        for delta in deltas:
            a_i = u[:, r] @ delta.double()
            total += max(alpha or 1 / len(deltas), float(a @ a_i / (a_i @ a_i)))
        s[r] *= len(deltas) / total
    return (u * s) @ vh


def merge(base, tensors, method="task_arithmetic", name=FIRST, **parameters):
    return functional.merge_tensors(base, tensors, method=method, name=name, **parameters)


@pytest.mark.parametrize("alpha", [None, 0.05, 1.0])
@pytest.mark.parametrize("shape", [(48, 32), (32, 48)])
def test_formula(shape, alpha, generator):
    base, tensors = fine_tunes(generator, shape)
    deltas = [tensor - base for tensor in tensors]
    block = {} if alpha is None else {"alpha": alpha}
    merged = merge(base * 0, deltas, weight=[1, 0.5, 1], lambda_=0.7, svc=block)
    total = 0.7 * (deltas[0].double() + 0.5 * deltas[1].double() + deltas[2].double())
    assert relative_error(merged, oracle(total, deltas, alpha)) < ERROR


@pytest.mark.parametrize("name", ["ties", "tsvm", "consensus"])
def test_any_merged_delta_is_calibrated(name):
    # Float32 tells singular vectors apart, which gamma is taken of, up to its rounding over the gap of their values.
    # By this seed no two values of the three merged deltas are nearly equal.
    base, tensors = fine_tunes(torch.Generator().manual_seed(41))
    deltas = [tensor - base for tensor in tensors]
    values = {"ties": {"density": 0.5}, "consensus": {"threshold": 1}}.get(name, {}) | {"weight": 0.5, "lambda_": 0.8}
    merged = merge(base * 0, deltas, name, **values)
    spectrum = torch.linalg.svdvals(merged.double())
    spectrum = spectrum[spectrum > 1e-4 * spectrum[0]]  # tsvm makes two null
    assert (spectrum[:-1] - spectrum[1:]).min() > 1e-4 * spectrum[0]
    assert relative_error(merge(base * 0, deltas, name, svc={}, **values), oracle(merged, deltas)) < ERROR


def test_by_hand():
    # The models share nothing: 2 / (1 + 1/2) for both directions.
    a, b = torch.diag(torch.tensor([2.0, 0.0])), torch.diag(torch.tensor([0.0, 1.0]))
    merged, _ = calibrate(a + b, [a, b], 0.5)
    assert torch.allclose(merged, torch.diag(torch.tensor([8 / 3, 4 / 3])))
    # They are equal: K times too much of everything.
    merged, _ = calibrate(3 * a, [a, a, a], 1 / 3)
    assert torch.allclose(merged, a)
    assert torch.equal(calibrate(0 * a, [a, b], 0.5)[0], 0 * a)


def test_one_model_stays_and_other_tensors_are_merged_alone(generator):
    base, (one, two, _) = fine_tunes(generator)
    assert relative_error(merge(base * 0, [one - base], weight=1, svc={}), one - base) < ERROR
    for name in ("lm_head.weight", "model.layers.0.input_layernorm.weight"):
        assert torch.equal(merge(base, [one, two], name=name, weight=1, svc={}), merge(base, [one, two], weight=1))
    whole = merge(base, [one, two], name="lm_head.weight", weight=1, svc={"matrices": "all"})
    assert torch.equal(whole, merge(base, [one, two], weight=1, svc={}))


def test_blocks_are_applied_in_turn(generator):
    base, tensors = fine_tunes(generator)
    deltas = [tensor - base for tensor in tensors]
    merged = merge(base * 0, deltas, weight=0.5, svc={}, boost={"beta": 0.3, "lambda": 0.5})
    expected = 0.5 * boost_oracle(oracle(sum(d.double() for d in deltas) / 2, deltas), 0.3)[0]
    assert relative_error(merged, expected) < 10 * ERROR
    assert get_method("ties+boost+svc+lines").name == "ties+lines+svc+boost"


def test_stacked_experts_are_taken_one_by_one(generator):
    name, deltas = "model.layers.0.mlp.experts.up_proj", [torch.randn(3, 8, 5, generator=generator) for _ in range(2)]
    merged = merge(torch.zeros(3, 8, 5), deltas, name=name, weight=1, svc={})
    for i in range(3):
        assert relative_error(merged[i], oracle(sum(deltas)[i], [d[i] for d in deltas])) < ERROR


def test_memory_grows_with_the_models():
    group = Group(FIRST, (64, 32), 3, {"svc.alpha": 0.0, "svc.matrices": "attn_mlp", "weight": (1.0,) * 3})
    method = get_method("task_arithmetic+svc")
    assert method.scratch_bytes(group) > 4 * 64 * 32 * 5
    assert method.scratch_bytes(Group("model.norm.weight", (64,), 3, group.values)) is None


def test_every_method_on_deltas_takes_it():
    for name, method in all_methods().items():
        assert (why_not(method, "svc") is None) == method.adds_delta, name
