"""What stands here for the commands of mergekit that have another name: one line each, as an answer to their names."""

from __future__ import annotations

from typing import Any

import click

from ..errors import FastmergeError
from ._errors import Command

ANSWERS = {
    "yaml": "fastmerge merge RECIPE OUT does what mergekit-yaml does",
    "mega": "fastmerge multi RECIPE OUT merges recipes of several documents",
    "pytorch": "name the weight files as models of fastmerge merge; "
    "missing: drop is --tensor-intersection and missing: merge is --tensor-union",
    "extract-lora": "fastmerge extract BASE MODEL --out OUT extracts an adapter",
    "layershuffle": "write the order of the layers as slices: of a recipe with merge_method: passthrough",
    "tokensurgeon": "transplanting a tokenizer with new embeddings is not offered; "
    "tokenizer: in a recipe chooses and merges vocabularies",
    "evolve": "searching for parameters is not offered; merge from Python with fastmerge.merge_state_dicts in your "
    "own search, or write its candidates as recipes",
    "legacy": "write a recipe: merge_method, models with parameters, base_model; then fastmerge merge RECIPE OUT",
    "bakllama": "write a recipe with slices: and merge_method: passthrough; then fastmerge merge RECIPE OUT",
    "fill-missing-params": "a tensor that some models lack is the base's already; missing: in a recipe says otherwise",
}
"""By the name behind ``mergekit-``."""


def _answering(name: str, answer: str) -> click.Command:
    def callback(arguments: tuple[str, ...]) -> Any:
        raise FastmergeError(f"{name}: {answer}")

    return Command(
        name,
        callback=callback,
        params=[click.Argument(["arguments"], nargs=-1, type=click.UNPROCESSED)],
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []},
        hidden=True,
        help=f"{answer[0].upper()}{answer[1:]}.",
    )


OTHERS = [_answering(name, answer) for name, answer in ANSWERS.items()]
"""Commands that only say what to use."""
