"""The small files of an output: configs, tokenizer, chat template and model card."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence

from ..checkpoint import read_json
from ..errors import CheckpointError
from ..recipe.types import ModelRef, Recipe
from .card import model_card
from .config import output_config
from .copies import copied_files
from .findings import Findings
from .models import OpenModel
from .rows import Rows
from .types import CopiedFile, OutputTensor, TextFile
from .vocabularies import compare_vocabularies

TEMPLATES = {
    "chatml": "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + "
    "'<|im_end|>' + '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
}
"""Chat templates by name."""


def small_files(
    recipe: Recipe,
    models: Mapping[ModelRef, OpenModel],
    found: Rows,
    outputs: Sequence[OutputTensor],
    findings: Findings,
) -> dict[str, TextFile | CopiedFile]:
    """Return the small files by name.

    Configs come from the base, else from the first model; so does the tokenizer, unless the recipe names its source.
    """
    donor = models[recipe.models[0]]
    files: dict[str, TextFile | CopiedFile] = {}
    if donor.checkpoint.config is None:
        findings.note(f"{donor} has no config.json, so the output has none and transformers cannot load it")
    else:
        config = output_config(donor.checkpoint.config, found, outputs)
        files["config.json"] = TextFile(json.dumps(config, indent=2, ensure_ascii=False) + "\n")
    source = recipe.tokenizer.source if recipe.tokenizer else "base"
    tokenizer = models.get(source) if isinstance(source, ModelRef) else donor
    if tokenizer is None:
        findings.problem(f"{recipe.path}: tokenizer_source", f"{source} is no model of the recipe", "name one")
        return files
    files |= copied_files(donor, tokenizer, findings)
    compare_vocabularies(tokenizer, list(models.values()), recipe.tokenizer is not None, findings)
    try:
        _set_chat_template(recipe, tokenizer, list(models.values()), files, findings)
    except CheckpointError as error:
        findings.problem(recipe.path, str(error))
    files["README.md"] = TextFile(model_card(recipe, list(models.values())))
    return files


def _set_chat_template(
    recipe: Recipe,
    tokenizer: OpenModel,
    models: Sequence[OpenModel],
    files: dict[str, TextFile | CopiedFile],
    findings: Findings,
) -> None:
    wanted = recipe.chat_template
    if wanted is None:
        return
    if wanted == "auto":
        counts = Counter(t for model in models if (t := _chat_template(model.checkpoint.folder)))
        if not counts:
            findings.note("chat_template: auto finds no template in any model")
            return
        text = counts.most_common(1)[0][0]
    elif "{" in wanted:
        text = wanted
    elif wanted in TEMPLATES:
        text = TEMPLATES[wanted]
    else:
        what = f"{wanted!r} is no template that is known here"
        remedy = f"write auto, one of {', '.join(TEMPLATES)}, or the Jinja text itself"
        findings.problem(f"{recipe.path}: chat_template", what, remedy)
        return
    config = read_json(os.path.join(tokenizer.checkpoint.folder, "tokenizer_config.json"), missing_ok=True) or {}
    files["tokenizer_config.json"] = TextFile(
        json.dumps({**config, "chat_template": text}, indent=2, ensure_ascii=False) + "\n"
    )
    # These files would win over the configuration.
    for name in [name for name in files if name.startswith("chat_template.")]:
        del files[name]


def _chat_template(folder: str) -> str | None:
    """Return the chat template of a model, from its own file or its tokenizer's configuration."""
    path = os.path.join(folder, "chat_template.jinja")
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            return file.read()
    config = read_json(os.path.join(folder, "tokenizer_config.json"), missing_ok=True) or {}
    template = config.get("chat_template")
    if isinstance(template, list):
        # Several templates by name, of which one is taken without a word.
        named = {item.get("name"): item.get("template") for item in template if isinstance(item, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None
