"""``fastmerge --install-completion``: shells complete commands, options and paths."""

from __future__ import annotations

import os
from pathlib import Path

import click

from ..errors import OutputError, explained

SHELLS = ("bash", "zsh", "fish")
VARIABLE = "_FASTMERGE_COMPLETE"


def install(shell: str, command: click.Command) -> str:
    """Write the completion of ``shell`` ("auto": the one of $SHELL) where it finds it; return what to do now."""
    from click.shell_completion import get_completion_class

    if shell == "auto":
        shell = os.path.basename(os.environ.get("SHELL", ""))
    kind = get_completion_class(shell) if shell in SHELLS else None
    if kind is None:
        raise OutputError(f"the shell {shell!r} has no completion; name one: --install-completion {'|'.join(SHELLS)}")
    path = _place(shell)
    maker = kind(command, {}, "fastmerge", VARIABLE)
    with explained(str(path), "writing the completion", keeps=False):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(maker.source_template % maker.source_vars())
    if shell == "zsh":
        return f"{path} is written; put this in ~/.zshrc before compinit: fpath+=({path.parent})"
    needs = ", which needs the package bash-completion" if shell == "bash" else ""
    return f"{path} is written; a new {shell} completes fastmerge{needs}"


def _place(shell: str) -> Path:
    data = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return {
        "bash": data / "bash-completion" / "completions" / "fastmerge",
        "zsh": data / "zsh" / "site-functions" / "_fastmerge",
        "fish": config / "fish" / "completions" / "fastmerge.fish",
    }[shell]
