"""A random merge: models in files of several kinds, and a recipe of any method."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
import yaml
from safetensors.torch import save_file
from tiny_models import llama_shapes, save_model
from torch import Tensor

from fastmerge.methods import BLOCKS, REQUIRED, Method, Parameter, all_methods, get_method

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
FILTERS = ("mlp", "self_attn", "embed", "norm", "q_proj", "layers.1", "odd")
KINDS = ("file", "shards", "archive", "distributed")
# Values that the declared range does not make sensible.
VALUES = {"epsilon": (1e-5, 0.1), "eps": (1e-6,), "tol": (1e-6,), "ridge": (1e-6,), "task": (0,), "max_iter": (1, 5),
          "heads": (0,), "kv_heads": (0,), "density": (0.02, 0.5, 0.73, 1), "gamma": (0, 0.15)}  # fmt: skip
FILES = ("fisher", "gram")


@dataclass
class Case:
    """A merge.

    Attributes:
        folder: of the models, and of outputs.
        recipe: with the models in files of any kind.
        plain:  with the same values in one file of safetensors each.
        models: these values, the base first.
        method: of the recipe.
        values: what the recipe sets, where every tensor has the same: what a merge in memory is told. None elsewhere.
    """

    folder: Path
    recipe: dict[str, Any]
    plain: dict[str, Any]
    models: list[dict[str, Tensor]]
    method: Method
    values: dict[str, Any] | None

    def text(self) -> str:
        return yaml.safe_dump(self.recipe, sort_keys=False)


def make_case(rng: Random, folder: Path) -> Case:
    """Write the models of a random merge into an empty folder."""
    method = get_method(rng.choice([name for name in all_methods() if name != "regmean"]))
    least, most = method.inputs
    count = rng.randint(least, most or max(least, 4))
    layers = rng.choice((1, 2, 3))
    models = _models(rng, count + 1, layers)
    based = method.base == "required" or (method.base == "optional" and rng.random() < 0.5)
    semantics = rng.choice(method.semantics)
    known = [p for p in method.parameters_of(semantics) if p.name not in FILES]
    uniform = rng.random() < 0.5
    recipe: dict[str, Any] = {"merge_method": method.name, "seed": rng.randrange(9)}
    if semantics != method.semantics[0]:
        recipe["semantics"] = semantics

    def settings(per_model: bool) -> dict[str, Any]:
        wanted = [p for p in known if p.per_model == per_model and (p.default is REQUIRED or rng.random() < 0.6)]
        return {p.name: value(rng, p) if uniform else setting(rng, p) for p in wanted}

    own = [settings(True) for _ in range(count)]
    recipe["parameters"] = settings(False)
    values = _values(recipe, own, known) if uniform else None
    if not uniform and rng.random() < 0.4:
        recipe["slices"] = _slices(rng, own, layers, based)
    else:
        recipe["models"] = [{"model": f"{k + 1}", "parameters": own[k]} for k in range(count)]
        if rng.random() < 0.2 and not uniform:
            recipe["rules"] = [{"filter": "norm", "source": "1"}]
    if method.adds_delta and not uniform and rng.random() < 0.3 and not method.name.endswith("_sb"):
        block = rng.choice(list(BLOCKS))
        recipe[block] = {"lines": {"beta": 0.5, "auto": rng.random() < 0.5}, "svc": {}, "boost": {"beta": 0.3}}[block]
    if rng.random() < 0.4:
        recipe["dtype"] = rng.choice(("float32", "bfloat16", "float16"))
    if based:
        recipe["base_model"] = "0"
    places = [_write(rng, folder / f"model{k}", tensors, layers) for k, tensors in enumerate(models)]
    plain = [str(save_model(folder / f"plain{k}", tensors, heads=2, kv_heads=1)) for k, tensors in enumerate(models)]
    return Case(folder, _named(recipe, places), _named(recipe, plain), models, method, values)


def value(rng: Random, parameter: Parameter) -> Any:
    """Return a legal value."""
    if parameter.name in VALUES:
        return rng.choice(VALUES[parameter.name])
    if parameter.choices:
        return rng.choice(parameter.choices)
    if parameter.kind is bool:
        return rng.random() < 0.5
    low = 0.1 if parameter.name == "weight" else -0.5 if parameter.minimum is None else parameter.minimum
    high = 1.5 if parameter.maximum is None else parameter.maximum
    return rng.randint(int(low), int(high) + 1) if parameter.kind is int else round(rng.uniform(low, high), 3)


def setting(rng: Random, parameter: Parameter) -> Any:
    """Return a value, a gradient, or values behind a filter."""
    if parameter.kind is float and rng.random() < 0.2:
        return [value(rng, parameter) for _ in range(rng.choice((2, 3)))]
    if rng.random() < 0.3:
        return [{"filter": rng.choice(FILTERS), "value": value(rng, parameter)}, {"value": value(rng, parameter)}]
    return value(rng, parameter)


def _models(rng: Random, count: int, layers: int) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(rng.getrandbits(40))
    # Every second one with a tensor of more than one cell of checksums.
    vocab = rng.choice((50, 4500))
    shapes = llama_shapes(layers=layers, hidden=16, inner=rng.choice((37, 40)), heads=2, kv_heads=1, vocab=vocab)
    if rng.random() < 0.4:
        shapes |= {"odd.scalar": (), "odd.none": (0, 4), "odd.cube": (3, 5, 7), "odd.row": (1, 33)}
    base = {name: 0.1 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    first, noise = rng.choice(FLOATS), rng.choice((1e-3, 0.05))
    mixed = rng.random() < 0.3
    models = []
    for k in range(count):
        dtype = rng.choice(FLOATS) if mixed else first
        changes = {name: noise * torch.randn(t.shape, generator=generator) for name, t in base.items()}
        models.append({name: (t + changes[name] * (k > 0)).to(dtype) for name, t in base.items()})
    return models


def _slices(rng: Random, own: list[dict[str, Any]], layers: int, based: bool) -> list[dict[str, Any]]:
    slices = []
    for _ in range(rng.choice((1, 2))):
        length = rng.randint(1, layers)

        def source(k: int, length: int = length, **more: Any) -> dict[str, Any]:
            start = rng.randint(0, layers - length)
            return {"model": f"{k}", "layer_range": [start, start + length], **more}

        sources = [source(k + 1, parameters=parameters) for k, parameters in enumerate(own)]
        slices.append({"sources": [*sources, *([source(0)] if based else [])]})
    return slices


def _values(recipe: dict[str, Any], own: list[dict[str, Any]], known: list[Parameter]) -> dict[str, Any]:
    values = {("lambda_" if key == "lambda" else key): value for key, value in recipe["parameters"].items()}
    for name in {name for settings in own for name in settings}:
        default = next(p.default for p in known if p.name == name)
        values[name] = [settings.get(name, default) for settings in own]
    return values


def _write(rng: Random, folder: Path, tensors: dict[str, Tensor], layers: int) -> str:
    kind = rng.choice(KINDS)
    save_model(folder, tensors, shards=rng.choice((2, 3)) if kind == "shards" else 1, heads=2, kv_heads=1)
    weights = folder / "model.safetensors"
    if kind == "archive":
        torch.save(tensors, folder / "pytorch_model.bin")
        weights.unlink()
    elif kind == "distributed":
        from torch.distributed import checkpoint

        weights.unlink()
        checkpoint.save({"model": tensors}, checkpoint_id=str(folder), no_dist=True)
    elif kind == "file":
        order = rng.sample(sorted(tensors), len(tensors))
        save_file({name: tensors[name] for name in order}, weights, {"format": "pt"})
    return str(folder)


def _named(recipe: dict[str, Any], places: list[str]) -> dict[str, Any]:
    """Return the recipe with the place of every model in place of its number."""
    named = json.loads(json.dumps(recipe))
    if "base_model" in named:
        named["base_model"] = places[int(named["base_model"])]
    for rule in named.get("rules", ()):
        rule["source"] = places[int(rule["source"])]
    for source in [*named.get("models", ()), *(s for part in named.get("slices", ()) for s in part["sources"])]:
        source["model"] = places[int(source["model"])]
    return named
