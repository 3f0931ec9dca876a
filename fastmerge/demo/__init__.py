"""A demonstration that needs no download: train a base and three fine-tunes, merge them, measure before and after."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from ..api import merge, verify
from ..errors import OutputError
from ..pages.svg import Scale, cells, standalone
from .model import Size, load, save
from .tasks import LANGUAGES, VOCAB, Dictionaries, vocabulary
from .training import accuracy, answer, fine_tune, train_base

__all__ = ["PICTURE", "Example", "Row", "claim", "draw", "example", "run_demo"]

# Marks a folder as one that the demo made, and may work in again.
MARK = "demo.txt"
MARK_TEXT = "Made by `fastmerge demo`, which replaces its models, merges and recipes here when it is run again.\n"
PICTURE = "accuracies.svg"

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


@dataclass(frozen=True)
class Example:
    """A sentence of a language, what it means, and what models make of it, by name."""

    language: str
    sentence: str
    meaning: str
    answers: dict[str, str]


def claim(folder: Path) -> None:
    """Make ``folder`` the demo's, or find that it is.

    Raises:
        OutputError: something else is there, or a recipe that is no longer as the demo wrote it; or what is in the
            current directory has the name of a model of the demo, and its recipes would mean it.
    """
    if folder.exists() and not (folder / MARK).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(f"{folder} is not empty; choose another folder with --out")
    for name in ("base", *LANGUAGES):
        if os.path.exists(name) and os.path.realpath(name) != os.path.realpath(folder / name):
            raise OutputError(f"{os.path.abspath(name)} has the name of a model of the demo; start the demo elsewhere")
    for method in RECIPES:
        path = folder / f"{method}.yml"
        if path.exists() and path.read_text() != _recipe(method):
            raise OutputError(
                f"{path} was changed since the demo wrote it; rename it, or choose another folder with --out"
            )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARK).write_text(MARK_TEXT)


def run_demo(folder: Path, seed: int, say: Callable[[str], None]) -> Iterator[Row]:
    """Train, merge and verify under ``folder``, and yield a row per model: base, fine-tunes, then the merges.

    What an earlier demo made there is replaced. Claim the folder before.
    """
    words = Dictionaries(seed)
    say(f"training a base model on half of the words of {len(LANGUAGES)} made-up languages ...")
    base = train_base(words, seed)
    save(base, folder / "base", vocabulary())
    yield measured(folder, "base", words)
    for i, language in enumerate(LANGUAGES):
        say(f"fine-tuning a copy of it on all words of {language} ...")
        save(fine_tune(base, words, i, seed + 1 + i), folder / language, vocabulary())
        yield measured(folder, language, words)
    for method in RECIPES:
        path = folder / f"{method}.yml"
        path.write_text(_recipe(method))
        report = merge(path, folder / method, seed=seed, overwrite=True)
        checked = verify(folder / method)
        state = "bit for bit as recomputed" if checked.ok else f"{len(checked.mismatches)} tensors differ"
        say(f"merged by {method} in {report.seconds:.2f} s, verified: {state}")
        yield measured(folder, method, words)


def measured(folder: Path, name: str, words: Dictionaries) -> Row:
    """Return the row of the model ``name``."""
    model = load(folder / name, Size(VOCAB))
    return Row(name, tuple(accuracy(model, words, i) for i in range(len(LANGUAGES))))


def example(folder: Path, seed: int, names: Sequence[str] = ("base", "ties")) -> Example:
    """Return a sentence of words that the base was never taught, and what models make of it."""
    words, spoken, language = Dictionaries(seed), vocabulary(), 0
    tokens = words.unknown(language)
    sentence, meaning = (" ".join(spoken[token] for token in row) for row in (tokens, words.meaning(tokens)))
    answers = {
        name: " ".join(spoken[token] for token in answer(load(folder / name, Size(VOCAB)), tokens)) for name in names
    }
    return Example(LANGUAGES[language], sentence, meaning, answers)


def draw(rows: Sequence[Row]) -> str:
    """Return the table of accuracies as a picture (SVG)."""
    grid = [(*row.accuracies, row.average) for row in rows]
    names = [row.name for row in rows]
    title = "Share of words translated correctly"
    return standalone(cells(grid, names, [*LANGUAGES, "average"], Scale(0.0, 1.0), title, "", written=True))


def _recipe(method: str) -> str:
    per_model, overall = RECIPES[method]
    recipe: dict = {"merge_method": method}
    if method != "linear":
        recipe["base_model"] = "base"
    recipe["models"] = [{"model": name, "parameters": dict(per_model)} for name in LANGUAGES]
    if overall:
        recipe["parameters"] = dict(overall)
    recipe["dtype"] = "bfloat16"
    return f"# Models are named from this folder.\n{yaml.safe_dump(recipe, sort_keys=False)}"
