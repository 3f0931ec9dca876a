"""What ``diff`` finds is the same without torch as with it."""

from __future__ import annotations

import math

import torch
from safetensors.torch import save_file

from fastmerge.checkpoint import open_checkpoint
from fastmerge.kernels import GRID, use_backend
from fastmerge.reports import comparing

NUMBERS = torch.tensor([0.0, -0.0, math.nan, math.inf, -math.inf, 1e-40, 3.0])


def test_every_type_of_element(tmp_path, generator, monkeypatch):
    # Several chunks of a tensor, the last one shorter.
    monkeypatch.setattr(comparing, "CHUNK", GRID)
    base = torch.cat([NUMBERS, torch.randn(2 * GRID + 5, generator=generator)])
    tuned = torch.where(torch.rand(len(base), generator=generator) < 0.5, base, base + 1)
    finite = [values.nan_to_num(0, 1, -1) for values in (base, tuned)]
    for folder, values, rest in (("a", base, finite[0]), ("b", tuned, finite[1])):
        tensors = {f"own.{kind}": rest.to(kind) for kind in (torch.float32, torch.bfloat16, torch.float16)}
        tensors |= {f"odd.{kind}": values.clone().to(kind) for kind in (torch.float32, torch.bfloat16, torch.float64)}
        kinds = (torch.int8, torch.int64, torch.bool, torch.complex64)
        tensors |= {f"not merged.{kind}": rest.to(kind) for kind in kinds}
        tensors["mixed"] = rest.clone().to(torch.bfloat16 if folder == "a" else torch.float32)
        tensors["empty"] = torch.zeros(0)
        (tmp_path / folder).mkdir()
        save_file(tensors, tmp_path / folder / "model.safetensors")
    found = [open_checkpoint(str(tmp_path / folder)) for folder in "ab"]
    without = list(comparing.compare(*found))
    with use_backend("reference"):
        with_torch = list(comparing.compare(*found))
    assert list(map(repr, without)) == list(map(repr, with_torch)) and len(without) == 12
    own = next(item for item in without if item.name == "own.torch.float32")
    assert own.changed == (finite[0] != finite[1]).double().mean().item() and own.cosine < 1
