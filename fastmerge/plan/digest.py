"""The hash of everything that decides the bytes of an output."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence

from ..checkpoint import InputFile
from ..methods import Group, get_method
from .types import InputTensor, OutputTensor, Shard

NUMERICS = 1
"""Version of the package's arithmetic: raised when a change makes the same plan write other bytes."""


def digest(
    outputs: Sequence[OutputTensor],
    shards: Sequence[Shard],
    files: Sequence[InputFile],
    semantics: str,
    seed: int,
    named: Mapping[str, Sequence[str]],
) -> str:
    """Return the plan's hash. Input files count by size and header, not by path or time.

    Files that parameters of methods name count by what the methods say of them.

    Args:
        named: the keys that lead to tensors in a state that is written, by their names; empty for the hub's layout.
    """
    numbers = {file.path: i for i, file in enumerate(files)}
    known: dict[int, str] = {}

    def source(tensor: InputTensor) -> str:
        if tensor.gathered is not None:
            order = hashlib.sha256(repr((tensor.gathered.runs, tensor.gathered.mean_from, tensor.shape)).encode())
            text = f"{order.hexdigest()}[{' '.join(map(source, tensor.gathered.sources))}]"
            return text if tensor.rounded is None else f"{text}>{tensor.rounded}"
        if tensor.made is not None:
            made = tensor.made
            text = hashlib.sha256(repr(made).encode() + made.data).hexdigest()
            return f"{text}:{tensor.dtype}" if tensor.rounded is None else f"{text}:{tensor.dtype}>{tensor.rounded}"
        # Dtype and shape follow from the file's header.
        text = f"{numbers[tensor.path]}:{tensor.offset}"
        if tensor.coded is not None:
            parts = ",".join(f"{numbers[part.path]}:{part.offset}" for part, _ in tensor.coded.parts)
            text += f"~{tensor.coded.decoder!r}({parts})"
        for a in tensor.adapters:
            text += f"+{a.kind}({' '.join(map(source, a.parts))} {a.scale!r} {a.detail}){'T' * a.transposed}"
        return text if tensor.rounded is None else f"{text}>{tensor.rounded}"

    def values(output: OutputTensor) -> str:
        if output.group is None:
            return ""
        key = id(output.group.values)
        if key not in known:
            known[key] = repr(sorted(output.group.values.items()))
        return f"{known[key]} {output.group.layout}"

    lines = [f"fastmerge numerics {NUMERICS} {semantics} {seed}"]
    lines += [f"{file.nbytes} {file.header_digest}" for file in files]
    lines += [
        f"{output.method} {output.inputs.base is not None} {values(output)} "
        + " ".join(map(source, output.inputs.every))
        + ("" if output.through is None else f" >{output.through}")
        for output in outputs
    ]
    lines += _identities(outputs)
    hasher = hashlib.sha256("\n".join(lines).encode())
    # The headers say names, dtypes, shapes and places of the outputs, in their order.
    for shard in shards:
        hasher.update(shard.filename.encode() + shard.header)
        for place, data in shard.around:
            hasher.update(str(place).encode() + data)
    for name, path in named.items():
        hasher.update(repr((name, path)).encode())
    return hasher.hexdigest()


def _identities(outputs: Sequence[OutputTensor]) -> Iterator[str]:
    groups: dict[str, list[Group]] = {}
    for output in outputs:
        if output.group is not None:
            groups.setdefault(output.method, []).append(output.group)
    for name, merged in groups.items():
        yield from get_method(name).identities(merged)
