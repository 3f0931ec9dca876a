"""Reader of PyTorch's zip format (``.bin``) that gives byte ranges, so that the same reads serve it.

The pickle is read by ``torch.load(weights_only=True, mmap=True)``: nothing but tensors is built, no code
runs, and no data is read. The old format without a zip has no such ranges and is refused.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import pickletools
import re
import zipfile
from typing import TYPE_CHECKING

from ..dtypes import ALL, dtype_of
from ..errors import CheckpointError
from .opening import open_weights
from .placeholders import placeholder
from .types import InputFile, TensorEntry

if TYPE_CHECKING:
    import torch

_HALF = re.compile("[\ud800-\udfff]")
_CONVERT = "load it in the tool that made it and save it with safetensors.torch.save_file"


def read_torch_zip(path: str) -> tuple[InputFile, dict[str, TensorEntry]]:
    """Return the identity of a ``.bin`` file and its tensors in the order of their offsets.

    Tensors that share storage (tied weights) are entries with the same range.

    Raises:
        CheckpointError: not a zip, unsafe, compressed, or tensors that are not contiguous.
    """
    try:
        status = os.stat(path)
        with open_weights(path) as file, zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            packed = next((m.filename for m in members if m.compress_type != zipfile.ZIP_STORED), None)
            if packed is not None:
                raise CheckpointError(f"{path}: {packed} is compressed ({_CONVERT})")
            starts = {data_start(file, m): m.file_size for m in members if "/data/" in m.filename}
            digest = hashlib.sha256(repr([(m.filename, m.header_offset, m.file_size, m.CRC) for m in members]).encode())
            for member in members:
                if member.filename.endswith("/byteorder") and archive.read(member) != b"little":
                    raise CheckpointError(f"{path}: is not little-endian ({_CONVERT})")
                if member.filename.endswith("/data.pkl"):
                    pickled = archive.read(member)
                    _refuse_allocations(path, pickled)
                    digest.update(pickled)
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"{path}: {placeholder(path) or f'cannot be read: {error.strerror}'}") from error
    except Exception as error:  # zipfile raises whatever it stumbles over in damaged names, extra fields and flags
        what = placeholder(path) or f"is not in PyTorch's zip format: {error} ({_CONVERT})"
        raise CheckpointError(f"{path}: {what}") from error
    entries = _locate(path, _load(path), starts)
    return InputFile(path, status.st_size, status.st_mtime_ns, digest.hexdigest()), entries


def _refuse_allocations(path: str, pickled: bytes) -> None:
    """Refuse a pickle that takes memory by itself: torch.load lets ``bytearray`` be called with any size."""
    try:
        strings = {str(argument) for _, argument, _ in pickletools.genops(pickled) if isinstance(argument, str)}
    except Exception as error:  # of whatever kind the damage leads to; torch.load would stumble over it, too
        raise CheckpointError(f"{path}: holds a damaged pickle: {error} ({_CONVERT})") from error
    if any(text.split()[-1:] == ["bytearray"] for text in strings):
        raise CheckpointError(f"{path}: holds more than tensors and is not loaded: a bytearray ({_CONVERT})")


def data_start(file, member: zipfile.ZipInfo) -> int:
    """Return the offset of a member's data, behind its local header of 30 bytes, name and padding."""
    file.seek(member.header_offset)
    local = file.read(30)
    if len(local) < 30:
        raise zipfile.BadZipFile(f"{member.filename} lies outside the file")
    return member.header_offset + 30 + int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little")


def _load(path: str) -> dict[str, torch.Tensor]:
    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: holds more than tensors and is not loaded: {_global(error)} ({_CONVERT})"
        ) from error
    except Exception as error:  # What torch raises for damaged data depends on where it stumbles.
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{path}: cannot be read: {reason} ({_CONVERT})") from error
    if not isinstance(state, dict) or not all(_is_named(n) and isinstance(t, torch.Tensor) for n, t in state.items()):
        raise CheckpointError(f"{path}: is not a dictionary of tensors ({_remedy(path, state)})")
    return state


def _remedy(path: str, state: object) -> str:
    """Return what to do with a file that holds no model, or holds it under a key."""
    import torch

    inner = state.items() if isinstance(state, dict) else ()
    keys = [
        str(key) for key, value in inner
        if isinstance(value, dict) and any(isinstance(item, torch.Tensor) for item in value.values())
    ]  # fmt: skip
    if not keys:
        return _CONVERT
    convert = f"python -m torch.distributed.checkpoint.format_utils torch_to_dcp {os.path.basename(path)} FOLDER"
    return f"it holds {', '.join(keys[:4])}: run {convert} where you trust the file, and name FOLDER::{keys[0]}"


def _is_named(name: object) -> bool:
    """True for a name that can be written, without half of a character."""
    return isinstance(name, str) and not _HALF.search(name)


def _global(error: Exception) -> str:
    """Return the line of torch's long message that names what was refused."""
    lines = [line.strip() for line in str(error).splitlines()]
    return next((line for line in lines if "WeightsUnpickler error" in line or "GLOBAL" in line), lines[0])


def _locate(path: str, state: dict[str, torch.Tensor], starts: dict[int, int]) -> dict[str, TensorEntry]:
    """Turn the mapped tensors into ranges of the file: every storage is one member of the zip."""
    import torch

    for name, tensor in state.items():
        if tensor.layout != torch.strided or tensor.is_quantized or not tensor.is_contiguous():
            raise CheckpointError(f"{path}: {name} is sparse, quantized or not contiguous ({_CONVERT})")
        if str(tensor.dtype).removeprefix("torch.") not in ALL:
            raise CheckpointError(f"{path}: {name} is {tensor.dtype}, which no checkpoint holds ({_CONVERT})")
    stored = {name: tensor for name, tensor in state.items() if tensor.numel()}
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in stored.values()}
    # The mapping's address is not known: the lowest storage is the lowest member with data, and all others must fit.
    mapping = min(storages, default=0) - min((start for start, size in starts.items() if size), default=0)
    if any(starts.get(address - mapping) != nbytes for address, nbytes in storages.items()):
        raise CheckpointError(f"{path}: its tensors cannot be located in the zip ({_CONVERT})")
    entries = []
    for name, tensor in state.items():
        offset = tensor.data_ptr() - mapping if name in stored else 0
        nbytes = tensor.numel() * tensor.itemsize
        entries.append((name, TensorEntry(path, offset, nbytes, dtype_of(tensor.dtype), tuple(tensor.shape))))
    return dict(sorted(entries, key=lambda item: item[1].offset))
