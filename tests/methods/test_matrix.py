"""What holds for every method: the matrix of the registry. A new method is in it by being there.

Parameters are drawn from their declarations, so every combination that a recipe may write is tried. Which properties
a method has, it declares (``random``, ``ordered``, ``homogeneous``, ``neutral``); one that it declares not to have, it
must not have.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from parameter_values import example, neutral, values_of
from sources import Chunked, run_sharded
from torch import Tensor

from fastmerge import kernels
from fastmerge.dtypes import dtype_of
from fastmerge.kernels import GRID, Strip
from fastmerge.kernels._registry import PREFERENCE
from fastmerge.methods import REQUIRED, Group, Method, Parameter, all_methods, get_method
from fastmerge.steps.apply import Copy
from fastmerge.steps.driver import merge_source, solve, solve_without_data
from fastmerge.steps.source import Resident

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
U = 2.0**-24
NUMEL = 2 * GRID + 77
# A tensor that spectral methods take for a matrix.
MATRIX, MATRIX_SHAPE = "model.layers.0.mlp.up_proj.weight", (33, 31)

every_method = pytest.mark.parametrize("name", sorted(all_methods()))
examples = settings(max_examples=10, deadline=None)
seeds = st.integers(0, 2**31 - 1)


@dataclass(frozen=True)
class Case:
    """A method, what it is told, and its inputs."""

    method: Method
    group: Group
    base: Tensor | None
    tensors: list[Tensor]

    @property
    def source(self) -> Resident:
        return Resident(self.base, self.tensors)

    def merge(self, source=None, dtype=torch.float32) -> Tensor:
        out = torch.full(self.group.shape, float("nan"), dtype=dtype)
        merge_source(self.method, self.group, source or self.source, out)
        return out

    def map(self, change) -> Case:
        """Return the case with ``change`` applied to every input."""
        return replace(
            self, base=None if self.base is None else change(self.base), tensors=[change(t) for t in self.tensors]
        )


def parameter_values(parameter: Parameter) -> st.SearchStrategy:
    if parameter.choices:
        return st.sampled_from(parameter.choices)
    if parameter.kind is bool:
        return st.booleans()
    if parameter.kind is str:  # of a file
        return st.just(parameter.default)
    low = -2.0 if parameter.minimum is None else parameter.minimum
    high = parameter.maximum
    if high is None:
        high = 2.0 if parameter.kind is float or parameter.default is REQUIRED else parameter.default + 2
    # Rounded, since products with subnormal numbers do not scale.
    numbers = st.floats(low, high).map(lambda x: round(x, 4)) | st.sampled_from([low, high, (low + high) / 2])
    return numbers.map(parameter.kind)


@st.composite
def cases(
    draw, name: str, shape: tuple[int, ...] = (NUMEL,), models: int | None = None, dtypes=DTYPES, **fixed
) -> Case:
    """Draw anything that a recipe may say of a tensor, and inputs; what the method refuses by itself is left out.

    ``fixed`` are values of the group: ``semantics``, ``seed``.
    """
    method = get_method(name)
    least, most = method.inputs
    count = draw(st.integers(least, most or 4)) if models is None else models
    semantics = fixed.get("semantics") or draw(st.sampled_from(method.semantics))
    seed = draw(st.integers(0, 2**64 - 1))
    for _ in range(5):
        values = {}
        for parameter in method.parameters_of(semantics):
            one = parameter_values(parameter)
            values[parameter.name] = draw(st.tuples(*[one] * count) if parameter.per_model else one)
        group = Group("model.w", shape, count, values, seed, semantics)
        with contextlib.suppress(ValueError):
            solve_without_data(method, group)
            return Case(method, group, *inputs(draw, method, group, dtypes))
    assume(False)
    raise AssertionError


def inputs(draw, method: Method, group: Group, dtypes) -> tuple[Tensor | None, list[Tensor]]:
    """Return a base (or None) and fine-tunes of mixed dtypes, with many equal magnitudes among the deltas."""
    generator = torch.Generator().manual_seed(draw(seeds))
    base = 0.02 * torch.randn(group.shape, generator=generator)
    noises = [(2e-3 * torch.randn(group.shape, generator=generator)).bfloat16().float() for _ in range(group.models)]
    tensors = [(base + noise).to(draw(st.sampled_from(dtypes))) for noise in noises]
    has_base = method.base == "required" or (method.base == "optional" and draw(st.booleans()))
    return base.to(draw(st.sampled_from(dtypes))) if has_base else None, tensors


def fixed_case(
    name: str, models: int, generator: torch.Generator, choose: Callable[[Parameter], Any], shape=MATRIX_SHAPE
) -> Case:
    """Return a case with the values that ``choose`` gives parameters, on float32 inputs."""
    method = get_method(name)
    base = 0.02 * torch.randn(shape, generator=generator)
    tensors = [base + 2e-3 * torch.randn(shape, generator=generator) for _ in range(models)]
    group = Group(MATRIX, shape, models, values_of(method, choose, models))
    return Case(method, group, None if method.base == "ignored" else base, tensors)


def swapped(case: Case) -> Case:
    """Return a case of two models with the second one first."""
    per_model = {p.name for p in case.method.parameters if p.per_model}
    values = {key: value[::-1] if key in per_model else value for key, value in case.group.values.items()}
    return replace(case, group=replace(case.group, values=values), tensors=case.tensors[::-1])


@every_method
def test_declaration(name):
    method = get_method(name)
    assert name == method.name == type(method).__module__.rpartition(".")[2]
    assert inspect.getdoc(method) and method.paper and "=" in inspect.getdoc(method)
    assert method.semantics
    for parameter in method.parameters:
        assert parameter.doc and not parameter.doc.endswith(".")
        assert parameter.default is REQUIRED or parameter.accepts(parameter.default)
        assert all(value is None or parameter.accepts(value) for value in (parameter.neutral, parameter.example))
        assert set(parameter.semantics) <= set(method.semantics)


@every_method
@examples
@given(data=st.data())
def test_cutting_a_tensor_changes_no_bit(name, data):
    case = data.draw(cases(name))
    whole = case.merge()
    assert not whole.isnan().any()
    if case.method.scratch_bytes(case.group) is not None:
        with pytest.raises(ValueError, match=r"model\.w: .* needs the whole tensor at once"):
            case.merge(Chunked(case.base, case.tensors, 1))
        return
    for cells in (1, 2):
        assert torch.equal(case.merge(Chunked(case.base, case.tensors, cells)), whole)

    def shard(source: Chunked) -> list[tuple[int, Tensor]]:
        apply = solve(case.method, case.group, source)
        parts = []
        for chunk in source.chunks():
            out = torch.empty(chunk.tensors[0].shape)
            apply(out, chunk)
            parts.append((chunk.offset, out))
        return parts

    first, second = run_sharded(case.base, case.tensors, 1, shard)
    assert torch.equal(torch.cat([part for _, part in first + second]), whole)


@every_method
@pytest.mark.parametrize("backend", [b for b in PREFERENCE["cpu"] if b != "reference"])
@examples
@given(data=st.data())
def test_backends_return_the_same_bits(name, backend, data):
    case = data.draw(cases(name))
    dtype = data.draw(st.sampled_from(DTYPES))
    with kernels.use_backend("reference"):
        expected = case.merge(dtype=dtype)
    with kernels.use_backend(backend):
        try:
            assert torch.equal(case.merge(dtype=dtype), expected)
        except kernels.BackendError as error:
            pytest.skip(str(error))


def strip_of(tensor: Tensor) -> Strip:
    """Return a strip on the memory of a tensor."""
    memory = SimpleNamespace(address=tensor.data_ptr(), bytes=tensor.view(-1).view(torch.uint8).numpy().data)
    return Strip(memory, 0, dtype_of(tensor.dtype), tuple(tensor.shape))


@pytest.mark.compiled
@every_method
@examples
@given(data=st.data())
def test_strips_return_the_same_bits(name, data):
    """Whatever a recipe may say: what computes with numpy's arrays is chosen by parameters too."""
    if not get_method(name).on_strips:
        pytest.skip(f"{name} takes tensors")
    case = data.draw(cases(name, shape=(GRID + 77,)))
    assume(case.method.takes_strips(case.group))
    out = torch.full(case.group.shape, float("nan"))
    with kernels.use_backend("cpu"):
        expected = case.merge()
        merge_source(case.method, case.group, case.map(strip_of).source, strip_of(out))
    assert torch.equal(out, expected)


@every_method
@examples
@given(data=st.data())
def test_result_is_rounded_once(name, data):
    case = data.draw(cases(name, shape=(7, 129)))
    for dtype in DTYPES:
        assert torch.equal(case.merge(dtype=dtype), case.merge().to(dtype))


@every_method
@examples
@given(data=st.data(), shape=st.sampled_from([(0,), (3, 0), (), (1,), (5, 1, 3)]))
def test_shapes(name, data, shape):
    case = data.draw(cases(name, shape=shape))
    out = case.merge()
    assert out.shape == shape and out.isfinite().all()


@every_method
@examples
@given(data=st.data(), position=st.integers(0, 1022), value=st.sampled_from([float("nan"), float("inf")]))
def test_nan_and_infinity_are_never_lost(name, data, position, value):
    case = data.draw(cases(name, shape=(1023,)))
    assume(not isinstance(solve_without_data(case.method, case.group), Copy))
    # An infinite delta is one vote of several.
    assume(value != float("inf") or case.group.values.get("majority_sign_method") != "frequency")
    data.draw(st.sampled_from([t for t in (case.base, *case.tensors) if t is not None]))[position] = value
    try:
        assert not case.merge()[position].isfinite()
    except ValueError as error:
        assert "model.w" in str(error) and "NaN or infinity" in str(error)


def scaling(name: str, homogeneous: bool) -> None:
    """Skip a method that is not declared so."""
    if get_method(name).homogeneous != homogeneous:
        pytest.skip(f"{name} is declared {'not ' if homogeneous else ''}homogeneous")


@every_method
@examples
@given(data=st.data())
def test_power_of_two_scales_the_result(name, data):
    scaling(name, homogeneous=True)
    case = data.draw(cases(name, shape=(1023,), dtypes=[torch.float32]))
    # Far from the absolute guards on tiny norms, and from subnormal numbers.
    assert torch.equal(case.map(lambda t: t * 64).merge(), case.map(lambda t: t * 8).merge() * 8)


@every_method
def test_another_size_is_another_merge_where_so_declared(name, generator):
    scaling(name, homogeneous=False)
    method = get_method(name)
    case = fixed_case(name, method.inputs[1] or 3, generator, example)
    assert not torch.equal(case.map(lambda t: t * 64).merge(), case.merge() * 64)


def order(name: str, matters: bool) -> None:
    """Skip a method whose declared order is another."""
    method = get_method(name)
    if method.inputs[1] == 1:
        pytest.skip(f"{name} takes one model")
    if (method.ordered or method.random) != matters:
        pytest.skip(f"{name} is {'not ' if matters else ''}declared ordered or random")


@every_method
@examples
@given(data=st.data())
def test_two_models_can_be_swapped(name, data):
    order(name, matters=False)
    case = data.draw(cases(name, shape=(7, 129), models=2))
    assert torch.equal(swapped(case).merge(), case.merge())


@every_method
def test_the_order_of_models_matters_where_so_declared(name, generator):
    order(name, matters=True)
    # tests/spectral/test_methods.py bounds what a swap changes in a decomposition: the last bits.
    differences = [fixed_case(name, 2, generator, example) for _ in range(3)]
    assert any(not torch.equal(swapped(case).merge(), case.merge()) for case in differences)


@every_method
@examples
@given(data=st.data())
def test_weight_0_removes_a_model(name, data):
    method = get_method(name)
    if "weight" not in {p.name for p in method.parameters}:
        pytest.skip(f"{name} has no weights")
    if method.inputs[1] is not None and method.inputs[1] < 3:
        pytest.skip(f"{name} takes no third model")
    # PEFT elects signs and counts models without their weights.
    case = data.draw(cases(name, shape=(7, 129), models=2, semantics="mergekit"))
    per_model = {p.name for p in method.parameters if p.per_model}
    values = {
        key: (*v, 0.0 if key == "weight" else v[0]) if key in per_model else v for key, v in case.group.values.items()
    }
    more = replace(
        case, group=replace(case.group, models=3, values=values), tensors=[*case.tensors, case.tensors[0] * 3]
    )
    assert torch.equal(more.merge(), case.merge())


@every_method
def test_one_model_returns_itself_where_so_declared(name, generator):
    method = get_method(name)
    if method.inputs[0] > 1:
        pytest.skip(f"{name} takes at least {method.inputs[0]} models")
    case = fixed_case(name, 1, generator, neutral if method.neutral else example, shape=(1023,))
    (model,) = case.tensors
    # Through a delta, base + (model - base) has two roundings, one of the delta and one of the sum.
    delta = torch.zeros(()) if case.base is None else (model - case.base).abs().double()
    bound = 0.0 if case.base is None else (delta + model.abs()) * U * (1 + 2 * U)
    assert ((case.merge().double() - model.double()).abs() <= bound).all() == method.neutral


@every_method
def test_merging_equal_models_returns_them(name, generator):
    method = get_method(name)
    if not method.neutral:
        pytest.skip(f"{name} has no neutral values")
    models = max(method.inputs[0], min(3, method.inputs[1] or 3))
    case = fixed_case(name, models, generator, neutral, shape=(1023,))
    like = case.tensors[0]
    equal = case.map(lambda _: like)
    # Deltas of 0 leave the base; a normalized sum of N equal terms has 2 N roundings of their sum.
    bound = 0.0 if case.base is not None else 2 * models * U * (1 + 4 * models * U) * like.double().abs()
    assert ((equal.merge().double() - like.double()).abs() <= bound).all()


@every_method
@examples
@given(data=st.data())
def test_the_same_merge_gives_the_same_bits(name, data):
    case = data.draw(cases(name, shape=MATRIX_SHAPE))
    assert torch.equal(case.merge(), case.merge())
    if not get_method(name).random:
        for changed in (replace(case.group, seed=case.group.seed ^ 1), replace(case.group, name="model.v")):
            assert torch.equal(replace(case, group=changed).merge(), case.merge())


@every_method
def test_seed_and_name_change_the_result_where_it_is_random(name, generator):
    if not get_method(name).random:
        pytest.skip(f"{name} is not declared random")
    case = fixed_case(name, 2, generator, example)
    results = [
        replace(case, group=replace(case.group, seed=seed, name=f"layers.{layer}.mlp.up_proj.weight")).merge()
        for seed, layer in ((1, 0), (2, 0), (1, 1))
    ]
    assert all((results[i] != results[j]).sum() > 200 for i, j in ((0, 1), (0, 2), (1, 2)))
