"""The reader of safetensors headers: right files agree with the library, every kind of wrong file is refused."""

from __future__ import annotations

import json

import pytest
import torch
from checkpoint_files import read_entry, write_raw
from safetensors.torch import save_file

from fastmerge.checkpoint import DTYPES, read_header
from fastmerge.errors import CheckpointError

F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_reads_what_the_library_writes(tmp_path, dtype):
    # Bytes, because torch does not convert to every dtype.
    shapes: dict[str, tuple] = {"b": (3, 5), "a": (), "empty": (0, 4), "c": (7,)}
    if "float4" in str(dtype):
        del shapes["a"]  # two values need an extent to be packed in
    size = dtype.itemsize
    tensors = {
        name: torch.randint(0, 2, (*shape, size), dtype=torch.uint8).view(dtype.torch).view(shape)
        for name, shape in shapes.items()
    }
    path = tmp_path / "m.safetensors"
    save_file(tensors, path, {"format": "pt"})
    file, entries = read_header(str(path))
    assert entries.keys() == tensors.keys()
    assert (file.nbytes, len(file.header_digest)) == (path.stat().st_size, 64)
    assert list(entries.values()) == sorted(entries.values(), key=lambda entry: entry.offset)
    for name, tensor in tensors.items():
        got = read_entry(entries[name])
        assert (got.dtype, got.shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(got.view(-1).view(torch.uint8), tensor.view(-1).view(torch.uint8))


def test_identity_follows_the_header_and_not_the_place(tmp_path):
    digests = []
    for name, header in (("x", {"a": F32}), ("y", {"a": F32}), ("z", {"b": F32})):
        digests.append(read_header(str(write_raw(tmp_path / name, header, bytes(8))))[0].header_digest)
    assert digests[0] == digests[1] != digests[2]


def entry(**changes):
    return {"a": F32 | changes}


HOSTILE = {
    "empty file": (b"", "is empty"),
    "four bytes": (b"1234", "starts with 8 bytes"),
    "absurd length": ((2**63 - 1).to_bytes(8, "little") + b"{}", "header length 9223372036854775807 exceeds"),
    "length beyond file": ((100).to_bytes(8, "little") + b"{}", "header length 100 exceeds"),
    "not utf-8": ((2).to_bytes(8, "little") + b"\xff\xfe", "not valid JSON"),
    "not json": ((2).to_bytes(8, "little") + b"{x", "not valid JSON"),
    "deep json": ((10**5).to_bytes(8, "little") + b"[" * 10**5, "not valid JSON"),
    "a list": ((2).to_bytes(8, "little") + b"[]", "not a JSON object"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_refuses_hostile_files(tmp_path, kind):
    raw, message = HOSTILE[kind]
    path = tmp_path / "m.safetensors"
    path.write_bytes(raw)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_header(str(path))
    assert str(path) in str(caught.value) and "download" in str(caught.value)


ONE = json.dumps(F32)
HOSTILE_HEADERS = {
    "duplicate tensor": (f'{{"a": {ONE}, "a": {ONE}}}', 8, "'a' stands there twice"),
    "duplicate key": (
        '{"a": {"dtype": "F32", "dtype": "F16", "shape": [2], "data_offsets": [0, 8]}}',
        8,
        "stands there twice",
    ),
    "metadata": ({"__metadata__": {"a": 1}, "a": F32}, 8, "__metadata__"),
    "entry is a list": ({"a": [1]}, 8, "a: the entry has no"),
    "no shape": ({"a": {"dtype": "F32", "data_offsets": [0, 8]}}, 8, "a: the entry has no"),
    "unknown dtype": (entry(dtype="F31"), 8, "a: unknown dtype 'F31'"),
    "dtype is a list": (entry(dtype=[1]), 8, "a: unknown dtype"),
    "shape is text": (entry(shape="2"), 8, "a: shape '2'"),
    "negative extent": (entry(shape=[-2]), 8, "a: shape"),
    "float extent": (entry(shape=[2.0]), 8, "a: shape"),
    "bool extent": (entry(shape=[True, 2]), 8, "a: shape"),
    "float offset": (entry(data_offsets=[0, 8.0]), 8, "a: shape .* or data_offsets"),
    "three offsets": (entry(data_offsets=[0, 8, 9]), 8, "a: data_offsets"),
    "size disagrees": (entry(data_offsets=[0, 6]), 6, "hold 6 bytes, its shape 8"),
    "overflowing shape": (entry(shape=[2**62, 2**62]), 8, "hold 8 bytes"),
    "hole at start": (entry(data_offsets=[8, 16]), 16, "leave a hole"),
    "hole": ({"a": F32, "b": F32 | {"data_offsets": [16, 24]}}, 24, "b: .* leave a hole"),
    "overlap": ({"a": F32, "b": F32 | {"data_offsets": [4, 12]}}, 12, "b: .* overlap"),
    "the same range": ({"a": F32, "b": F32}, 8, "b: .* overlap"),
    "negative offset": (entry(data_offsets=[-8, 0]), 0, "overlap"),
    "truncated": ({"a": F32}, 7, "has .* bytes, its header describes"),
    "trailing bytes": ({"a": F32}, 9, "has .* bytes, its header describes"),
}


@pytest.mark.parametrize("kind", HOSTILE_HEADERS)
def test_refuses_hostile_headers(tmp_path, kind):
    header, size, message = HOSTILE_HEADERS[kind]
    path = write_raw(tmp_path / "m.safetensors", header, bytes(size))
    with pytest.raises(CheckpointError, match=message) as caught:
        read_header(str(path))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("dtype", ["F6_E2M3", "F6_E3M2"])
def test_a_valid_dtype_that_torch_does_not_have(tmp_path, dtype):
    path = write_raw(tmp_path / "m.safetensors", entry(dtype=dtype, shape=[4], data_offsets=[0, 3]), bytes(3))
    with pytest.raises(CheckpointError, match=f"a is {dtype}, a dtype of quantized weights.*dequantize") as caught:
        read_header(str(path))
    assert "corrupt" not in str(caught.value)


def test_packed_values_fill_whole_bytes(tmp_path):
    path = write_raw(tmp_path / "m.safetensors", entry(dtype="F4", shape=[3], data_offsets=[0, 2]), bytes(2))
    with pytest.raises(CheckpointError, match=r"a: shape \[3\] does not fill whole bytes of F4"):
        read_header(str(path))


def test_metadata(tmp_path):
    metadata = {"format": "pt", "b": "a"}
    path = write_raw(tmp_path / "m.safetensors", {"__metadata__": metadata, "a": F32}, bytes(8))
    assert read_header(str(path))[0].metadata == metadata


def test_missing_file(tmp_path):
    with pytest.raises(CheckpointError, match="cannot be read: No such file"):
        read_header(str(tmp_path / "absent.safetensors"))


def test_files_with_one_header_have_places_and_metadata_of_their_own(tmp_path):
    paths = [write_raw(tmp_path / name, {"a": F32}, bytes(8)) for name in ("x", "y")]
    longer = write_raw(tmp_path / "z", {"a": F32}, bytes(9))
    found = [read_header(str(path)) for path in paths]
    assert [entries["a"].path for _, entries in found] == list(map(str, paths))
    found[0][1].clear()
    assert list(read_header(str(paths[0]))[1]) == ["a"]
    with pytest.raises(CheckpointError, match="the file has"):
        read_header(str(longer))
