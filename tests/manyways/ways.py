"""The ways: each merges a case and returns the tensors of its result, which must be those of the first one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import torch
import yaml
from launching import in_threads
from safetensors.torch import load_file
from torch import Tensor

import fastmerge
from fastmerge.engine import RunOptions, run
from fastmerge.engine.checksums import BLOCK
from fastmerge.errors import BudgetError, FastmergeError
from fastmerge.plan import make_plan
from fastmerge.plan.types import Plan
from fastmerge.recipe import load

from .cases import Case

Tensors = dict[str, Tensor]


class Refused(Exception):
    """The case is no merge; every way would say so."""


def first(rng: Random, case: Case) -> Tensors:
    """The merge of plain files."""
    try:
        fastmerge.merge(case.plain, case.folder / "plain", model_card=False)
    except FastmergeError as error:
        raise Refused(str(error)) from None
    return _tensors(case.folder / "plain")


def other_files(rng: Random, case: Case) -> Tensors:
    """Of files of other kinds, into shards; the output verifies."""
    out = case.folder / "files"
    fastmerge.merge(case.recipe, out, shard_size=rng.choice((20_000, 5_000_000_000)), model_card=False)
    assert fastmerge.verify(out).ok, "verify finds a mismatch"
    verdict = fastmerge.verify_recipe(case.plain, out).verdict
    assert verdict == "equal", f"verify --recipe says {verdict}"
    return _tensors(out)


def least_memory(rng: Random, case: Case) -> Tensors:
    """In the least budget that is accepted."""
    plan, out, threads = _plan(case), case.folder / "least", rng.choice((1, 2, 3))
    try:
        run(plan, out, RunOptions(ram=1, threads=threads, chunk=BLOCK))
    except BudgetError as error:
        least = int(str(error).split("at least ")[1].split()[0])
        run(plan, out, RunOptions(ram=least, threads=threads, chunk=BLOCK))
    return _tensors(out)


def reference(rng: Random, case: Case) -> Tensors:
    """By the reference."""
    run(_plan(case), case.folder / "reference", RunOptions(backend="reference", chunk=rng.choice((None, BLOCK))))
    return _tensors(case.folder / "reference")


def ranks(rng: Random, case: Case) -> Tensors:
    """Shared by ranks."""
    out, options = case.folder / "ranks", RunOptions(chunk=BLOCK, threads=1, ram=256 << 20)
    for result in in_threads(rng.choice((2, 3)), lambda one: run(_plan(case), out, options, ranks=one)):
        if isinstance(result, BaseException):
            raise result
    return _tensors(out)


def distributed(rng: Random, case: Case) -> Tensors:
    """Into a checkpoint of torch.distributed.checkpoint, which torch reads."""
    from torch.distributed import checkpoint

    out = case.folder / "dcp"
    fastmerge.merge(case.recipe, out, format="dcp", model_card=False)
    known = checkpoint.FileSystemReader(str(out)).read_metadata().state_dict_metadata
    state = {"model": {name.removeprefix("model.", ): torch.empty(item.size, dtype=item.properties.dtype)
                       for name, item in known.items()}}  # fmt: skip
    checkpoint.load(state, checkpoint_id=str(out), no_dist=True)
    return state["model"]


def two_documents(rng: Random, case: Case) -> Tensors:
    """As the first document of two."""
    documents = [case.recipe | {"name": "one"}, {"merge_method": "passthrough", "models": [{"model": "one"}]}]
    out = case.folder / "documents"
    fastmerge.merge(yaml.safe_dump_all(documents, sort_keys=False), out, model_card=False)
    return _tensors(out)


def in_memory(rng: Random, case: Case) -> Tensors | None:
    """In memory, where the recipe has nothing that only a recipe can say."""
    values = case.values
    if (
        values is None
        or values.get("splitting", "none") != "none"
        or len(case.recipe["models"]) != len(case.models) - 1
    ):
        return None
    dtype = getattr(torch, case.recipe["dtype"]) if "dtype" in case.recipe else None
    base = case.models[0] if "base_model" in case.recipe else None
    how = {"method": case.method.name, "semantics": case.recipe.get("semantics"), "seed": case.recipe["seed"]}
    return fastmerge.merge_state_dicts(base, case.models[1:], dtype=dtype, **how, **values)


def flipped_bits(rng: Random, case: Case) -> None:
    """Not a way: one changed bit of any file of the output is found."""
    out = case.folder / "files"
    for path in rng.sample(sorted(p for p in out.iterdir() if p.name != "fastmerge.json"), 2):
        data = bytearray(path.read_bytes())
        if data:
            place, bit = rng.randrange(len(data)), rng.randrange(8)
            data[place] ^= 1 << bit
            path.write_bytes(data)
            with contextlib.suppress(FastmergeError):
                assert not fastmerge.verify(out).ok, f"bit {bit} of byte {place} of {path.name} goes unseen"
            data[place] ^= 1 << bit
            path.write_bytes(data)


WAYS: tuple[Callable[[Random, Case], Tensors | None], ...] = (
    other_files, least_memory, reference, ranks, distributed, two_documents, in_memory, flipped_bits,
)  # fmt: skip


def disagreements(rng: Random, case: Case) -> Iterator[str]:
    """Do a case in every way; yield what differs, or fails. Raises Refused where it is no merge."""
    wanted = first(rng, case)
    for way in WAYS:
        try:
            found = way(rng, case)
        except (AssertionError, FastmergeError) as error:
            yield f"{way.__name__}: {error}"
            continue
        if found is not None and (difference := _difference(found, wanted)):
            yield f"{way.__name__}: {difference}"


def _plan(case: Case) -> Plan:
    return make_plan(load(case.text()))


def _tensors(folder: Path) -> Tensors:
    return {name: t for path in sorted(folder.glob("*.safetensors")) for name, t in load_file(path).items()}


def _difference(found: Tensors, wanted: Tensors) -> str:
    if found.keys() != wanted.keys():
        return f"other names: {sorted(found.keys() ^ wanted.keys())}"
    for name, tensor in wanted.items():
        other = found[name]
        if (other.dtype, other.shape) != (tensor.dtype, tensor.shape):
            return f"{name} is {other.dtype} {tuple(other.shape)}, not {tensor.dtype} {tuple(tensor.shape)}"
        if not torch.equal(other.reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8)):
            return f"{name}: {int((other != tensor).sum())} of {tensor.numel()} elements differ"
    return ""
