"""From a model reference to a local folder: a folder as it is, or a download from the Hugging Face hub."""

from __future__ import annotations

import os
import re

from ..errors import CheckpointError
from .distributed import SEPARATOR, split_key
from .file_names import ADAPTER, INDEX, SINGLE
from .foreign import describe_repository, holds_weights
from .gguf import models_in
from .hub_names import hub_id_of, looks_like_hub_id, names_a_file, near_folder

WEIGHT_FILES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf")
"""Endings of files that are models by themselves."""

_SMALL_FILES = (".json", ".txt", ".model", ".jinja", ".tiktoken", ".py", ".spm", ".v3", "README.md")
# Of sentence-transformers (1_Pooling, 2_Dense) and of tokenizers with several templates.
_MODULE_FILES = re.compile(r"\d+_\w+/[^/]+\.(json|safetensors|txt)|additional_chat_templates/[^/]+\.jinja")
_SHARDS = (re.compile(r"model-\d+-of-\d+\.safetensors"), re.compile(r"pytorch_model-\d+-of-\d+\.bin"))
_OTHER_COPY = re.compile(r"^consolidated|^adapter_model|training_args|optimizer|scheduler|\.(fp|bf|float|int)\d+\.")


def locate(path: str, revision: str | None = None, beside: str | None = None) -> str:
    """Return the folder of a model or adapter: a local folder, or a file; else the hub's snapshot of ``revision``.

    What is not found from the current directory is looked for in the recipe's folder ``beside``. The hub is asked only
    for what can be a hub id, and is no near miss of a folder here. Whoever means the hub in spite of such a folder
    names a revision (``owner/name@main``).

    A repository's folder in the hub's cache (``models--owner--name``) stands for its snapshot. What is not in the
    cache is downloaded: weights (safetensors where the repository has them, else ``.bin``), configs and files of
    tokenizers.

    Raises:
        CheckpointError: neither a folder nor a hub id, nearly a folder, huggingface_hub is missing, or the hub cannot
            be reached and the cache does not have it.
    """
    local = os.path.expanduser(path)
    holder, key = split_key(local)
    if key is not None and os.path.isdir(holder):
        return f"{os.path.abspath(holder)}{SEPARATOR}{key}"
    if os.path.isdir(local):
        return _snapshot(os.path.abspath(local), revision)
    if local.endswith(WEIGHT_FILES) and os.path.isfile(local):
        return os.path.abspath(local)
    if os.path.exists(local):
        endings = ", ".join(WEIGHT_FILES)
        raise CheckpointError(f"{path}: is a file; name the folder of the checkpoint, or a file of weights ({endings})")
    if beside and revision is None and _holds_model(near := os.path.join(beside, local)):
        return locate(near)
    meant = near_folder(path)
    if not looks_like_hub_id(path) or (names_a_file(path) and revision is None):
        remedy = _remedy(path, meant)
        raise CheckpointError(f"{path}: neither an existing folder nor a hub id like owner/name ({remedy})")
    if meant and revision is None and not _is_cached(path):
        raise CheckpointError(
            f"{path}: no such folder (did you mean {meant}? Write {path}@main for the hub's model of this name)"
        )
    try:
        import huggingface_hub  # noqa: F401
    except ImportError as error:
        raise CheckpointError(
            f"{path}: is not a local folder, and huggingface_hub is not installed "
            "(pip install 'fastmerge[hub]', or check the path)"
        ) from error
    return _download(path, revision)


def passed_over(path: str, revision: str | None, beside: str | None) -> str | None:
    """Return a model in the recipe's folder ``beside`` that ``locate`` does not take, since another is found first."""
    local = os.path.expanduser(path)
    if beside is None or revision is not None or os.path.isabs(local) or not os.path.exists(split_key(local)[0]):
        return None
    near = os.path.join(beside, local)
    return near if _holds_model(near) and not os.path.samefile(split_key(near)[0], split_key(local)[0]) else None


def _holds_model(path: str) -> bool:
    return holds_weights(split_key(path)[0]) or (path.endswith(WEIGHT_FILES) and os.path.isfile(path))


def _remedy(path: str, meant: str | None) -> str:
    model, plus, _ = path.partition("+")
    if plus and os.path.isdir(os.path.expanduser(model)):
        return "an adapter is folded by recipes, analyze and extract; merge it by passthrough, and name the result"
    if meant:
        return f"did you mean {meant}?"
    if found := hub_id_of(path):
        return f"write {found}"
    in_folder = names_a_file(path) and not path.endswith(".gguf")
    return "name the folder, not a file in it" if in_folder else "check the path"


def _is_cached(repository: str) -> bool:
    try:
        from huggingface_hub.constants import HF_HUB_CACHE
    except ImportError:
        return False
    return os.path.isdir(os.path.join(HF_HUB_CACHE, "models--" + repository.replace("/", "--")))


def is_cached_repository(path: str) -> bool:
    """True for a repository's folder in the hub's cache, which holds snapshots and no model itself."""
    return os.path.isdir(os.path.join(os.path.expanduser(path), "snapshots"))


def _snapshot(folder: str, revision: str | None) -> str:
    """Return the snapshot that a repository's folder in the hub's cache means; any other folder as it is."""
    snapshots = os.path.join(folder, "snapshots")
    if not is_cached_repository(folder):
        return folder
    held = sorted(os.listdir(snapshots))
    wanted = revision
    try:
        with open(os.path.join(folder, "refs", revision or "main"), encoding="utf-8") as file:
            wanted = file.read().strip()
    except OSError:
        if revision is None and len(held) == 1:
            wanted = held[0]
    found = [name for name in held if wanted and name.startswith(wanted)]
    if len(found) == 1:
        return os.path.join(snapshots, found[0])
    what = f"has no snapshot of {revision or 'main'}; it holds {', '.join(held) or 'none'}"
    raise CheckpointError(f"{folder}: is a repository in the hub's cache and {what} (name one of them as a revision)")


def _download(repository: str, revision: str | None) -> str:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    where = repository + (f"@{revision}" if revision else "")
    try:
        info = HfApi().model_info(repository, revision=revision)
        wanted = needed_files([file.rfilename for file in info.siblings or ()])
        return snapshot_download(repository, revision=info.sha, allow_patterns=wanted)
    except CheckpointError as error:
        raise CheckpointError(f"{where}: {error}") from None
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
    """Return the files of a repository that a merge needs: one copy of the weights, as ``open_checkpoint`` takes it.

    Repositories hold their weights in several formats and precisions (``consolidated.safetensors``,
    ``model.fp16.safetensors``, ``original/``), of which transformers loads one.

    Raises:
        CheckpointError: there are several models in GGUF and nothing else, of which one must be chosen; or none in a
            format that is read here, before anything is downloaded.
    """
    top = [name for name in files if "/" not in name]
    adapters = [name for name in ADAPTER if name in top][:1]
    small = [
        name for name in files if _MODULE_FILES.fullmatch(name) or ("/" not in name and name.endswith(_SMALL_FILES))
    ]
    weights = _weights(top)
    if not weights and not adapters:
        found = "".join(f"; it holds {text}" for text in describe_repository(files))
        raise CheckpointError(f"the repository holds no weights that are read here{found}")
    return [*weights, *adapters, *small]


def _weights(top: list[str]) -> list[str]:
    for single, index, shard in zip(SINGLE, INDEX, _SHARDS, strict=True):
        if single in top:
            return [single]
        if index in top:
            # A shard may have any name; other copies of the weights have telling ones.
            usual = [name for name in top if shard.fullmatch(name)]
            ending = os.path.splitext(single)[1]
            return usual or [name for name in top if name.endswith(ending) and not _OTHER_COPY.search(name)]
    models = models_in(top)
    if len(models) > 1:
        names = ", ".join(model[0] for model in models)
        raise CheckpointError(
            f"holds {len(models)} models in GGUF: {names} (download one with hf download, and name its file)"
        )
    return models[0] if models else []
