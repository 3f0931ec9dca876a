"""Publishing finished merges on the Hugging Face hub, through its own client."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .engine.manifest import FILENAME, read_manifest
from .errors import CheckpointError, FastmergeError, InvalidInput, Problem

if TYPE_CHECKING:
    from huggingface_hub import HfApi

__all__ = ["Destination", "push_to_hub"]


class Destination:
    """A repository of models that a result is to be pushed to, checked before there is one.

    Args:
        repo_id: ``owner/name``.
        private: of a repository that is made; None takes the account's default.
        token:   of the hub; None takes that of ``hf auth login`` or HF_TOKEN.
    Raises:
        InvalidInput:   ``repo_id`` cannot be a repository, or huggingface_hub is not installed.
        FastmergeError: the hub does not know the token, or cannot be reached.
    """

    def __init__(self, repo_id: str, *, private: bool | None = None, token: str | None = None) -> None:
        self.repo_id, self.private = repo_id, private
        self._api = _api(token)
        _check_name(repo_id)
        try:
            self._api.whoami()
        except Exception as error:
            raise _failed(f"cannot push to {repo_id}", error) from error

    def push(self, folder: str | os.PathLike[str], *, message: str | None = None) -> str:
        """Upload a finished merge with its model card in one commit; return the address of the commit.

        Raises:
            InvalidInput:   ``folder`` is no finished result of fastmerge.
            FastmergeError: the hub refuses, or the connection breaks; nothing is committed then.
        """
        found = Path(folder)
        manifest = _manifest(found)
        try:
            self._api.create_repo(self.repo_id, private=self.private, exist_ok=True)
            commit = self._api.upload_folder(
                repo_id=self.repo_id, folder_path=found,
                commit_message=message or f"Merge by {manifest['method']}",
            )  # fmt: skip
        except Exception as error:
            raise _failed(f"{found} was not pushed to {self.repo_id}", error) from error
        return str(commit.commit_url)


def push_to_hub(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    message: str | None = None,
) -> str:
    """Upload a finished merge, with its model card and manifest, to the Hugging Face hub in one commit.

    Args:
        folder:  what ``merge`` wrote.
        repo_id: ``owner/name`` of a repository of models, which is made where there is none.
        private: of a repository that is made; None takes the account's default.
        token:   of the hub; None takes that of ``hf auth login`` or HF_TOKEN.
        message: of the commit.
    Returns:
        The address of the commit.
    Raises:
        InvalidInput:   ``folder`` is no finished result, ``repo_id`` is no name, or huggingface_hub is not installed.
        FastmergeError: the hub refuses or cannot be reached; the folder stays as it is.
    """
    _manifest(Path(folder))
    return Destination(repo_id, private=private, token=token).push(folder, message=message)


def _api(token: str | None) -> HfApi:
    try:
        from huggingface_hub import HfApi
    except ImportError:
        problem = Problem("push to the hub", "needs huggingface_hub", "pip install 'fastmerge[hub]'")
        raise InvalidInput([problem]) from None
    return HfApi(token=token, library_name="fastmerge")


def _check_name(repo_id: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise InvalidInput([Problem("repository", str(error), "give owner/name")]) from None


def _manifest(folder: Path) -> dict[str, Any]:
    """Return what a finished merge says of itself."""
    try:
        return read_manifest(folder)
    except CheckpointError as error:
        remedy = "push the folder that fastmerge merge wrote"
        raise InvalidInput([Problem(str(folder), f"holds no finished merge: no {FILENAME}", remedy)]) from error


def _failed(what: str, error: Exception) -> FastmergeError:
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    if isinstance(error, LocalTokenNotFoundError):
        return FastmergeError(f"{what}: no token of the hub (run hf auth login, or set HF_TOKEN)")
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, HfHubHTTPError) and status in (401, 403):
        return FastmergeError(f"{what}: the hub refuses the token ({status}); it has to be allowed to write there")
    return FastmergeError(f"{what}: {' '.join(str(error).split()) or type(error).__name__}")
