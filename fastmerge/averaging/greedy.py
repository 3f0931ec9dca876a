"""Greedy soups: checkpoints join an average, best first, while its score does not fall."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..engine.workplace import SCORES
from ..recipe.references import parse_reference
from ..results import Result
from .scoring import Score, checked


@dataclass(frozen=True)
class Trial:
    """One average that was scored, and whether it is better, or as good, than what there was before."""

    models: tuple[str, ...]
    score: float
    kept: bool


@dataclass(frozen=True, repr=False)
class GreedySoup(Result):
    """What a search found.

    Attributes:
        models: in the order in which they joined; the soup is their mean, added up in this order.
        score:  of the soup.
        trials: everything that was scored: each model alone in the order given, then the averages.
        report: of the merge that wrote the soup.
    """

    models: tuple[str, ...]
    score: float
    trials: tuple[Trial, ...]
    report: Any = None

    def __str__(self) -> str:
        alone = sum(len(trial.models) == 1 for trial in self.trials)
        return f"soup of {len(self.models)} of {alone} checkpoints, score {self.score:g}"

    def facts(self) -> list[tuple[str, str]]:
        return [("part", model) for model in self.models]


@dataclass(frozen=True)
class Greedy:
    """A search.

    Attributes:
        score:    takes a folder and returns a number.
        place:    takes models and a folder, and returns a folder with their average: that folder, or one that is there.
        scratch:  where candidates and scores lie meanwhile.
        minimize: True where less is better.
        key:      says what ``score`` measures: scores in ``scratch`` of the same key are taken over. None takes none.
        said:     is called with every trial.
    """

    score: Score
    place: Callable[[Sequence[str], str], str]
    scratch: Path
    minimize: bool = False
    key: str | None = None
    said: Callable[[Trial], None] | None = None

    def search(self, models: Sequence[str]) -> GreedySoup:
        """Return the soup of ``models`` (Wortsman et al. 2022, arXiv 2203.05482, recipe 1).

        All are scored alone and put in the order of their scores, the order given where these are equal. The best one
        begins; each of the others joins if the score of the average with it is at least as good as that without it.
        """
        trials = [self._tried([model]) for model in models]
        sign = 1 if self.minimize else -1
        first, *others = sorted(range(len(models)), key=lambda i: sign * trials[i].score)
        soup, best = [models[first]], trials[first].score
        for i in others:
            trials.append(self._tried([*soup, models[i]], best))
            if trials[-1].kept:
                soup, best = [*soup, models[i]], trials[-1].score
        return GreedySoup(tuple(soup), best, tuple(trials))

    def _tried(self, models: Sequence[str], best: float | None = None) -> Trial:
        """Score an average; it is kept if it is not worse than ``best``."""
        known, stamp = self._known(), json.dumps([_stamp(model) for model in models])
        score = known.get(stamp)
        if score is None:
            candidate = str(self.scratch / "candidate")
            folder = self.place(models, candidate)
            try:
                score = checked(self.score(folder), " + ".join(models))
            finally:
                shutil.rmtree(candidate, ignore_errors=True)
            self._write(known | {stamp: score})
        kept = best is None or (score <= best if self.minimize else score >= best)
        trial = Trial(tuple(models), score, kept)
        if self.said is not None:
            self.said(trial)
        return trial

    def _known(self) -> dict[str, float]:
        """Return the scores of an earlier search that was interrupted, by what was scored."""
        try:
            values = json.loads((self.scratch / SCORES).read_text())
        except (OSError, ValueError):
            return {}
        return values["scores"] if self.key is not None and values["key"] == self.key else {}

    def _write(self, scores: dict[str, float]) -> None:
        if self.key is None:
            return
        new = self.scratch / f"{SCORES}.new"
        new.write_text(json.dumps({"key": self.key, "scores": scores}))
        os.replace(new, self.scratch / SCORES)


def _stamp(model: str) -> list[Any]:
    """Return what says that a model has not changed: its name, and names, sizes and times of its files."""
    reference = parse_reference(model)
    folders = [part.path for part in (reference, reference.lora) if part is not None]
    files = [path for folder in folders if os.path.isdir(folder) for path in sorted(Path(folder).iterdir())]
    return [model, *([path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files if path.is_file())]
