"""``fastmerge moe``: a mixture of experts that is built from dense models, as mergekit-moe does."""

from __future__ import annotations

from typing import Any

import click

from ..errors import InvalidInput, Problem
from ._errors import Command
from ._garbage import collect_from_here
from ._mergekit import option_name
from ._options import RECIPE, together
from ._planning import planned, prepare_gpus, show_plans
from .merge import MERGING, run_plans

_HIDDEN_STATES = "hidden states are computed in the dtype of the base model"
_OF_MERGEKIT = {
    "--load-in-4bit": _HIDDEN_STATES,
    "--load-in-8bit": _HIDDEN_STATES,
    "--i-understand-this-is-not-useful-without-training": "nothing is asked",
}
_IGNORED = together(
    *(click.option(flag, is_flag=True, hidden=True, help=f"Nothing: {why}.") for flag, why in _OF_MERGEKIT.items())
)


@click.command(cls=Command)
@RECIPE
@click.argument("out", type=click.Path())
@MERGING
@_IGNORED
def moe(recipe: str, out: str, dry_run: bool, **given: Any) -> None:
    """Build a mixture of experts from the dense models of RECIPE, in the folder OUT.

    RECIPE is one of mergekit-moe: base_model, experts, gate_mode. Attention, norms and embeddings are the base's, the
    feed-forward blocks of every model are an expert. Routers are made of prompts by the base model, or at random.
    """
    said = [f"{flag} means nothing here: {why}" for flag, why in _OF_MERGEKIT.items() if given.pop(option_name(flag))]
    collect_from_here()  # hidden states of prompts are computed as it is planned
    if not dry_run:
        prepare_gpus(given)
    found = planned(recipe, given, said)
    if all(step.mixture is None for step in found.pipeline.steps):
        remedy = "merge it with fastmerge merge, or write base_model:, gate_mode: and experts:"
        raise InvalidInput([Problem(recipe, "is no recipe of a mixture of experts", remedy)])
    if dry_run:
        show_plans(found)
    else:
        run_plans(found, out)
