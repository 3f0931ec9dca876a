"""Golden outputs of other tools: one ``Golden`` per case and tensor, and the comparison with them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from fastmerge.kernels import use_backend
from fastmerge.methods import Group, Method, all_methods
from fastmerge.steps.driver import merge_source
from fastmerge.steps.source import Resident

FOLDER = Path(__file__).resolve().parents[1] / "data" / "goldens"


@dataclass
class Golden:
    """A method, what it is told, its inputs, and what the other tool returned.

    ``masks`` are the keep masks that a random method drew there, one per model; empty for the others.
    """

    case: str
    method: Method
    group: Group
    base: Tensor | None
    tensors: list[Tensor]
    out: Tensor
    masks: list[Tensor]

    @property
    def deltas(self) -> list[Tensor]:
        """The deltas, rounded to float32 as every tool computes them, in float64."""
        assert self.base is not None
        return [(t.float() - self.base.float()).double() for t in self.tensors]


def mergekit_cases(folder: Path) -> dict[str, dict]:
    """Return the cases of ``folder/mergekit`` whose method is registered, by name."""
    cases = json.loads((folder / "mergekit" / "cases.json").read_text())["cases"]
    return {name: case for name, case in cases.items() if case["method"] in all_methods()}


def peft_cases(folder: Path) -> dict[str, dict]:
    """Return the cases of ``folder/peft`` whose function is a registered method, by name."""
    cases = json.loads((folder / "profiles.json").read_text())
    return {
        name: case
        for name, case in cases.items()
        if name.startswith("peft/")
        and case["function"].removesuffix("_total").removesuffix("_frequency") in all_methods()
    }


def load_mergekit(folder: Path, name: str, case: dict) -> Iterator[Golden]:
    """Yield one golden per tensor of a mergekit case."""
    stored = load_file(folder / "mergekit" / f"{name}.safetensors")
    method = all_methods()[case["method"]]
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in case["parameters"].items()}
    for tensor in _names(stored, "out"):
        group = _group(method, "mergekit", tensor, stored[f"out.{tensor}"], case["experts"], given)
        base = stored[f"base.{tensor}"] if case["base"] else None
        tensors = [stored[f"expert{i}.{tensor}"] for i in range(case["experts"])]
        yield Golden(name, method, group, base, tensors, stored[f"out.{tensor}"], _masks(stored, tensor))


def load_peft(folder: Path, name: str, case: dict) -> Iterator[Golden]:
    """Yield one golden per tensor of a PEFT case; its deltas stand on a base of zeros."""
    stored = load_file(folder / f"{name}.safetensors")
    function, _, vote = case["function"].partition("ties_")
    method = all_methods()[function + ("ties" if vote else "")]
    count = len(case["weights"])
    given = {
        "weight": tuple(case["weights"]),
        "density": (case["density"],) * count,
        "majority_sign_method": vote or "total",
    }
    for tensor in _names(stored, "out"):
        out = stored[f"out.{tensor}"]
        tensors = [stored[f"delta{i}.{tensor}"] for i in range(count)]
        group = _group(method, "peft", tensor, out, count, given)
        yield Golden(name, method, group, torch.zeros_like(out), tensors, out, _masks(stored, tensor))


def _names(stored: dict[str, Tensor], prefix: str) -> list[str]:
    return [key.removeprefix(f"{prefix}.") for key in stored if key.startswith(f"{prefix}.")]


def _masks(stored: dict[str, Tensor], tensor: str) -> list[Tensor]:
    return [stored[key].bool() for key in sorted(stored) if key.startswith("mask") and key.endswith(f".{tensor}")]


def _group(method: Method, semantics: str, name: str, out: Tensor, models: int, given: dict) -> Group:
    known = method.parameters_of(semantics)
    defaults = {p.name: (p.default,) * models if p.per_model else p.default for p in known}
    values = defaults | {name: value for name, value in given.items() if name in defaults}
    return Group(name, tuple(out.shape), models, values, semantics=semantics)


def packed(kept: Tensor) -> Tensor:
    """Return a bool mask as the words of a keep rule."""
    bits = torch.zeros(-(-kept.numel() // 32) * 32, dtype=torch.int64)
    bits[: kept.numel()] = kept.flatten()
    words = (bits.view(-1, 32) << torch.arange(32)).sum(1)
    return (words - (words >> 31 << 32)).to(torch.int32)


Bound = Callable[[Golden], tuple[Tensor, Tensor]]
"""Returns how far a result may be off, and where it is compared."""


def check(golden: Golden, bound_of: Bound, monkeypatch: pytest.MonkeyPatch) -> None:
    """Merge the inputs of a golden, with its masks for random methods, and compare."""
    if golden.masks:
        # The reference backend draws its masks here; the other tool's random stream is not ours.
        monkeypatch.setattr(
            "fastmerge.kernels.keep.keep_mask",
            lambda key, model, drop, offset, count, device: golden.masks[model].flatten()[offset : offset + count],
        )

        def given_masks(masks, tensors, base, models, **_):
            for mask, ranked in zip(masks, models, strict=True):
                mask.copy_(packed(golden.masks[ranked.model]))

        monkeypatch.setattr("fastmerge.kernels.rank_mask", given_masks)
    out = torch.full_like(golden.out, float("nan"))
    with use_backend("reference" if golden.masks else None):
        merge_source(golden.method, golden.group, Resident(golden.base, golden.tensors), out)
    bound, compared = bound_of(golden)
    difference = (out.double() - golden.out.double()).abs()
    where = f"{golden.case} {golden.group.name}"
    # Bands have two thresholds per model, and bfloat16 deltas many elements at each.
    least = 0.5 if "gamma" in golden.group.values else 0.75
    assert compared.double().mean() > least, f"{where}: only {compared.sum()} of {compared.numel()} are certain"
    worst = (difference / bound.clamp(min=torch.finfo(torch.float64).tiny))[compared].max().item()
    assert (difference <= bound)[compared].all(), f"{where}: {worst:.2f} times the bound"


def check_mergekit(method: str, bound_of: Bound, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare a method with all its goldens, those of the shared set too, where that is beside the repository."""
    for folder in (FOLDER, FOLDER.parents[3] / "shared" / "goldens"):
        if folder == FOLDER or folder.is_dir():
            cases = {name: case for name, case in mergekit_cases(folder).items() if case["method"] == method}
            assert cases, f"{method} has no golden in {folder}"
            for name, case in cases.items():
                for golden in load_mergekit(folder, name, case):
                    check(golden, bound_of, monkeypatch)
