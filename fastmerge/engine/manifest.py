"""The manifest ``fastmerge.json`` of an output: what it was made from and how, and a checksum of every tensor.

It holds nothing that changes from run to run, so equal merges have equal manifests.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import CheckpointError
from ..plan.digest import NUMERICS
from ..plan.trust import gathered_rows, listing
from ..plan.types import Plan
from ..recipe import Recipe, load
from .checksums import NAME, Sums

FILENAME = "fastmerge.json"
FORMAT = 1


def write_manifest(plan: Plan, checksums: Mapping[str, Sums], small_files: Sequence[Mapping[str, Any]]) -> str:
    """Return the text of the manifest.

    Args:
        checksums:   by name of the output tensor. ``sources`` lists those of what it was made of: of every input, the
                     base first, the tensor as it is stored (several where it is quantized), then its adapters'
                     lora_B and lora_A. What is copied has the checksum of the copy. Rows of several tensors have one
                     checksum, as they are put together, and ``rows`` says which were read. "" stands for a tensor that
                     is read in rows of less than 32 bytes.
        small_files: name, bytes and checksum of every file of the output beside weights and manifest.
    """
    manifest = {
        "format": FORMAT,
        "versions": {"fastmerge": __version__, "torch": version("torch"), "numerics": NUMERICS},
        "method": plan.method,
        "semantics": plan.semantics,
        "given_semantics": plan.given_semantics,
        "seed": plan.seed,
        "recipe": plan.recipe,
        "plan": plan.digest,
        "truncated": plan.truncated,
        "steps": dict(plan.steps),
        "inputs": [
            {
                "reference": model.reference,
                "folder": model.folder,
                **({"config_source": model.config_source} if model.config_source else {}),
                "files": [
                    {
                        "name": str(Path(file.path).name),
                        "path": file.path,
                        "bytes": file.nbytes,
                        "mtime_ns": file.mtime_ns,
                        "header": file.header_digest,
                    }
                    for file in model.files
                ],
            }
            for model in plan.models
        ],
        "read": listing(plan),
        "rows": gathered_rows(plan),
        **({} if plan.training is None else {"state_key": plan.training.key}),
        **({} if plan.training is None or plan.training.like is None else {"state_like": plan.training.like}),
        "files": [
            *({"name": s.filename, "bytes": s.nbytes, "header": s.digest} for s in plan.shards),
            *small_files,
        ],
        "checksum": NAME,
        "tensors": {output.name: checksums[output.name].output for output in plan.outputs},
        "sources": {o.name: checksums[o.name].inputs for o in plan.outputs if o.group is not None},
        "dropped": [
            {"model": plan.models[item.model].reference, "name": item.name, "reason": item.reason}
            for item in plan.dropped
        ],
    }
    return json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"


def recipe_of(manifest: Mapping[str, Any]) -> Recipe:
    """Return the recipe of a manifest, with the semantics and seed that it was given.

    Older manifests have only the semantics that were taken.
    """
    taken = manifest["semantics"]
    given = manifest.get("given_semantics", None if taken == "mergekit" else taken)
    return load(manifest["recipe"] + "\n", semantics=given, seed=manifest["seed"])


def read_manifest(out: Path) -> dict[str, Any]:
    """Return the manifest of an output folder; CheckpointError when there is none or it is not ours."""
    path = out / FILENAME
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}; only outputs of fastmerge can be verified") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: is not valid JSON ({error})") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise CheckpointError(f"{path}: is not a manifest of format {FORMAT}")
    from .manifest_shape import fault_of  # models of pydantic, which a new output does not need

    if wrong := fault_of(manifest):
        raise CheckpointError(f"{path}: is damaged: {wrong}")
    return manifest
