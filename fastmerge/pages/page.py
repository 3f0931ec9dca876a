"""A page: sections of text, tables and pictures in one HTML file that loads nothing."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from . import svg

if TYPE_CHECKING:
    from jinja2 import Template

__all__ = ["Page", "Section", "Table", "percent"]


@dataclass(frozen=True)
class Table:
    """Rows of texts.

    Attributes:
        head:    of the columns; empty for names and values.
        caption: stands above.
        folded:  the caption is shown alone until it is opened.
        words:   so many columns at the left hold words; numbers stand at the right of theirs.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    folded: bool = False
    words: int = 1


@dataclass(frozen=True)
class Section:
    """A part of a page, in this order.

    Attributes:
        title:    empty for the part on top.
        text:     what it shows, in words; an empty line parts paragraphs.
        pictures: as SVG.
        tables:   above the pictures.
        box:      what is to be seen first.
        quoted:   text of a file.
    """

    title: str
    text: str
    pictures: Sequence[str] = ()
    tables: Sequence[Table] = ()
    box: str = ""
    quoted: str = ""


@dataclass(frozen=True)
class Page:
    """``files``: what lies beside the page, by name, and what each holds."""

    title: str
    sections: Sequence[Section]
    files: Mapping[str, str] = field(default_factory=dict)

    def html(self) -> str:
        """Return the page."""
        return _template().render(page=self, style=svg.STYLE)


@functools.cache
def _template() -> Template:
    import jinja2

    text = Path(__file__).with_name("page.html.jinja").read_text(encoding="utf-8")
    return jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(text)


def percent(share: float | None) -> str:
    """Return a share in percent with three digits, and nothing for a number that does not exist."""
    return "" if share is None or math.isnan(share) else f"{100 * share:.3g} %"
