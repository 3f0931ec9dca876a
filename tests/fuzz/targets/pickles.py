"""What holds pickles: archives of torch.save, and folders of torch.distributed.checkpoint."""

from __future__ import annotations

import io
import json
import os
import pickle
import warnings
import zipfile
from functools import cached_property
from pathlib import Path
from random import Random

import torch

from fastmerge.checkpoint import open_checkpoint
from fastmerge.checkpoint.quantized import decoded

from ..mutations import change_bytes
from .target import Target, plan_and_run, tiny

DISTRIBUTED = Path(__file__).resolve().parents[2] / "data" / "distributed"


class Bin(Target):
    """Archives of torch.save."""

    @cached_property
    def _archive(self) -> bytes:
        buffer = io.BytesIO()
        torch.save({name: tensor[:2].clone() for name, tensor in tiny().items()}, buffer)
        return buffer.getvalue()

    def write(self, rng: Random, folder: Path) -> None:
        path = folder / "pytorch_model.bin"
        if not rng.randrange(2):
            path.write_bytes(change_bytes(rng, self._archive))
            return
        with zipfile.ZipFile(io.BytesIO(self._archive)) as archive:
            members = {member.filename: archive.read(member) for member in archive.infolist()}
        pickled = next(name for name in members if name.endswith("data.pkl"))
        members[pickled] = (
            change_bytes(rng, members[pickled]) if rng.randrange(2) else self._pickle(rng, members[pickled])
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of names that are there twice, which is meant
            with zipfile.ZipFile(path, "w", rng.choice((zipfile.ZIP_STORED,) * 7 + (zipfile.ZIP_DEFLATED,))) as archive:
                for name, data in members.items():
                    archive.writestr(rng.choice((name,) * 12 + ("../x", "/x", name + "x")), data)

    def _pickle(self, rng: Random, right: bytes) -> bytes:
        """Return a pickle that calls what a loader of weights may call, or what it must not."""
        call = rng.choice((
            ("builtins", "bytearray", (rng.choice((1, 10**9, 2**40)),)), ("collections", "OrderedDict", ()),
            ("torch._utils", "_rebuild_tensor_v2", (None, 0, (2,), (1,), False, None)), ("os", "system", ("true",)),
            ("torch", "Size", ((2**40, 2**40),)), ("torch", "device", ("cuda:9",)), ("builtins", "eval", ("1",)),
            ("torch._utils", "_rebuild_meta_tensor_no_storage", (torch.float32, (2**20, 2**20), (1, 1), False)),
            ("torch.nn.parameter", "Parameter", (rng.choice((None, 3)),)), ("builtins", "set", ([1],)),
            ("_codecs", "encode", ("a" * 9, "latin1")), ("collections", "Counter", ({"a": 1},)),
        ))  # fmt: skip
        module, function, arguments = call
        body = pickle.dumps(arguments, 2)[2:-1]
        text = b"\x80\x02}q\x00X\x01\x00\x00\x00wc" + f"{module}\n{function}\n".encode() + body + b"Rs."
        return text if rng.randrange(3) else change_bytes(rng, text)

    def use(self, folder: Path) -> None:
        decoded(open_checkpoint(str(folder)))


class Distributed(Target):
    """Folders of torch.distributed.checkpoint: their metadata, and the archives in their files."""

    @cached_property
    def _files(self) -> dict[str, dict[str, bytes]]:
        kinds = ("step-1", "hf-2")
        return {kind: {path.name: path.read_bytes() for path in (DISTRIBUTED / kind).iterdir()} for kind in kinds}

    def write(self, rng: Random, folder: Path) -> None:
        files = dict(self._files[rng.choice(("step-1", "step-1", "step-1", "hf-2"))])
        for name in rng.sample(sorted(files), rng.choice((1, 1, 2))):
            if rng.randrange(12) == 0:
                del files[name]
            elif name == ".metadata" or rng.randrange(3):
                files[name] = self._changed(rng, files[name])
        if ".metadata" in files and not rng.randrange(6):
            files[".metadata"] = self._calls(rng)
        for name, data in files.items():
            (folder / name).write_bytes(data)

    @staticmethod
    def _changed(rng: Random, data: bytes) -> bytes:
        kind = rng.randrange(3)
        if kind == 0:
            return change_bytes(rng, data)
        # A number or a name of a pickle becomes another one of its length.
        swaps = (
            (b"__0_0.distcp", rng.choice((b"__1_0.distcp", b"../../a/.../", b"/etc/passwd\0"))), (b"K\x06", b"K\xff"),
            (b"K\x02", b"K\x01"), (b"bfloat16", b"float8_e"), (b"Metadata", b"metadata"),
            (b"_StorageInfo", b"_StorageInfx"), (b"torch.serialization", b"torch.serializatiom"),
            (b"BFloat16Storage", b"UntypedxStorage"), (b"HalfStorage", b"LongStorage"),
            (b"saved_offsets", b"saved_offsetz"), (b"J\x00", b"J\xff"),
        )  # fmt: skip
        for _ in range(kind):
            old, new = rng.choice(swaps)
            data = data.replace(old, new, rng.choice((1, 3, -1)))
        return data

    @staticmethod
    def _calls(rng: Random) -> bytes:
        """Return a pickle that calls what it must not, or takes memory or time by itself."""
        module, function, arguments = rng.choice((
            ("builtins", "bytearray", (2**40,)), ("os", "system", ("true",)), ("torch", "Size", (("a",) * 9,)),
            ("torch", "load", ("x",)), ("torch.distributed.checkpoint.metadata", "Metadata", ()),
            ("torch.distributed.checkpoint.metadata", "_MEM_FORMAT_ENCODING", (0, 1)),
            ("collections", "OrderedDict", (1,)),
        ))  # fmt: skip
        call = f"{module}\n{function}\n".encode() + pickle.dumps(arguments, 2)[2:-1] + b"R."
        bomb = b"\x80\x04)" + b"\x94h\x00h\x00\x86" * 60 + b"}\x94h\x01K\x01s."
        memo = b"\x80\x02N" + b"r\xff\xff\xff\x7f."
        build = b"\x80\x02ctorch\nSize\n}X\x04\x00\x00\x00makeK\x01sb."
        return rng.choice((b"\x80\x02c" + call, b"\x80\x02c" + call, bomb, memo, build))

    def use(self, folder: Path) -> None:
        if os.listdir(folder):
            plan_and_run(f"merge_method: passthrough\nmodels: [{{model: {json.dumps(str(folder))}}}]\n", folder)
