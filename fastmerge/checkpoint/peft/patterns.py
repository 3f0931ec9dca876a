"""Regular expressions that an adapter's config brings: matched as PEFT does, but never for ever."""

from __future__ import annotations

import functools
import importlib
import re
import sys
from typing import Any

from ...errors import CheckpointError

_PRIVATE = sys.version_info >= (3, 11)
parser: Any = importlib.import_module("re._parser" if _PRIVATE else "sre_parse")
constants: Any = importlib.import_module("re._constants" if _PRIVATE else "sre_constants")

MOST_REPEATS = 6


@functools.lru_cache(1024)
def compile_pattern(text: str, where: str) -> re.Pattern[str]:
    """Return the expression that matches a module by the end of its name, ``^(.*\\.)?(text)$``.

    Raises:
        CheckpointError: ``text`` is no regular expression, or one that can take exponential time.
    """
    try:
        tree = parser.parse(text)
        compiled = re.compile(rf"(.*\.)?({text})$")
    except (re.error, RecursionError, OverflowError) as error:
        what = f"{text!r} is no regular expression: {error}"
        raise CheckpointError(f"{where}: {what} (write q_proj, not *.q_proj)") from None
    if _repeats(tree, False) > MOST_REPEATS:
        raise CheckpointError(f"{where}: {text!r} repeats what repeats, which may take for ever (simplify it)")
    return compiled


def _repeats(tree: Any, inside: bool) -> int:
    """Return how many unbounded repeats an expression has; repeats and alternatives in one count as too many."""
    count = 0
    for kind, value in tree:
        unbounded = kind in (constants.MAX_REPEAT, constants.MIN_REPEAT) and value[1] > 64
        if unbounded:
            count += MOST_REPEATS + 1 if inside else 1
        if kind == constants.BRANCH and inside:
            count += MOST_REPEATS + 1
        for part in value if isinstance(value, (tuple, list)) else ():
            for inner in part if isinstance(part, list) else (part,):
                if isinstance(inner, parser.SubPattern):
                    count += _repeats(inner, inside or unbounded)
    return count
