"""Compares vocabularies: rows of embeddings and heads are merged by their index, so an id must mean one token."""

from __future__ import annotations

import filecmp
import os
from collections.abc import Sequence

from ..checkpoint.vocabulary import Tokens, Vocabulary, vocabularies
from ..errors import CheckpointError
from .findings import Findings
from .models import OpenModel

_ADDED = ("added_tokens.json", "tokenizer_config.json")
_REMEDY = "tokenizer_source: base or union in the recipe merges them by token"


def compare_vocabularies(chosen: OpenModel, models: Sequence[OpenModel], findings: Findings) -> None:
    """Compare the vocabulary of every model with that of the output's tokenizer.

    Files are compared first, and read only where they differ.

    Args:
        chosen: the model that gives the tokenizer.
    """
    own = vocabularies(chosen.checkpoint.folder)
    known: dict[str, Tokens] = {}
    seen: set[str] = set()
    for model in models:
        folder = model.checkpoint.folder
        if folder in seen or folder == chosen.checkpoint.folder:
            continue
        seen.add(folder)
        others = vocabularies(folder)
        pair = _comparable(own, others)
        if pair is None:
            if bool(own) != bool(others):
                there, without = (model, chosen) if others else (chosen, model)
                findings.note(f"{without} has no tokenizer, so its vocabulary cannot be compared with that of {there}")
            elif own:
                files = f"{os.path.basename(own[0].path)} of {chosen} and {os.path.basename(others[0].path)} of {model}"
                findings.note(f"{files} are of different kinds, so the vocabularies are not compared")
            continue
        if same_files(*pair):
            continue
        try:
            for one in pair:
                if one.path not in known:
                    known[one.path] = one.tokens()
        except CheckpointError as error:
            findings.note(f"{error}; the vocabularies of {chosen} and {model} are not compared")
            continue
        _compare(chosen, model, known[pair[0].path], known[pair[1].path], pair[1].path, findings)


def _comparable(own: list[Vocabulary], others: list[Vocabulary]) -> tuple[Vocabulary, Vocabulary] | None:
    """Return the first files of one kind that both have."""
    return next(((one, other) for one in own for other in others if one.kind == other.kind), None)


def same_files(one: Vocabulary, other: Vocabulary) -> bool:
    """True where the files beside two vocabularies of one kind that say what their ids mean are equal."""
    names = (os.path.basename(one.path), *(() if one.kind == "tokenizer.json" else _ADDED))
    for name in names:
        first, second = (os.path.join(os.path.dirname(v.path), name) for v in (one, other))
        if name == names[0]:
            second = other.path
        if os.path.exists(first) != os.path.exists(second):
            return False
        if os.path.exists(first) and not filecmp.cmp(first, second, shallow=False):
            return False
    return True


def _compare(
    chosen: OpenModel, model: OpenModel, expected: Tokens, tokens: Tokens, path: str, findings: Findings
) -> None:
    differing = sorted(i for i in tokens.keys() & expected.keys() if tokens[i] != expected[i])
    if differing:
        i = differing[0]
        what = f"{len(differing)} token ids mean other tokens than in {chosen}: {i} is {tokens[i]!r}, "
        what += f"there {expected[i]!r}"
        findings.note(f"{path}: {what}; embeddings and heads are merged by id ({_REMEDY})")
    for there, without, mine, other in ((model, chosen, tokens, expected), (chosen, model, expected, tokens)):
        only = sorted(mine.keys() - other.keys())
        if only:
            i = only[0]
            findings.note(f"{len(only)} token ids of {there} mean nothing in {without}: {i} is {mine[i]!r}")
