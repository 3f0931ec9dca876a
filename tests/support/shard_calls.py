"""Ways to merge sharded tensors: functions, modules, tied names, buffers. Each is a function of mesh, rank, models."""

from __future__ import annotations

import contextlib
import logging
import re

import torch
from shard_worker import PLACEMENTS, by_rows, refused, replaced, sharded
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

import fastmerge
from fastmerge import functional
from fastmerge.errors import InvalidInput
from fastmerge.steps.shards import jobs

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
    """Those of FSDP2 are plain tensors: of integers, which are copied, and of floats, which are merged."""
    steps, name = torch.tensor([7]), "model.embed_tokens.weight"
    parts = [state | {"tied": state[name], "few": state["one"], "steps": steps} for state in by_rows(mesh, states)]
    for part, state in zip(parts, states, strict=True):
        part["buffer"] = state["wide"].clone()
    # The first row is rank 0's: "few" is tied there alone, and empty on the other rank.
    merged = fastmerge.merge_state_dicts(parts[0], parts[1:], **TIES)
    expected = fastmerge.merge_state_dicts(states[0], states[1:], **TIES)
    assert list(merged) == list(parts[0]) and torch.equal(merged["steps"], steps)
    assert torch.equal(merged["tied"].full_tensor(), expected[name])
    assert torch.equal(merged["few"].full_tensor(), expected["one"])
    renamed = [{"buffer": state["wide"]} for state in states]
    assert torch.equal(merged["buffer"], fastmerge.merge_state_dicts(renamed[0], renamed[1:], **TIES)["buffer"])
    fastmerge.merge_(parts[0], parts[1:], **TIES)
    assert torch.equal(parts[0]["tied"].full_tensor(), expected[name])


def lines_of_a_mesh_hold_copies(mesh, rank, states):
    """As what tensor parallel leaves out lies beside ``fully_shard``: on some dimensions of the mesh of the others."""
    plane = init_device_mesh("cpu", (1, 2), mesh_dim_names=("data", "tensor"))
    parts = [
        {
            "both": distribute_tensor(state["wide"].clone(), plane, [Shard(0), Shard(1)]),
            "copied": distribute_tensor(state["wide"].clone(), plane["data"], [Shard(0)]),
            "cut": distribute_tensor(state["wide"].clone(), plane["tensor"], [Shard(0)]),
        }
        for state in states
    ]
    base, *tuned = (dict.fromkeys(parts[0], state["wide"]) for state in states)
    expected = fastmerge.merge_state_dicts(base, tuned, **TIES)
    merged = fastmerge.merge_state_dicts(parts[0], parts[1:], **TIES)
    for name, tensor in merged.items():
        assert tensor.device_mesh == parts[0][name].device_mesh and torch.equal(tensor.full_tensor(), expected[name])
    other = parts[1] | {"cut": parts[1]["copied"]}
    words = r"models\[0\]\['cut'\]: is sharded over .*, base\['cut'\] over"
    refused(InvalidInput, words, lambda: fastmerge.merge_state_dicts(parts[0], [other], **TIES))


def modules_are_fully_sharded(mesh, rank, states):
    """FSDP2's parameters, which may ask for gradients, are merged where they lie, or dealt out."""
    for arguments in (TIES, {"method": "tsvm", "matrices": "all"}):
        networks = []
        for seed in range(3):
            torch.manual_seed(seed)
            networks.append(torch.nn.Sequential(torch.nn.Linear(90, 31), torch.nn.Linear(31, 1)))
        expected = fastmerge.merge_state_dicts(networks[0], networks[1:], **arguments)
        for network in networks:
            fully_shard(network, mesh=mesh)
        fastmerge.merge_(networks[0], networks[1:], **arguments)
        merged = networks[0].state_dict()
        assert all(torch.equal(merged[name].full_tensor(), tensor) for name, tensor in expected.items())
        assert all(parameter.requires_grad for parameter in networks[0].parameters())


def functions_deal_out_a_matrix(mesh, rank, states):
    name = "model.layers.0.self_attn.q_proj.weight"
    base, *tuned = by_rows(mesh, states)
    merged = functional.tsvm(base[name], [state[name] for state in tuned], name=name)
    expected = functional.tsvm(states[0][name], [state[name] for state in states[1:]], name=name)
    assert torch.equal(merged.full_tensor(), expected)


def matrices_too_large_for_a_rank_are_merged_together(mesh, rank, states):
    """Through summed Gram matrices: within 1e-5 of the boosted delta, and the rounding of the result."""
    states = [{name: tensor.float() for name, tensor in state.items()} for state in states]
    blocks = {"boost": {"beta": 0.3}}
    chosen = {"weight": 0.5, "beta": 0.3, "matrices": "all"}
    for placement, arguments in (
        (Shard(1), {"method": "ties_sb", "density": 0.4, **chosen}),
        (Shard(1), {"method": "dare_linear", "weight": 0.5, "density": 0.5, **blocks}),
        (Shard(0), {"method": "ties", "weight": 1.0, "lines": {"beta": 0.5, "auto": True}, **blocks}),
        (Shard(0), {"method": "task_arithmetic_sb", **chosen}),
    ):
        expected = fastmerge.merge_state_dicts(states[0], states[1:], **arguments)
        base, *tuned = (sharded(state, mesh, (placement,)) for state in states)
        with replaced(jobs, "RANK_BYTES", 0), logged() as lines:
            merged = fastmerge.merge_state_dicts(base, tuned, **arguments)
        assert any("merged by all ranks together" in line for line in lines) == (rank == 0)
        for name, tensor in expected.items():
            if tensor.numel():
                found = merged[name].full_tensor()
                limit = 1e-5 * (tensor - states[0][name]).norm() + 2.0**-23 * tensor.norm()
                assert (found - tensor).norm() <= limit, name
    tuned[0]["model.layers.0.self_attn.q_proj.weight"].to_local()[-1] = float("inf")
    words = "^model.layers.0.self_attn.q_proj.weight: a delta holds NaN or infinity"
    with replaced(jobs, "RANK_BYTES", 0):
        refused(ValueError, words, lambda: fastmerge.merge_state_dicts(base, tuned, **arguments))


def copies_count_once_together(mesh, rank, states):
    """On a mesh of 2 x 2: what two ranks hold alike, and what is cut twice."""
    states = [{"model.layers.0.mlp.up_proj.weight": state["wide"][:, :40].float().T.contiguous()} for state in states]
    arguments = {"method": "task_arithmetic_sb", "weight": 0.5, "beta": 0.3}
    expected = fastmerge.merge_state_dicts(states[0], states[1:], **arguments)
    for placements in ((Replicate(), Shard(0)), (Shard(0), Replicate()), (Shard(0), Shard(0))):
        base, *tuned = (sharded(state, mesh, placements) for state in states)
        with replaced(jobs, "RANK_BYTES", 0), logged() as lines:
            merged = fastmerge.merge_state_dicts(base, tuned, **arguments)
        assert len(lines) == (rank == 0)
        for name, tensor in expected.items():
            limit = 1e-5 * (tensor - states[0][name]).norm() + 2.0**-23 * tensor.norm()
            assert (merged[name].full_tensor() - tensor).norm() <= limit


def how_matrices_are_merged_is_logged(mesh, rank, states):
    base, *tuned = by_rows(mesh, states)
    with logged() as lines:
        fastmerge.merge_(base, tuned, method="tsvm")
    words = r"dealt out to 2 ranks, each merged whole by one: model\S+ .. model\S+ \(3 tensors\); model\S+ takes .* kB"
    assert bool(lines) == (rank == 0) and all(re.fullmatch(words, line) for line in lines), lines


def masks_by_rank_are_made_of_local_rows(mesh, rank, states):
    """Rows are dealt out only where they are cut."""
    states = [{name: state[name] for name in ("wide", "box", "row")} for state in states]
    for placement, line in (
        (Shard(0), "merged where they lie, since ranks hold whole rows of them: wide .. row (3 tensors)"),
        (Shard(1), "dealt out to 2 ranks, each merged whole by one: wide .. row (3 tensors); row takes its rank "),
    ):
        base, *tuned = (sharded(state, mesh, (placement,)) for state in states)
        with logged() as lines:
            fastmerge.merge_(base, tuned, method="della", weight=0.5, density=0.4)
        assert len(lines) == (rank == 0) and all(found.startswith(line) for found in lines), lines


@contextlib.contextmanager
def logged():
    """The lines that are logged meanwhile."""
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = logging.getLogger("fastmerge.shards")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)


ON_A_PLANE = (copies_count_once_together,)
CASES = (
    matrices_too_large_for_a_rank_are_merged_together,
    how_matrices_are_merged_is_logged,
    masks_by_rank_are_made_of_local_rows,
    functions_take_shards,
    buffers_are_copied_and_ties_kept,
    lines_of_a_mesh_hold_copies,
    modules_are_fully_sharded,
    functions_deal_out_a_matrix,
)
