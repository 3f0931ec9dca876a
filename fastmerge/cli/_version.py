"""``fastmerge --version``."""

from __future__ import annotations

import click

from .. import __version__


def show_version(as_json: bool) -> None:
    """Print the version, as JSON with those of Python and of what merging uses."""
    if not as_json:
        click.echo(f"fastmerge {__version__}")
        return
    import platform

    from ..reports.versions import REQUIRED, version_of
    from ._output import print_json

    packages = {name: version_of(name) for name in REQUIRED}
    print_json({"fastmerge": __version__, "python": platform.python_version(), "packages": packages})
