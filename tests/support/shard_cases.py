"""Merges of sharded models, from what methods declare: every method, its profiles, its choices, and its blocks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from parameter_values import example
from safetensors.torch import save_file

import fastmerge
from fastmerge.methods import BLOCKS, Method, Parameter, all_methods, get_method, why_not

# Uneven, empty on some ranks, one chunk of the grid, several, cut inside of one, not in order of any size.
SHAPES = {
    "wide": (5, 4000),
    "model.embed_tokens.weight": (151, 130),
    "one": (1, 3),
    "row": (1, 20000),
    "box": (3, 40, 5),
    "none": (0, 4),
    "bias": (7,),
    "norm": (17000,),
    "scale": (1,),
    "alpha": (),
    "model.layers.0.self_attn.q_proj.weight": (24, 18),
    "model.layers.0.self_attn.qkv_proj.weight": (24, 10),
    "model.layers.1.mlp.down_proj.weight": (9, 26),
    "model.layers.1.mlp.up_proj.weight": (1, 5),
    "model.layers.1.mlp.experts.up_proj": (2, 6, 8),
}
# Heads of the projections above: no config says them.
FIXED = {"heads": 2, "kv_heads": 1}
# What the files of a parameter hold, from the tensors of its model.
STATISTICS = {
    "fisher": lambda state: {name: tensor.float().square() for name, tensor in state.items()},
    "gram": lambda state: {
        name: tensor.float().T @ tensor.float() for name, tensor in state.items() if _is_small_matrix(tensor)
    },
}


@dataclass(frozen=True)
class Case:
    """One merge: ``arguments`` are those of ``merge_state_dicts``, beside base and models."""

    name: str
    method: str
    arguments: dict[str, Any] = field(default_factory=dict)
    based: bool = True

    def inputs(self, states: list[dict]) -> tuple[dict | None, list[dict]]:
        """The base and the models that the method takes."""
        base, *tuned = states
        return base if self.based else None, tuned[: get_method(self.method).inputs[1] or 2]

    def merge(self, base, tuned, **options) -> dict[str, torch.Tensor]:
        return fastmerge.merge_state_dicts(base, tuned, method=self.method, **self.arguments, **options)

    def merge_into(self, target, base, tuned) -> None:
        fastmerge.merge_(target, tuned, base=base, method=self.method, **self.arguments)


def models(seed: int, dtype=torch.bfloat16) -> list[dict[str, torch.Tensor]]:
    """A base and two fine-tunes with many equal magnitudes."""
    generator = torch.Generator().manual_seed(seed)
    base = {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in SHAPES.items()}
    return [base] + [
        {name: (t.float() + 0.01 * torch.randn(t.shape, generator=generator)).to(dtype) for name, t in base.items()}
        for _ in range(2)
    ]


def plain() -> list[Case]:
    """Every method as it is."""
    return [_case(method, method.name, method.semantics[0], {}) for method in all_methods().values()]


def varied() -> list[Case]:
    """Every other profile of a method, its other choices, its files, and all blocks that it takes, at once."""
    return [case for method in all_methods().values() for case in _variants(method)]


def write_statistics(states: list[dict]) -> None:
    """Write the files that cases name, to the current folder."""
    for name, content in STATISTICS.items():
        for i, state in enumerate(states[1:]):
            save_file({key: t.cpu() for key, t in content(state).items()}, f"{name}{i}.safetensors")


def _variants(method: Method) -> Iterator[Case]:
    for semantics in method.semantics[1:]:
        yield _case(method, f"{method.name} of {semantics}", semantics, {})
    own = method.parameters_of(method.semantics[0])
    others = {p.name: found for p in own if (found := _others(p))}
    for i in range(max(map(len, others.values()), default=0)):
        chosen = {name: values[i % len(values)] for name, values in others.items()}
        yield _case(method, f"{method.name} with other choices {i}", method.semantics[0], chosen)
    if files := [p.name for p in own if _is_file(p)]:
        paths = {name: [f"{name}{i}.safetensors" for i in range(method.inputs[1] or 2)] for name in files}
        yield _case(method, f"{method.name} with files", method.semantics[0], paths)
    if method.base == "optional":
        yield _case(method, f"{method.name} without a base", method.semantics[0], {}, based=False)
    if blocks := [name for name in BLOCKS if why_not(method, name) is None]:
        values = {name: {"beta": 0.5, "auto": True} if name == "lines" else {} for name in blocks}
        yield _case(method, f"{method.name} with blocks", method.semantics[0], values)


def _case(method: Method, name: str, semantics: str, chosen: dict[str, Any], based: bool = True) -> Case:
    values = {p.name: example(p) for p in method.parameters_of(semantics)}
    values = {"lambda_" if key == "lambda" else key: value for key, value in (values | chosen).items()}
    fixed = {key: value for key, value in FIXED.items() if key in values}
    return Case(name, method.name, values | fixed | {"semantics": semantics}, based and method.base != "ignored")


def _others(parameter: Parameter) -> list[Any]:
    values = parameter.choices or ((True, False) if parameter.kind is bool else ())
    return [value for value in values if value != example(parameter)]


def _is_file(parameter: Parameter) -> bool:
    return parameter.kind is str and not parameter.choices


def _is_small_matrix(tensor: torch.Tensor) -> bool:
    return tensor.dim() == 2 and tensor.numel() > 0 and tensor.shape[1] < 1000
