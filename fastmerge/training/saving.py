"""How averages are saved: into a folder that is there when it is whole, and as states that fit an averager."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import OutputError, Problem, explained
from ..sharded import local, mesh_of

__all__ = ["is_first_rank", "save_pretrained", "state_problems"]


def is_first_rank() -> bool:
    """Return whether this process writes what all ranks have."""
    import torch.distributed as dist

    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0


def save_pretrained(
    model: Any, folder: str | os.PathLike[str], tokenizer: Any, overwrite: bool, options: Mapping[str, Any]
) -> None:
    """Save a model, and a tokenizer if given, by their own methods; gathers what is sharded.

    The folder appears when it is complete. Of a sharded model, what fails on the first rank is raised on all.
    """
    mesh = mesh_of([dict(model.named_parameters())])
    if mesh is None:
        if is_first_rank():
            _save(model, folder, tokenizer, overwrite, options)
        return
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    from ..steps.shards import Agreement, Ranks

    ranks = Ranks(mesh)
    ranks.doing = f"saving {folder}"
    whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state = get_model_state_dict(model, options=whole)
    with Agreement(ranks):  # no rank goes on before the folder is there
        if is_first_rank():
            _save(model, folder, tokenizer, overwrite, {**options, "state_dict": state})


def _save(
    model: Any, folder: str | os.PathLike[str], tokenizer: Any, overwrite: bool, options: Mapping[str, Any]
) -> None:
    """Save on one rank."""
    target = Path(os.path.abspath(folder))
    if not overwrite and target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise OutputError(f"{target}: exists already; choose another folder, or say overwrite=True")
    partial, old = (target.with_name(f".{target.name}.{kind}") for kind in ("partial", "old"))
    with explained(str(target), "saving an average", keeps=False):
        for left in (partial, old):
            shutil.rmtree(left, ignore_errors=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        for part, given in ((model, options), (tokenizer, {})):
            if part is not None:
                part.save_pretrained(str(partial), **given)
        if target.exists():
            target.rename(old)
        partial.rename(target)
        shutil.rmtree(old, ignore_errors=True)


def state_problems(mine: Mapping[str, Any], given: Mapping[str, Any]) -> list[Problem]:
    """Find what keeps an averager with the state ``mine`` from taking over the one that is given."""
    if not isinstance(given, Mapping) or not {"step", "averages"} <= given.keys():
        return [Problem("state_dict", "is no state of an Averager", "load what its state_dict() returned")]
    if given["averages"].keys() != mine["averages"].keys():
        what = f"has the averages {', '.join(given['averages'])}; expected {', '.join(mine['averages'])}"
        return [Problem("state_dict", what, "make the averager as that of the run was made")]
    problems = []
    for name, average in mine["averages"].items():
        other = given["averages"][name]
        if other["rule"] != average["rule"]:
            problems.append(Problem(name, f"has the rule {other['rule']} in the state, {average['rule']} here"))
        elif other["kept"].keys() != average["kept"].keys():
            problems.append(Problem(name, f"keeps {len(other['kept'])} in the state, {len(average['kept'])} here"))
        else:
            for i, slot in average["kept"].items():
                problems += _tensor_problems(f"{name}[{i}]", slot, other["kept"][i])
    return problems


def _tensor_problems(where: str, mine: Mapping[str, Any], given: Mapping[str, Any]) -> list[Problem]:
    problems = [Problem(where, f"has no {name} in the state") for name in mine.keys() - given.keys()]
    problems += [Problem(where, f"has {name} in the state, and not here") for name in given.keys() - mine.keys()]
    for name in mine.keys() & given.keys():
        here, there = local(mine[name]), local(given[name])
        if (here.shape, here.dtype) != (there.shape, there.dtype):
            what = f"is {tuple(there.shape)} {there.dtype} in the state, {tuple(here.shape)} {here.dtype} here"
            problems.append(Problem(f"{where}[{name}]", what))
    return sorted(problems, key=str)
