"""Which files of a model are copied beside the weights, and which are left behind."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterator, Sequence

from ..checkpoint import read_json
from ..checkpoint.opening import why_not_small
from ..checkpoint.placeholders import placeholder
from ..errors import CheckpointError
from .findings import Findings, listed
from .models import OpenModel
from .types import CopiedFile

MODEL_FILES = (
    "generation_config.json", "*processor_config.json", "normalizer.json", "mel_filters.npz", "*.py",
    "modules.json", "sentence_*_config.json", "config_sentence_transformers.json", "custom_generate/*",
)  # fmt: skip
"""What loaders need of a model beside config and weights."""
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.*",
    "additional_chat_templates/*", "*.model", "*.model.v*", "*.spm", "*.tiktoken", "tekken.json", "vocab.*",
    "*_vocab.json", "vocab-*.json", "merges.txt", "bpe.codes", "*.bpe", "dict.txt",
)  # fmt: skip
"""What loaders need of a tokenizer."""

# Weights, what training leaves, and what is for people: no loader misses it.
_OF_NO_USE = (
    "config.json", "*.safetensors", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.gguf", "*.msgpack", "*.h5", "*.onnx*",
    "*.index.json", "*.index.*.json", "*.xml", "adapter_config.json", "params.json", "fastmerge.json",
    "mergekit_*config.y*ml", "README*", "LICEN[CS]E*", "NOTICE*", "USE_POLICY*", "*.md", "*.pdf", "*.png", "*.jpg",
    "*.jpeg", "*.gif", "*.svg", "*.webp", "*.ipynb", ".*", "*.log", "*.out", "*.lock",
    "optimizer*", "scheduler*", "rng_state*", "scaler*", "trainer_*", "training_*", "*_results.json", "*metrics*",
    "events.out*", "latest", "zero_to_fp32.py", "checkpoint-*/", "global_step*/", "runs/", "logs/", "wandb/",
    "onnx/", "openvino*/", "original/", "coreml*/", "metal/", "assets/", "images/", "figures/", "eval*/",
)  # fmt: skip
_MODULE = re.compile(r"\w[\w.-]*")


def copied_files(donor: OpenModel, tokenizer: OpenModel, findings: Findings) -> dict[str, CopiedFile]:
    """Return the files that are copied, by name: the donor's own, and those of the model that gives the tokenizer.

    Pointers of Git LFS and links to nothing are problems; files that no pattern knows are named in a note.
    """
    own = donor.checkpoint.folder
    patterns = (*MODEL_FILES, *_modules(own, findings))
    files = {} if _is_bare(donor) else matching(own, patterns)
    files |= {} if _is_bare(tokenizer) else matching(tokenizer.checkpoint.folder, TOKENIZER_FILES)
    files.pop("zero_to_fp32.py", None)
    for file in files.values():
        if not file.path.endswith((".safetensors", ".bin")) and (why := why_not_small(file.path)):
            findings.problem(file.path, why)
            continue
        instead = placeholder(file.path)
        if instead and (file.path.endswith(".json") or os.path.islink(file.path) or os.path.getsize(file.path)):
            findings.problem(file.path, instead)
    code = sorted(name for name in files if name.endswith(".py"))
    if code:
        findings.note(f"the output takes the code of {donor}, which nothing here runs or checks: {listed(code)}")
    weights = sorted(name for name in files if name.endswith((".safetensors", ".bin")))
    if weights:
        findings.note(f"modules behind the model are copied from {donor} and not merged: {listed(weights)}")
    left = [] if _is_bare(donor) else list(_left_behind(own, files, (*patterns, *TOKENIZER_FILES)))
    if left:
        findings.note(f"files of {donor} that are not copied: {listed(left)}")
    return files


def _is_bare(model: OpenModel) -> bool:
    """True for a file of weights without a config beside it: what else lies there is not of this model."""
    return bool(model.checkpoint.source) and model.checkpoint.config is None


def is_tokenizer_file(name: str) -> bool:
    """True for files that only a tokenizer needs."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in TOKENIZER_FILES)


def _modules(folder: str, findings: Findings) -> Iterator[str]:
    """Yield patterns for the folders that sentence-transformers puts behind the model: pooling, dense layers."""
    path = os.path.join(folder, "modules.json")
    if not os.path.exists(path):
        return
    try:
        modules = read_json(path, expected=list)
    except CheckpointError as error:
        findings.problem(path, str(error))
        return
    for module in modules or []:
        inner = module.get("path") if isinstance(module, dict) else None
        if isinstance(inner, str) and _MODULE.fullmatch(inner):
            yield f"{inner}/*"


def matching(folder: str, patterns: Sequence[str]) -> dict[str, CopiedFile]:
    """Return the files of a folder that any of the patterns matches, by name."""
    found = {}
    for inner in sorted({os.path.dirname(pattern) for pattern in patterns}):
        place = os.path.join(folder, inner)
        for name in sorted(os.listdir(place)) if os.path.isdir(place) else []:
            whole = os.path.join(inner, name)
            path = os.path.join(folder, whole)
            here = any(os.path.dirname(p) == inner and fnmatch.fnmatchcase(whole, p) for p in patterns)
            if here and not os.path.isdir(path):
                found[whole] = CopiedFile(path)
    return found


def _left_behind(folder: str, files: dict[str, CopiedFile], patterns: Sequence[str]) -> Iterator[str]:
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        name = entry.name + ("/" if entry.is_dir() else "")
        known = name in files or any(p.startswith(name) for p in patterns if "/" in p)
        mine = (*_OF_NO_USE, *TOKENIZER_FILES)
        if not known and not any(fnmatch.fnmatchcase(name, pattern) for pattern in mine):
            yield name
