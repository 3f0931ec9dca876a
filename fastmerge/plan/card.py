"""The model card: what was merged, how, and how to make it again."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from typing import Any

import yaml

from ..checkpoint import looks_like_hub_id
from ..checkpoint.opening import read_text
from ..errors import CheckpointError
from ..methods import get_method
from ..recipe.types import Recipe
from ..sizes import show_size
from .models import OpenModel
from .types import OutputTensor

# Keys of recipes that the metadata of the hub has, too.
_METADATA = ("license", "language", "datasets", "pipeline_tag")


def model_card(recipe: Recipe, models: Sequence[OpenModel], outputs: Sequence[OutputTensor]) -> str:
    """Return the text of ``README.md``: metadata of the hub, recipe, method, inputs, tensors and how to reproduce."""
    method = get_method(recipe.method)
    how = f"by the method `{recipe.method}` ({method.paper})"
    if recipe.mixture is not None:
        how = f"as a mixture of experts of dense models (gate mode `{recipe.mixture.gate_mode}`)"
    metadata: dict[str, Any] = {}
    references = [model.reference for model in models if model.reference.folder is None]
    published = [ref.path for ref in references if not os.path.isdir(os.path.expanduser(ref.path))]
    if published:
        metadata["base_model"] = list(dict.fromkeys(name for name in published if looks_like_hub_id(name)))
        metadata["base_model_relation"] = "merge"
    card = recipe.card
    licences = {_licence(model.checkpoint.folder) for model in models}
    if len(licences) == 1 and (licence := licences.pop()):
        metadata["license"] = licence
    metadata |= {key: card[key] for key in _METADATA if key in card}
    if "licence" in card:
        metadata.setdefault("license", card["licence"])
    own = card.get("tags", [])
    tags = ["merge", "fastmerge", *map(str, own if isinstance(own, list) else [own])]
    metadata |= {"library_name": "transformers", "tags": list(dict.fromkeys(tags))}
    title = next((str(card[key]) for key in ("title", "model_name", "name") if card.get(key)), "Merged model")
    about = "".join(f"{card[key]}\n\n" for key in ("description", "notes") if isinstance(card.get(key), str))
    inputs = "\n".join(f"- {model}" for model in models)
    fence = "`" * max(3, 1 + max((len(run) for run in recipe.whole_text.split() if set(run) == {"`"}), default=0))
    return f"""---
{yaml.safe_dump(metadata, sort_keys=False).strip()}
---
# {title}

{about}Made with fastmerge {how}.

Inputs:

{inputs}

Recipe:

{fence}yaml
{recipe.whole_text.rstrip()}
{fence}

{_what_was_done(outputs)}

Semantics `{recipe.semantics or method.semantics[0]}`, seed {recipe.seed}.
`fastmerge.json` lists the inputs and a checksum of every tensor.

To make it again, save the recipe as `recipe.yml` and run `fastmerge merge recipe.yml OUT`.
To check this copy against the inputs, run `fastmerge verify` on its folder.
"""


def _what_was_done(outputs: Sequence[OutputTensor]) -> str:
    """Return what happened to the tensors, as a table: what was done, how many, their dtypes and bytes."""
    groups: dict[str, list[OutputTensor]] = {}
    for output in outputs:
        groups.setdefault(output.method, []).append(output)
    rows = ["| what was done | tensors | dtype | bytes |", "| --- | --- | --- | --- |"]
    for method, mine in sorted(groups.items()):
        dtypes = ", ".join(name for name, _ in Counter(str(output.dtype) for output in mine).most_common())
        done = "copied as it is" if method == "copy" else f"merged by `{method}`"
        rows.append(f"| {done} | {len(mine)} | {dtypes} | {show_size(sum(output.nbytes for output in mine))} |")
    return "\n".join(rows)


def _licence(folder: str) -> str | None:
    """Return the licence that a model's card declares."""
    try:
        text = read_text(os.path.join(folder, "README.md"))
        _, front, _ = text.split("---", 2)
        licence = (yaml.safe_load(front) or {}).get("license")
    except (OSError, CheckpointError, ValueError, AttributeError, RecursionError, yaml.YAMLError):
        return None
    return licence if isinstance(licence, str) else None
