"""What is refused, and what fails: raised on all ranks. Each case is a function of mesh, rank and models."""

from __future__ import annotations

from datetime import timedelta

import torch
import torch.distributed as dist
from shard_worker import by_rows, refused, replaced, sharded
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

import fastmerge
from fastmerge import functional
from fastmerge.errors import InvalidInput, ShardError
from fastmerge.steps.shards import dealing, jobs, surveys, together

TIES = {"method": "ties", "weight": 1.0, "density": 0.3}


def what_does_not_fit_together_is_refused(mesh, rank, states):
    base, a, _ = by_rows(mesh, states)
    embedding = "model.embed_tokens.weight"
    columns = sharded(states[1], mesh, (Shard(1),))
    mesh_of_two = sharded(states[1], init_device_mesh("cpu", (1, 2)), (Replicate(), Shard(0)))
    partial_sums = base | {"wide": DTensor.from_local(torch.ones(5, 4000), mesh, [Partial()])}
    few = states[1][embedding][: 1 + rank].contiguous()
    cut = DTensor.from_local(few, mesh, [Shard(0)], shape=torch.Size((151, 130)), stride=(130, 1))
    uneven = base | {embedding: cut}

    def merge(*models, **options):
        arguments = TIES | options
        return lambda: fastmerge.merge_state_dicts(base, models, **arguments)

    refused(InvalidInput, r"models\[1\]\['wide'\]: is a plain tensor, base\['wide'\] is sharded", merge(a, states[1]))
    refused(
        InvalidInput,
        rf"models\[0\]\['{embedding}'\]: has placements \(Shard\(dim=1\),\), base",
        merge(columns),
    )
    refused(InvalidInput, r"models\[0\]\['wide'\]: is sharded over", merge(mesh_of_two))
    refused(InvalidInput, r"models\[0\]\['wide'\]: has placement P", merge(partial_sums))
    refused(InvalidInput, rf"models\[0\]\['{embedding}'\]: has a local part of shape", merge(uneven))
    refused(InvalidInput, r"rank 1: models\[0\]: lacks tensors that base has: box", merge(without(a, "box", rank)))
    refused(InvalidInput, "rank 1: is to merge .*seed 1", merge(a, seed=rank))
    refused(InvalidInput, "density", merge(a, density=1.5 if rank else 0.5))
    other = {"method": "tsvm"} if rank else TIES
    words = r"rank 1: is to merge by method tsvm \(mergekit\), where rank 0 has by method ties"
    refused(InvalidInput, words, lambda: fastmerge.merge_state_dicts(base, [a], **other))
    refused(InvalidInput, r"is to merge tensor '\S+experts.up_proj'.*where rank 0 has .*'wide'", reverse(base, a, rank))
    plain = torch.ones(1, 3)
    words = r"tensors\[1\]\['tensor'\]: is sharded \(DTensor\), tensors\[0\]\['tensor'\] is a plain tensor"
    refused(InvalidInput, words, lambda: functional.linear([plain, a["one"]], weight=1))
    mixed = {**base, "buffer": torch.ones(3, device=plain.device) if rank else base["wide"]}
    refused(InvalidInput, "rank 1: is to merge .*plain", lambda: fastmerge.merge_(mixed, [mixed, mixed], **TIES))


def without(state, name, rank):
    """A state dict that lacks a name on rank 1."""
    return {key: tensor for key, tensor in state.items() if key != name or not rank}


def reverse(base, a, rank):
    """A merge in another order on rank 1."""
    first, second = ({k: s[k] for k in (reversed(list(s)) if rank else s)} for s in (base, a))
    return lambda: fastmerge.merge_state_dicts(first, [second], **TIES)


def failures_are_raised_everywhere(mesh, rank, states):
    base, a, b = by_rows(mesh, states)
    for options in ({"method": "task_arithmetic", "weight": 0.5}, TIES):
        words = "no such" if rank else "on rank 1: .*no such"
        arguments = options | {"backend": "no such" if rank else None}
        refused(Exception if rank else ShardError, words, lambda o=arguments: fastmerge.merge_(base, [a, b], **o))
    a["norm"].to_local()[-1] = float("nan")
    refused(ValueError, "norm", lambda: fastmerge.merge_state_dicts(None, [a, b], method="karcher"))
    # All can go on.
    fastmerge.merge_state_dicts(base, [b, b], **TIES)


def memory_that_lacks_is_raised_everywhere(mesh, rank, states):
    """Before a message, in a decomposition, and in a survey: no rank waits for the one that failed."""
    name = "model.layers.0.self_attn.q_proj.weight"
    base, *tuned = by_rows(mesh, states)
    before = base[name].to_local().clone()

    def lacks(*arguments):
        if rank:
            raise torch.OutOfMemoryError("no memory is left")
        return calls(*arguments)

    boost = {"method": "task_arithmetic_sb", "weight": 0.5}
    for module, function, doing, options in (
        (dealing, "_empty_inputs", "gathering .*model.* on rank 1", {"method": "tsvm"}),
        (dealing, "merge_sources", "merging .*model.* on rank 1", {"method": "tsvm"}),
        (surveys, "_solve", "surveying wide .*", TIES),
        (together, "apply_to_part", r"merging model\S+ together", boost),
    ):
        with replaced(module, function, lacks) as calls, replaced(jobs, "RANK_BYTES", 0):
            error, words = (torch.OutOfMemoryError, "") if rank else (ShardError, f"on rank 1: {doing}: ")
            refused(error, f"{words}no memory is left", lambda o=options: fastmerge.merge_(base, tuned, **o))
        assert torch.equal(base[name].to_local(), before)
    fastmerge.merge_(base, tuned, method="tsvm")


def a_rank_that_does_not_answer_is_told_by_the_timeout(mesh, rank, states):
    """Rank 1 waits, in the middle of a survey and as it merges, until rank 0 has given up."""
    store = dist.distributed_c10d._get_default_store()
    for module, function, doing, options in (
        (surveys, "put_together", "surveying wide .. ", TIES),
        (dealing, "_gathered", r"gathering model\S+ .*on rank 0, model\S+ .*on rank 1: ", {"method": "tsvm"}),
    ):
        group = dist.new_group([0, 1])
        base, *tuned = by_rows(DeviceMesh.from_group(group, "cpu"), states)

        def waits(*arguments, group=group, key=function):
            if rank:
                store.wait([key])
                raise KeyboardInterrupt
            dist.distributed_c10d._set_pg_timeout(timedelta(seconds=0.1), group)
            return calls(*arguments)

        with replaced(module, function, waits) as calls:
            error, words = (KeyboardInterrupt, "") if rank else (ShardError, f"{doing}.*other ranks of the mesh do not")
            refused(error, words, lambda b=base, t=tuned, o=options: fastmerge.merge_(b, t, **o))
        if not rank:
            store.set(function, "given up")


def a_rank_that_is_gone_is_named_with_what_was_done(mesh, rank, states):
    """The last case: rank 1 ends in the middle of a survey."""
    base, a, b = by_rows(mesh, states)

    def interrupted(*arguments):
        raise KeyboardInterrupt

    if not rank:
        words = r"rank 0: surveying wide .. \S+ \(\d+ tensors\): other ranks of the mesh do not answer"
        refused(ShardError, words, lambda: fastmerge.merge_(base, [a, b], **TIES))
        return
    surveys.put_together = interrupted
    refused(KeyboardInterrupt, "", lambda: fastmerge.merge_(base, [a, b], **TIES))


def a_merge_that_fails_after_others_is_raised_everywhere(mesh, rank, states):
    """Rank 1 fails at its second turn; what it owes the others of the first one was sent."""
    base, *tuned = by_rows(mesh, states)
    before, calls = {name: tensor.to_local().clone() for name, tensor in base.items()}, []

    def fails(given):
        calls.extend(given[:1])
        if rank and given and len(calls) == 2:
            raise ArithmeticError("it went wrong")
        return merge_sources(given)

    with replaced(dealing, "merge_sources", fails) as merge_sources, replaced(dealing, "WINDOW_BYTES", 0):
        words = "^it went wrong" if rank else "on rank 1: merging model.*: it went wrong"
        refused(
            ArithmeticError if rank else ShardError, words,
            lambda: fastmerge.merge_(base, tuned, method="tsvm", matrices="all"),
        )  # fmt: skip
    assert any(not torch.equal(base[name].to_local(), tensor) for name, tensor in before.items())


CASES = (
    a_merge_that_fails_after_others_is_raised_everywhere,
    what_does_not_fit_together_is_refused,
    failures_are_raised_everywhere,
    memory_that_lacks_is_raised_everywhere,
    a_rank_that_does_not_answer_is_told_by_the_timeout,
    a_rank_that_is_gone_is_named_with_what_was_done,
)
