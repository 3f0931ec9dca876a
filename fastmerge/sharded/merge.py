"""The merge of shards: what all ranks are to do is compared, then each merges its parts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..errors import InvalidInput, Problem, ShardError
from ..steps.driver import solve_without_data
from .parts import Named, Parts, Prepared
from .tensors import like_shard

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from ..steps.shards import Ranks


def merge_parts(
    mesh: DeviceMesh,
    given: Named,
    out: Mapping[str, Any] | None,
    prepare: Callable[[dict[str, Any], dict[str, Any] | None], Prepared],
) -> dict[str, Tensor]:
    """Merge the local parts of state dicts; return the merged tensors, as their inputs are. A collective call.

    Args:
        mesh:    of all sharded tensors.
        given:   the inputs, the base first if there is one.
        out:     what is written into; None for new tensors.
        prepare: checks the local parts, and makes targets where there are none.
    Raises:
        InvalidInput: on every rank, with what is wrong on any of them.
        ShardError:   another rank failed, or does not answer.
    """
    from ..steps.shards import Agreement, Ranks, merge_shards

    ranks = Ranks(mesh)
    ranks.doing = "comparing what is to be merged"
    parts = Parts(mesh, ranks)
    prepared, error = None, None
    try:
        prepared = prepare(*parts.localized(given, out))
    except Exception as failure:
        error = failure
    tied = _agreed(ranks, parts, prepared, error)
    assert prepared is not None, "what failed on this rank was raised"
    with Agreement(ranks) as agreement:
        jobs = [parts.job(prepared, name, inputs) for name, inputs in prepared.inputs.items() if name not in tied]
        for job in jobs[:1]:
            solve_without_data(job.method, job.group)  # refuses parameters that contradict each other
        prepared.copy()
        merge_shards(jobs, ranks, agreement)
        ranks.doing = "finishing"
    found = {name: prepared.targets[tied.get(name, name)] for name in parts.like}
    if out is not None:
        return {name: out[name] for name in parts.like}
    return {name: like_shard(part.clone() if name in tied else part, parts.like[name]) for name, part in found.items()}


def _agreed(ranks: Ranks, parts: Parts, prepared: Prepared | None, error: Exception | None) -> Mapping[str, str]:
    """Compare what the ranks are to merge, and return the tied names; raise what is wrong on any of them, on all."""
    lines = [] if prepared is None else _signature(parts, prepared)
    digest = hashlib.blake2b("\n".join(lines).encode()).hexdigest()
    problems = error.problems if isinstance(error, InvalidInput) else ()
    elements = set() if prepared is None else {n for n, i in prepared.inputs.items() if i.tensors[0].numel()}
    mine = (
        problems,
        None if error is None else str(error),
        digest,
        {} if prepared is None else prepared.tied,
        elements,
    )
    told = ranks.everyone(mine)
    if any(message is not None for _, message, *_ in told):
        _raise(ranks, error, [(found, message) for found, message, *_ in told])
    if any(other != digest for _, _, other, *_ in told):
        raise InvalidInput(_differences(ranks, ranks.everyone(lines)))
    tied = {name: first for *_, theirs, _ in told for name, first in theirs.items()}
    for position, (*_, theirs, theirs_elements) in enumerate(told):
        for name, first in tied.items():
            if name in theirs_elements and theirs.get(name) != first:
                what = f"shares its memory with {first!r} on another rank, not on rank {ranks[position]}"
                raise InvalidInput([Problem(f"models[0][{name!r}]", what, "tie them on all ranks, or on none")])
    return tied


def _raise(ranks: Ranks, error: Exception | None, told: Sequence[tuple[Sequence[Problem], str | None]]) -> None:
    """Raise what failed on any rank while the merge was prepared."""
    if all(not problems for problems, message in told if message is not None):
        if error is not None:
            raise error
        lines = {message: ranks[at] for at, (_, message) in reversed(list(enumerate(told))) if message is not None}
        raise ShardError("\n".join(f"on rank {rank}: {message}" for message, rank in lines.items()))
    everywhere = [problem for problem in told[0][0] if all(problem in problems for problems, _ in told)]
    found = list(everywhere)
    for at, (problems, _) in enumerate(told):
        others = [problem for problem in problems if problem not in everywhere]
        found += [Problem(f"rank {ranks[at]}: {each.where}", each.what, each.remedy) for each in others]
    raise InvalidInput(found)


def _signature(parts: Parts, prepared: Prepared) -> list[str]:
    """Return what all ranks must have alike, one line per option and per tensor."""
    lines = list(prepared.options)
    for name in parts.like:
        inputs = prepared.inputs[name].every if name in prepared.inputs else (prepared.copies[name],)
        target = prepared.targets[prepared.tied.get(name, name)]
        dtypes = ", ".join(str(tensor.dtype) for tensor in (*inputs, target))
        lines.append(f"tensor {name!r}: {parts.shape(name)}, {parts.placements(name)}, {dtypes}")
    return lines


def _differences(ranks: Ranks, told: Sequence[Sequence[str]]) -> list[Problem]:
    """Return the first difference of each rank from the first one."""
    problems = []
    for at, lines in enumerate(told):
        if lines != told[0]:
            count = min(len(lines), len(told[0]))
            i = next((i for i in range(count) if lines[i] != told[0][i]), count)
            mine, first = (each[i] if i < len(each) else "nothing more" for each in (lines, told[0]))
            what = f"is to merge {mine}, where rank {ranks[0]} has {first}"
            problems.append(Problem(f"rank {ranks[at]}", what, "call with the same arguments, names and order"))
    return problems
