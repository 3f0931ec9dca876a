"""Plans of a recipe of several documents, of which later ones use the results of earlier ones."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..recipe.pipeline import Pipeline, with_folders
from ..recipe.types import Recipe
from .build import make_plan
from .types import Plan


@contextlib.contextmanager
def plan_all(pipeline: Pipeline, **planning: Any) -> Iterator[list[Plan]]:
    """Yield the plans of all steps, as ``make_plan``: what is wrong with a later step is found before any is merged.

    Inside the block, intermediate results are stood in for by files that have their headers and no data.
    """
    plans: list[Plan] = []
    folders: dict[str, str] = {}
    several = len(pipeline.steps) > 1
    if several:
        import tempfile
    place = tempfile.TemporaryDirectory(prefix="fastmerge-") if several else contextlib.nullcontext("")
    with place as scratch:
        for step in pipeline.steps:
            plan = make_plan(with_folders(step, folders), **planning_of(step, pipeline, planning))
            plans.append(plan)
            if step.name and several:
                folders[step.name] = _stand_in(plan, Path(scratch) / step.name)
        yield plans


def planning_of(step: Recipe, pipeline: Pipeline, planning: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of ``make_plan`` for a step: what others use is no checkpoint of training."""
    return dict(planning) if pipeline.is_result(step) else {**planning, "state": None}


def _stand_in(plan: Plan, folder: Path) -> str:
    """Write what planning needs of a result: its small files, and weights that are all header."""
    folder.mkdir()
    for name, file in plan.files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with file.open() as source, open(path, "wb") as target:
            shutil.copyfileobj(source, target)
    for shard in plan.shards:
        with open(folder / shard.filename, "wb") as weights:
            weights.write(shard.header)
            weights.truncate(shard.nbytes)
    if plan.index is not None:
        (folder / "model.safetensors.index.json").write_text(plan.index, encoding="utf-8")
    return str(folder)
