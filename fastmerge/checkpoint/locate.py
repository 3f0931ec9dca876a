"""From a model reference to a local folder: a folder as it is, or a download from the Hugging Face hub."""

from __future__ import annotations

import os
import re

from ..errors import CheckpointError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_SMALL_FILES = (".json", ".txt", ".model", ".jinja", ".tiktoken", ".py", "README.md")


def looks_like_hub_id(path: str) -> bool:
    """True for ``name`` and ``owner/name``; says nothing about whether the hub has it."""
    return _HUB_ID.fullmatch(path) is not None and ".." not in path


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
    try:
        import huggingface_hub  # noqa: F401
    except ImportError as error:
        raise CheckpointError(
            f"{path}: is not a local folder, and huggingface_hub is not installed "
            "(pip install 'fastmerge[hub]', or check the path)"
        ) from error
    return _download(path, revision)


def _download(repository: str, revision: str | None) -> str:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    where = repository + (f"@{revision}" if revision else "")
    try:
        info = HfApi().model_info(repository, revision=revision)
        wanted = needed_files([file.rfilename for file in info.siblings or ()])
        return snapshot_download(repository, revision=info.sha, allow_patterns=wanted)
    except Exception as error:  # Which errors a lost connection raises depends on the version and its HTTP library.
        response = getattr(error, "response", None) if isinstance(error, HfHubHTTPError) else None
        if response is not None and response.status_code in (401, 403, 404):
            raise CheckpointError(
                f"{where}: no such folder, and the hub does not give it: {str(error).splitlines()[0]} "
                "(check name and revision; log in for a private or gated model)"
            ) from error
        unreachable = error
    try:
        return snapshot_download(repository, revision=revision, local_files_only=True)
    except LocalEntryNotFoundError:
        raise CheckpointError(
            f"{where}: no such folder, the hub cannot be reached ({type(unreachable).__name__}) and its cache "
            "does not hold the model (check the path, or download it first)"
        ) from unreachable


def needed_files(files: list[str]) -> list[str]:
    """Return the files of a repository's top level that a merge needs; of two formats of the weights, safetensors."""
    top = [name for name in files if "/" not in name]
    weights = [name for name in top if name.endswith(".safetensors")]
    if not weights:
        weights = [name for name in top if re.fullmatch(r"(pytorch_model|adapter_model).*\.bin", name)]
    return [*weights, *(name for name in top if name.endswith(_SMALL_FILES))]
