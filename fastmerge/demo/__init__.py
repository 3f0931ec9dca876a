"""A demonstration that needs no download: train a base and three fine-tunes, merge them, measure before and after."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from ..api import merge, verify
from .model import Size, load, save
from .tasks import LANGUAGES, VOCAB, Dictionaries
from .training import accuracy, fine_tune, train_base

__all__ = ["Row", "run_demo"]

RECIPES: dict[str, tuple[dict[str, float], dict[str, float]]] = {
    # name of the method: parameters of each model, parameters of the merge
    "linear": ({"weight": 1.0}, {}),
    "task_arithmetic": ({"weight": 0.7}, {}),
    "ties": ({"weight": 1.0, "density": 0.5}, {"lambda": 1.4}),
    "dare_linear": ({"weight": 0.7, "density": 0.7}, {}),
}


@dataclass(frozen=True)
class Row:
    """A model of the demo and the share of words that it translates correctly, per language."""

    name: str
    accuracies: tuple[float, ...]

    @property
    def average(self) -> float:
        return sum(self.accuracies) / len(self.accuracies)


def run_demo(folder: Path, seed: int, say: Callable[[str], None]) -> Iterator[Row]:
    """Train, merge and verify under ``folder``, and yield a row per model: base, fine-tunes, then the merges.

    Raises:
        OutputError: a merge of an earlier demo lies in ``folder``.
    """
    words = Dictionaries(seed)

    def measured(name: str) -> Row:
        model = load(folder / name, Size(VOCAB))
        return Row(name, tuple(accuracy(model, words, i) for i in range(len(LANGUAGES))))

    say(f"training a base model on half of the words of {len(LANGUAGES)} made-up languages ...")
    base = train_base(words, seed)
    save(base, folder / "base")
    yield measured("base")
    for i, language in enumerate(LANGUAGES):
        say(f"fine-tuning a copy of it on all words of {language} ...")
        save(fine_tune(base, words, i, seed + 1 + i), folder / language)
        yield measured(language)
    for method in RECIPES:
        path = folder / f"{method}.yml"
        path.write_text(_recipe(method, folder))
        report = merge(path, folder / method, seed=seed)
        checked = verify(folder / method)
        state = "bit for bit as recomputed" if checked.ok else f"{len(checked.mismatches)} tensors differ"
        say(f"merged by {method} in {report.seconds:.2f} s, verified: {state}")
        yield measured(method)


def _recipe(method: str, folder: Path) -> str:
    per_model, overall = RECIPES[method]
    recipe: dict = {"merge_method": method}
    if method != "linear":
        recipe["base_model"] = str(folder / "base")
    recipe["models"] = [{"model": str(folder / name), "parameters": dict(per_model)} for name in LANGUAGES]
    if overall:
        recipe["parameters"] = dict(overall)
    recipe["dtype"] = "bfloat16"
    return yaml.safe_dump(recipe, sort_keys=False)
