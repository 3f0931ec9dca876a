"""The tasks of mergekit 0.1.4 with our kernels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("mergekit", reason="mergekit is not installed (pip install mergekit==0.1.4)")
registry = pytest.importorskip("mergekit.merge_methods.registry")
if hasattr(registry, "registered_methods"):
    pytest.skip("these tests are of mergekit 0.1.4's tasks", allow_module_level=True)

from mergekit.architecture import WeightInfo  # noqa: E402
from mergekit.common import ImmutableMap, ModelReference  # noqa: E402
from mergekit.io.tasks import GatherTensors  # noqa: E402

from fastmerge.integrations.mergekit import patch, unpatch  # noqa: E402

BASE, *OTHERS = (ModelReference.parse(name) for name in ("base", "a", "b", "c"))
W = [0.3, 0.5, 0.7]
DELTAS = {"int8_mask": False, "normalize": True, "rescale": False, "lambda": 0.9}
# Methods, models, shared parameters, those of a model; the first with the same bits in float32.
EXACT: list[tuple[str, int, dict[str, Any], dict[str, Any]]] = [
    ("task_arithmetic", 3, DELTAS | {"normalize": False}, {"weight": W}),
    ("ties", 3, DELTAS, {"weight": W, "density": [0.5, 0.4, 0.3]}),
    ("dare_ties", 3, DELTAS, {"weight": W, "density": [0.4, 1.0, 0.3]}),
    ("breadcrumbs", 3, DELTAS, {"weight": W, "density": [0.5] * 3, "gamma": [0.1] * 3}),
    ("linear", 3, {"normalize": True}, {"weight": W}),
]
SUMMED: list[tuple[str, int, dict[str, Any], dict[str, Any]]] = [
    ("dare_linear", 3, DELTAS | {"rescale": True}, {"weight": W, "density": [0.4] * 3}),
    ("slerp", 1, {"t": 0.3}, {}),
    ("nuslerp", 2, {"nuslerp_row_wise": False, "nuslerp_flatten": True}, {"weight": W[:2]}),
    ("karcher", 3, {"max_iter": 10, "tol": 1e-5}, {}),
    ("model_stock", 3, {"filter_wise": False}, {}),
]


@pytest.fixture(autouse=True)
def unpatched() -> Iterator[None]:
    yield
    unpatch()


def task(case: tuple[str, int, dict[str, Any], dict[str, Any]], dtype: torch.dtype) -> tuple[Any, dict[Any, Tensor]]:
    name, count, shared, own = case
    has_base = name not in ("linear", "karcher")
    generator = torch.Generator().manual_seed(3)
    start = torch.randn(37, 61, generator=generator) * 0.05
    tensors = {BASE: start.to(dtype)} if has_base else {}
    for model in OTHERS[:count]:
        tensors[model] = (start + torch.randn(37, 61, generator=generator) * 5e-3).to(dtype)
    info = WeightInfo(name="x")
    values = {model: ImmutableMap({key: own[key][i] for key in own}) for i, model in enumerate(OTHERS[:count])}
    made = registry.REGISTERED_MERGE_METHODS[name].make_task(
        output_weight=info, tensors=GatherTensors(weight_info=ImmutableMap(dict.fromkeys(tensors, info))),
        base_model=BASE if has_base else None, parameters=ImmutableMap(shared),
        tensor_parameters=ImmutableMap(values | ({BASE: ImmutableMap({})} if has_base else {})),
    )  # fmt: skip
    return made, tensors


def run(made: Any, tensors: dict[Any, Tensor]) -> Tensor:
    torch.manual_seed(5)
    return made.execute(tensors={model: tensor.clone() for model, tensor in tensors.items()})


@pytest.mark.parametrize("case", EXACT, ids=lambda case: case[0])
def test_float32_has_the_same_bits(case: tuple[str, int, dict[str, Any], dict[str, Any]]) -> None:
    made, tensors = task(case, torch.float32)
    own = run(made, tensors)
    with patch(random="mergekit") as patched:
        assert torch.equal(own, run(made, tensors))
    assert patched.report.served == {case[0]: 1}


@pytest.mark.parametrize("case", SUMMED, ids=lambda case: case[0])
def test_float32_norms_and_angles_are_summed_exactly(case: tuple[str, int, dict[str, Any], dict[str, Any]]) -> None:
    made, tensors = task(case, torch.float32)
    own = run(made, tensors)
    with patch(random="mergekit") as patched:
        ours = run(made, tensors)
    assert patched.report.served == {case[0]: 1}
    # mergekit sums n = 2257 float32 squares: relative error n * 2**-24 at most, of norms and of what they scale.
    assert (own - ours).abs().max() <= 2257 * 2**-24 * own.abs().max()


@pytest.mark.parametrize("case", [EXACT[0], EXACT[2], EXACT[4], SUMMED[0]], ids=lambda case: case[0])
def test_exact_rounding_has_the_same_bits(case: tuple[str, int, dict[str, Any], dict[str, Any]]) -> None:
    made, tensors = task(case, torch.bfloat16)
    own = run(made, tensors)
    with patch(exact_rounding=True, random="mergekit") as patched:
        assert torch.equal(own, run(made, tensors))
    assert patched.report.served == {case[0]: 1}


def test_its_own_result_is_kept_where_it_drops_everything() -> None:
    made, tensors = task(
        ("breadcrumbs", 2, DELTAS, {"weight": W, "density": [0.5] * 2, "gamma": [0.0] * 2}), torch.float32
    )
    own = run(made, tensors)
    with patch() as patched:
        assert torch.equal(own, run(made, tensors))
    assert [why for _, why in patched.report.fell_back] == [
        "no outliers to drop, where mergekit 0.1.4 drops everything"
    ]
