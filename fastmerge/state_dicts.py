"""Merging state dicts in memory, where their tensors lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .errors import InvalidInput, Problem
from .kernels import FLOATS, use_backend, why_not_plain
from .methods import configure, find_method
from .sharded import Prepared, merge_parts, mesh_of, options_of
from .steps.driver import Job, merge_sources, solve_without_data
from .steps.inputs import Inputs
from .steps.source import Resident
from .tensors import in_memory, promoted

__all__ = ["merge_", "merge_state_dicts"]

_FLOATS = tuple(dtype.torch for dtype in FLOATS)

StateDict = Mapping[str, Tensor]
"""Tensors by name. Where one is expected, a module stands for its own."""


@torch.no_grad()
def merge_state_dicts(
    base: StateDict | torch.nn.Module | None,
    models: Sequence[StateDict | torch.nn.Module],
    *,
    method: str,
    semantics: str | None = None,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    backend: str | None = None,
    out: Mapping[str, Tensor] | None = None,
    **parameters: Any,
) -> dict[str, Tensor]:
    """Merge state dicts by any method; the inputs are not modified unless they are in ``out``.

    Float tensors (float32, bfloat16, float16) are merged as ``functional.merge_tensors`` does. Other
    tensors must be equal in every input and are copied. Tensors may lie on several devices (a ``device_map``), each
    name on one: what lies on a GPU is merged there, on its current stream, side by side with other GPUs.
    Of tensors that are sharded over a mesh (DTensor) every rank merges its part: see ``docs/shards.md``.

    Args:
        base:       the base, or None for methods that take none. A module stands for its ``state_dict()``.
        models:     N state dicts (or modules) with the names and shapes of ``base``.
        method:     as in recipes, e.g. ``"ties"``.
        semantics:  whose definition of the method; None takes its default.
        seed:       of random methods; masks also depend on the tensor's name, not on its place. Names that share a
                    tensor in every input (tied embeddings) are merged as one, under the first name.
        dtype:      of the merged float tensors; by default each keeps its inputs' dtype (where they
                    differ, what torch promotes them to).
        backend:    pin a backend; by default the fastest available.
        out:        tensors to write into, one for every name; by default new ones are made. One may be an input of
                    its own name.
        parameters: of the method, named as in recipes; ``lambda`` is spelt ``lambda_``. Per-model ones
                    are one value for all, or a sequence.
    Returns:
        The merged tensors, in the order of ``base`` (of ``models[0]`` where there is none).
    Raises:
        InvalidInput: arguments, names, shapes, dtypes or devices are wrong; all of it is named at once.
        ValueError:   the method cannot merge the values of a tensor; the message names it.
        ShardError:   of sharded tensors: it failed on another rank, or one does not answer.
        BackendError: a pinned backend cannot run.

    >>> import torch
    >>> base = {"weight": torch.zeros(3), "steps": torch.tensor(7)}
    >>> a = {"weight": torch.tensor([2.0, 0.0, -2.0]), "steps": torch.tensor(7)}
    >>> b = {"weight": torch.tensor([0.0, 4.0, 2.0]), "steps": torch.tensor(7)}
    >>> merge_state_dicts(base, [a, b], method="task_arithmetic", weight=[0.5, 0.25])
    {'weight': tensor([ 1.0000,  1.0000, -0.5000]), 'steps': tensor(7)}
    """
    if isinstance(models, (Mapping, torch.nn.Module)):
        raise InvalidInput([Problem("models", "is one model; expected a list of state dicts", "write [model]")])
    given = ({} if base is None else {"base": base}) | {f"models[{i}]": model for i, model in enumerate(models)}
    prepare = partial(
        _prepared, method=method, semantics=semantics, seed=seed, dtype=dtype, parameters=parameters
    )  # fmt: skip
    states = {label: _tensors_of(model) for label, model in given.items()}
    mesh = mesh_of([*states.values(), out])
    with use_backend(backend):
        if mesh is not None:
            return merge_parts(mesh, states, out, prepare)
        merge = prepare(states, out)
        jobs = [_job(merge, name) for name in merge.inputs if name not in merge.tied]
        for job in jobs[:1]:  # the parameters are the same for all
            solve_without_data(job.method, job.group)
        merge.copy()
        merge_sources(jobs)
    if out is not None:
        return dict(merge.targets)
    names = next(iter(states.values()))
    targets, tied = merge.targets, merge.tied
    return {name: targets[tied[name]].clone() if name in tied else targets[name] for name in names}


def _prepared(
    given: Mapping[str, Any],
    out: Mapping[str, Tensor] | None,
    *,
    method: str,
    semantics: str | None,
    seed: int,
    dtype: torch.dtype | None,
    parameters: Mapping[str, Any],
) -> Prepared:
    """Check what is to be merged, and make targets where there are none."""
    named = {label: _state_dict(label, model) for label, model in given.items()}
    states = [state for label, state in named.items() if label != "base"]
    origin = named.get("base")
    problems: list[Problem] = []
    configured = None
    try:
        configured = configure(
            find_method(method), base=origin is not None, models=len(states),
            semantics=semantics, seed=seed, parameters=parameters,
        )  # fmt: skip
    except InvalidInput as error:
        problems += error.problems
    problems += _input_problems(named)
    if named and not problems:
        problems += _out_problems(next(iter(named.values())), out, dtype)
    tied: dict[str, str] = {}
    if named and not problems:
        tied, problems = _shared_memory(named, out)
    if problems or configured is None:
        raise InvalidInput(problems)
    configured = configured.within(states[0])
    targets, floats, copies = {}, {}, {}
    for name, like in (states[0] if origin is None else origin).items():
        inputs = Inputs(None if origin is None else origin[name], tuple(state[name] for state in states))
        if like.is_floating_point():
            floats[name] = inputs
        else:
            copies[name] = like
        if out is not None:
            targets[name] = out[name]
        elif name not in tied:
            targets[name] = torch.empty_like(like, dtype=_dtype(inputs.every, dtype))
    return Prepared(configured, floats, targets, copies, tied, options_of(configured, origin is not None))


def _job(merge: Prepared, name: str) -> Job:
    target = merge.targets[name]
    group = merge.configured.group(name, target.shape)
    return Job(merge.configured.method, group, Resident.of(merge.inputs[name]), target)


@torch.no_grad()
def merge_(
    target: Mapping[str, Tensor] | torch.nn.Module,
    models: Sequence[StateDict | torch.nn.Module],
    *,
    method: str,
    base: StateDict | torch.nn.Module | None = None,
    **options: Any,
) -> None:
    """Merge state dicts in place, into the tensors of ``target``: nothing is allocated for the result.

    On GPUs no data passes through the host, and tensors on several GPUs are merged at once. Names that share a tensor
    in every input (tied embeddings) are merged once.

    Args:
        target:  module or state dict that is overwritten: a model that is loaded, or one of ``models``.
        models:  N state dicts (or modules) with the names and shapes of ``target``.
        method:  as in recipes, e.g. ``"ties"``.
        base:    the base of methods that require one; None takes what ``target`` holds before.
        options: ``semantics``, ``seed``, ``backend`` and the parameters of the method, as in ``merge_state_dicts``.
    Raises:
        InvalidInput: as ``merge_state_dicts``, where ``target`` is called ``out``.
        ValueError:   the method cannot merge the values of a tensor. The tensors before it are already merged.
        BackendError: a pinned backend cannot run.

    >>> import torch
    >>> import fastmerge
    >>> model = torch.nn.Linear(2, 1).requires_grad_(False)  # on a GPU: .to("cuda")
    >>> tuned = [{name: t + step for name, t in model.state_dict().items()} for step in (1, -3)]
    >>> before = model.bias.clone()
    >>> fastmerge.merge_(model, tuned, method="task_arithmetic", weight=0.5)
    >>> torch.allclose(model.bias, before - 1)
    True
    """
    target = _tensors_of(target)
    if base is None and find_method(method).base == "required":
        base = target
    merge_state_dicts(base, models, method=method, out=target, **options)


def _tensors_of(model: StateDict | torch.nn.Module) -> StateDict:
    return model.state_dict() if isinstance(model, torch.nn.Module) else model


def _state_dict(label: str, state: StateDict) -> StateDict:
    """Return the tensors of an input; what torch would compute as it reads them is made."""
    if not isinstance(state, Mapping):
        what = f"is a {type(state).__name__}; expected a state dict or a module"
        raise InvalidInput([Problem(label, what, "give one for each model, as a list")])
    made = {name: in_memory(tensor) for name, tensor in state.items()}
    return made if any(made[name] is not state[name] for name in made) else state


def _dtype(tensors: Sequence[Tensor], dtype: torch.dtype | None) -> torch.dtype:
    return dtype if dtype is not None and tensors[0].is_floating_point() else promoted(tensors)


def _input_problems(named: Mapping[str, StateDict]) -> list[Problem]:
    """Find what keeps the state dicts from being merged; the first one is what the others are compared with."""
    problems = []
    (first, reference), *others = named.items() or [("models", {})]
    for label, state in others:
        if missing := reference.keys() - state.keys():
            problems.append(Problem(label, f"lacks tensors that {first} has: {_listed(missing)}"))
        if extra := state.keys() - reference.keys():
            problems.append(Problem(label, f"has tensors that {first} lacks: {_listed(extra)}"))
    for label, state in named.items():
        for name, tensor in state.items():
            if name in reference:
                problems += _tensor_problems(f"{label}[{name!r}]", tensor, f"{first}[{name!r}]", reference[name])
    return problems


def _listed(names: Set[str]) -> str:
    return ", ".join(sorted(names)[:5]) + (f", ... ({len(names)} in all)" if len(names) > 5 else "")


def _tensor_problems(where: str, tensor: Any, like_where: str, like: Any) -> list[Problem]:
    if not isinstance(tensor, Tensor):
        return [Problem(where, f"is a {type(tensor).__name__}; expected a tensor", "take it out of the state dicts")]
    if not isinstance(like, Tensor):
        return []
    if why := why_not_plain(tensor):
        return [Problem(where, why)]
    if tensor.shape != like.shape:
        return [Problem(where, f"has shape {tuple(tensor.shape)}, {like_where} has {tuple(like.shape)}")]
    if tensor.device != like.device:
        return [Problem(where, f"is on {tensor.device}, {like_where} is on {like.device}")]
    if tensor.is_floating_point() and tensor.dtype not in _FLOATS:
        return [Problem(where, f"has dtype {tensor.dtype}; expected float32, bfloat16 or float16", "convert it")]
    if tensor.is_floating_point() != like.is_floating_point():
        return [Problem(where, f"has dtype {tensor.dtype}, {like_where} has {like.dtype}")]
    if not tensor.is_contiguous():
        return [Problem(where, f"is not contiguous (strides {tensor.stride()})", "call .contiguous() first")]
    if not tensor.is_floating_point() and not torch.equal(tensor, like):
        return [Problem(where, f"has dtype {tensor.dtype} and differs from {like_where}", "only equal ones are copied")]
    return []


def _out_problems(reference: StateDict, out: Mapping[str, Tensor] | None, dtype: torch.dtype | None) -> list[Problem]:
    if dtype is not None and dtype not in _FLOATS:
        return [Problem("dtype", f"is {dtype}; expected float32, bfloat16 or float16")]
    if out is None:
        return []
    if missing := reference.keys() - out.keys():
        return [Problem("out", f"lacks {_listed(missing)}", "it needs a tensor for every name")]
    problems = []
    for name, like in reference.items():
        where, target = f"out[{name!r}]", out[name]
        if why := why_not_plain(target):
            problems.append(Problem(where, why))
        elif target.shape != like.shape or target.device != like.device or not target.is_contiguous():
            expected = f"a contiguous tensor of shape {tuple(like.shape)} on {like.device}"
            problems.append(Problem(where, f"is {tuple(target.shape)} on {target.device}; expected {expected}"))
        elif like.is_floating_point() and target.dtype not in (_FLOATS if dtype is None else (dtype,)):
            expected = "float32, bfloat16 or float16" if dtype is None else str(dtype)
            problems.append(Problem(where, f"has dtype {target.dtype}; expected {expected}"))
        elif not like.is_floating_point() and target.dtype != like.dtype:
            problems.append(Problem(where, f"has dtype {target.dtype}; expected {like.dtype}"))
    return problems


def _shared_memory(
    named: Mapping[str, StateDict], out: Mapping[str, Tensor] | None
) -> tuple[dict[str, str], list[Problem]]:
    """Return the first name of every name that is tied to one, and where an output would overwrite what is read later.

    Tied names are one tensor in the outputs, if given, and in every input. They are merged once, under the first name.
    """
    reference = next(iter(named.values()))
    floats = [name for name, tensor in reference.items() if tensor.is_floating_point() and tensor.numel()]
    names = [name for name in floats if reference[name].data_ptr()]
    states = dict(named) if out is None else {"out": out, **named}
    first: dict[tuple, str] = {}
    tied = {}
    for name in names:
        key = (reference[name].shape, *(_range(state[name]) for state in states.values()))
        if first.setdefault(key, name) != name:
            tied[name] = first[key]
    if out is None:
        return tied, []
    untied = list(first.values())
    problems = []
    reached: list[tuple[_Range, str, str]] = []
    for here, label, name in sorted(
        (_range(state[name]), label, name) for label, state in states.items() for name in untied
    ):
        reached = [item for item in reached if item[0][0] == here[0] and item[0][2] > here[1]]
        for there, other_label, other in reached:
            # An output may be the input of its own name: every element is read before it is written.
            if "out" in (label, other_label) and (name, here) != (other, there):
                where = f"{label}[{name!r}]"
                problems.append(Problem(where, f"shares memory with {other_label}[{other!r}]", "clone one of them"))
        reached.append((here, label, name))
    return tied, problems


# A device, the first address, and the one after the last.
_Range = tuple[str, int, int]


def _range(tensor: Tensor) -> _Range:
    return str(tensor.device), tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
