"""From a model reference to a local folder: a folder as it is, or a download from the Hugging Face hub."""

from __future__ import annotations

import os
import re

from ..errors import CheckpointError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")

SMALL_FILES = (".json", ".txt", ".model", ".jinja", ".tiktoken", ".py", "README.md")
"""Endings of the files beside the weights that a merge may need."""


def looks_like_hub_id(path: str) -> bool:
    """True for ``name`` and ``owner/name``; says nothing about whether the hub has it."""
    return HUB_ID.fullmatch(path) is not None and ".." not in path


def locate(path: str, revision: str | None = None) -> str:
    """Return the folder of a model or adapter: a local folder, else the hub's snapshot of ``revision``.

    What is not in the cache is downloaded: weights (safetensors where the repository has them, else ``.bin``),
    configs and tokenizer files.

    Raises:
        CheckpointError: neither a folder nor a hub id, huggingface_hub is missing, or the hub cannot be reached and
            the cache does not have it.
    """
    local = os.path.expanduser(path)
    if os.path.isdir(local):
        return os.path.abspath(local)
    if os.path.exists(local):
        raise CheckpointError(f"{path}: is a file; name the folder of the checkpoint")
    if not looks_like_hub_id(path):
        raise CheckpointError(f"{path}: neither an existing folder nor a hub id like owner/name (check the path)")
    return _download(path, revision)


def _download(repository: str, revision: str | None) -> str:
    try:
        from huggingface_hub import HfApi, snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
    except ImportError as error:
        raise CheckpointError(
            f"{repository}: is not a local folder, and huggingface_hub is not installed "
            "(pip install 'fastmerge[hub]', or check the path)"
        ) from error
    where = repository + (f"@{revision}" if revision else "")
    try:
        wanted = _needed(HfApi().list_repo_files(repository, revision=revision))
        return snapshot_download(repository, revision=revision, allow_patterns=wanted)
    except (OfflineModeIsEnabled, ConnectionError, TimeoutError, OSError) as error:
        if (
            isinstance(error, HfHubHTTPError)
            and error.response is not None
            and error.response.status_code in (401, 403, 404)
        ):
            raise CheckpointError(
                f"{where}: no such folder, and the hub does not give this repository or revision: "
                f"{str(error).splitlines()[0]} (check the name; for a gated model run `hf auth login`)"
            ) from error
        try:
            return snapshot_download(repository, revision=revision, local_files_only=True)
        except (LocalEntryNotFoundError, OSError) as missing:
            raise CheckpointError(
                f"{where}: no such folder, the hub cannot be reached and its cache does not hold it "
                f"({type(error).__name__}; download it first, or check the path)"
            ) from missing


def _needed(files: list[str]) -> list[str]:
    """Return the files of a repository's top level that a merge needs."""
    top = [name for name in files if "/" not in name]
    weights = [name for name in top if name.endswith(".safetensors")]
    if not weights:
        weights = [name for name in top if re.fullmatch(r"(pytorch_model|adapter_model).*\.bin", name)]
    return [*weights, *(name for name in top if name.endswith(SMALL_FILES))]
