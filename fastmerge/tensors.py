"""Merging tensors in memory, by any method."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import kernels
from .methods import configure, find_method
from .sharded import Prepared, merge_parts, mesh_of, options_of
from .steps.driver import Job, merge_alone
from .steps.source import Resident


@torch.no_grad()
def merge_tensors(
    base: Tensor | None,
    tensors: Sequence[Tensor] | Tensor,
    *,
    method: str,
    semantics: str | None = None,
    seed: int = 0,
    name: str = "tensor",
    dtype: torch.dtype | None = None,
    backend: str | None = None,
    out: Tensor | None = None,
    **parameters: Any,
) -> Tensor:
    """Return the merge of ``tensors`` (float32, bfloat16, float16) by any method.

    Args:
        base:       [...] the base, or None for methods that take none.
        tensors:    N tensors shaped like ``base``, contiguous, on its device; dtypes may differ. Of DTensors, which all
                    lie alike on one mesh, every rank merges its part: see ``docs/shards.md``.
        method:     as in recipes, e.g. ``"ties"``.
        semantics:  whose definition of the method, e.g. ``"peft"``; None takes the method's default.
        seed, name: key of the random numbers of a random method. The same pair draws the same mask. Spectral methods
                    and ``boost`` know a projection by its name in checkpoints; ``matrices="all"`` takes any matrix.
        dtype:      of the result; by default the inputs' (where they differ, what torch promotes them to).
        backend:    pin a backend; by default the fastest available.
        out:        [...] written into and returned; may be one of the inputs.
        parameters: of the method; ``lambda`` is spelt ``lambda_``. ``boost={"beta": 0.2}`` boosts the merged delta of
                    any method on deltas: see ``fastmerge methods boost``.
    Raises:
        InvalidInput: names, values or counts of arguments are wrong; all of them are named.
        ValueError:   tensors do not fit together, or the method cannot merge their values.
        BackendError: a pinned backend cannot run.
    """
    tensors = [tensors] if isinstance(tensors, Tensor) else list(tensors)
    given = ({} if base is None else {"base": base}) | {f"tensors[{i}]": tensor for i, tensor in enumerate(tensors)}
    every = [*given.values(), *([] if out is None else [out])]
    mesh = mesh_of({name: tensor} for tensor in every)
    if mesh is not None:
        options = method, semantics, seed, dtype, parameters
        states = {label: {name: tensor} for label, tensor in given.items()}
        with kernels.use_backend(backend):
            merged = merge_parts(mesh, states, None if out is None else {name: out}, _Preparation(name, *options))
        return merged[name]
    tensors, base = [in_memory(tensor) for tensor in tensors], None if base is None else in_memory(base)
    configured = configure(
        find_method(method), base=base is not None, models=len(tensors),
        semantics=semantics, seed=seed, parameters=parameters,
    )  # fmt: skip
    source = Resident(base, tuple(tensors))
    kernels.check_group(tensors, base, out)
    out = _target(source, out, dtype)
    with kernels.use_backend(backend):
        merge_alone(Job(configured.method, configured.group(name, out.shape), source, out))
    return out


def _target(source: Resident, out: Tensor | None, dtype: torch.dtype | None) -> Tensor:
    """Return what is written, which is made where ``out`` is None."""
    if out is None:
        return torch.empty_like(source.tensors[0], dtype=dtype or promoted(source.every))
    if dtype not in (None, out.dtype):
        raise ValueError(f"dtype is {dtype}, but out has dtype {out.dtype}; leave one of them out")
    return out


@dataclass(frozen=True)
class _Preparation:
    """Checks the local parts of one tensor."""

    name: str
    method: str
    semantics: str | None
    seed: int
    dtype: torch.dtype | None
    parameters: Mapping[str, Any]

    def __call__(self, given: dict[str, Any], out: dict[str, Any] | None) -> Prepared:
        local = {label: in_memory(state[self.name]) for label, state in given.items()}
        base, target = local.pop("base", None), None if out is None else out[self.name]
        configured = configure(
            find_method(self.method), base=base is not None, models=len(local),
            semantics=self.semantics, seed=self.seed, parameters=self.parameters,
        )  # fmt: skip
        source = Resident(base, tuple(local.values()))
        kernels.check_group(source.tensors, base, target)
        target = _target(source, target, self.dtype)
        return Prepared(
            configured, {self.name: source}, {self.name: target}, options=options_of(configured, base is not None)
        )


def in_memory(tensor: Tensor) -> Tensor:
    """Return a tensor with its elements in memory: what torch negates, or knows to be zero, as it reads, is made."""
    return tensor.clone() if isinstance(tensor, Tensor) and (tensor.is_neg() or tensor._is_zerotensor()) else tensor


def promoted(tensors: Sequence[Tensor]) -> torch.dtype:
    """Return the dtype that holds every value of ``tensors``: of bfloat16 and float16 it is float32."""
    return functools.reduce(torch.promote_types, (t.dtype for t in tensors))
