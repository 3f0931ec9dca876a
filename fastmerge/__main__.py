"""``python -m fastmerge``."""

from .cli import run

run()
