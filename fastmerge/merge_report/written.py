"""The files of a report, in the folder of the output: the page, a row per tensor, and the numbers."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import xxhash

from ..engine.folders import partial_folder
from ..engine.replacing import REPORT, REPORTED
from ..errors import explained
from .measuring import Account, Measured
from .summary import parameters_of

__all__ = ["NAMES", "table", "write_files"]

PAGE, TABLE = REPORTED
NAMES = (PAGE, TABLE, REPORT)


def write_files(folder: Path, page: str, rows: str, summary: dict[str, Any]) -> None:
    """Put the files into ``folder``, the numbers first: they list the others, so that all are known as fastmerge's."""
    texts = {PAGE: page, TABLE: rows}
    listed = [
        {"name": name, "bytes": len(text.encode()), "xxh3": xxhash.xxh3_64_hexdigest(text.encode())}
        for name, text in texts.items()
    ]
    texts = {REPORT: json.dumps({**summary, "files": listed}, indent=1, ensure_ascii=False) + "\n", **texts}
    with partial_folder(folder) as draft, explained(str(folder), "writing the report", keeps=False):
        for name, text in texts.items():
            (draft / name).write_text(text, encoding="utf-8")
            os.replace(draft / name, folder / name)


def table(account: Account, checksums: dict[str, str]) -> str:
    """Return one row per tensor as CSV; a number that does not exist is an empty cell."""
    columns = ["tensor", "layer", "module", "method", "parameters", "dtype", "shape", "bytes", "file", "xxh3"]
    columns += ["not_measured", "base_norm", "norm", "relative_norm", "density"]
    per_model = ("norm", "cosine", "kept", "same_direction", "reversed", "distance")
    columns += [f"{what}:{label}" for label in account.labels for what in per_model]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    for item in account.tensors:
        row = [*_of_tensor(account, item, checksums), *_of_models(account, item, per_model)]
        writer.writerow(["" if value is None or value != value else value for value in row])
    return file.getvalue()


def _of_tensor(account: Account, item: Measured, checksums: dict[str, str]) -> list[Any]:
    pair, output, moved = item.pair, item.pair.output, item.moved
    parameters = "; ".join(f"{name} {value}" for name, value in parameters_of(output).items())
    based = moved if pair.base is not None else None
    return [
        output.name, pair.layer, pair.module, output.method, parameters, str(output.dtype),
        "x".join(map(str, output.shape)), output.nbytes, account.plan.shards[output.shard].filename,
        checksums.get(output.name), item.why, math.sqrt(based.base) if based else None,
        moved.norm if moved else None, based.relative_norm if based else None, based.density if based else None,
    ]  # fmt: skip


def _of_models(account: Account, item: Measured, names: Sequence[str]) -> list[Any]:
    row: list[Any] = []
    for model in range(len(account.labels)):
        effect = item.effects.get(model)
        meant = set(names) if effect is not None and effect.based else {"norm", "cosine", "distance"}
        row += [getattr(effect, name) if effect is not None and name in meant else None for name in names]
    return row
