"""Extraction: read the matrices of both models, approximate their differences, write an adapter."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence

import torch

from ..arguments import several, size_of, whole
from ..dtypes import bfloat16, float16, float32
from ..engine.folders import appearing
from ..engine.reading import DeltaReader, reading_bytes
from ..errors import BudgetError, InvalidInput, Problem
from ..plan.types import InputTensor
from ..progress import ProgressLike, of_bytes, shown
from ..sizes import DEFAULT_RAM
from .adapter_config import write_config
from .approximating import Approximation, matrix_bytes, stored_dtype
from .factors_file import FactorsFile
from .report import ExtractionReport
from .selection import Other, Pair, Selection, Wanted, module_path, open_pair, savable, select

__all__ = ["DTYPES", "extract"]

DTYPES = {kind.name: kind for kind in (float32, bfloat16, float16)}
"""Dtypes of the factors, by name."""

_log = logging.getLogger(__name__)

MATRICES = ("attn_mlp", "all")


def extract(
    base: str | os.PathLike[str],
    tuned: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    rank: int = 64,
    energy: float | None = None,
    matrices: str = "attn_mlp",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    embeddings: bool = False,
    dtype: str = "float32",
    save_others: bool = False,
    ram: int | str = DEFAULT_RAM,
    progress: ProgressLike = None,
) -> ExtractionReport:
    """Write a PEFT LoRA adapter into the folder ``out`` that turns ``base`` into ``tuned``, as well as a rank allows.

    Args:
        base, tuned: folders or hub ids, as recipes name models; ``tuned`` may be ``model+adapter``.
        out:         folder of the adapter; it appears when it is complete.
        rank:        largest rank of a matrix; a matrix with fewer rows or columns gets as many.
        energy:      share of a delta's squared norm that is enough, in (0, 1]: a matrix gets the least rank that holds
                     it, up to ``rank``. None: all get ``rank``.
        matrices:    ``attn_mlp``: the projections in numbered layers; ``all``: every linear layer.
        include:     regular expressions: only modules in whose name one is found; ``matrices`` does not count then.
        exclude:     regular expressions: no modules in whose name one is found.
        embeddings:  approximate input embeddings, too, as PEFT's ``lora_embedding_A`` and ``lora_embedding_B``.
        dtype:       of the factors: float32, bfloat16 or float16.
        save_others: store tensors that differ and are no such matrix whole, as PEFT's ``modules_to_save``.
        ram:         memory budget beyond the interpreter and its packages.
        progress:    None draws a bar in notebooks, True everywhere, False none; or what is called with the input bytes
                     that were read, and all of them.
    Raises:
        InvalidInput:   the models cannot be opened, or do not differ in any matrix; an argument is out of range.
        FastmergeError: a file is corrupt, a delta is not finite, the budget is too small, ``out`` exists.
    """
    include, exclude = several(include), several(exclude)
    if problems := list(_wrong(rank, energy, matrices, dtype, {"include": include, "exclude": exclude})):
        raise InvalidInput(problems)
    started = time.perf_counter()
    first, second, notes = open_pair(os.fspath(base), os.fspath(tuned))
    models = first, second
    selection = select(*models, Wanted(matrices, tuple(include), tuple(exclude), embeddings))
    _check_budget(selection, rank, size_of("ram", ram))
    files = [file for model in models for file in model.files]
    total = sum(t.nbytes for pair in selection.pairs for t in pair)
    with (
        appearing(out) as folder,
        shown(progress, "extracting") as call,
        DeltaReader(files, of_bytes(call, total)) as reader,
    ):
        differing = [(pair, reason) for pair, reason in selection.others if not _equal(reader, pair)]
        others = [Other(pair[0].name, reason) for pair, reason in differing]
        saved: list[InputTensor] = []
        if save_others:
            others = savable(others, selection.matrices)
            saved = [pair[1] for (pair, _), other in zip(differing, others, strict=True) if other.saved]
        work = Approximation(reader, DTYPES[dtype], rank, energy)
        path = folder / "adapter_model.safetensors"
        with FactorsFile(path, work.largest(selection.matrices, saved)) as file:
            # Larger elements first, so that each tensor starts at a multiple of its element's size.
            saved.sort(key=lambda tensor: -stored_dtype(tensor).itemsize)
            small = sum(stored_dtype(tensor).itemsize < work.dtype.itemsize for tensor in saved)
            for tensor in saved[: len(saved) - small]:
                work.copy(file, tensor)
            found = [item for pair in selection.matrices if (item := work.approximate(file, pair)) is not None]
            for tensor in saved[len(saved) - small :]:
                work.copy(file, tensor)
            file.finish()
        if not found:
            what = "differ in no matrix that an adapter can approximate"
            raise InvalidInput([Problem(f"{models[0]} and {models[1]}", what, "nothing was written")])
        write_config(
            folder / "adapter_config.json", models[0], {module_path(m.name): m.rank for m in found},
            [module_path(tensor.name) for tensor in saved],
        )  # fmt: skip
        nbytes = path.stat().st_size
    report = ExtractionReport(
        folder=os.path.abspath(os.path.expanduser(out)),
        matrices=tuple(found),
        others=(*others, *selection.unpaired),
        unchanged=len(selection.pairs) - len(found) - len(others),
        nbytes=nbytes,
        seconds=time.perf_counter() - started,
        notes=notes,
    )
    _log.info("%s", report)
    return report


def _wrong(
    rank: int, energy: float | None, matrices: str, dtype: str, patterns: Mapping[str, Sequence[str]]
) -> Iterator[Problem]:
    """Yield what is wrong with the options."""
    yield from whole("rank", 0 if rank is None else rank)
    if energy is not None and not (isinstance(energy, float | int) and 0 < energy <= 1):
        yield Problem("energy", f"is {energy!r}, expected a share in (0, 1]")
    if matrices not in MATRICES:
        yield Problem("matrices", f"is {matrices!r}, expected one of {', '.join(MATRICES)}")
    if dtype not in DTYPES:
        yield Problem("dtype", f"is {dtype!r}, expected one of {', '.join(DTYPES)}")
    for name, given in patterns.items():
        for pattern in given:
            try:
                re.compile(pattern)
            except re.error as error:
                yield Problem(name, f"{pattern!r} is no regular expression: {error}")


def _check_budget(selection: Selection, rank: int, ram: int) -> None:
    if not selection.matrices:
        return
    largest = max((pair[0] for pair in selection.matrices), key=lambda tensor: matrix_bytes(tensor.shape, rank))
    needed = matrix_bytes(largest.shape, rank) + reading_bytes(selection.pairs)
    if needed > ram:
        raise BudgetError(
            f"the memory budget of {ram} bytes is too small: extraction needs at least {needed}, "
            f"to decompose {largest.name} (--ram)"
        )


def _equal(reader: DeltaReader, pair: Pair) -> bool:
    equal = True
    for a, b in reader.chunks(pair):
        equal = equal and torch.equal(a, b)  # all is read, so that the progress adds up
    return equal
