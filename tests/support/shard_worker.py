"""A rank of the tests of shards: it merges every case on a mesh, beside one process that has it all."""

from __future__ import annotations

import contextlib
import re
import tempfile
import traceback
from pathlib import Path

import torch
import torch.distributed as dist
from ranks import end_well
from safetensors.torch import save_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import _StridedShard

import fastmerge
from fastmerge import functional
from fastmerge.errors import InvalidInput, ShardError
from fastmerge.kernels.spectral import boost_shards, subspace_boost
from fastmerge.kernels.spectral import sharded as sharded_module
from fastmerge.steps.shards import driver

PLACEMENTS = {"rows": Shard(0), "columns": Shard(1), "replicated": Replicate()}
# On a mesh of 2 x 2.
PLANES = {
    "rows twice": (Shard(0), Shard(0)),
    "strided": (_StridedShard(0, split_factor=2), Shard(0)),
    "rows and columns": (Shard(0), Shard(1)),
    "copies of columns": (Replicate(), Shard(1)),
    "columns copied": (Shard(1), Replicate()),
}
# Uneven, empty on some ranks, one chunk of the grid, many, cut inside of one, not in order of any size.
SHAPES = {
    "wide": (5, 20000),
    "tall": (301, 130),
    "one": (1, 3),
    "row": (1, 70000),
    "even": (64, 512),
    "box": (3, 40, 5),
}
VECTORS = {"bias": (7,), "norm": (40000,), "scale": (1,)}

FREE = {
    "linear": {"weight": [0.3, 0.5]},
    "passthrough": {},
    "task_arithmetic": {"weight": [0.5, 0.4]},
    "nearswap": {"t": 0.001},
    "ram": {},
    "magmax": {},
    "expo": {"alpha": 0.3},
    "emr": {"task": -1},
}
SURVEYED = {
    "slerp": {"t": 0.4},
    "karcher": {},
    "multislerp": {"weight": 0.5},
    "model_stock": {},
    "nuslerp": {"weight": [1, 2]},
    "ties": {"weight": 1.0, "density": 0.3},
    "magnitude_prune": {"density": 0.4, "weight": 1.0},
    "breadcrumbs": {"density": 0.6, "gamma": 0.05, "weight": 1.0},
    "breadcrumbs_ties": {"density": 0.6, "gamma": 0.05, "weight": 1.0},
    "dare_linear": {"density": 0.5, "weight": 1.0},
    "dare_ties": {"density": 0.5, "weight": 1.0},
    "sce": {"select_topk": 0.4},
    "ramplus_tl": {},
    "consensus": {},
    "tall_mask": {"task": 0},
    "nuslerp rows": {"weight": [1, 2], "nuslerp_row_wise": True},
}
OF_MODELS = {
    "ties paper": {"semantics": "paper", "density": 0.3},
    "emr task": {"task": 1},
    "magnitude_prune model": {"density": 0.4, "weight": 1.0, "scope": "model"},
}
METHODS = FREE | SURVEYED | OF_MODELS
ONE_MODEL = ("nearswap", "slerp", "passthrough", "expo")


def call(case):
    """The method and the arguments of a case."""
    return dict(METHODS[case], method=case.split()[0])


def models(generator, dtype, shapes):
    """A base and two fine-tunes with many equal magnitudes."""
    base = {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}
    return [base] + [
        {name: (t.float() + 0.01 * torch.randn(t.shape, generator=generator)).to(dtype) for name, t in base.items()}
        for _ in range(2)
    ]


def inputs_of(case, states):
    """The base and the models that a method takes."""
    base, *tuned = states
    method = fastmerge.methods.get_method(case.split()[0])
    count = 1 if case in ONE_MODEL else 2
    return None if method.base == "ignored" else base, tuned[:count]


def sharded(state, mesh, placements):
    """The tensors of a state dict on a mesh: by columns only where there are any."""
    found = {}
    for name, tensor in state.items():
        fit = [p if p.is_replicate() or p.dim < tensor.dim() else Shard(0) for p in placements]
        if any(isinstance(placement, _StridedShard) for placement in fit):
            found[name] = cut_twice(tensor, mesh, fit)
        else:
            found[name] = distribute_tensor(tensor.clone(), mesh, fit)
    return found


def cut_twice(tensor, mesh, placements):
    """A tensor as tensor parallel and then fully_shard cut it: by the mesh's second dimension, then by its first."""
    local = tensor
    for part in reversed(mesh.get_coordinate()):
        chunks = local.chunk(2)
        local = chunks[part] if part < len(chunks) else local[:0]
    return DTensor.from_local(local.clone(), mesh, placements, shape=tensor.shape, stride=tensor.stride())


def merges_alike(case, states, mesh, placements, out, known):
    """Merge shards and compare this rank's parts with those of one process."""
    base, tuned = inputs_of(case, states)
    expected = known.get(case) or known.setdefault(case, fastmerge.merge_state_dicts(base, tuned, **call(case)))
    parts = [None if base is None else sharded(base, mesh, placements), *(sharded(t, mesh, placements) for t in tuned)]
    wanted = sharded(expected, mesh, placements)
    if out:
        target = parts[1]
        fastmerge.merge_(target, parts[1:], base=parts[0], **call(case))
        found = target
    else:
        found = fastmerge.merge_state_dicts(parts[0], parts[1:], **call(case))
    assert list(found) == list(expected)
    for name, tensor in found.items():
        like = parts[1][name]
        assert isinstance(tensor, DTensor) and tensor.device_mesh == like.device_mesh
        assert (tensor.placements, tensor.shape, tensor.stride()) == (like.placements, like.shape, like.stride())
        assert torch.equal(tensor.to_local(), wanted[name].to_local()), name


def run(rank, ranks, folder, cases, backend):
    """Run cases, write to a file what failed in each of them, or None, and end the process."""
    torch.set_num_threads(1)
    dist.init_process_group(backend, init_method=f"file://{folder}/store", rank=rank, world_size=ranks)
    failures: dict[str, str | None] = dict.fromkeys(cases)
    for name, case in cases.items():
        try:
            case()
        except Exception:
            failures[name] = traceback.format_exc()
    torch.save(failures, Path(folder) / f"failures{rank}")
    end_well()


def work(rank, ranks, folder, seed, mesh_shape, placements, more=(), device="cpu"):
    """Merge by every method in every placement, then run the cases of ``more`` (functions of the mesh)."""
    generator = torch.Generator().manual_seed(seed)
    whole = models(generator, torch.bfloat16, SHAPES | VECTORS)
    if device == "cuda":
        torch.cuda.set_device(rank)
        whole = [{name: tensor.to(device) for name, tensor in state.items()} for state in whole]
    meshes, known = [], {}

    def mesh():
        if not meshes:
            meshes.append(init_device_mesh(device, mesh_shape))
        return meshes[0]

    def merge(method, placed, out):
        merges_alike(method, whole, mesh(), placed, out, known)

    cases = {}
    for where, placed in placements.items():
        placed = placed if isinstance(placed, tuple) else (placed,)
        for i, method in enumerate(METHODS):
            cases[f"{method}, {where}"] = lambda m=method, p=placed, o=bool(i % 2): merge(m, p, o)
    for case in more:
        cases[case.__name__] = lambda case=case: case(mesh(), rank, whole)
    run(rank, ranks, folder, cases, "nccl" if device == "cuda" else "gloo")


def refused(error, words, merge):
    """Merge, which raises ``error`` with ``words``, here as on every other rank."""
    try:
        merge()
    except error as found:
        assert re.search(words, str(found)), str(found)
    else:
        raise AssertionError(f"nothing was raised; expected {error.__name__}: {words}")


def by_rows(mesh, states):
    return [sharded(state, mesh, (Shard(0),)) for state in states]


def functions_take_shards(mesh, rank, states):
    name = "wide"
    base, a, b = (state[name] for state in states)
    expected = functional.ties(base, [a, b], weight=1.0, density=0.3, dtype=torch.float32)
    for placement in PLACEMENTS.values():
        parts = [distribute_tensor(tensor.clone(), mesh, [placement]) for tensor in (base, a, b)]
        merged = functional.ties(parts[0], parts[1:], weight=1.0, density=0.3, dtype=torch.float32)
        assert torch.equal(merged.full_tensor(), expected)
        assert functional.linear(parts, weight=1.0, out=parts[0]) is parts[0]
        assert torch.equal(parts[0].full_tensor(), functional.linear([base, a, b], weight=1.0))


def buffers_are_copied_and_ties_kept(mesh, rank, states):
    steps = torch.tensor([7])
    parts = [state | {"tied": state["tall"], "few": state["one"], "steps": steps} for state in by_rows(mesh, states)]
    # The first row is rank 0's: "few" is tied there alone, and empty on the other rank.
    merged = fastmerge.merge_state_dicts(parts[0], parts[1:], **call("ties"))
    expected = fastmerge.merge_state_dicts(states[0], states[1:], **call("ties"))
    assert list(merged) == list(parts[0]) and torch.equal(merged["steps"], steps)
    assert torch.equal(merged["tied"].full_tensor(), expected["tall"])
    assert torch.equal(merged["few"].full_tensor(), expected["one"])
    fastmerge.merge_(parts[0], parts[1:], **call("ties"))
    assert torch.equal(parts[0]["tied"].full_tensor(), expected["tall"])


def whole_tensors_are_refused_or_replicated(mesh, rank, states):
    chosen = [{"model.layers.0.mlp.up_proj.weight": state["even"]} for state in states]
    cases = ({"method": "della", "weight": 1.0, "density": 0.5, "epsilon": 0.1}, {"method": "tsvm"})
    for arguments in cases:
        parts = by_rows(mesh, chosen)
        before = parts[0]["model.layers.0.mlp.up_proj.weight"].to_local().clone()
        words = f"up_proj.weight: {arguments['method']} needs the whole tensor"
        refused(InvalidInput, words, lambda p=parts, a=arguments: fastmerge.merge_(p[0], p[1:], **a))
        assert torch.equal(parts[0]["model.layers.0.mlp.up_proj.weight"].to_local(), before)
        copies = [sharded(state, mesh, (Replicate(),)) for state in chosen]
        merged = fastmerge.merge_state_dicts(copies[0], copies[1:], **arguments)
        expected = fastmerge.merge_state_dicts(chosen[0], chosen[1:], **arguments)
        assert all(torch.equal(merged[name].to_local(), expected[name]) for name in expected)


def what_does_not_fit_together_is_refused(mesh, rank, states):
    base, a, _ = by_rows(mesh, states)
    columns = sharded(states[1], mesh, (Shard(1),))
    other = sharded(states[1], init_device_mesh("cpu", (1, 2)), (Replicate(), Shard(0)))
    partial_sums = base | {"wide": DTensor.from_local(torch.ones(5, 20000), mesh, [Partial()])}
    few = states[1]["tall"][: 1 + rank].contiguous()
    cut = DTensor.from_local(few, mesh, [Shard(0)], shape=torch.Size((301, 130)), stride=(130, 1))
    uneven = base | {"tall": cut}

    def merge(*models, **options):
        arguments = call("ties") | options
        return lambda: fastmerge.merge_state_dicts(base, models, **arguments)

    refused(InvalidInput, r"models\[1\]\['wide'\]: is a plain tensor, and others", merge(a, states[1]))
    refused(InvalidInput, r"models\[0\]\['tall'\]: has placements \(Shard\(dim=1\),\), base", merge(columns))
    refused(InvalidInput, r"models\[0\]\['wide'\]: is sharded over", merge(other))
    refused(InvalidInput, r"models\[0\]\['wide'\]: has placement P", merge(partial_sums))
    refused(InvalidInput, r"models\[0\]\['tall'\]: has a local part of shape", merge(uneven))
    refused(InvalidInput, r"rank 1: models\[0\]: lacks tensors that base has: box", merge(without(a, "box", rank)))
    refused(InvalidInput, "rank 1: is to merge .*seed 1", merge(a, seed=rank))
    refused(InvalidInput, "density", merge(a, density=1.5 if rank else 0.5))
    refused(InvalidInput, r"is to merge tensor 'scale'.*where rank 0 has tensor 'wide'", reverse(base, a, rank))
    plain = torch.ones(1, 3)
    refused(
        InvalidInput, r"tensors\[0\]\['tensor'\]: is a plain", lambda: functional.linear([plain, a["one"]], weight=1)
    )


def without(state, name, rank):
    """A state dict that lacks a name on rank 1."""
    return {key: tensor for key, tensor in state.items() if key != name or not rank}


def reverse(base, a, rank):
    """A merge in another order on rank 1."""
    first, second = ({k: s[k] for k in (reversed(list(s)) if rank else s)} for s in (base, a))
    return lambda: fastmerge.merge_state_dicts(first, [second], **call("ties"))


def failures_are_raised_everywhere(mesh, rank, states):
    base, a, b = by_rows(mesh, states)
    for method in ("task_arithmetic", "ties"):
        words = "no such" if rank else "on rank 1: .*no such"
        arguments = call(method) | {"backend": "no such" if rank else None}
        refused(Exception if rank else ShardError, words, lambda o=arguments: fastmerge.merge_(base, [a, b], **o))
    a["norm"].to_local()[-1] = float("nan")
    refused(ValueError, "norm", lambda: fastmerge.merge_state_dicts(None, [a, b], **call("karcher")))
    # All can go on.
    fastmerge.merge_state_dicts(base, [b, b], **call("ties"))


def a_rank_that_is_gone_is_named_with_what_was_done(mesh, rank, states):
    """The last case: rank 1 ends in the middle of a survey."""
    base, a, b = by_rows(mesh, states)

    def interrupted(*arguments):
        raise KeyboardInterrupt

    if not rank:
        words = r"rank 0: surveying wide .. norm \(8 tensors\): other ranks of the mesh do not answer"
        refused(ShardError, words, lambda: fastmerge.merge_(base, [a, b], **call("ties")))
        return
    driver.put_together = interrupted
    refused(KeyboardInterrupt, "", lambda: fastmerge.merge_(base, [a, b], **call("ties")))


def modules_are_fully_sharded(mesh, rank, states):
    """FSDP2's parameters are merged where they lie."""
    networks = []
    for seed in range(3):
        torch.manual_seed(seed)
        networks.append(torch.nn.Sequential(torch.nn.Linear(300, 151), torch.nn.Linear(151, 1)).requires_grad_(False))
    expected = fastmerge.merge_state_dicts(networks[0], networks[1:], **call("ties"))
    for network in networks:
        fully_shard(network, mesh=mesh)
    fastmerge.merge_(networks[0], networks[1:], **call("ties"))
    merged = networks[0].state_dict()
    assert all(torch.equal(merged[name].full_tensor(), tensor) for name, tensor in expected.items())


def matrices_that_differ_are_not_boosted(mesh, rank, states):
    part = torch.ones(4, 3)
    refused(ValueError, "on rank 1, there are 2 shards; rank 0 has 1", lambda: boost_shards([part] * (1 + rank)))
    wide = torch.ones(4, 3 + rank)
    refused(ValueError, r"on rank 1, shards\[0\] has shape \(4, 4\), that of rank 0", lambda: boost_shards([wide]))


def a_failed_boost_is_raised_everywhere(mesh, rank, states):
    """Rank 1 fails at the second of its matrices; what it owes the others is sent all the same."""
    calls = []

    def fails(*arguments, **options):
        calls.append(arguments)
        if rank and len(calls) == 3:  # the first one checks the arguments
            raise ArithmeticError("it went wrong")
        return subspace_boost(*arguments, **options)

    sharded_module.subspace_boost = fails
    try:
        words = "^it went wrong" if rank else "on rank 1, it went wrong"
        refused(ArithmeticError if rank else RuntimeError, words, lambda: boost_shards([torch.eye(4)[:, :3]] * 4))
    finally:
        sharded_module.subspace_boost = subspace_boost


def statistics_are_read_where_they_belong(mesh, rank, states):
    """Each rank reads the information of its own elements; the paths are the same text on all ranks."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for i, state in enumerate(states[1:]):
            save_file({name: tensor.float().square() for name, tensor in state.items()}, f"{i}.safetensors")
        arguments = {"method": "fisher", "fisher": ["0.safetensors", "1.safetensors"]}
        expected = fastmerge.merge_state_dicts(None, states[1:], **arguments)
        for placement in (Shard(0), Shard(1)):
            parts = [sharded(state, mesh, (placement,)) for state in states[1:]]
            merged = fastmerge.merge_state_dicts(None, parts, **arguments)
            assert all(torch.equal(merged[name].full_tensor(), tensor) for name, tensor in expected.items())


MORE = (
    statistics_are_read_where_they_belong,
    matrices_that_differ_are_not_boosted,
    a_failed_boost_is_raised_everywhere,
    functions_take_shards,
    modules_are_fully_sharded,
    buffers_are_copied_and_ties_kept,
    whole_tensors_are_refused_or_replicated,
    what_does_not_fit_together_is_refused,
    failures_are_raised_everywhere,
    a_rank_that_is_gone_is_named_with_what_was_done,
)
