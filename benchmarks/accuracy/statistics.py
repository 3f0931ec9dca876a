"""The methods that weigh by statistics of data: files with drawn ones, and the formulas that read them."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from .formulas import Case, formula


@functools.cache
def files(kind: str, name: str, shape: tuple[int, int], models: int) -> tuple[str, ...]:
    """Return files with the statistics of every model for one tensor; they go when the process ends.

    ``fisher`` are squares of gradients N(0, 1), ``gram`` the inputs N(0, 1), mixed, of 512 tokens.
    """
    folder, generator = Path(_folder().name), torch.Generator().manual_seed(models)
    paths = [folder / f"{kind}-{shape[0]}x{shape[1]}-{i}.safetensors" for i in range(models)]
    for path in paths:
        if kind == "fisher":
            values = torch.randn(shape, generator=generator).square()
        else:
            mix = torch.randn(shape[1], shape[1], generator=generator) / shape[1] ** 0.5
            inputs = torch.randn(512, shape[1], generator=generator) @ mix
            values = inputs.T @ inputs / len(inputs)
        save_file({name: values}, path)
    return tuple(map(str, paths))


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="fastmerge-accuracy-")


def _read(c: Case, kind: str, dtype: torch.dtype) -> list[Tensor]:
    return [next(iter(load_file(path).values())).to(dtype) for path in c[kind]]


@formula("fisher")
def fisher(c: Case) -> Tensor:
    dtype = c.tensors[0].dtype
    diagonals = [values / values.norm() for values in _read(c, "fisher", dtype)]
    shares = [w * (values + c["floor"]) for w, values in zip(c.weights, diagonals, strict=True)]
    return sum(share * x for share, x in zip(shares, c.tensors, strict=True)) / sum(shares)


@formula("regmean")
def regmean(c: Case) -> Tensor:
    """In float32 at least: there are no decompositions in less."""
    dtype = torch.promote_types(c.tensors[0].dtype, torch.float32)
    left = right = mean = 0
    for w, gram, x in zip(c.weights, _read(c, "gram", dtype), c.tensors, strict=True):
        kept = c["reduction"] * gram + (1 - c["reduction"]) * gram.diagonal().diag()
        left, right, mean = left + w * kept, right + w * kept @ x.to(dtype).T, mean + w * x.to(dtype).T
    ridge = c["ridge"] * left.diagonal().mean()
    left, right = left + ridge * torch.eye(len(left), dtype=dtype), right + ridge * mean / sum(c.weights)
    return torch.cholesky_solve(right, torch.linalg.cholesky(left)).T.to(c.tensors[0].dtype)
