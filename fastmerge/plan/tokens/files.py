"""Files that say what the ids of the output's tokens are: the source's tokenizer, with what was added and removed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ...checkpoint import read_json
from ...errors import CheckpointError
from ..findings import Findings
from ..models import OpenModel
from ..types import CopiedFile, TextFile
from .merging import MergedVocabulary

Files = dict[str, TextFile | CopiedFile]

_MAIN, _CONFIG, _ADDED, _SPECIAL = (
    "tokenizer.json", "tokenizer_config.json", "added_tokens.json", "special_tokens_map.json",
)  # fmt: skip
_EXTENSIBLE = ("tokenizer.json", "model", "vocab.json", "vocab.txt")


def write_vocabulary(merged: MergedVocabulary, donor: OpenModel, files: Files, findings: Findings) -> None:
    """Change the small files of the output as its vocabulary asks for.

    Args:
        donor: the model that gives the config; its special ids are renumbered where the tokenizer is another model's.
        files: the donor's configs and the source's tokenizer, by name.
    """
    try:
        if merged.changed:
            _change_tokenizer(merged, files, findings)
        for name in ("config.json", "generation_config.json"):
            if name in files:
                data = _data(files[name])
                before = json.dumps(data)
                _renumber(data, merged, donor, findings)
                if json.dumps(data) != before:
                    files[name] = _text(data)
    except CheckpointError as error:
        findings.problem(str(merged.source.model), str(error))


def _change_tokenizer(merged: MergedVocabulary, files: Files, findings: Findings) -> None:
    file = merged.source.file
    assert file is not None
    fresh = merged.ids.keys() - merged.source.ids.keys()
    if fresh and file.kind not in _EXTENSIBLE:
        what = f"no token can be added to a vocabulary of this kind, and {len(fresh)} are new"
        findings.problem(file.path, what, "save the tokenizer with transformers (save_pretrained), or write base")
        return
    entries = {merged.ids[token]: {"content": token, **behaviour} for token, behaviour in merged.new.items()}
    if _MAIN in files:
        data = _data(files[_MAIN])
        _remove(data, merged, file.path, findings)
        kept = {int(entry["id"]): entry for entry in data.get("added_tokens") or []}
        kept |= {i: {"id": i, **entry} for i, entry in entries.items()}
        data["added_tokens"] = [kept[i] for i in sorted(kept)]
        files[_MAIN] = _text(data)
    elif merged.removed - merged.source.added.keys():
        what = (
            f"{len(merged.removed)} of its tokens have no row in the embedding and cannot be removed from such a file"
        )
        findings.problem(file.path, what, "save the tokenizer with transformers (save_pretrained)")
    config = _data(files[_CONFIG]) if _CONFIG in files else {}
    decoder = config.get("added_tokens_decoder")
    if decoder is not None or _MAIN not in files:
        decoder = {i: entry for i, entry in (decoder or {}).items() if entry.get("content") not in merged.removed}
        config["added_tokens_decoder"] = decoder | {str(i): entries[i] for i in sorted(entries)}
    _forget(config, merged)
    files[_CONFIG] = _text(config)
    if _ADDED in files or _MAIN not in files:
        plain = _data(files[_ADDED]) if _ADDED in files else {}
        plain = {token: i for token, i in plain.items() if token not in merged.removed}
        files[_ADDED] = _text(plain | {entry["content"]: i for i, entry in sorted(entries.items())})
    if _SPECIAL in files and merged.removed:
        special = _data(files[_SPECIAL])
        _forget(special, merged)
        files[_SPECIAL] = _text(special)


def _remove(data: dict[str, Any], merged: MergedVocabulary, path: str, findings: Findings) -> None:
    """Remove tokens without a row from the data of a ``tokenizer.json``."""
    removed, model = merged.removed, data["model"]
    data["added_tokens"] = [e for e in data.get("added_tokens") or [] if e["content"] not in removed]
    inside = (
        removed & model["vocab"].keys() if isinstance(model["vocab"], dict) else removed - merged.source.added.keys()
    )
    if inside and model.get("type") != "BPE":
        what = f"{len(inside)} of its tokens have no row in the embedding, and only BPE can do without them"
        findings.problem(path, what, "resize the embedding to the tokenizer first")
        return
    for token in inside:
        del model["vocab"][token]
    if inside:
        merges = [(merge, merge.split(" ") if isinstance(merge, str) else merge) for merge in model.get("merges") or []]
        model["merges"] = [merge for merge, pair in merges if not inside & {*pair, "".join(pair)}]


def _forget(config: dict[str, Any], merged: MergedVocabulary) -> None:
    """Remove the names of special tokens that are gone, which loaders would add again behind the last row."""

    def gone(value: Any) -> bool:
        token = value.get("content") if isinstance(value, dict) else value
        return token in merged.removed and token not in merged.ids

    for key, value in list(config.items()):
        if key.endswith("_token") and isinstance(value, str | dict) and gone(value):
            del config[key]
        elif key.endswith("special_tokens") and isinstance(value, list):
            config[key] = [token for token in value if not gone(token)]


def _renumber(config: dict[str, Any], merged: MergedVocabulary, donor: OpenModel, findings: Findings) -> None:
    """Let every ``*_token_id`` mean the token that it meant in the donor; where that is gone, what the source says."""
    tokens = {i: token for token, i in merged.models[donor.index].ids.items()}
    theirs: Mapping[str, Any] = merged.source.model.checkpoint.config or {}

    def moved(i: int) -> int | None:
        return merged.ids.get(tokens[i]) if i in tokens else i if i < merged.rows else None

    for level in (config, *(value for value in config.values() if isinstance(value, dict))):
        for key, value in level.items():
            if not key.endswith("_token_id") or value is None or isinstance(value, bool):
                continue
            old = value if isinstance(value, list) else [value]
            if not all(isinstance(i, int) and i >= 0 for i in old):
                continue
            new = [j for i in old if (j := moved(i)) is not None]
            if len(new) < len(old):
                lost = ", ".join(repr(tokens.get(i, i)) for i in old if moved(i) is None)
                instead = theirs.get(key) if merged.source.model is not donor else None
                findings.note(f"{key} of {donor} is {lost}, which the vocabulary lacks: it is {new or instead} now")
                level[key] = new if new and isinstance(value, list) else instead
            else:
                level[key] = new if isinstance(value, list) else new[0]


def _data(file: TextFile | CopiedFile) -> dict[str, Any]:
    return json.loads(file.text) if isinstance(file, TextFile) else read_json(file.path) or {}


def _text(data: Mapping[str, Any]) -> TextFile:
    return TextFile(json.dumps(data, indent=2, ensure_ascii=False) + "\n")
