"""How good a folder is, as its user measures it: a command, or a function of Python."""

from __future__ import annotations

import importlib
import importlib.util
import math
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import FastmergeError

Score = Callable[[str], float]

_FUNCTION = re.compile(r"(?P<module>[A-Za-z_][\w.]*|.+\.py):(?P<name>[A-Za-z_]\w*)")


def scorer_of(text: str) -> Score:
    """Return the function that ``text`` means: it takes the folder of a model and returns a number.

    ``module:function`` and ``file.py:function`` are imported, from the current folder too. All else is a command, whose
    words are split as a shell does: the folder takes the place of ``{}`` or is its last argument, and the last line
    that it prints is the number. No shell is started.

    Raises:
        FastmergeError: there is no such function; from the function that is returned: the command fails or its last
            line is no number.
    """
    match = _FUNCTION.fullmatch(text.strip())
    if match is None:
        return _command(text)
    found = getattr(_module(match["module"]), match["name"], None)
    if not callable(found):
        raise FastmergeError(f"{text}: {match['module']} has no function {match['name']}")
    return found


def checked(value: Any, where: str) -> float:
    """Return a score as a float; FastmergeError where it is none."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if math.isnan(number):
        raise FastmergeError(f"the score of {where} is {value!r}; expected a number")
    return number


def _module(name: str) -> Any:
    try:
        if name.endswith(".py"):
            spec = importlib.util.spec_from_file_location(Path(name).stem, name)
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            return module
        if os.getcwd() not in sys.path:
            sys.path.insert(0, os.getcwd())
        return importlib.import_module(name)
    except (ImportError, OSError) as error:
        raise FastmergeError(f"{name}: cannot be imported: {error}") from error


def _command(text: str) -> Score:
    words = shlex.split(text)
    if not words:
        raise FastmergeError("the score is empty; expected a command or module:function")

    def score(folder: str) -> float:
        filled = [word.replace("{}", folder) for word in words]
        filled += [] if filled != words else [folder]
        try:
            done = subprocess.run(filled, stdout=subprocess.PIPE, text=True, check=True)
        except OSError as error:
            raise FastmergeError(f"{words[0]}: cannot be run: {error.strerror}") from error
        except subprocess.CalledProcessError as error:
            raise FastmergeError(f"{shlex.join(filled)}: ended with status {error.returncode}") from error
        lines = [line for line in done.stdout.splitlines() if line.strip()]
        return checked(lines[-1].strip() if lines else "", f"{folder} by {words[0]}")

    return score
