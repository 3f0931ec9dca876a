"""Formulas and edge cases of single methods, on numbers that can be checked by hand."""

from __future__ import annotations

import inspect
import math
import re
from pathlib import Path

import pytest
import torch

from fastmerge import functional
from fastmerge.methods import Group, get_method
from fastmerge.steps.apply import Apply, Copy, SparseMerge, WeightedSum
from fastmerge.steps.driver import merge_source, solve_without_data
from fastmerge.steps.method import METHODS, Method, method
from fastmerge.steps.source import Resident
from fastmerge.steps.survey import Survey


def tensors(*rows):
    return [torch.tensor(row, dtype=torch.float32) for row in rows]


def test_linear_by_hand():
    a, b = tensors([4.0, -8.0], [0.0, 2.0])
    assert torch.equal(functional.linear([a, b], weight=[3, 1]), torch.tensor([3.0, -5.5]))
    assert torch.equal(functional.linear([a, b], weight=[3, 1], normalize=False), torch.tensor([12.0, -22.0]))


@pytest.mark.parametrize("weights", [[1, -1], [0, 0], [0.1, 0.2, -0.3]])
def test_linear_refuses_weights_that_cancel(weights):
    group = Group("a.b", (1,), len(weights), {"weight": tuple(weights), "normalize": True})
    with pytest.raises(ValueError, match=r"a\.b: the weights .* cancel; set normalize: false"):
        solve_without_data(get_method("linear"), group)


def test_task_arithmetic_by_hand():
    base, a, b = tensors([1.0, 1.0], [3.0, 1.0], [1.0, -3.0])
    add = functional.task_arithmetic(base, [a, b], weight=[0.5, 0.25], lambda_=2)
    assert torch.equal(add, torch.tensor([3.0, -1.0]))
    assert torch.equal(functional.task_arithmetic(base, a, weight=-1), torch.tensor([-1.0, 1.0]))
    normalized = functional.task_arithmetic(base, [a, b], weight=[3, 1], normalize=True)
    assert torch.equal(normalized, torch.tensor([2.5, 0.0]))


def test_passthrough():
    (a,) = tensors([-0.0, 3.0, float("inf")])
    copied = functional.passthrough(a)
    assert torch.equal(copied.view(torch.int32), a.view(torch.int32)) and copied is not a
    assert torch.equal(functional.passthrough(a, scale=0.5), a * 0.5)
    group = Group("a", (3,), 1, {"scale": (1.0,)})
    assert solve_without_data(get_method("passthrough"), group) == Copy(0)


def test_ties_trims_elects_and_divides():
    base = torch.zeros(4)
    a, b, c = tensors([4.0, -3.0, 2.0, 1.0], [-1.0, -5.0, 2.0, 0.5], [-2.0, 6.0, 0.5, 0.0])
    # At density 0.5 two of four stay: (4, -3, 0, 0), (0, -5, 2, 0), (-2, 6, 0, 0).
    # Weighted votes: 4 - 2 * 2 = 0 elects +; -3 - 5 + 12 elects +; 2 elects +; nothing votes.
    merged = functional.ties(base, [a, b, c], weight=[1, 1, 2], density=0.5)
    assert torch.equal(merged, torch.tensor([4.0, 6.0, 2.0, 0.0]))
    raw = functional.ties(base, [a, b, c], weight=[1, 1, 2], density=0.5, normalize=False, lambda_=0.5)
    assert torch.equal(raw, torch.tensor([2.0, 6.0, 1.0, 0.0]))


def test_ties_as_in_peft():
    base = torch.zeros(3)
    a, b, c = tensors([4.0, -3.0, 0.0], [-1.0, -5.0, 2.0], [-2.0, 9.0, 1.0])
    # Sums without weights: 1, 1, 3. Agreeing: (4), (9), (2, 1). Counts divide.
    merged = functional.ties(base, [a, b, c], weight=[0.5, 1, 2], semantics="peft")
    assert torch.equal(merged, torch.tensor([2.0, 18.0, 2.0]))
    # By number of signs: -, -, +.
    merged = functional.ties(base, [a, b, c], weight=[0.5, 1, 2], semantics="peft", majority_sign_method="frequency")
    assert torch.equal(merged, torch.tensor([-2.5, -3.25, 2.0]))


@pytest.mark.parametrize(("density", "kept"), [(1.0, 5), (0.29, 1), (0.6, 3), (0.01, 1), (0.0, 0)])
def test_ties_keeps_exactly_so_many_and_the_lowest_index_of_equals(density, kept):
    ones = torch.ones(5)
    assert functional.ties(torch.zeros(5), ones, weight=1, density=density).tolist() == [1] * kept + [0] * (5 - kept)


@pytest.mark.parametrize(
    ("density", "gamma", "kept"),
    [
        (0.4, 0.2, [0, 5, 3, 0, 0]),  # the largest of five is an outlier; of the equal ones the first stays
        (0.4, 0.0, [9, 5, 0, 0, 0]),
        (0.4, 0.19, [9, 5, 0, 0, 0]),  # int(0.95) outliers
        (0.8, 0.6, [0, 5, 3, 3, 1]),  # more than there are: the smallest four
        (0.0, 0.2, [0, 0, 0, 0, 0]),
        (1.0, 0.9, [9, 5, 3, 3, 1]),
    ],
)
def test_breadcrumbs_keeps_a_band(density, gamma, kept):
    (delta,) = tensors([9.0, 5.0, 3.0, 3.0, 1.0])
    merged = functional.breadcrumbs(torch.zeros(5), delta, weight=1, density=density, gamma=gamma)
    assert merged.tolist() == kept


def test_ties_asks_for_no_survey_at_full_density():
    values = {"weight": (1.0,), "density": (1.0,), "normalize": True, "rescale": True, "lambda": 1.0}
    assert isinstance(solve_without_data(get_method("ties"), Group("a", (9,), 1, values)), SparseMerge)
    assert solve_without_data(get_method("ties"), Group("a", (9,), 1, values | {"density": (0.5,)})) is None


def test_rescale_restores_the_l1_norm():
    base, (a,) = torch.zeros(4), tensors([6.0, -2.0, 1.0, 1.0])
    merged = functional.ties(base, a, weight=1, density=0.5, rescale=True)
    assert torch.equal(merged, torch.tensor([7.5, -2.5, 0.0, 0.0]))
    tiny = a * 1e-9
    assert torch.equal(functional.ties(base, tiny, weight=1, density=0.5, rescale=True)[:2], tiny[:2])


def test_dare_drops_at_the_given_rate_and_keeps_the_norm(generator):
    base, delta = torch.zeros(100_000), torch.randn(100_000, generator=generator)
    for dare in (functional.dare_linear, functional.dare_ties):
        merged = dare(base, delta, weight=1, density=0.3, seed=5)
        # Six standard deviations of a binomial share, sqrt(0.3 * 0.7 / 100,000) = 0.00145.
        assert (merged != 0).float().mean().item() == pytest.approx(0.3, abs=0.009)
        assert merged.double().abs().sum().item() == pytest.approx(delta.double().abs().sum().item(), rel=1e-6)
        raw = dare(base, delta, weight=1, density=0.3, seed=5, rescale=False)
        assert torch.equal(raw, delta * (merged != 0))
        peft = dare(base, delta, weight=1, density=0.25, seed=5, semantics="peft")
        assert torch.equal(peft, delta * 4 * (peft != 0)) and (peft != 0).any()


def test_dare_draws_another_mask_for_every_model():
    base, ones = torch.zeros(1000), torch.ones(1000)
    first = functional.dare_linear(base, [ones, ones], weight=[1, 0], density=0.5, rescale=False)
    second = functional.dare_linear(base, [ones, ones], weight=[0, 1], density=0.5, rescale=False)
    assert 300 < (first != second).sum() < 700


def test_dare_ties_of_peft_takes_one_density():
    with pytest.raises(ValueError, match=r"the densities \(0.5, 0.2\) differ"):
        functional.dare_ties(torch.zeros(2), list(torch.ones(2, 2)), weight=1, density=[0.5, 0.2], semantics="peft")


def test_slerp_by_hand():
    a, b = tensors([2.0, 0.0], [0.0, 2.0])
    half = functional.slerp(a, b, t=0.5)
    assert half.tolist() == pytest.approx([math.sqrt(2)] * 2, rel=2**-22)
    third = functional.slerp(a, b, t=1 / 3)
    assert third.tolist() == pytest.approx([2 * math.cos(math.pi / 6), 2 * math.sin(math.pi / 6)], rel=2**-22)


@pytest.mark.parametrize("t", [0, 1, 0.0, 1.0])
def test_slerp_ends_at_its_inputs(t, generator):
    ends = [torch.randn(100, generator=generator), torch.randn(100, generator=generator).bfloat16()]
    assert torch.equal(functional.slerp(*ends, t=t), ends[int(t)].float())


@pytest.mark.parametrize("sign", [1, -1])
def test_slerp_of_colinear_tensors_is_linear(sign):
    (a,) = tensors([1.0, 2.0, -4.0])
    assert torch.equal(functional.slerp(a, 3 * sign * a, t=0.25), 0.75 * a + 0.75 * sign * a)


def test_slerp_of_zeros_takes_their_norm_for_1():
    (b,) = tensors([0.0, 4.0])
    assert functional.slerp(torch.zeros(2), b, t=0.5).tolist() == pytest.approx([0, 4 * math.sqrt(0.5)], rel=2**-22)


def test_model_stock_by_hand():
    base, a, b = tensors([1.0, 1.0], [3.0, 1.0], [1.0, 3.0])
    # Orthogonal deltas: c = 0, so t = 0 and the base stays.
    assert torch.equal(functional.model_stock(base, [a, b]), base)
    # Equal deltas: c = 1, so t = 1 and their mean is the result.
    assert torch.equal(functional.model_stock(base, [a, a, a]), a)
    # 60 degrees: c = 1/2, t = 2 c / (1 + c) = 2/3.
    c = base + torch.tensor([1.0, math.sqrt(3)])
    expected = base + (2 / 3) * ((a - base) + (c - base)) / 2
    assert torch.allclose(functional.model_stock(base, [a, c]), expected, rtol=0, atol=1e-6)


def test_model_stock_guards():
    base, (up, down) = torch.zeros(2), tensors([1.0, 0.0], [-1.0, 0.0])
    # Opposite deltas: 1 + c = 0, t = 0.
    assert torch.equal(functional.model_stock(base, [up, down]), base)
    # Norms of 1e-4: c is divided by 1e-6 instead of 1e-8, so c = 0.01 and t = 0.02 / 1.01.
    merged = functional.model_stock(base, [up * 1e-4, up * 1e-4])
    assert merged[0].item() == pytest.approx(1e-4 * 0.02 / 1.01, rel=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: functional.slerp(torch.zeros(2), x, t=0.5), "tensor: an input holds NaN or infinity"),
        (lambda x: functional.model_stock(torch.zeros(2), [x, x]), "tensor: a delta holds NaN or infinity"),
        (
            lambda x: functional.dare_linear(torch.zeros(2), [torch.ones(2), x], weight=1, density=0.5),
            "tensor: the delta of model 1 holds NaN or infinity.* rescale: false",
        ),
    ],
)
def test_methods_refuse_what_has_no_norm(call, message):
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match=message):
            call(torch.tensor([1.0, bad]))


def test_weighted_sums_are_solved_without_data():
    values = {"weight": (1.0, 3.0), "normalize": True}
    assert solve_without_data(get_method("linear"), Group("a", (2,), 2, values)) == WeightedSum((0.25, 0.75))


def test_the_guide_lists_every_survey_and_apply():
    guide = (Path(__file__).resolve().parents[2] / "docs" / "methods.md").read_text()
    listed = [kind for kind in (*concrete(Survey), *concrete(Apply)) if kind.__module__.startswith("fastmerge.steps.")]
    assert len(listed) >= 8
    for kind in listed:
        assert f"`{kind.__name__}(" in guide


def test_the_method_that_the_guide_writes(monkeypatch):
    """The second example of docs/methods.md is a whole file of fastmerge/methods."""
    guide = (Path(__file__).resolve().parents[2] / "docs" / "methods.md").read_text()
    (text,) = (block for block in re.findall(r"```python\n(.*?)```", guide, re.DOTALL) if "ElementwiseMerge" in block)
    monkeypatch.setattr("fastmerge.steps.method.METHODS", {})
    space = {"__name__": "fastmerge.methods.agreement", "__package__": "fastmerge.methods"}
    exec(compile(text, "agreement.py", "exec", dont_inherit=True), space)
    group = Group("w", (3,), 2, {"weight": (1.0, 2.0), "lambda": 0.5})
    base, *models = tensors([1.0, 1.0, 1.0], [3.0, 1.0, 3.0], [2.0, 1.0, 0.0])
    out = torch.empty(3)
    merge_source(space["Agreement"](), group, Resident(base, tuple(models)), out)
    # Weighted deltas (2, 2), (0, 0), (2, -2): sums 4, 0, 0 of magnitudes 4, 0, 4.
    assert torch.equal(out, torch.tensor([3.0, 1.0, 1.0]))


def concrete(kind: type) -> list[type]:
    """Return the classes under ``kind`` that can be made."""
    found = [] if inspect.isabstract(kind) else [kind]
    return found + [leaf for child in kind.__subclasses__() for leaf in concrete(child)]


def test_a_name_is_registered_once():
    class Again(Method):
        """Another linear."""

        name = "linear"
        base = "ignored"

        def merge(self, group):
            raise NotImplementedError

    before = dict(METHODS)
    with pytest.raises(ValueError, match="two merge methods are called 'linear'"):
        method(Again)
    assert before == METHODS
