"""Merges folders of LoRA adapters into one that PEFT loads, module by module."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..arguments import several, size_of, whole
from ..checkpoint import Change, TensorEntry
from ..dtypes import ALL, DType
from ..engine.files import InputFiles
from ..engine.folders import appearing
from ..engine.reading import Values
from ..errors import BudgetError, InvalidInput, Problem, Refused, nearest
from ..extraction.approximating import matrix_bytes
from ..extraction.factors_file import FactorsFile
from ..progress import Progress, ProgressLike, shown
from ..results import Result
from ..sizes import DEFAULT_RAM, show_size
from .combining import COMBINATIONS, Combination, Factors
from .opened import Opened, modules_of, open_adapters, problems_of, ranks_of
from .result_config import merged_config

__all__ = ["DTYPES", "AdapterReport", "merge_adapter_folders"]

DTYPES = ("float32", "bfloat16", "float16")
"""Dtypes of the factors, by name."""

_PREFIX = "base_model.model."


@dataclass(frozen=True, repr=False)
class AdapterReport(Result):
    """Attributes:
    folder:      of the merged adapter.
    combination: its type; ``linear`` for a single adapter, as PEFT has it.
    modules:     number of them.
    ranks:       smallest and largest rank.
    error:       norm of what the rank leaves out, of all modules together, relative to theirs; None without an SVD.
    nbytes:      size of the weights.
    seconds:     wall time.
    """

    folder: str
    combination: str
    modules: int
    ranks: tuple[int, int]
    error: float | None
    nbytes: int
    seconds: float

    def __str__(self) -> str:
        return f"adapter of {self.modules} modules in {self.folder}: {self.combination}, {show_size(self.nbytes)}"

    def facts(self) -> list[tuple[str, str]]:
        low, high = self.ranks
        found = [("rank", str(low) if low == high else f"{low} to {high}"), ("time", f"{self.seconds:.2f} s")]
        return found + ([] if self.error is None else [("error", f"{100 * self.error:.2f} % of the norm is missed")])


def merge_adapter_folders(
    adapters: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    combination: str = "svd",
    weights: Sequence[float] | None = None,
    rank: int | None = None,
    density: float | None = None,
    majority_sign_method: str = "total",
    scaling: str = "once",
    seed: int = 0,
    dtype: str = "float32",
    ram: int | str = DEFAULT_RAM,
    progress: ProgressLike = None,
) -> AdapterReport:
    """Write an adapter that merges others into the folder ``out``, as PEFT's ``add_weighted_adapter`` does.

    Args:
        adapters:    folders or hub ids of LoRA adapters of one base.
        out:         folder of the result; it appears when it is complete.
        combination: PEFT's ``combination_type``; one of ``COMBINATIONS``. A single adapter is always ``linear``.
        weights:     of the adapters; by default 1 each, their sum. Negative ones subtract.
        rank:        of the result of ``svd`` and types that end in ``_svd``; by default the largest of the adapters. A
                     module with fewer rows or columns gets as many.
        density:     share of the elements that is kept, in [0, 1]; the types that prune need it.
        majority_sign_method: of the types with ties: ``total`` (sum) or ``frequency`` (number of signs).
        scaling:     ``once``; ``twice`` applies the scales alpha / r twice in svd types, as PEFT did before 0.21.
        seed:        of the types with dare, which draw by (seed, module, adapter, element).
        dtype:       of the written factors: float32, bfloat16 or float16.
        ram:         memory budget beyond the interpreter and its packages.
        progress:    as in ``fastmerge.merge``; of the bytes of factors that were merged.
    Raises:
        InvalidInput:   arguments or adapters do not fit; all problems are named.
        FastmergeError: a file is corrupt, values are not finite, the budget is too small, ``out`` exists.
    """
    started = time.perf_counter()
    references = several(adapters)
    weights = [1.0] * len(references) if weights is None else [float(weight) for weight in weights]
    wanted = Combination(combination, rank or 0, density, majority_sign_method, seed, scaling == "twice")
    problems = list(_problems(references, weights, wanted, rank, scaling, dtype))
    if problems:
        raise InvalidInput(problems)
    opened = open_adapters(references, weights)
    used = Combination("linear") if len(opened) == 1 else wanted
    if used.is_svd and rank is None:
        used = replace(used, rank=max(own.rank for own in opened))
    problems = list(problems_of(opened, used))
    if problems:
        raise InvalidInput(problems)
    modules, ranks = modules_of(opened), ranks_of(opened, used)
    _check_budget(modules, used, size_of("ram", ram))
    with (
        shown(progress, "merging adapters") as call,
        InputFiles(own.adapter.file for own in opened) as files,
        appearing(out) as folder,
    ):
        files.open()
        saved = _whole(opened, files)
        path = folder / "adapter_model.safetensors"
        norms = _write(path, _Work(modules, ranks, used, ALL[dtype], files, call), saved)
        files.check()
        config = merged_config(opened, ranks, {n.rpartition(".")[0] for n in saved if not n.endswith("bias")})
        (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        nbytes = path.stat().st_size
    whole, missed = (math.sqrt(sum(norm**2 for norm in own)) for own in zip(*norms, strict=True))
    return AdapterReport(
        folder=os.path.abspath(os.path.expanduser(out)),
        combination=used.kind,
        modules=len(modules),
        ranks=(min(ranks.values()), max(ranks.values())),
        error=missed / whole if used.is_svd and whole else None,
        nbytes=nbytes,
        seconds=time.perf_counter() - started,
    )


@dataclass(frozen=True)
class _Work:
    """What is merged into a file."""

    modules: Mapping[str, Sequence[tuple[Opened, Change]]]
    ranks: Mapping[str, int]
    combination: Combination
    dtype: DType
    files: InputFiles
    progress: Progress | None


def _write(path: Path, work: _Work, saved: Mapping[str, TensorEntry]) -> list[tuple[float, float]]:
    """Write every merged module and what is held whole; return the norms of the modules, and what they miss."""
    kinds: dict[str, tuple[tuple[int, ...], DType]] = {}
    for module, members in work.modules.items():
        keys = _keys(module, members[0][1], work.ranks[module])
        kinds |= {key: (shape, work.dtype) for key, shape in keys.items()}
    kinds |= {_PREFIX + name: (entry.shape, entry.dtype) for name, entry in saved.items()}
    # Larger elements first, so that each tensor starts at a multiple of its element's size.
    whole = sorted(saved.items(), key=lambda item: -item[1].dtype.itemsize)
    total = sum(part.nbytes for members in work.modules.values() for _, change in members for part in change.parts)
    norms, done = [], 0
    with FactorsFile(path, kinds) as file:
        for name, entry in whole:
            if entry.dtype.itemsize >= work.dtype.itemsize:
                _copy(file, name, entry, work.files)
        for module, members in work.modules.items():
            factors = [_factors(own, change, module, work.files) for own, change in members]
            combination = replace(work.combination, rank=work.ranks[module])
            merged = combination.merge(module, factors, [own.weight for own, _ in members])
            keys = _keys(module, members[0][1], work.ranks[module])
            for (key, shape), factor in zip(keys.items(), (merged.up, merged.down), strict=True):
                file.begin(key, shape, work.dtype)
                file.write(factor.to(work.dtype.torch).contiguous())
            norms.append((merged.norm, merged.missed))
            done += sum(part.nbytes for _, change in members for part in change.parts)
            if work.progress is not None:
                work.progress(done, total)
        for name, entry in whole:
            if entry.dtype.itemsize < work.dtype.itemsize:
                _copy(file, name, entry, work.files)
        file.finish()
    return norms


def _problems(
    references: Sequence[str], weights: Sequence[float], wanted: Combination, rank: int | None, scaling: str, dtype: str
) -> Iterator[Problem]:
    if not references:
        yield Problem("adapters", "is empty", "name at least one adapter")
    if len(weights) != len(references):
        yield Problem("weights", f"has {len(weights)} values for {len(references)} adapters")
    if not all(map(math.isfinite, weights)):
        yield Problem("weights", f"is {list(weights)}, expected finite numbers")
    if wanted.kind not in COMBINATIONS:
        close = nearest(wanted.kind, COMBINATIONS)
        known = f"expected one of {', '.join(COMBINATIONS)}"
        yield Problem("combination", f"is {wanted.kind!r}, {known}", f"did you mean {close}?" if close else "")
        return
    if wanted.prunes and wanted.density is None:
        yield Problem("density", f"is missing; {wanted.kind} keeps that share of the elements", "give one in [0, 1]")
    if wanted.density is not None and not 0 <= wanted.density <= 1:
        yield Problem("density", f"is {wanted.density}, expected a share in [0, 1]")
    if wanted.density == 0 and "dare" in wanted.kind:
        yield Problem("density", "is 0: dare divides by it", "give one in (0, 1]")
    if wanted.density is not None and not wanted.prunes:
        yield Problem("density", f"has no effect on {wanted.kind}", "leave it out")
    yield from whole("rank", rank)
    if rank is not None and not wanted.is_svd:
        yield Problem("rank", f"has no effect on {wanted.kind}", "svd types take one")
    choices: tuple[tuple[str, str, tuple[str, ...]], ...] = (
        ("majority_sign_method", wanted.majority_sign_method, ("total", "frequency")),
        ("scaling", scaling, ("once", "twice")),
        ("dtype", dtype, DTYPES),
    )
    for name, value, known_values in choices:
        if value not in known_values:
            yield Problem(name, f"is {value!r}, expected one of {', '.join(known_values)}")


def _check_budget(modules: dict[str, list[tuple[Opened, Change]]], used: Combination, ram: int) -> None:
    """Compare the budget with what the largest module takes: its factors, in float64 for svd; its deltas and an SVD."""
    most, where = 0, ""
    for module, members in modules.items():
        m, n = members[0][1].parts[0].shape[0], members[0][1].parts[1].shape[1]
        needed = 32 * (m + n) * sum(change.parts[1].shape[0] for _, change in members)
        if used.needs_matrices:
            needed += 8 * m * n * (len(members) + 2) + matrix_bytes((m, n), used.rank)
        most, where = max((most, where), (needed, module))
    if most > ram:
        raise BudgetError(
            f"the memory budget of {ram} bytes is too small: {used.kind} needs at least {most}, for {where} (--ram)"
        )


def _keys(module: str, change: Change, rank: int) -> dict[str, tuple[int, int]]:
    """Return the names of lora_B and lora_A of a module, with their shapes."""
    up, down = ("lora_embedding_B", "lora_embedding_A") if change.embedding else ("lora_B.weight", "lora_A.weight")
    rows, columns = change.parts[0].shape[0], change.parts[1].shape[1]
    return {f"{_PREFIX}{module}.{up}": (rows, rank), f"{_PREFIX}{module}.{down}": (rank, columns)}


def _factors(own: Opened, change: Change, module: str, files: InputFiles) -> Factors:
    up, down = (_read(entry, files).float() for entry in change.parts)
    if not (up.isfinite().all() and down.isfinite().all()):
        raise Refused(f"{own.reference}: {module}: holds NaN or infinity; repair the adapter")
    return Factors(up, down, change.scale)


def _read(entry: TensorEntry, files: InputFiles) -> Tensor:
    return Values(entry, files).elements(0, math.prod(entry.shape)).view(entry.shape)


def _whole(opened: Sequence[Opened], files: InputFiles) -> dict[str, TensorEntry]:
    """Return the tensors that adapters hold whole, which must be the same in all of those that do.

    What PEFT stores of the base itself, below a pair of factors, is left out.
    """
    adapted = {name for own in opened for name in own.adapter.changes}
    found: dict[str, tuple[Opened, TensorEntry]] = {}
    for adapter in opened:
        for name, entry in adapter.adapter.replaced.items():
            other, same = found.setdefault(name, (adapter, entry))
            if name in adapted or other is adapter:
                continue
            if same.dtype != entry.dtype or not torch.equal(_read(same, files), _read(entry, files)):
                what = f"is trained whole in {other.reference} and in {adapter.reference}, and differs"
                remedy = "PEFT does not merge such modules either: fold the adapters into their base and merge those"
                raise InvalidInput([Problem(name, what, remedy)])
    return {name: entry for name, (_, entry) in found.items() if name not in adapted}


def _copy(file: FactorsFile, name: str, entry: TensorEntry, files: InputFiles) -> None:
    file.begin(_PREFIX + name, entry.shape, entry.dtype)
    file.write(_read(entry, files))
