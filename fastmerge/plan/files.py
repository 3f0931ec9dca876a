"""The small files of an output: configs, tokenizer, chat template and model card."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..checkpoint.trained import is_trained
from ..recipe.types import ModelRef, Recipe
from .agreement import check_agreement
from .card import model_card
from .config import output_config
from .copies import copied_files, is_tokenizer_file
from .findings import Findings
from .mixtures import mixture_config
from .models import OpenModel
from .rows import Rows
from .templates import set_chat_template
from .tokens import MergedVocabulary, write_vocabulary
from .types import CopiedFile, OutputTensor, TextFile
from .vocabularies import compare_vocabularies


@dataclass(frozen=True)
class Wanted:
    """What the caller wants of the small files, and whether vocabularies were truncated."""

    tokenizer: bool = True
    card: bool = True
    truncated: bool = False


def small_files(
    recipe: Recipe,
    models: Mapping[ModelRef, OpenModel],
    found: Rows,
    outputs: Sequence[OutputTensor],
    findings: Findings,
    wanted: Wanted,
    vocabulary: MergedVocabulary | None = None,
) -> dict[str, TextFile | CopiedFile]:
    """Return the small files by name.

    Configs come from the base, else from the first model; so does the tokenizer, unless the recipe names its source.
    """
    donor = models[recipe.models[0]]
    files: dict[str, TextFile | CopiedFile] = {}
    if donor.checkpoint.config is None:
        instead = ", or name a folder that has them with config_source" if is_trained(donor.checkpoint) else ""
        findings.note(
            f"{donor} has no config.json, so the output has none and transformers cannot load it (put the config.json "
            f"and the tokenizer of the model into {donor.checkpoint.folder}{instead})"
        )
    else:
        config = output_config(donor.checkpoint.config, found, outputs, wanted.truncated or vocabulary is not None)
        if found.mixture is not None:
            config = mixture_config(config, found.mixture)
        check_agreement(config, os.path.join(donor.checkpoint.folder, "config.json"), outputs, findings)
        files["config.json"] = TextFile(json.dumps(config, indent=2, ensure_ascii=False) + "\n")
    # A recipe with a tokenizer key that gives no vocabulary was reported, or its models have no tokenizers.
    tokenizer = donor if vocabulary is None else vocabulary.source.model
    copied = copied_files(donor, tokenizer, findings)
    writes = wanted.tokenizer or vocabulary is not None
    files |= copied if writes else {n: file for n, file in copied.items() if not is_tokenizer_file(n)}
    if vocabulary is not None:
        write_vocabulary(vocabulary, donor, files, findings)
    elif recipe.tokenizer is None:
        compare_vocabularies(tokenizer, list(models.values()), findings)
    if writes:
        set_chat_template(recipe, tokenizer, list(models.values()), files, findings)
    elif recipe.chat_template:
        findings.note(f"{recipe.where('chat_template')}: has no effect without a tokenizer")
    if wanted.card:
        files["README.md"] = TextFile(model_card(recipe, list(models.values()), outputs))
    # What mergekit calls the recipe in its outputs, and other tools look for.
    name = "mergekit_config.yml" if recipe.mixture is None else "mergekit_moe_config.yml"
    files[name] = TextFile(recipe.whole_text)
    return files
