"""Ways to merge sharded tensors: functions, modules, tied names, buffers. Each is a function of mesh, rank, models."""

from __future__ import annotations

import torch
from shard_worker import PLACEMENTS, by_rows
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import distribute_tensor

import fastmerge
from fastmerge import functional

TIES = {"method": "ties", "weight": 1.0, "density": 0.3}


def functions_take_shards(mesh, rank, states):
    name = "wide"
    base, a, b = (state[name] for state in states)
    expected = functional.ties(base, [a, b], weight=1.0, density=0.3, dtype=torch.float32)
    for placements in PLACEMENTS.values():
        parts = [distribute_tensor(tensor.clone(), mesh, placements) for tensor in (base, a, b)]
        merged = functional.ties(parts[0], parts[1:], weight=1.0, density=0.3, dtype=torch.float32)
        assert torch.equal(merged.full_tensor(), expected)
        assert functional.linear(parts, weight=1.0, out=parts[0]) is parts[0]
        assert torch.equal(parts[0].full_tensor(), functional.linear([base, a, b], weight=1.0))


def buffers_are_copied_and_ties_kept(mesh, rank, states):
    steps = torch.tensor([7])
    name = "model.embed_tokens.weight"
    parts = [state | {"tied": state[name], "few": state["one"], "steps": steps} for state in by_rows(mesh, states)]
    # The first row is rank 0's: "few" is tied there alone, and empty on the other rank.
    merged = fastmerge.merge_state_dicts(parts[0], parts[1:], **TIES)
    expected = fastmerge.merge_state_dicts(states[0], states[1:], **TIES)
    assert list(merged) == list(parts[0]) and torch.equal(merged["steps"], steps)
    assert torch.equal(merged["tied"].full_tensor(), expected[name])
    assert torch.equal(merged["few"].full_tensor(), expected["one"])
    fastmerge.merge_(parts[0], parts[1:], **TIES)
    assert torch.equal(parts[0]["tied"].full_tensor(), expected[name])


def modules_are_fully_sharded(mesh, rank, states):
    """FSDP2's parameters are merged where they lie."""
    networks = []
    for seed in range(3):
        torch.manual_seed(seed)
        networks.append(torch.nn.Sequential(torch.nn.Linear(300, 151), torch.nn.Linear(151, 1)).requires_grad_(False))
    expected = fastmerge.merge_state_dicts(networks[0], networks[1:], **TIES)
    for network in networks:
        fully_shard(network, mesh=mesh)
    fastmerge.merge_(networks[0], networks[1:], **TIES)
    merged = networks[0].state_dict()
    assert all(torch.equal(merged[name].full_tensor(), tensor) for name, tensor in expected.items())


def matrices_of_modules_are_dealt(mesh, rank, states):
    """One that is large for the others, one function of a single matrix."""
    name = "model.layers.0.self_attn.q_proj.weight"
    base, *tuned = by_rows(mesh, states)
    merged = functional.tsvm(base[name], [state[name] for state in tuned], name=name)
    expected = functional.tsvm(states[0][name], [state[name] for state in states[1:]], name=name)
    assert torch.equal(merged.full_tensor(), expected)


CASES = (
    functions_take_shards,
    buffers_are_copied_and_ties_kept,
    modules_are_fully_sharded,
    matrices_of_modules_are_dealt,
)
