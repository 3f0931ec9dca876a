"""Tensors that are not plain memory: made where that is possible, else refused by name. Modules and single models."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.distributed.tensor import DTensor

import fastmerge
from fastmerge import functional
from fastmerge.errors import BudgetError, CheckpointError, InvalidInput, OutputError

ONES = torch.ones(4)


def negated() -> torch.Tensor:
    return torch.complex(torch.ones(4), torch.arange(4.0)).conj().imag


def zeros() -> torch.Tensor:
    return torch._efficientzerotensor(4)


@pytest.fixture(scope="module")
def distributed():
    """A DTensor on a mesh of one process."""
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
        yield torch.distributed.tensor.distribute_tensor(torch.ones(4), mesh)
    finally:
        torch.distributed.destroy_process_group()


class Wrapped(torch.Tensor):
    """A subclass that holds its elements in another tensor."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise NotImplementedError(func)


STRANGE = {
    "meta": (lambda: torch.ones(4, device="meta"), "is on the device meta"),
    "sparse": (lambda: torch.ones(4).to_sparse(), "has layout torch.sparse_coo"),
    "wrapped": (lambda: Wrapped(torch.ones(4)), "is a Wrapped, which has no elements in memory of its own"),
    "expanded": (lambda: torch.ones(1).expand(4), "not contiguous"),
    "complex": (lambda: torch.ones(4, dtype=torch.complex64), "complex64"),
    "codes": (lambda: torch.ones(4).to(torch.float8_e4m3fn), "float8_e4m3fn"),
}


@pytest.mark.parametrize("make", [negated, zeros])
@pytest.mark.parametrize("method", ["linear", "ties", "task_arithmetic"])
def test_what_torch_computes_as_it_reads_is_made(make, method):
    plain = torch.zeros(4) + make()
    options = {"method": method, "weight": 0.5}
    bases = {"linear": (None, None)}.get(method, (ONES, {"w": ONES}))
    expected = functional.merge_tensors(bases[0], [plain, ONES], **options)
    assert torch.equal(functional.merge_tensors(bases[0], [make(), ONES], **options), expected)
    merged = fastmerge.merge_state_dicts(bases[1], [{"w": make()}, {"w": ONES}], **options)
    assert torch.equal(merged["w"], expected)


@pytest.mark.parametrize("kind", STRANGE)
def test_other_tensors_are_refused_by_name(kind):
    make, words = STRANGE[kind]
    with pytest.raises(ValueError, match=words):
        functional.task_arithmetic(ONES, [ONES, make()], weight=1.0)
    with pytest.raises(InvalidInput, match=rf"models\[1\]\['w'\].*{words}"):
        fastmerge.merge_state_dicts(
            {"w": ONES}, [{"w": ONES}, {"w": make()}], method="task_arithmetic", weight=1.0
        )  # fmt: skip


def test_outputs_are_memory_too():
    with pytest.raises(InvalidInput, match=r"out\['w'\]: is a view that torch computes"):
        fastmerge.merge_state_dicts(None, [{"w": ONES}], method="linear", weight=1.0, out={"w": negated()})
    with pytest.raises(ValueError, match="out is a view that torch computes"):
        functional.linear([ONES], weight=1.0, out=negated())


def test_distributed_tensors_are_merged_as_such_or_refused(distributed):
    assert isinstance(distributed, DTensor)
    with pytest.raises(InvalidInput, match=r"models\[0\]\['w'\]: is sharded \(DTensor\), base\['w'\] is a plain"):
        fastmerge.merge_state_dicts({"w": ONES}, [{"w": distributed}], method="task_arithmetic", weight=1.0)
    assert isinstance(functional.linear([distributed], weight=1.0), DTensor)
    pair = torch.ones(2, 1), torch.ones(1, 2)
    with pytest.raises(InvalidInput, match=r"adapters\[1\]: holds what is a DTensor"):
        fastmerge.merge_adapters([pair, (distributed, distributed)], method="task_arithmetic", weight=1.0)


def test_modules_stand_for_their_tensors():
    base, tuned = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    options = {"method": "task_arithmetic", "weight": 0.5}
    expected = fastmerge.merge_state_dicts(base.state_dict(), [tuned.state_dict()], **options)
    merged = fastmerge.merge_state_dicts(base, [tuned], **options)
    assert all(torch.equal(merged[name], expected[name]) for name in expected)
    fastmerge.merge_(base, [tuned], **options)
    assert torch.equal(base.weight, expected["weight"]) and torch.equal(base.bias, expected["bias"])


@pytest.mark.parametrize("models", [{"w": ONES}, torch.nn.Linear(1, 1)])
def test_one_model_is_no_list(models):
    with pytest.raises(InvalidInput, match=r"models: is one model; expected a list of state dicts \(write \[model\]\)"):
        fastmerge.merge_state_dicts(None, models, method="linear", weight=1.0)


@pytest.mark.parametrize("model", [ONES, [ONES], "folder"])
def test_what_is_no_model(model):
    with pytest.raises(InvalidInput, match=rf"models\[0\]: is a {type(model).__name__}; expected a state dict"):
        fastmerge.merge_state_dicts(None, [model], method="linear", weight=1.0)


@pytest.mark.parametrize("weight", [torch.tensor([0.25, 0.75]), np.array([0.25, 0.75]), (0.25, 0.75)])
def test_parameters_may_be_arrays(weight):
    assert torch.equal(functional.linear([ONES, 3 * ONES], weight=weight), 2.5 * ONES)
    assert torch.equal(functional.linear([ONES], weight=np.float32(1)), ONES)


def test_errors_are_those_that_callers_expect():
    assert issubclass(InvalidInput, ValueError) and issubclass(BudgetError, MemoryError)
    assert issubclass(CheckpointError, OSError) and issubclass(OutputError, OSError)
    assert str(CheckpointError("w.safetensors: is damaged")) == "w.safetensors: is damaged"
