"""``python -m fastmerge``."""

from .cli import main

main(prog_name="fastmerge")
