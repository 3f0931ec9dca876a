"""Merging state dicts in memory, where their tensors lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..arguments import size_of
from ..errors import InvalidInput, Problem
from ..kernels import use_backend
from ..methods import configure, find_method
from ..sharded import Prepared, merge_parts, mesh_of, options_of
from ..steps.driver import Job, merge_sources, solve_without_data
from ..steps.inputs import Inputs
from ..steps.source import Resident
from ..tensors import in_memory, promoted
from .checks import StateDict, input_problems, out_problems, shared_memory

if TYPE_CHECKING:
    from ..engine import RunOptions

__all__ = ["merge_", "merge_state_dicts"]


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
    device: str | torch.device | None = None,
    vram: int | str | None = None,
    **parameters: Any,
) -> dict[str, Tensor]:
    """Merge state dicts by any method; the inputs are not modified unless they are in ``out``.

    Float tensors (float32, bfloat16, float16) are merged as ``functional.merge_tensors`` does. Other
    tensors must be equal in every input and are copied. Tensors may lie on several devices (a ``device_map``), each
    name on one: what lies on a GPU is merged there, on its current stream, side by side with other GPUs.
    With a ``device``, GPUs merge tensors that lie in the host's memory: these stream through in windows, and the result
    is in the host's memory, too.
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
        device:     "cuda" (every GPU), GPUs such as "cuda:0,cuda:1", or "auto": every GPU where there is one. Only for
                    tensors in the host's memory. None and "cpu" merge them where they lie.
        vram:       memory that is taken of each GPU for that, in bytes or as "20GiB"; None takes 90 % of what is free.
        parameters: of the method, named as in recipes; ``lambda`` is spelt ``lambda_``. Per-model ones
                    are one value for all, or a sequence.
    Returns:
        The merged tensors, in the order of ``base`` (of ``models[0]`` where there is none).
    Raises:
        InvalidInput: arguments, names, shapes, dtypes or devices are wrong; all of it is named at once.
        ValueError:   the method cannot merge the values of a tensor; the message names it.
        ShardError:   of sharded tensors: it failed on another rank, or one does not answer.
        BackendError: a pinned backend cannot run.
        BudgetError, FastmergeError: of a ``device``: it has too little memory, or cannot be used.

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
    prepare = partial(_prepared, method=method, semantics=semantics, seed=seed, dtype=dtype, parameters=parameters)
    states = {label: _tensors_of(model) for label, model in given.items()}
    mesh = mesh_of([*states.values(), out])
    streamed = device is not None and str(device) != "cpu"
    with use_backend(backend):
        if mesh is not None:
            if streamed:
                raise InvalidInput([Problem("device", "is for tensors in the host's memory; these are DTensors")])
            return merge_parts(mesh, states, out, prepare)
        merge = prepare(states, out)
        names = [name for name in merge.inputs if name not in merge.tied]
        jobs = [_job(merge, name) for name in names]
        for job in jobs[:1]:  # the parameters are the same for all
            solve_without_data(job.method, job.group)
        options = _options(merge, str(device), vram) if streamed else None
        merge.copy()
        if options is None or not _stream(merge, names, options):
            merge_sources(jobs)
    if out is not None:
        return dict(merge.targets)
    targets, tied = merge.targets, merge.tied
    return {
        name: targets[tied[name]].clone() if name in tied else targets[name] for name in next(iter(states.values()))
    }


def _options(merge: Prepared, device: str, vram: int | str | None) -> RunOptions:
    """Return how GPUs merge tensors that lie in the host's memory."""
    from ..engine.running import RunOptions

    if elsewhere := {str(target.device) for target in merge.targets.values()} - {"cpu"}:
        raise InvalidInput([Problem("device", f"is for tensors in the host's memory; some are on {min(elsewhere)}")])
    return RunOptions(device=device, vram=None if vram is None else size_of("vram", vram))


def _stream(merge: Prepared, names: Sequence[str], options: RunOptions) -> bool:
    from .streaming import stream

    return stream(merge, names, options)


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
    problems += input_problems(named)
    if named and not problems:
        problems += out_problems(next(iter(named.values())), out, dtype)
    tied: dict[str, str] = {}
    if named and not problems:
        tied, problems = shared_memory(named, out)
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
        options: ``semantics``, ``seed``, ``backend``, ``device``, ``vram`` and the parameters of the method, as in
                 ``merge_state_dicts``.
    Raises:
        InvalidInput: as ``merge_state_dicts``, where ``target`` is called ``out``.
        ValueError:   the method cannot merge the values of a tensor. Others may be merged already.
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
