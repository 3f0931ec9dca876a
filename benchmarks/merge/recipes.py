"""The recipes that both tools get, in mergekit's format, and how many of the models each reads."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from .checkpoints import EXPERTS, model_names

WEIGHTS = (0.5, 0.3, 0.2)


@dataclass(frozen=True)
class Recipe:
    """A merge method with its models: ``inputs`` of base, expert1, expert2, ... are read."""

    method: str
    inputs: int

    def write(self, path: Path, models: Path) -> None:
        """Write the recipe for the checkpoints under the folder ``models``. (JSON is YAML.)"""
        folders = [str(models / name) for name in model_names()[: self.inputs]]
        recipe: dict[str, object] = {"merge_method": self.method, "dtype": "bfloat16"}
        if self.method == "linear":
            weights = (0.4, 0.3, 0.2, 0.1)
            recipe["models"] = [
                {"model": f, "parameters": {"weight": w}} for f, w in zip(folders, weights, strict=True)
            ]
        elif self.method == "slerp":
            recipe |= {"base_model": folders[0], "models": [{"model": f} for f in folders], "parameters": {"t": 0.3}}
        else:
            recipe["base_model"] = folders[0]
            recipe["models"] = [
                {"model": f, "parameters": {"weight": w, "density": 0.5}}
                for f, w in zip(folders[1:], WEIGHTS, strict=True)
            ]
        path.write_text(json.dumps(recipe, indent=2) + "\n")


RECIPES = {
    recipe.method: recipe
    for recipe in (
        Recipe("linear", EXPERTS + 1),
        Recipe("slerp", 2),
        Recipe("ties", EXPERTS + 1),
        Recipe("dare_ties", EXPERTS + 1),
    )
}
