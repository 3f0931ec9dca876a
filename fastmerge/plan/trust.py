"""What was read to plan a merge, and how far it is trusted: what a manifest and ``plan --files`` list."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import xxhash

from ..checkpoint.opening import SmallFile
from .copies import is_tokenizer_file
from .models import OpenModel
from .types import CopiedFile, Gathered, InputTensor, Plan, ReadFile

# (patterns, kind, how far it is trusted); the first that matches.
_KINDS: tuple[tuple[Sequence[str], str, str], ...] = (
    (("*.safetensors",), "weights", "a JSON header that is checked, and numbers"),
    (("*.bin", "*.pt"), "weights", "tensors in a zip archive; its pickle is read as a list of tensors, never run"),
    (("*.distcp",), "weights", "tensors in zip archives; their pickles are read as descriptions of tensors, never run"),
    ((".metadata",), "index", "a pickle of names, sizes and places of tensors: nothing else in it is read, or run"),
    (("*.index.json",), "index", "JSON: names of tensors, and of files in this folder"),
    (("adapter_config.json",), "config of an adapter", "JSON: numbers, names and patterns that are checked"),
    (("config.json", "*_config.json", "quant*.json", "modules.json"), "config", "JSON: values that are compared"),
    (("*.jinja",), "chat template", "text that is compared and copied, never rendered"),
    (("README.md",), "model card", "text: its license and language"),
)


def read_files(models: Iterable[OpenModel], seen: Mapping[str, SmallFile]) -> tuple[ReadFile, ...]:
    """Return the small files that were read, each with the model that it belongs to."""
    homes: dict[str, str] = {}
    for model in models:
        for place in (*(os.path.dirname(file.path) for file in model.files), model.checkpoint.folder):
            homes.setdefault(place, str(model))
    files = []
    for path, file in sorted(seen.items()):
        home = max((place for place in homes if path.startswith(place + os.sep)), key=len, default=None)
        name = path if home is None else os.path.relpath(path, home)
        files.append(ReadFile("" if home is None else homes[home], name, path, file.nbytes, file.xxh3))
    return tuple(files)


def kind_of(name: str) -> tuple[str, str]:
    """Return what a file is taken for, and how far it is trusted."""
    base = os.path.basename(name)
    for patterns, kind, trust in _KINDS:
        # tokenizer_config.json and its like are a tokenizer's.
        if any(fnmatch.fnmatchcase(base, pattern) for pattern in patterns) and (
            kind != "config" or not is_tokenizer_file(base)
        ):
            return kind, trust
    if is_tokenizer_file(base):
        return "tokenizer", "tokens, ids and templates: parsed, compared and copied, never run"
    return "other", "text that is parsed with limits"


def small_files(plan: Plan) -> tuple[ReadFile, ...]:
    """Return the small files that a merge reads: those that planning read, and those that are copied alone.

    Of files of which a part alone is copied nothing is said.
    """
    known = {file.path for file in plan.read}
    copied = []
    for file in plan.files.values():
        if isinstance(file, CopiedFile) and file.path not in known:
            homes = [model for model in plan.models if file.path.startswith(model.folder + os.sep)]
            home = max(homes, key=lambda model: len(model.folder), default=None)
            name = file.path if home is None else os.path.relpath(file.path, home.folder)
            digest, nbytes = xxhash.xxh3_64(), 0
            with file.open() as data:
                while piece := data.read(1 << 20):
                    digest.update(piece)
                    nbytes += len(piece)
            reference = "" if home is None else home.reference
            copied.append(ReadFile(reference, name, file.path, nbytes, digest.hexdigest()))
    return (*plan.read, *copied)


def listing(plan: Plan) -> list[dict[str, Any]]:
    """Return every file that a merge reads, with its kind, how far it is trusted, and its checksum.

    That of weights is the SHA-256 of their header; their tensors have checksums of their own in the manifest.
    """
    rows = []
    for model in plan.models:
        for file in model.files:
            kind, trust = kind_of(file.path)
            rows.append(
                {"model": model.reference, "name": os.path.basename(file.path), "kind": kind, "trusted": trust,
                 "bytes": file.nbytes, "header": file.header_digest}
            )  # fmt: skip
    for small in small_files(plan):
        kind, trust = kind_of(small.name)
        rows.append(
            {"model": small.model, "name": small.name, "kind": kind, "trusted": trust, "bytes": small.nbytes,
             "xxh3": small.xxh3}
        )  # fmt: skip
    return rows


# A vocabulary in quite another order has a run for every token.
_MOST_RUNS = 200


def gathered_rows(plan: Plan) -> dict[str, list[dict[str, Any]]]:
    """Return of which rows of which stored tensors the inputs consist that no file holds, by name of the output."""
    found: dict[str, list[dict[str, Any]]] = {}
    for output in plan.outputs:
        items = [_rows(plan, tensor, tensor.gathered) for tensor in output.inputs.every if tensor.gathered]
        if items:
            found[output.name] = items
    return found


def _rows(plan: Plan, tensor: InputTensor, gathered: Gathered) -> dict[str, Any]:
    sources = []
    for place, source in enumerate(gathered.sources):
        ranges = sorted((first, run.count) for run in gathered.runs for index, first in run.terms if index == place)
        if ranges:
            joined = [list(ranges[0])]
            for first, count in ranges[1:]:
                if first <= sum(joined[-1]):
                    joined[-1][1] = max(sum(joined[-1]), first + count) - joined[-1][0]
                else:
                    joined.append([first, count])
            rows: dict[str, Any] = {"read": sum(count for _, count in joined)}
            rows |= {"ranges": joined} if len(joined) <= _MOST_RUNS else {"in": len(joined)}
            sources.append({"model": plan.models[source.model].reference, "name": source.name, **rows})
    return {"for": plan.models[tensor.model].reference, "rows": tensor.shape[0], "of": sources}
