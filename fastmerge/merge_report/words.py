"""What a merge did, in words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..engine.report import DOING
from ..pages import percent
from ..results import counted
from ..sizes import show_size

__all__ = ["sentences"]

MOST_NAMED = 8
# Share of a model's changes that go the other way in the merge from which on it is said.
REVERSED = 0.3


def sentences(summary: dict[str, Any]) -> Iterator[str]:
    """Yield what is to be known of the merge, the most important first."""
    count, models = summary["tensors"], summary["models"]
    done = [f"{count[what]} {what}" for what in ("merged", "copied") if count[what]]
    written = f"{counted(count['total'], 'tensor')}, {show_size(summary['bytes'])}"
    yield f"{summary['method']} of {counted(len(models), 'model')} wrote {written}: {' and '.join(done)}."
    if count["left_out"]:
        yield f"{count['left_out']} tensors of the inputs were left out; the table below says why."
    yield from _of_deltas(summary)
    yield from _of_values(summary["effects_without_base"])
    missing = count["merged"] - count["measured"]
    if missing:
        yield f"{missing} of the merged tensors are not measured; the table below says why."
    run = summary["run"]
    if run is not None:
        yield (
            f"The merge took {run['seconds']:.3g} s. {DOING[run['bounded_by']].capitalize()} alone takes "
            f"{run['bound_seconds']:.3g} s at the rates of this run: the merge took {run['distance']:.2f} times that."
        )
    yield from summary["notes"]


def _of_deltas(summary: dict[str, Any]) -> Iterator[str]:
    moved, effects = summary["moved"], summary["effects"]
    if moved is None or not effects:
        return
    sizes = sorted(effect["relative_norm"] for effect in effects if effect["relative_norm"] is not None)
    if sizes:
        models = percent(sizes[0]) if len(sizes) == 1 else f"{percent(sizes[0])} to {percent(sizes[-1])}"
        yield (
            f"The result is {percent(moved['relative_norm'])} of the base's norm away from the base; its models are "
            f"{models} away."
        )
    known = [effect for effect in effects if effect["cosine"] is not None]
    if known:
        near, far = (pick(known, key=lambda effect: effect["cosine"]) for pick in (max, min))
        text = f"Its change points most in the direction of {near['label']} (cosine {near['cosine']:.2f})"
        if near is not far:
            text += f", least in that of {far['label']} ({far['cosine']:.2f})"
        kept = ", ".join(f"{percent(effect['kept'])} of {effect['label']}" for effect in known[:MOST_NAMED])
        more = f" and of {len(known) - MOST_NAMED} more" if len(known) > MOST_NAMED else ""
        yield f"{text}. Along the direction of each change the merge keeps {kept}{more}."
    turned = [effect for effect in effects if (effect["reversed"] or 0.0) > REVERSED]
    if turned:
        names = ", ".join(f"{effect['label']} ({percent(effect['reversed'])})" for effect in turned[:MOST_NAMED])
        yield f"Of the elements that a model changed, many went the other way in the merge: {names}; 50 % is chance."


def _of_values(effects: list[dict[str, Any]]) -> Iterator[str]:
    known = [effect for effect in effects if effect["distance"] is not None]
    if known:
        near, far = (pick(known, key=lambda effect: effect["distance"]) for pick in (min, max))
        text = (
            f"Where there is no base, the result is nearest to {near['label']}, {percent(near['distance'])} of its norm"
        )
        if near is not far:
            text += f" away, and farthest from {far['label']} ({percent(far['distance'])})."
        yield text if near is not far else f"{text} away."
