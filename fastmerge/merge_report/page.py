"""The page of a merge: what it did in words, its recipe, pictures of before and after, tensors, provenance."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..engine.report import DOING
from ..pages import Page, Section, Table
from ..plan.trust import listing
from ..sizes import show_size
from .measuring import Account
from .pictures import of_effects
from .tensors import MOST_ROWS, cut, of_tensors
from .words import sentences

__all__ = ["page_of"]

FILES = {
    "report.csv": "one row per tensor: what was done to it, norms, cosines, shares kept, checksum",
    "report.json": "the numbers of this page (schema in docs/merge_report.md)",
}


def page_of(account: Account, summary: dict[str, Any]) -> Page:
    """Return the page of a merge whose numbers are ``summary``."""
    first, *more = sentences(summary)
    sections = [
        Section("", "", box=first),
        Section("", "\n\n".join(more)),
        Section("Recipe", f"Semantics {summary['semantics']}, seed {summary['seed']}.", quoted=summary["recipe"]),
        *of_effects(account, summary),
        of_tensors(account),
        *_run(summary),
        _provenance(account, summary),
    ]
    return Page(f"Merge: {summary['output']}", sections, FILES)


def _run(summary: dict[str, Any]) -> Iterator[Section]:
    run = summary["run"]
    if run is None:
        return
    rate = show_size((run["bytes_read"] + run["bytes_written"]) / run["seconds"])
    facts = [
        ("read", show_size(run["bytes_read"])),
        ("written", show_size(run["bytes_written"])),
        ("time", f"{run['seconds']:.2f} s ({rate}/s), {run['cpu_seconds']:.2f} CPU-s on {run['threads']} threads"),
        ("bound", f"{DOING[run['bounded_by']]} alone takes {run['bound_seconds']:.2f} s at the rates of this run"),
        ("distance", f"the merge took {run['distance']:.2f} times that"),
        ("device", f"{', '.join(run['devices'])} ({run['device_reason']})"),
        ("peak memory", f"{show_size(run['peak_rss'])}, with the interpreter and its packages"),
    ]
    if run["peak_vram"]:
        facts.append(("peak on a GPU", show_size(run["peak_vram"])))
    if run["resumed"]:
        facts.append(("resumed", f"{run['resumed']} tensors were taken over from an interrupted run"))
    yield Section("The run", "", tables=[Table((), facts)])


def _provenance(account: Account, summary: dict[str, Any]) -> Section:
    versions = ", ".join(f"{name} {value}" for name, value in summary["versions"].items())
    facts = [
        *((model["label"], f"{model['model']}: {show_size(model['bytes'])} in {model['folder']}")
          for model in summary["models"]),
        ("versions", versions),
        ("plan", f"{summary['plan']}: the hash of all that decides the bytes of the output"),
        ("to check", "fastmerge verify on this folder recomputes every tensor and compares bits"),
    ]  # fmt: skip
    rows = [
        (row["model"], row["name"], row["kind"], show_size(row["bytes"]), row.get("header") or row.get("xxh3", ""))
        for row in listing(account.plan)
    ]
    head = ("model", "file", "kind", "size", "SHA-256 of the header, or xxh3")
    files = Table(head, rows[:MOST_ROWS], cut(f"The {len(rows)} files that were read", len(rows)), folded=True, words=3)
    text = "The checksum of every tensor is in report.csv, and with those of the inputs in fastmerge.json."
    return Section("Provenance", text, tables=[Table((), facts), files])
