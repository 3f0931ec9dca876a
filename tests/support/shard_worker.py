"""A rank of the tests of shards: it merges every case on a mesh, beside one process that has it all."""

from __future__ import annotations

import contextlib
import os
import re
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import shard_cases
import torch
import torch.distributed as dist
from ranks import end_well
from shard_cases import Case
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import _StridedShard

PLACEMENTS = {"rows": (Shard(0),), "columns": (Shard(1),), "replicated": (Replicate(),)}
# On a mesh of 2 x 2.
PLANES = {
    "rows twice": (Shard(0), Shard(0)),
    "strided": (_StridedShard(0, split_factor=2), Shard(0)),
    "rows and columns": (Shard(0), Shard(1)),
    "copies of columns": (Replicate(), Shard(1)),
    "columns copied": (Shard(1), Replicate()),
}


def inventory(placements: Sequence[str], every: bool = False) -> list[tuple[Case, str]]:
    """Cases and their placements: methods as they are in all of a line, or in two of a plane by turns; variants in all
    or by turns, cut ones first."""
    cut = [where for where in placements if where != "replicated"]
    cases = [
        (case, where)
        for i, case in enumerate(shard_cases.plain())
        for k, where in enumerate(placements)
        if every or len(placements) <= 3 or (k + i) % len(placements) in (0, 2)
    ]
    for i, case in enumerate(shard_cases.varied()):
        cases += [(case, where) for where in (placements if every else [cut[i % len(cut)]])]
    return cases


def work(rank, ranks, folder, seed, mesh_shape, placements, every, more=(), device="cpu"):
    """Merge the cases of an inventory, then run the cases of ``more``: functions of mesh, rank and models.

    Writes to a file what failed in each of them, or None, and ends the process.
    """
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("nccl" if device == "cuda" else "gloo", init_method=store, rank=rank, world_size=ranks)
    states = shard_cases.models(seed)
    if device == "cuda":
        torch.cuda.set_device(rank)
        states = [to(state, device) for state in states]
    mesh = init_device_mesh(device, mesh_shape)
    own = Path(folder) / f"rank{rank}"
    own.mkdir()
    os.chdir(own)  # paths of files are the same text on all ranks
    shard_cases.write_statistics(states)
    merges = inventory(placements, every)
    expected = expected_of(list({case.name: case for case, _ in merges}.values()), states, rank, ranks)
    parts = {where: [sharded(state, mesh, (PLACEMENTS | PLANES)[where]) for state in states] for where in placements}
    cases: dict[str, Callable[[], None]] = {}
    for i, (case, where) in enumerate(merges):
        cases[f"{case.name}, {where}"] = lambda c=case, w=where, o=bool(i % 2): merges_alike(
            c, parts[w], o, expected[c.name]
        )
    cases |= {case.__name__: lambda case=case: case(mesh, rank, states) for case in more}
    failures: dict[str, str | None] = dict.fromkeys(cases)
    for name, run in cases.items():
        try:
            run()
        except Exception:
            failures[name] = traceback.format_exc()
    torch.save(failures, Path(folder) / f"failures{rank}")
    end_well()


def expected_of(cases, states, rank, ranks):
    """What one process makes of each case: each rank merges some of them, whole."""
    mine = {case.name: to(case.merge(*case.inputs(states)), "cpu") for case in cases[rank::ranks]}
    told: list[dict] = [{}] * ranks
    dist.all_gather_object(told, mine)
    device = states[0]["wide"].device
    return {name: to(merged, device) for part in told for name, merged in part.items()}


def to(state, device):
    """A state dict on a device."""
    return {name: tensor.to(device) for name, tensor in state.items()}


def merges_alike(case, parts, out, expected):
    """Merge shards and compare this rank's parts with those of one process; ``parts`` are those of all models."""
    base, tuned = case.inputs(parts)
    like = tuned[0]["wide"]
    wanted = sharded(expected, like.device_mesh, like.placements)
    if out:
        found = {name: tensor.clone() for name, tensor in tuned[0].items()}
        case.merge_into(found, base, [found, *tuned[1:]])
    else:
        found = case.merge(base, tuned)
    assert list(found) == list(expected)
    for name, tensor in found.items():
        like = tuned[0][name]
        assert isinstance(tensor, DTensor) and tensor.device_mesh == like.device_mesh
        assert (tensor.placements, tensor.shape, tensor.stride()) == (like.placements, like.shape, like.stride())
        assert torch.equal(tensor.to_local(), wanted[name].to_local()), name


def sharded(state, mesh, placements):
    """The tensors of a state dict on a mesh: by columns only where there are any."""
    found = {}
    for name, tensor in state.items():
        fit = [fitting(placement, tensor) for placement in placements]
        if any(isinstance(placement, _StridedShard) for placement in fit):
            found[name] = cut_twice(tensor, mesh, fit)
        else:
            found[name] = distribute_tensor(tensor.clone(), mesh, fit, src_data_rank=None)
    return found


def fitting(placement, tensor):
    """A placement that a tensor can have."""
    if placement.is_replicate() or placement.dim < tensor.dim():
        return placement
    return Shard(0) if tensor.dim() else Replicate()


def cut_twice(tensor, mesh, placements):
    """A tensor as tensor parallel and then fully_shard cut it: by the mesh's second dimension, then by its first."""
    local = tensor
    for part in reversed(mesh.get_coordinate()):
        chunks = local.chunk(2)
        local = chunks[part] if part < len(chunks) else local[:0]
    return DTensor.from_local(local.clone(), mesh, placements, shape=tensor.shape, stride=tensor.stride())


def by_rows(mesh, states):
    return [sharded(state, mesh, (Shard(0),)) for state in states]


def refused(error, words, merge):
    """Merge, which raises ``error`` with ``words``, here as on every other rank."""
    try:
        merge()
    except error as found:
        assert re.search(words, str(found)), str(found)
    else:
        raise AssertionError(f"nothing was raised; expected {error.__name__}: {words}")


@contextlib.contextmanager
def replaced(module, name, value):
    """Replace what a module has under a name, for a while."""
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield before
    finally:
        setattr(module, name, before)
